"""Small networks as ONNX files, and windows for them."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 2


def convolutions(dims: int) -> onnx.GraphProto:
    """Conv 3^n, ReLU -> "features"; strided Conv, ReLU, ConvTranspose, Conv 1^n on top -> "logits" of 3 classes."""
    rng = np.random.default_rng(3)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) / 3).astype(np.float32), name)

    three, two, one = (3,) * dims, (2,) * dims, (1,) * dims
    axes = [f"axis{a}" for a in range(dims)]

    def value(name: str, channels: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, *axes])

    return helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w1"], ["c1"], pads=[1] * 2 * dims),
            helper.make_node("Relu", ["c1"], ["features"]),
            helper.make_node("Conv", ["features", "w2"], ["c2"], strides=two),
            helper.make_node("Relu", ["c2"], ["r2"]),
            helper.make_node("ConvTranspose", ["r2", "w3"], ["up"], strides=two),
            helper.make_node("Conv", ["up", "w4"], ["logits"]),
        ],
        "convolutions",
        [value("image", CHANNELS)],
        [value("logits", 3), value("features", 5)],
        [
            weight("w1", 5, CHANNELS, *three),
            weight("w2", 7, 5, *two),
            weight("w3", 7, 5, *two),
            weight("w4", 3, 5, *one),
        ],
    )


def save(graph: onnx.GraphProto, path: Path) -> str:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return str(path)


def windows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
