"""Artifacts from an fp32 artifact, without its run: the float16 form, and a copy. Proven here, or no file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from seg.infer.artifact import DIGEST_KEY, Golden, digest_of, load
from seg.infer.atomic import atomic_file
from seg.infer.backends import ONNX_ENGINES, open_backend
from seg.infer.selftest import TOLERANCE, features_error, golden_error
from seg.infer.spec import ModelSpec

from . import fp16
from .onnx_ import describe, hidden, unequal

Prove = Callable[[str], None]


def write_half(source: str, path: str, prove: Prove = lambda _: None) -> ModelSpec:
    """The float16 form of an fp32 artifact, as `onnx_.export` makes it from the run, proven on torch's golden pair.

    Parameters
    ----------
    prove : takes the finished file's path before it is kept, and raises if it must not be (see `proof`).

    Raises
    ------
    SegError : E-EXPORT-PARITY, E-OUT-*. No file is left.
    """
    artifact = load(source)
    assert artifact.golden is not None
    proto, spec = describe(
        fp16.to_half(onnx.load(source)), fp16.described(artifact.spec), artifact.golden, artifact.head
    )
    onnx.checker.check_model(proto, full_check=True)
    _write(proto.SerializeToString(deterministic=True), path, artifact.golden, fp16.TOLERANCE, prove)
    return spec


def write_copy(source: str, path: str, prove: Prove = lambda _: None) -> ModelSpec:
    """An artifact as it is, proven on its own golden pair. What older files lack, the digest, is added at the end.

    Parameters
    ----------
    prove : as in `write_half`.

    Raises
    ------
    SegError : E-MODEL-*, E-EXPORT-PARITY, E-OUT-*. No file is left.
    """
    artifact = load(source)
    assert artifact.golden is not None
    onnx.checker.check_model(onnx.load(source), full_check=True)
    tolerance = float(artifact.spec.card.get("quantisation", {}).get("golden_tolerance", TOLERANCE))
    _write(_stamped(Path(source).read_bytes()), path, artifact.golden, tolerance, prove)
    return artifact.spec


def _stamped(content: bytes) -> bytes:
    """The file with the digest of its metadata; all bytes that were there stay, since protobuf joins what follows."""
    entries = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    if DIGEST_KEY in entries:
        return content
    added = onnx.ModelProto()
    onnx.helper.set_model_props(added, {DIGEST_KEY: digest_of(entries)})
    return content + bytes(added.SerializeToString())


def _write(content: bytes, path: str, golden: Golden, tolerance: float, prove: Prove) -> None:
    with hidden(path, content) as candidate:
        for engine in ONNX_ENGINES:
            backend = open_backend(engine, candidate, "cpu")
            error = golden_error(backend.run(golden.x.astype(np.float32)), golden.logits)
            backend.close()
            error = max(error, features_error(load(candidate), golden, engine))
            if not error <= tolerance:
                raise unequal(path, error, tolerance)
        prove(candidate)
    with atomic_file(path, overwrite=True) as file:
        file.write(content)
