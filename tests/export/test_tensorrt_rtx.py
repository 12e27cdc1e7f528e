"""REAL TensorRT-RTX, on a processor: every network in every precision is parsed and built. Nothing is run.

Its parser and builder are those of TensorRT 11 with another back end, so this proves that the graphs are ones that
TensorRT takes, and that our build code calls it rightly. It proves no speed, and no logits.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from seg.export import int8, onnx_
from seg.export.onnx_ import export
from seg.export.plan_build import BuildOptions, build_plan
from seg.export.tensorrt_ import graph_of, profile_shapes
from seg.infer.errors import SegError
from seg.infer.spec import ModelSpec, Normalisation
from seg.train.networks import NETWORKS, build_network

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings")  # fmt: skip  # noqa: E501
QUICK = ("vnet", "unet2d")  # the exporter takes a minute for a network with attention
PRECISIONS = ("fp32", "fp16", "int8")


def spec_of(network: Any) -> ModelSpec:
    stride = network.stride
    return ModelSpec(
        name="tiny",
        labels=("background", "one", "two"),
        channels=("MR",),
        spacing=(1.0, 1.0, 1.0),
        normalisation=Normalisation(),
        window=tuple(2 * s if s > 1 else 1 for s in stride),
        stride=stride,
        dims=network.dims,
        tiling=getattr(network, "tiling", "free"),
    )


@pytest.fixture(
    scope="module", params=[n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in sorted(NETWORKS)]
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Precision -> artifact."""
    torch.manual_seed(0)
    network = build_network(request.param, channels=1, classes=3, width=8, dropout=0.0).eval()
    spec, folder = spec_of(network), tmp_path_factory.mktemp(request.param)
    paths = {name: str(folder / f"{name}.onnx") for name in PRECISIONS}
    export(network, spec, paths["fp32"])
    fp32 = onnx.load(paths["fp32"])
    with pytest.MonkeyPatch.context() as patch:  # the conversion from torch takes seconds
        patch.setattr(onnx_, "_convert", lambda *_: fp32)
        export(network, spec, paths["fp16"], half=True)
    x = np.random.default_rng(0).standard_normal((1, 1, *spec.window), dtype=np.float32)
    graph = int8.quantised(fp32, [x], next(iter(int8.float_sets(fp32.graph))))
    onnx.helper.set_model_props(graph, {p.key: p.value for p in fp32.metadata_props})
    Path(paths["int8"]).write_bytes(graph.SerializeToString(deterministic=True))
    paths["spec"] = spec.to_json()
    return paths


def build(graph: bytes, spec: ModelSpec, say: Any = lambda _: None, **options: Any) -> bytes:
    given = BuildOptions(**{"batches": (1, 2, 2), **options})
    return build_plan(trt, graph, profile_shapes(spec, given), given, say)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_variant_is_built(exported: dict[str, str], precision: str) -> None:
    plan = build(graph_of(exported[precision]), ModelSpec.from_json(exported["spec"]))
    weights = sum(len(t.raw_data) for t in onnx.load(exported[precision]).graph.initializer)
    assert len(plan) > 0.5 * weights


SPEC = ModelSpec("one", ("a", "b"), ("MR",), (1, 1, 1), Normalisation(), (16, 16, 16), (16, 16, 16))


def graph_with(nodes: list[Any], tensors: list[Any], opset: int = 21, kind: int = TensorProto.FLOAT) -> bytes:
    shape = ["n", 1, "x", "y", "z"]
    entry = helper.make_tensor_value_info("image", kind, shape)
    result = helper.make_tensor_value_info("logits", kind, ["n", 2, "x", "y", "z"])
    graph = helper.make_graph(nodes, "one", [entry], [result], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10).SerializeToString()


def weights(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> Any:
    values = np.random.default_rng(0).standard_normal(shape)
    return helper.make_tensor(name, kind, shape, values.ravel())


def convolution() -> bytes:
    return graph_with([helper.make_node("Conv", ["image", "w"], ["logits"])], [weights("w", 2, 1, 1, 1, 1)])


def test_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seg.export.plan_build.QUIET_SECONDS", 0.0)
    said: list[str] = []
    assert build(convolution(), SPEC, said.append)
    assert said
    assert all(line.startswith("building: ") and " of " in line for line in said)


def test_a_signal_ends_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seg.export.plan_build.QUIET_SECONDS", 0.0)

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(convolution(), SPEC, interrupt)


def test_unknown_operator_is_refused() -> None:
    with pytest.raises(SegError, match=r"E-TRT-PARSE: TensorRT does not take this graph .*NotThere"):
        build(graph_with([helper.make_node("NotThere", ["image"], ["logits"])], []), SPEC)


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(SegError, match="E-TRT-PARSE"):
        build(b"no graph at all", SPEC)


def test_bf16_transposed_convolution_is_refused() -> None:
    """Known of TensorRT: there is no implementation. bf16 is therefore not among our precisions."""
    node = helper.make_node("ConvTranspose", ["image", "w"], ["logits"], strides=[2, 2, 2])
    graph = graph_with([node], [weights("w", 1, 2, 2, 2, 2, kind=TensorProto.BFLOAT16)], 22, TensorProto.BFLOAT16)
    with pytest.raises(SegError, match="E-TRT-"):
        build(graph, SPEC)


def test_int32_bias_is_refused() -> None:
    """What ONNX Runtime's own quantisation writes by default; ours keeps biases in float."""
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.1])
    bias = helper.make_tensor("b32", TensorProto.INT32, [2], [1, 2])
    nodes = [
        helper.make_node("DequantizeLinear", ["b32", "s"], ["b"]),
        helper.make_node("Conv", ["image", "w", "b"], ["logits"]),
    ]
    with pytest.raises(SegError, match="E-TRT-"):
        build(graph_with(nodes, [weights("w", 2, 1, 1, 1, 1), scale, bias]), SPEC)


def test_another_number_of_channels_is_refused() -> None:
    two = ModelSpec("two", ("a", "b"), ("MR", "CT"), (1, 1, 1), Normalisation(), (16, 16, 16), (16, 16, 16))
    with pytest.raises(SegError, match=r"E-TRT-PARSE: .*found other inputs"):
        build(convolution(), two)


def test_a_second_output_is_left_out(tmp_path: Path) -> None:
    proto = onnx.load_from_string(convolution())
    proto.graph.node.append(helper.make_node("Identity", ["image"], ["features"]))
    proto.graph.output.append(helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 1, "x", "y", "z"]))
    onnx.save(proto, tmp_path / "m.onnx")
    graph = graph_of(str(tmp_path / "m.onnx"))
    assert [o.name for o in onnx.load_from_string(graph).graph.output] == ["logits"]
    assert build(graph, SPEC)


@pytest.mark.parametrize(
    "options",
    [
        {"window": (16, 24, 16)},  # TensorRT itself takes it
        {"window": (0, 16, 16)},
        {"batches": (2, 2, 4)},
        {"batches": (1, 4, 2)},
    ],
)
def test_profiles_that_would_fail_later_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SegError, match="E-TRT-PROFILE") as caught:
        profile_shapes(SPEC, BuildOptions(**options))
    assert caught.value.exit == 2
