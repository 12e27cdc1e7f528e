"""Exporter to ONNX: one self-describing file, verified through the backend that will run it, or no file at all."""

import hashlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from seg.infer import __version__
from seg.infer.artifact import Golden, load, metadata_of
from seg.infer.atomic import atomic_file, output_error
from seg.infer.backends import ONNX_ENGINES, open_backend
from seg.infer.classes import Head
from seg.infer.errors import Exit, SegError
from seg.infer.selftest import features_error, golden_error
from seg.infer.spec import ModelSpec
from seg.train.networks import run_windows

from . import fp16
from .cost import cost_of
from .head import offer_features

OPSET = 21
TOLERANCE = 1e-4  # largest logit error over the logits' range; fp32 sums in another order reach 1e-6 to 1e-5
# Operators that, as torch exports them, hold no extent in an attribute or a constant.
EXTENT_FREE = {"Conv", "ConvTranspose", "BatchNormalization", "Relu", "LeakyRelu", "MaxPool", "AveragePool"}
EXTENT_FREE |= {"Add", "Mul", "Concat"}
GOLDEN_EXTENT = 2  # golden input extent in network strides


@dataclass(frozen=True)
class Parity:
    """How far an artifact is from torch on one input: largest error over the logits' range, share of equal labels."""

    error: float
    labels: float


def export(
    module: nn.Module,
    spec: ModelSpec,
    path: str,
    *,
    features: bool = False,
    half: bool = False,
    tolerance: float | None = None,
    prove: Callable[[str], None] = lambda _: None,
) -> tuple[ModelSpec, Parity]:
    """Write the artifact and prove it.

    Parameters
    ----------
    module : network with (N, C, X, Y, Z) -> (N, K, X, Y, Z) logits, or without Z in two dimensions; in evaluation mode
        after this call, on the CPU, float32.
    path : where the .onnx file goes; it appears there only once it is verified.
    features : offer the features before the last layer as a second output (see `head`).
    half : weights and activations in float16 (see `fp16`).
    tolerance : largest allowed logit error over the logits' range, if not the precision's own.
    prove : takes the finished file's path before it is kept, and raises if it must not be (see `proof`).

    Raises
    ------
    SegError : E-EXPORT-PARITY when the artifact disagrees with torch, E-OUT-* when it cannot be written. No file is
        left.
    """
    module = module.cpu().float().eval()
    assert not any(part.training for part in module.modules())
    golden = golden_of(module, spec)
    proto = _convert(module, spec)
    spec = replace(spec, cost=cost_of(module, proto, spec))
    head = offer_features(proto) if features else None
    tolerance = tolerance if tolerance is not None else fp16.TOLERANCE if half else TOLERANCE
    if half:
        proto = fp16.to_half(proto)
        spec = fp16.described(spec, tolerance)
    proto, spec = describe(proto, spec, golden, head)
    onnx.checker.check_model(proto, full_check=True)
    content = proto.SerializeToString(deterministic=True)
    with hidden(path, content) as candidate:
        parity = verify(module, candidate, [golden.x.shape[2:], larger(spec)])
        if not parity.error <= tolerance:
            raise unequal(path, parity.error, tolerance)
        prove(candidate)
    with atomic_file(path, overwrite=True) as file:
        file.write(content)
    return spec, parity


def unequal(path: str, error: float, tolerance: float) -> SegError:
    """The error for a file that does not compute what the network does."""
    found = f"the exported network differs from torch by {error:.2g} of the logits' range"
    fix = "report this with the run's config.json"
    return SegError("E-EXPORT-PARITY", Exit.MODEL, path, found, fix, f"at most {tolerance:.0e}")


