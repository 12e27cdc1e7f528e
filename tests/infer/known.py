"""A network with a known answer, and phantoms whose mask is known in closed form."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from seg.infer.artifact import Golden, metadata_of
from seg.infer.spec import ModelSpec, Normalisation

LABELS = ("background", "bright")


def plain_spec(**changes: object) -> ModelSpec:
    """A spec that leaves intensities and spacing alone."""
    spec = ModelSpec(
        name="threshold",
        labels=LABELS,
        channels=("any",),
        spacing=(None, None, None),
        normalisation=Normalisation("fixed"),
        window=(16, 16, 16),
        stride=(1, 1, 1),
    )
    if "labels" in changes:
        changes.setdefault("label_values", tuple(range(len(changes["labels"]))))  # type: ignore[arg-type]
    return replace(spec, **changes)  # type: ignore[arg-type]


def threshold_graph(thresholds: tuple[float, ...], dims: int) -> onnx.GraphProto:
    """logits: class k is the largest where thresholds[k-1] < x < thresholds[k]; x is the first channel."""
    weight = np.arange(len(thresholds) + 1, dtype=np.float32)  # slope k, offset -(t1 + ... + tk)
    bias = -np.concatenate([[0.0], np.cumsum(thresholds)]).astype(np.float32)
    ones = (1,) * dims
    tensors = [
        onnx.numpy_helper.from_array(weight.reshape(-1, 1, *ones), "weight"),
        onnx.numpy_helper.from_array(bias, "bias"),
    ]
    axes = ["n", 1, *"xyz"[:dims]]
    return helper.make_graph(
        [helper.make_node("Conv", ["image", "weight", "bias"], ["logits"])],
        "threshold",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(weight), *"xyz"[:dims]])],
        tensors,
    )


def write_artifact(path: Path, spec: ModelSpec, thresholds: tuple[float, ...]) -> str:
    """A tiny artifact of our own form."""
    graph = threshold_graph(thresholds, spec.dims)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    digest = hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()
    x = np.linspace(-2, 2, 8, dtype=np.float16).reshape(1, 1, 2, 2, 2)
    slopes = np.arange(len(thresholds) + 1, dtype=np.float32).reshape(1, -1, 1, 1, 1)
    offsets = np.concatenate([[0.0], np.cumsum(thresholds)]).astype(np.float32).reshape(1, -1, 1, 1, 1)
    golden = Golden(x, slopes * x.astype(np.float32) - offsets)
    helper.set_model_props(model, metadata_of(replace(spec, graph_sha256=digest), golden))
    path.write_bytes(model.SerializeToString(deterministic=True))
    return str(path)


def boxes() -> np.ndarray:
    """(20, 15, 9) int16 with three unequal bright boxes: no flip or swap leaves it unchanged."""
    voxels = np.zeros((20, 15, 9), np.int16)
    voxels[2:7, 3:5, 1:3] = 2
    voxels[10:12, 6:13, 2:4] = 3
    voxels[14:18, 2:4, 5:9] = 4
    return voxels


def oblique_affine() -> np.ndarray:
    """Voxels of 0.8 x 1.1 x 2.5 mm, turned by 20 degrees about z and 10 about x."""
    a, b = np.deg2rad([20.0, 10.0])
    turn_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn_z @ turn_x @ np.diag([0.8, 1.1, 2.5])
    affine[:3, 3] = (-31.0, 12.5, 77.0)
    return affine
