"""`seg-export --inspect FILE`: what is in a model file, and whether it computes here what it did where it was made."""

import os
from collections import Counter

import onnx

from seg.infer.artifact import Artifact, load
from seg.infer.backends.engine_file import read_engine
from seg.infer.cards import card_text
from seg.infer.compute import stored_precision
from seg.infer.selftest import run_selftest

NAMES = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.INT8: "int8"}


def inspect_file(path: str) -> None:
    """Print card, spec, sizes and precision per layer type; run the golden pair in every engine that is here.

    Parameters
    ----------
    path : .onnx, .engine, .plan or .pt2 file.

    Raises
    ------
    SegError : E-MODEL-*, E-UNSEALED; what `run_selftest` raises.
    """
    artifact = load(path)
    print(card_text(artifact.spec))
    for name, text in (*_spec_rows(artifact), *_size_rows(artifact), *_layer_rows(path)):
        print(f"  {name:<16} {text}")
    print("golden check", flush=True)
    run_selftest(path)


def _spec_rows(artifact: Artifact) -> list[tuple[str, str]]:
    spec, norm = artifact.spec, artifact.spec.normalisation
    scale = "each scan to mean 0, deviation 1" if norm.kind == "zscore" else f"(v - {norm.mean:g}) / {norm.std:g}"
    limits = "" if norm.lower is None and norm.upper is None else f", clipped to {norm.lower} ... {norm.upper}"
    quality = {k: v for k, v in spec.card.get("quantisation", {}).items() if k != "tool"}
    rows = [
        ("precision", stored_precision(spec)),
        ("window", f"{_times(spec.window)} voxels, extents a multiple of {_times(spec.stride)}"),
        ("intensities", scale + limits),
        ("graph sha256", spec.graph_sha256 or "-"),
        ("made with", ", ".join(f"{name} {version}" for name, version in spec.versions.items())),
        ("outputs", "logits, features" if artifact.head is not None else "logits"),
    ]
    return [*rows, *((name.replace("_", " "), str(value)) for name, value in quality.items())]


def _size_rows(artifact: Artifact) -> list[tuple[str, str]]:
    spec, golden = artifact.spec, artifact.golden
    pair = f", golden pair {_times(golden.x.shape)}" if golden is not None else ""
    return [
        ("file", f"{os.path.getsize(artifact.path) / 1e6:.2f} MB{pair}"),
        ("a voxel", f"{spec.cost.macs:g} multiply-adds, {spec.cost.bytes:g} bytes of activations at the peak"),
    ]


def _layer_rows(path: str) -> list[tuple[str, str]]:
    """For ONNX, each kind of layer with how often it is there in which precision; for a plan, its key."""
    if path.endswith((".engine", ".plan")):
        key = read_engine(path).key
        return [("built for", f"TensorRT {key.tensorrt}, driver {key.driver}, {key.gpu} ({key.compute_capability})")]
    if not path.endswith(".onnx"):
        return []
    graph = onnx.load(path).graph
    found = layer_precisions(graph)
    weights = Counter[str]()
    for tensor in graph.initializer:
        weights[NAMES.get(tensor.data_type, "other")] += len(tensor.raw_data)
    rows = [("weights", ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in weights.most_common()))]
    for kind, counted in sorted(found.items()):
        rows.append((kind, ", ".join(f"{count} in {name}" for name, count in counted.most_common())))
    return rows


def layer_precisions(graph: onnx.GraphProto) -> dict[str, Counter[str]]:
    """Operator -> how many nodes of it compute in fp32, fp16 or int8.

    A node computes in int8 where all its activations come out of a DequantizeLinear (what engines fuse), else in the
    type of its first input.
    """
    inferred = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph, opset_imports=[_OPSET])).graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    kinds |= {v.name: v.type.tensor_type.elem_type for v in (*inferred.input, *inferred.output, *inferred.value_info)}
    quantised = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    found: dict[str, Counter[str]] = {}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Constant"):
            continue
        flowing = [name for name in node.input if name and name not in {t.name for t in graph.initializer}]
        small = bool(flowing) and all(name in quantised for name in flowing)
        name = "int8" if small else NAMES.get(kinds.get(flowing[0] if flowing else "", 0), "other")
        found.setdefault(node.op_type, Counter())[name] += 1
    return found


_OPSET = onnx.helper.make_opsetid("", 21)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