@contextmanager
def hidden(path: str, content: bytes) -> Iterator[str]:
    """A file with the content in a hidden folder beside `path`, where there must be room anyway, for as long."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=".seg-export-", dir=os.path.dirname(path) or os.curdir)
    except OSError as error:
        raise output_error(path, error) from error
    with folder:
        candidate = Path(folder.name) / "model.onnx"
        try:
            candidate.write_bytes(content)
        except OSError as error:
            raise output_error(path, error) from error
        yield str(candidate)


def verify(module: nn.Module, path: str, shapes: Sequence[Sequence[int]], *engines: str) -> Parity:
    """Compare the artifact with torch on random input of each shape, through the engines given (default: for ONNX).

    The second shape proves that the axes are dynamic; two windows in a batch prove the batch axis.
    """
    found = [_verify(module, path, shapes, engine) for engine in engines or ONNX_ENGINES]
    return Parity(max(p.error for p in found), min(p.labels for p in found))


def _verify(module: nn.Module, path: str, shapes: Sequence[Sequence[int]], engine: str) -> Parity:
    artifact = load(path)
    backend = open_backend(engine, path, "cpu")
    worst, equal = 0.0, 1.0
    try:
        if artifact.golden is not None:
            worst = golden_error(backend.run(artifact.golden.x.astype(np.float32)), artifact.golden.logits)
            worst = max(worst, features_error(artifact, artifact.golden, engine))
        for number, shape in enumerate(shapes):
            x = _noise((2, len(artifact.spec.channels), *shape), seed=number)
            with torch.inference_mode():
                expected = run_windows(module, torch.from_numpy(x)).numpy()
            found = backend.run(x)
            worst = max(worst, golden_error(found, expected))
            equal = min(equal, float((found.argmax(1) == expected.argmax(1)).mean()))
    finally:
        backend.close()
    return Parity(worst, equal)


def _noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Smooth-free standard normal input, the same on every machine."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def larger(spec: ModelSpec) -> tuple[int, ...]:
    """A second test shape, different along every axis."""
    return tuple(s * (n + 1) for n, s in enumerate(spec.stride, start=2))


def golden_of(module: nn.Module, spec: ModelSpec) -> Golden:
    """Two strides of noise and its logits, on one thread: more of them sum in another order, so the bytes differ."""
    shape = (1, len(spec.channels), *(s * GOLDEN_EXTENT if s > 1 else 1 for s in spec.stride))
    x = _noise(shape, seed=2024).astype(np.float16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            logits = run_windows(module, torch.from_numpy(x.astype(np.float32))).numpy()
    finally:
        torch.set_num_threads(threads)
    return Golden(x, logits)


def sample_and_axes(spec: ModelSpec) -> tuple[torch.Tensor, dict[int, Any]]:
    """An input to trace with, and its dynamic axes: batch and space."""
    sample = torch.zeros((2, len(spec.channels), *(2 * s for s in spec.stride[: spec.dims])))
    # Multiples of the stride: attention folds the extents into one axis and back, which the exporter must see to fit.
    extents = [step * torch.export.Dim(f"n{axis}") for axis, step in enumerate(spec.stride[: spec.dims])]
    return sample, {0: torch.export.Dim("batch"), **{2 + axis: extent for axis, extent in enumerate(extents)}}


def _convert(module: nn.Module, spec: ModelSpec) -> onnx.ModelProto:
    """torch.export -> ONNX opset 21 with dynamic batch and spatial axes.

    The exporter's reasoning about unknown extents takes most of its time, and convolutions do not need it: they
    are traced at one extent. Where the graph has anything else, it is traced again; `verify` proves either at others.
    """
    sample, axes = sample_and_axes(spec)
    if spec.tiling == "free":
        proto = _traced(module, sample)
        if all(map(_holds_no_extent, proto.graph.node)):
            for value in (*proto.graph.input, *proto.graph.output):
                for axis, name in axes.items():
                    value.type.tensor_type.shape.dim[axis].dim_param = name.__name__
            del proto.graph.value_info[:]
            return proto
    return _traced(module, sample, axes)


def _holds_no_extent(node: onnx.NodeProto) -> bool:
    """Whether a node is the same whatever the extents; of Resize with factors, not with a fourth input, sizes."""
    return node.op_type in EXTENT_FREE or (node.op_type == "Resize" and len(node.input) == 3)


def _traced(module: nn.Module, sample: torch.Tensor, axes: dict[int, Any] | None = None) -> onnx.ModelProto:
    """The graph at the sample's shape, but for dynamic axes."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports optional packages that we do not use
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (sample,),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=None if axes is None else (axes,),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def describe(
    proto: onnx.ModelProto, spec: ModelSpec, golden: Golden, head: Head | None = None
) -> tuple[onnx.ModelProto, ModelSpec]:
    """Remove traces of the exporting machine, then write spec, golden pair, head and their digest."""
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output, proto.graph):
        del part.metadata_props[:]
        part.doc_string = ""
    for function in proto.functions:
        del function.metadata_props[:]
    proto.producer_name, proto.producer_version = "seg-toolkit", __version__
    digest = hashlib.sha256(proto.graph.SerializeToString(deterministic=True)).hexdigest()
    versions = {"seg-toolkit": __version__, "torch": torch.__version__.split("+")[0], "onnx": onnx.__version__}
    spec = replace(spec, graph_sha256=digest, versions=versions)
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, metadata_of(spec, golden, head))
    return proto, spec
