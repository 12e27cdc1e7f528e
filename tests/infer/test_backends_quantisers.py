"""Eight-bit activations in OpenVINO: unsigned after a ReLU, same range and half the step; others keep their scale."""

from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from seg.infer import models
from seg.infer.backends import openvino_
from seg.infer.backends.openvino_ import OpenVinoBackend
from seg.infer.backends.quantisers import fuse_quantisers

from . import small_nets

SCALE = 0.02  # of the quantised activation; its highest value is 127 times that
WEIGHTS = np.random.default_rng(1).standard_normal((4, 2, 1, 1, 1)).astype(np.float32)


def quantised(path: Path, activation: str, twice: bool = False) -> str:
    """Convolution to 4 channels, `activation` ("" for none), int8, beside itself if `twice`, summed over channels."""

    def constant(name: str, value: np.ndarray) -> onnx.TensorProto:
        return numpy_helper.from_array(value, name)

    def value(name: str, channels: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, "x", "y", "z"])

    act = [helper.make_node(activation, ["c"], ["a"])] if activation else []
    after = [helper.make_node("Concat", ["d", "d"], ["t"], axis=1)] if twice else []
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"]),
        *act,
        helper.make_node("QuantizeLinear", ["a" if activation else "c", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        *after,
        helper.make_node("DequantizeLinear", ["ones", "one", "zero"], ["sum"]),
        helper.make_node("Conv", ["t" if twice else "d", "sum"], ["logits"]),
    ]
    constants = [
        constant("w", WEIGHTS),
        constant("scale", np.float32(SCALE)),
        constant("zero", np.int8(0)),
        constant("one", np.float32(1)),
        constant("ones", np.ones((1, 8 if twice else 4, 1, 1, 1), np.int8)),
    ]
    return small_nets.save(helper.make_graph(nodes, "q", [value("image", 2)], [value("logits", 1)], constants), path)


def features(x: np.ndarray) -> np.ndarray:
    return np.einsum("kc,ncxyz->nkxyz", WEIGHTS[:, :, 0, 0, 0], x)


def test_step_is_halved_and_range_kept(tmp_path: Path) -> None:
    x = small_nets.windows(1, 2, 6, 5, 4)
    found = OpenVinoBackend(quantised(tmp_path / "q.onnx", "Relu")).run(x)
    high, relu = 127 * SCALE, np.maximum(features(x), 0)
    assert relu.max() > high  # some values lie beyond the range, and are cut off
    expected = np.round(np.minimum(relu, high) * 255 / high) * high / 255
    np.testing.assert_allclose(found, expected.sum(1, keepdims=True), atol=1.01 * high / 255)  # ties may go either way
    assert np.median(np.abs(found - expected.sum(1, keepdims=True))) < 1e-5


def test_values_below_zero_keep_their_sign(tmp_path: Path) -> None:
    x = small_nets.windows(1, 2, 6, 5, 4)
    found = OpenVinoBackend(quantised(tmp_path / "q.onnx", "")).run(x)
    expected = np.clip(np.round(features(x) / SCALE), -128, 127) * SCALE
    np.testing.assert_allclose(found, expected.sum(1, keepdims=True), atol=1.01 * SCALE)


def test_the_scale_survives_a_concatenation(tmp_path: Path) -> None:
    x = small_nets.windows(1, 2, 6, 5, 4)
    found = OpenVinoBackend(quantised(tmp_path / "q.onnx", "", twice=True)).run(x)
    expected = np.clip(np.round(features(x) / SCALE), -128, 127) * SCALE
    np.testing.assert_allclose(found, 2 * expected.sum(1, keepdims=True), atol=2.02 * SCALE)


@pytest.mark.parametrize("processor", ["this", "without VNNI"])
def test_a_scan_has_one_result_whatever_was_known_of_it(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled for its shape, for none, and after other shapes."""
    if processor == "without VNNI":
        monkeypatch.setattr(openvino_, "cpu_flags", set)
    path = str(Path(models.__file__).with_name("hippocampus.int8.onnx"))
    scan, other, third = (small_nets.windows(1, 1, *shape) for shape in ((48, 64, 48), (48, 48, 48), (32, 48, 48)))
    known = OpenVinoBackend(path, shape=scan.shape).run(scan).copy()
    np.testing.assert_array_equal(OpenVinoBackend(path).run(scan), known)
    backend = OpenVinoBackend(path, shape=other.shape)
    for x in (other, scan, third, scan):
        found = backend.run(x)
    np.testing.assert_array_equal(found, known)


@pytest.mark.parametrize(("activation", "count"), [("Relu", 1), ("", 0), ("Tanh", 0)])
def test_only_what_is_never_negative(tmp_path: Path, activation: str, count: int) -> None:
    model = openvino.Core().read_model(quantised(tmp_path / "q.onnx", activation))
    assert fuse_quantisers(model, openvino.opset13) == count


@pytest.mark.parametrize("name", ["left-atrium", "hippocampus"])
def test_shipped_models_lose_all_but_the_input(name: str) -> None:
    models = Path(__file__).parents[2] / "infer" / "models"
    model = openvino.Core().read_model(models / f"{name}.int8.onnx")
    signed = sum(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    assert fuse_quantisers(model, openvino.opset13) == signed - 1
    assert fuse_quantisers(openvino.Core().read_model(models / f"{name}.onnx"), openvino.opset13) == 0
