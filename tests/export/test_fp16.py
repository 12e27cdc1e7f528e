"""Half precision: half the size, float32 at both ends, the same labels in every engine that is here."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from seg.export import fp16
from seg.export.onnx_ import export
from seg.infer.artifact import load
from seg.infer.backends import open_backend
from seg.infer.errors import SegError
from seg.infer.spec import ModelSpec, Normalisation
from seg.train.networks.vnet import VNet

pytestmark = pytest.mark.usefixtures("converted_once")

SPEC = ModelSpec(
    name="tiny",
    labels=("background", "one", "two"),
    channels=("MR",),
    spacing=(1.0, 1.0, 1.0),
    normalisation=Normalisation(),
    window=(32, 32, 32),
    stride=(16, 16, 16),
    card={"license": "CC0"},
)


def network() -> VNet:
    torch.manual_seed(1)
    return VNet(classes=3, width=4).eval()


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("fp16") / "half.onnx")
    export(network(), SPEC, path, half=True)
    return path


def test_the_file(half: str, tmp_path: Path) -> None:
    """Weights are float16, input and output float32; the card says so; exported again it has the same bytes."""
    proto = onnx.load(half)
    onnx.checker.check_model(proto, full_check=True)
    kinds = {tensor.data_type for tensor in proto.graph.initializer if len(tensor.dims) == 5}
    assert kinds == {onnx.TensorProto.FLOAT16}
    ends = [proto.graph.input[0], proto.graph.output[0]]
    assert {end.type.tensor_type.elem_type for end in ends} == {onnx.TensorProto.FLOAT}
    assert load(half).spec.card["precision"] == "fp16"
    assert load(half).spec.card["license"] == "CC0"
    again, full = tmp_path / "again.onnx", tmp_path / "full.onnx"
    export(network(), SPEC, str(again), half=True)
    export(network(), SPEC, str(full))
    assert again.read_bytes() == Path(half).read_bytes()
    weights = [sum(len(t.raw_data) for t in onnx.load(p).graph.initializer) for p in (half, str(full))]
    assert weights[0] < 0.52 * weights[1]


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_labels_are_those_of_torch(half: str, engine: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 1, 32, 48, 16), dtype=np.float32)
    with torch.inference_mode():
        expected = network()(torch.from_numpy(x)).numpy()
    backend = open_backend(engine, half, "cpu")
    found = backend.run(x)
    backend.close()
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= fp16.TOLERANCE * np.ptp(expected)
    margin = np.diff(np.sort(expected, axis=1)[:, -2:], axis=1)[:, 0]
    sure = margin > 2 * fp16.TOLERANCE * np.ptp(expected)
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(found.argmax(axis=1)[sure], expected.argmax(axis=1)[sure])


def test_what_float16_cannot_hold_is_not_kept(tmp_path: Path) -> None:
    """Weights beyond float16's range are cut by the conversion: the comparison with torch notices."""
    module = network()
    with torch.no_grad():
        module.head.weight.mul_(1e7)
    with pytest.raises(SegError, match="E-EXPORT-PARITY"):
        export(module, SPEC, str(tmp_path / "m.onnx"), half=True)
    assert list(tmp_path.iterdir()) == []


def test_norms_that_share_their_weights() -> None:
    """Two LayerNormalizations with one scale, as an exporter that merges equal weights writes them: no name twice."""
    from onnx import TensorProto, helper, numpy_helper

    value = helper.make_tensor_value_info
    scale = numpy_helper.from_array(np.ones(8, np.float32), "scale")
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale"], ["a"], axis=-1),
        helper.make_node("LayerNormalization", ["a", "scale"], ["y"], axis=-1),
    ]
    ends = [value("x", TensorProto.FLOAT, [2, 8])], [value("y", TensorProto.FLOAT, [2, 8])]
    graph = helper.make_graph(nodes, "norms", *ends, initializer=[scale])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(fp16.to_half(proto), full_check=True)
