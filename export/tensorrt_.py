"""A TensorRT engine from an ONNX artifact: built on the GPU that will run it, compared with the artifact, then kept.

The engine's key (see `EngineKey`) and the model's spec are the cache: an engine with the same ones is kept, another is
built again. What this does not know: how fast the engine is.
"""

import os
import tempfile
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from seg.infer.artifact import Artifact, Golden, load
from seg.infer.atomic import output_error, refuse_existing
from seg.infer.backends import open_backend
from seg.infer.backends.cupy_ import cupy_on
from seg.infer.backends.engine_file import EngineFile, EngineKey, read_engine, write_engine
from seg.infer.backends.tensorrt_ import key_here
from seg.infer.compute import stored_precision
from seg.infer.errors import Exit, SegError
from seg.infer.outputs import refuse_unwritable
from seg.infer.selftest import golden_error
from seg.infer.spec import ModelSpec

from .plan_build import BuildOptions, Say, Shapes, build_plan

TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "int8": 0.1}  # largest logit error over the logits' range
BATCHES = {3: (1, 2, 4), 2: (1, 16, 32)}  # smallest, best, largest: windows, or slices in two dimensions
GOLDEN_BYTES = 1 << 24  # a larger golden pair is left out


def tensorrt_here(index: int = 0) -> tuple[Any, Any]:
    """The modules tensorrt and cupy, where a GPU is there to build on.

    Raises
    ------
    SegError : E-TRT-HERE, exit status 21: one line with all that is missing.
    """
    import ctypes
    from importlib.util import find_spec

    missing = [f"the package {name}" for name in ("tensorrt", "cupy") if find_spec(name) is None]
    if "the package cupy" in missing:  # which else tells about driver and device
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            missing.append("an NVIDIA driver")
    if missing:
        found = f"a TensorRT engine cannot be built here: missing {' and '.join(missing)}"
        fix = 'on the machine with the GPU that will run it, pip install "seg-toolkit[gpu]", or keep the .onnx artifact'
        raise SegError("E-TRT-HERE", Exit.RUNTIME, "", found, fix)
    cupy = cupy_on(index, "tensorrt")
    import tensorrt

    return tensorrt, cupy


def export_engine(source: str, path: str, options: BuildOptions, say: Say, *, overwrite: bool = False) -> str:
    """Build the engine of an artifact, prove it against the artifact, and write it with its sidecar.

    Parameters
    ----------
    source : .onnx artifact.
    path : .engine or .plan. An engine of ours with the same key and spec is kept; another one is replaced, and said so;
        any other file is replaced with `overwrite` alone.

    Returns
    -------
    "kept", "built" or "rebuilt".

    Raises
    ------
    SegError : E-TRT-HERE, E-TRT-PROFILE, E-TRT-PARSE, E-TRT-BUILD, E-EXPORT-PARITY, E-OUT-*. No new file is left.
    """
    trt, cupy = tensorrt_here()
    artifact = load(source)
    shapes = profile_shapes(artifact.spec, options)
    key = EngineKey(
        onnx_sha256=artifact.spec.graph_sha256,
        profile=shapes[2],
        best=shapes[1][0],
        precision=stored_precision(artifact.spec),
        **key_here(trt, cupy, 0),
    )
    before = engine_of(path)
    if before is None:
        refuse_existing(path, overwrite)
    elif before.key != key:
        say(f"{path}: built again, it was built for {difference(before.key, key)}")
    elif before.spec != artifact.spec:
        say(f"{path}: built again, its model is described otherwise")
    else:
        return "kept"
    plan = build_plan(trt, graph_of(source), shapes, options, say)
    golden = _golden(artifact, shapes)
    try:
        with tempfile.TemporaryDirectory(prefix=".seg-export-", dir=os.path.dirname(path) or os.curdir) as folder:
            candidate = os.path.join(folder, "model.engine")
            write_engine(candidate, plan, key, artifact.spec, golden)
            error = parity(candidate, source, shapes)
    except OSError as error_:
        raise output_error(path, error_) from error_
    most = TOLERANCE[key.precision]
    if not error <= most:
        found = f"the engine differs from its artifact by {error:.2g} of the logits' range on this machine"
        fix = "use another version of TensorRT, or run the .onnx artifact with ONNX Runtime"
        raise SegError("E-EXPORT-PARITY", Exit.MODEL, path, found, fix, f"at most {most:g}")
    write_engine(path, plan, key, artifact.spec, golden, overwrite=True)
    say(f"{path}: {len(plan) / 1e6:.1f} MB, differs from its artifact by {error:.1e} of the logits' range")
    return "built" if before is None else "rebuilt"


