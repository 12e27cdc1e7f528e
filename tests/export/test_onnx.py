"""The exporter on a tiny network: what is inside the file, who can run it, and that a bad one is never kept."""

import hashlib
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from seg.export import onnx_
from seg.export.derived import write_copy
from seg.export.head import offer_features
from seg.export.onnx_ import GOLDEN_EXTENT, OPSET, Parity, export, verify
from seg.infer import __version__
from seg.infer.artifact import Artifact, load
from seg.infer.backends import open_backend
from seg.infer.classes import Head
from seg.infer.errors import Exit, SegError
from seg.infer.selftest import golden_error
from seg.infer.spec import ModelSpec, Normalisation
from seg.train.networks import build_network
from seg.train.networks.vnet import VNet

SPEC = ModelSpec(
    name="tiny",
    labels=("background", "left atrium"),
    channels=("MR",),
    spacing=(1.25, 1.25, None),
    normalisation=Normalisation("fixed", -3.0, 4.0, 0.5, 2.0),
    window=(32, 16, 16),
    stride=(16, 16, 16),
    intensity_range=(0.0, 255.0),
    card={"license": "CC0", "training": {"seed": 1}},
)
SHAPES = [(1, 1, 16, 16, 16), (3, 1, 16, 48, 32), (2, 1, 64, 16, 16)]


def network() -> VNet:
    """Width 2, with batch-norm statistics and a dropout that must not act."""
    torch.manual_seed(0)
    module = VNet(width=2, dropout=0.5).train()
    with torch.no_grad():
        for _ in range(20):
            module(torch.randn(2, 1, 16, 16, 16))
    return module


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelSpec, Parity]:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    spec, parity = export(network(), SPEC, str(path))
    return path, spec, parity


@pytest.fixture(scope="module")
def artifact(exported: tuple[Path, ModelSpec, Parity]) -> Artifact:
    return load(str(exported[0]))


def torch_logits(x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = network().eval()(torch.from_numpy(x)).numpy()
    return logits


@pytest.mark.parametrize("half", [False, True])
def test_a_head_that_does_not_fit_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool) -> None:
    """The logits are right, and what the head makes of the features is not: no file is left. A right head passes."""
    path = tmp_path / "m.onnx"
    export(network(), SPEC, str(path), features=True, half=half)
    assert load(str(path)).head is not None
    write_copy(str(path), str(tmp_path / "copy.onnx"))
    path.unlink()

    def turned(proto: onnx.ModelProto) -> Head:
        head = offer_features(proto)
        return Head(-head.weight, head.bias + 1)

    monkeypatch.setattr(onnx_, "offer_features", turned)
    with pytest.raises(SegError, match="E-EXPORT-PARITY"):
        export(network(), SPEC, str(path), features=True, half=half)
    assert [p.name for p in tmp_path.iterdir()] == ["copy.onnx"]


def test_parity_with_torch(exported: tuple[Path, ModelSpec, Parity]) -> None:
    _, _, parity = exported
    assert 0 < parity.error < 1e-5
    assert parity.labels > 0.999


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_batch_and_extents_are_dynamic(exported: tuple[Path, ModelSpec, Parity], engine: str) -> None:
    run: Callable[[np.ndarray], np.ndarray]
    if engine == "openvino":
        run = open_backend("openvino", str(exported[0]), "cpu", threads=1).run
    else:
        session = onnxruntime.InferenceSession(str(exported[0]), providers=["CPUExecutionProvider"])
        run = lambda x: session.run(["logits"], {"image": x})[0]  # noqa: E731
    for number, shape in enumerate(SHAPES):
        x = np.random.default_rng(number).standard_normal(shape, dtype=np.float32)
        expected = torch_logits(x)
        found = run(x)
        assert found.shape == (shape[0], 2, *shape[2:])
        assert golden_error(found, expected) < 1e-5


def bare(proto: onnx.ModelProto) -> tuple[list[object], list[object]]:
    """A graph without its names: per node operator, attributes, inputs by where they come from; and its ends."""
    graph, made = proto.graph, {"": "none", proto.graph.input[0].name: "image"}
    made |= {t.name: (tuple(t.dims), numpy_helper.to_array(t).tobytes()) for t in graph.initializer}
    nodes: list[object] = []
    for number, node in enumerate(graph.node):
        attributes = sorted((a.name, a.SerializeToString(deterministic=True)) for a in node.attribute)
        nodes.append((node.op_type, attributes, [made[name] for name in node.input]))
        made |= {name: (number, place) for place, name in enumerate(node.output)}
    ends = (*graph.input, *graph.output)
    return nodes, [(v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in ends]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flat"),
    [("vnet", False), ("unet2d", True)],
)
def test_convolutions_are_traced_at_one_extent(name: str, flat: bool) -> None:
    """A third of the time, and the graph is the one that the exporter makes for all extents."""
    spec = replace(SPEC, window=(32, 32, 1), stride=(16, 16, 1), dims=2) if flat else SPEC
    module = build_network(name, 1, 2, 2, 0.5).eval()
    sample, axes = onnx_.sample_and_axes(spec)
    assert bare(onnx_._convert(module, spec)) == bare(onnx_._traced(module, sample, axes))


class Folded(torch.nn.Module):
    """Its graph holds extents, unless they are traced as unknown."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return y.flatten(2).softmax(2).reshape(y.shape) + y


def test_what_holds_extents_is_traced_for_all(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = str(tmp_path / "model.onnx")
    _, parity = export(Folded(), SPEC, path)
    assert parity.error < 1e-5
    assert "Reshape" in {node.op_type for node in onnx.load(path).graph.node}


def test_file_is_valid_onnx_of_one_opset(exported: tuple[Path, ModelSpec, Parity]) -> None:
    model = onnx.load(str(exported[0]))
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import if not o.domain] == [("", OPSET)] == [("", 21)]
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert not [t.name for t in model.graph.initializer if t.external_data]
    fixed = [bool(d.dim_value) for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert fixed == [False, True, False, False, False]
    assert "Dropout" not in {node.op_type for node in model.graph.node}


def test_spec_survives(exported: tuple[Path, ModelSpec, Parity], artifact: Artifact) -> None:
    _, spec, _ = exported
    assert artifact.spec == spec
    assert replace(spec, graph_sha256="", versions={}, cost=SPEC.cost) == SPEC
    assert spec.cost != SPEC.cost  # measured
    assert len(spec.graph_sha256) == 64
    assert spec.versions["seg-toolkit"] == __version__
    assert spec.versions["torch"] == torch.__version__.split("+")[0]


def test_golden_pair(exported: tuple[Path, ModelSpec, Parity], artifact: Artifact) -> None:
    golden = artifact.golden
    assert golden is not None
    assert golden.x.shape == (1, 1, *(GOLDEN_EXTENT * 16,) * 3)
    assert golden.x.std() > 0.9
    assert golden_error(torch_logits(golden.x.astype(np.float32)), golden.logits) < 1e-6
    backend = open_backend("openvino", str(exported[0]), "cpu", threads=1)
    found = backend.run(golden.x.astype(np.float32))
    assert golden_error(found, golden.logits) < 1e-5
    assert golden_error(found, golden.logits[:, ::-1]) > 0.01


def test_same_network_gives_the_same_bytes(exported: tuple[Path, ModelSpec, Parity], tmp_path: Path) -> None:
    export(network(), SPEC, str(tmp_path / "again.onnx"))
    first, again = (hashlib.sha256(p.read_bytes()).hexdigest() for p in (exported[0], tmp_path / "again.onnx"))
    assert first == again


def test_no_trace_of_this_machine(exported: tuple[Path, ModelSpec, Parity]) -> None:
    content = exported[0].read_bytes()
    here = Path(onnx_.__file__).resolve()
    traces = [".py", "site-packages", str(here.parents[1]), str(Path.home()) + "/", str(exported[0].parent)]
    traces += [socket.gethostname()] if len(socket.gethostname()) > 5 else []
    assert [trace for trace in traces if trace.encode() in content] == []


def test_size_is_that_of_weights_and_golden_pair(exported: tuple[Path, ModelSpec, Parity]) -> None:
    weights = 4 * sum(p.numel() for p in network().parameters())
    golden = 32**3 * (2 + 2 * 4) * 1.25
    assert weights < exported[0].stat().st_size < weights + golden + 60_000


def test_nothing_else_is_left_behind(exported: tuple[Path, ModelSpec, Parity]) -> None:
    assert [p.name for p in exported[0].parent.iterdir()] == ["model.onnx"]


@pytest.fixture
def quick(exported: tuple[Path, ModelSpec, Parity], monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversion answers with the graph converted before."""
    model = onnx.load(str(exported[0]))
    monkeypatch.setattr(onnx_, "_convert", lambda *_: model)