def refuse_engine(path: str, overwrite: bool) -> None:
    """Check before any work that an engine can be written; ours may be replaced. Raises SegError E-OUT-*."""
    refuse_unwritable(path, overwrite or engine_of(path) is not None)


def engine_of(path: str) -> EngineFile | None:
    """An engine that this user built here; None for any other file, or none."""
    try:
        return read_engine(path)
    except SegError:
        return None


def difference(old: EngineKey, new: EngineKey) -> str:
    """The first field that differs, in words."""
    for name in EngineKey.__dataclass_fields__:
        if (was := getattr(old, name)) != (now := getattr(new, name)):
            return f"{name.replace('_', ' ')} {was}, here it is {now}"
    raise AssertionError("the keys are equal")


def profile_shapes(spec: ModelSpec, options: BuildOptions) -> Shapes:
    """Smallest, best and largest input, (N, C, X, Y[, Z]).

    TensorRT takes a window that the network cannot halve often enough, and fails when it runs: hence the check.

    Raises
    ------
    SegError : E-TRT-PROFILE, exit status 2.
    """
    low, best, high = options.batches or BATCHES[spec.dims]
    window = options.window or spec.window
    fix = "give --trt-profile 1,2,4 or the like, and a --trt-window of multiples of the stride"
    if not (low == 1 <= best <= high):
        expected = "1, because a scan's last batch may hold one window, and no batch smaller than the one before"
        raise SegError("E-TRT-PROFILE", Exit.USAGE, "", f"batches of {low}, {best}, {high}", fix, expected)
    if any(extent < 1 or extent % step for extent, step in zip(window, spec.stride, strict=True)) or (
        spec.dims == 2 and window[2] != 1
    ):
        shown, step = (" x ".join(map(str, n)) for n in (window, spec.stride))
        raise SegError("E-TRT-PROFILE", Exit.USAGE, "", f"a window of {shown}", fix, f"multiples of {step}")
    if spec.tiling == "window" and window != spec.window:
        shown, own = (" x ".join(map(str, n)) for n in (window, spec.window))
        raise SegError("E-TRT-PROFILE", Exit.USAGE, "", f"a window of {shown}", "leave --trt-window out", own)
    rest = (len(spec.channels), *window[: spec.dims])
    return (low, *rest), (best, *rest), (high, *rest)


def graph_of(source: str) -> bytes:
    """The ONNX model with the logits as its only output, without our metadata: what the parser gets."""
    proto = onnx.load(source)
    for output in [o for o in proto.graph.output if o.name != "logits"]:
        proto.graph.output.remove(output)
        for node in [n for n in proto.graph.node if output.name in n.output]:
            proto.graph.node.remove(node)
    del proto.metadata_props[:]
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _noise(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """(N, C, X, Y[, Z]) -> standard normal (N, C, X, Y, Z)."""
    x = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return x if x.ndim == 5 else x[..., np.newaxis]


def _golden(artifact: Artifact, shapes: Shapes) -> Golden | None:
    """One window with the artifact's logits on the processor, for `seg-infer --selftest`."""
    x = _noise((1, *shapes[0][1:]), seed=2024).astype(np.float16)
    if x.size * (2 + 4 * len(artifact.spec.labels)) > GOLDEN_BYTES:
        return None
    backend = open_backend("openvino", artifact.path, "cpu", precision="fp32")
    try:
        return Golden(x, backend.run(x.astype(np.float32)).copy())
    finally:
        backend.close()


def parity(engine: str, source: str, shapes: Shapes) -> float:
    """Largest logit error over the logits' range, engine against artifact, on one window and on more than a batch."""
    worst = 0.0
    mine, reference = open_backend("tensorrt", engine), open_backend("openvino", source, "cpu", precision="fp32")
    try:
        for seed, count in enumerate((1, shapes[2][0] + 1)):
            x = _noise((count, *shapes[2][1:]), seed)
            worst = max(worst, golden_error(mine.run(x), reference.run(x)))
    finally:
        mine.close()
        reference.close()
    return worst