def test_conversion_is_reused(quick: None, exported: tuple[Path, ModelSpec, Parity], tmp_path: Path) -> None:
    export(network(), SPEC, str(tmp_path / "m.onnx"))
    assert (tmp_path / "m.onnx").read_bytes() == exported[0].read_bytes()


@pytest.mark.parametrize("fault", ["tolerance", "weights", "nan"])
def test_unproven_export_leaves_no_file(quick: None, tmp_path: Path, fault: str) -> None:
    module, options = network(), {}
    with torch.no_grad():
        if fault == "tolerance":
            options = {"tolerance": 0.0}
        elif fault == "weights":
            module.head.weight[1] *= 1.01
        else:
            module.head.bias[0] = float("nan")
    (tmp_path / "old.onnx").write_bytes(b"before")
    for name in ("new.onnx", "old.onnx"):
        with pytest.raises(SegError) as caught:
            export(module, SPEC, str(tmp_path / name), **options)
        assert (caught.value.code, caught.value.exit) == ("E-EXPORT-PARITY", Exit.MODEL)
    assert [p.name for p in tmp_path.iterdir()] == ["old.onnx"]
    assert (tmp_path / "old.onnx").read_bytes() == b"before"


def test_place_that_cannot_be_written(quick: None, tmp_path: Path) -> None:
    with pytest.raises(SegError) as caught:
        export(network(), SPEC, str(tmp_path / "none" / "m.onnx"))
    assert (caught.value.code, caught.value.exit) == ("E-OUT-DIR", Exit.OUTPUT)


def test_it_is_verified_hidden_beside_the_target(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[Path, list[str]]]()

    def watched(module: VNet, path: str, *arguments: object) -> Parity:
        seen.append((Path(path), [p.name for p in tmp_path.iterdir()]))
        return Parity(0.0, 1.0)

    monkeypatch.setattr(onnx_, "verify", watched)
    export(network(), SPEC, str(tmp_path / "m.onnx"))
    [(place, names)] = seen
    assert place.parent.parent == tmp_path
    assert [name[0] for name in names] == ["."]
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_tampered_graph_is_refused(exported: tuple[Path, ModelSpec, Parity], tmp_path: Path) -> None:
    model = onnx.load(str(exported[0]))
    model.graph.node[0].name += "x"
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(model.SerializeToString(deterministic=True))
    with pytest.raises(SegError) as caught:
        load(str(changed))
    assert (caught.value.code, caught.value.exit) == ("E-MODEL-TAMPERED", 20)


def test_tampered_weights_are_refused(exported: tuple[Path, ModelSpec, Parity], tmp_path: Path) -> None:
    model = onnx.load(str(exported[0]))
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data)).raw_data
    content = bytearray(exported[0].read_bytes())
    content[content.index(weights) + 2] ^= 1
    (tmp_path / "bit.onnx").write_bytes(content)
    with pytest.raises(SegError) as caught:
        load(str(tmp_path / "bit.onnx"))
    assert caught.value.code == "E-MODEL-TAMPERED"


def test_verify_notices_another_network(exported: tuple[Path, ModelSpec, Parity]) -> None:
    torch.manual_seed(1)
    other = VNet(width=2).eval()
    with torch.no_grad():
        other.head.bias.copy_(other.head.bias.flip(0))  # mostly foreground
    parity = verify(other, str(exported[0]), [(16, 16, 16)])
    assert parity.error > 0.01
    assert parity.labels < 1


def test_module_is_left_in_evaluation_mode(quick: None, tmp_path: Path) -> None:
    module = network()
    assert module.training
    export(module, SPEC, str(tmp_path / "m.onnx"))
    assert not any(part.training for part in module.modules())
