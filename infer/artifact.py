"""The model artifact: one ONNX file whose metadata hold the spec, a golden input/output pair and a digest of both.

The file is read here without any ONNX library: only the top level of the protobuf is walked, the graph is skipped by
its length. Artifacts are plain data; external weight files are never followed.
"""

import base64
import hashlib
import math
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .backends import TRITON
from .classes import Head
from .errors import Exit, SegError
from .spec import ModelSpec

PREFIX = "seg."  # of our metadata entries; others may add their own
SPEC_KEY, GOLDEN_KEY, HEAD_KEY, DIGEST_KEY = "seg.spec", "seg.golden", "seg.head", "seg.digest"
GRAPH_FIELD, METADATA_FIELD = 7, 14  # ModelProto.graph, ModelProto.metadata_props (onnx.proto3)
MODELS = Path(__file__).parent / "models"
DEFAULT_MODEL = "left-atrium"
INT8_SUFFIX = ".int8.onnx"


@dataclass(frozen=True)
class Golden:
    """A network input and the logits that the exporting framework computed for it.

    Attributes
    ----------
    x : (1, C, X, Y, Z) float16.
    logits : (1, K, X, Y, Z) float32.
    """

    x: NDArray[np.float16]
    logits: NDArray[np.float32]

    def to_text(self) -> str:
        """Printable form for the metadata."""
        shapes = ",".join(map(str, (*self.x.shape, *self.logits.shape)))
        packed = zlib.compress(self.x.astype("<f2").tobytes() + self.logits.astype("<f4").tobytes(), 9)
        return f"{shapes};{base64.b85encode(packed).decode()}"

    @classmethod
    def from_text(cls, text: str) -> "Golden":
        """Inverse of `to_text`. Raises ValueError."""
        head, _, body = text.partition(";")
        shape = tuple(int(n) for n in head.split(","))
        split, size = 2 * math.prod(shape[:5]), 2 * math.prod(shape[:5]) + 4 * math.prod(shape[5:])
        if len(shape) != 10 or min(shape) < 1 or size > 1 << 26:
            raise ValueError(f"golden pair has shape {shape}")
        try:
            data = zlib.decompressobj().decompress(base64.b85decode(body), size)
        except zlib.error as error:
            raise ValueError(f"golden pair is damaged ({error})") from error
        x, logits = np.frombuffer(data[:split], "<f2"), np.frombuffer(data[split:], "<f4")
        return cls(x.reshape(shape[:5]), logits.reshape(shape[5:]))


@dataclass(frozen=True)
class Artifact:
    """A readable model file.

    Attributes
    ----------
    path : as given.
    spec : the model's description.
    golden : proof pair, or None.
    head : the linear head, when the graph offers its features as a second output.
    sha256 : of the file when it was loaded; of a served model, which has none, of its spec.
    """

    path: str
    spec: ModelSpec
    golden: Golden | None
    head: Head | None = None
    sha256: str = ""


def metadata_of(spec: ModelSpec, golden: Golden | None = None, head: Head | None = None) -> dict[str, str]:
    """The entries that describe a model, and their digest: metadata of a file, parameters of a served model."""
    entries = {SPEC_KEY: spec.to_json()}
    if golden is not None:
        entries[GOLDEN_KEY] = golden.to_text()
    if head is not None:
        entries[HEAD_KEY] = head.to_text()
    return entries | {DIGEST_KEY: digest_of(entries)}


def digest_of(entries: Mapping[str, str]) -> str:
    """sha256 over our entries but the digest itself: key and value in the keys' order, each after its length."""
    digest = hashlib.sha256()
    for key in sorted(key for key in entries if key.startswith(PREFIX) and key != DIGEST_KEY):
        for text in (key.encode(), entries[key].encode()):
            digest.update(len(text).to_bytes(8, "little"))
            digest.update(text)
    return digest.hexdigest()


def refuse_changed(path: str, entries: Mapping[str, str]) -> None:
    """Raise SegError, E-MODEL-TAMPERED, for entries that are not those the digest is of; older models have none."""
    if DIGEST_KEY in entries and entries[DIGEST_KEY] != digest_of(entries):
        raise _tampered(path, "spec, golden pair or linear head are not as they were written")


def resolve(model: str | None, precision: str = "fp32", device: str = "auto") -> str:
    """A name (``hippocampus``) or a path -> the file's path; None is the default model. A served model is its own path.

    A shipped model may have an int8 form beside its fp32 one. "int8" asks for it; "auto" takes it on the CPU, where the
    measured loss in Dice allowed shipping it.

    Raises
    ------
    SegError : E-MODEL-MISSING when it is neither name nor path, or there is no int8 form.
    """
    name = DEFAULT_MODEL if model is None else model
    shipped, small = MODELS / f"{name}.onnx", MODELS / f"{name}{INT8_SUFFIX}"
    if os.sep not in name and shipped.is_file() and not os.path.isfile(name):
        if precision == "int8" and not small.is_file():
            raise SegError("E-MODEL-MISSING", Exit.MODEL, name, "has no int8 form", "use --precision fp32")
        wanted = precision == "int8" or (precision == "auto" and device in ("auto", "cpu"))
        return str(small if wanted and small.is_file() else shipped)
    if os.path.isfile(name) or name.startswith(TRITON):
        return name
    raise SegError(
        "E-MODEL-MISSING",
        Exit.MODEL,
        name,
        "is a folder, not a model" if os.path.isdir(name) else "no such model" if name else "the model's name is empty",
        "give an .onnx file that seg-export wrote, or a name from seg-infer --models",
    )


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.stem for path in MODELS.glob("*.onnx") if not path.name.endswith(INT8_SUFFIX))


def shipped_forms(name: str) -> list[str]:
    """Paths of a shipped model's forms: fp32, then int8 if there is one."""
    return [str(path) for path in (MODELS / f"{name}.onnx", MODELS / f"{name}{INT8_SUFFIX}") if path.is_file()]


def load(path: str) -> Artifact:
    """Read and check an artifact: an ONNX file, a TensorRT plan or torch program that this tool built, a served model.

    Raises
    ------
    SegError : E-MODEL-FORMAT when it is not one of ours, E-MODEL-TAMPERED when the graph is not the one the spec names,
        or spec, golden pair and head are not those of the digest.
    """
    if path.startswith(TRITON):
        from .backends.triton_ import load_served

        served = load_served(path)
        return replace(served, sha256=hashlib.sha256(served.spec.to_json().encode()).hexdigest())
    artifact = _load_file(path)
    with open(path, "rb") as file:
        return replace(artifact, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _load_file(path: str) -> Artifact:
    if path.endswith((".engine", ".plan")):
        from .backends.engine_file import load_engine

        return load_engine(path)
    if path.endswith(".pt2"):
        from .backends.torch_ import load_pt2

        return load_pt2(path)
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ValueError("the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
                return _parse(path, view)
    except OSError as error:
        raise SegError(
            "E-MODEL-MISSING", Exit.MODEL, path, f"cannot be read ({error.strerror})", "check the path"
        ) from error
    except ValueError as error:
        raise SegError(
            "E-MODEL-FORMAT",
            Exit.MODEL,
            path,
            f"{_looks_like(path) or error}",
            "give an .onnx file that seg-export wrote",
        ) from error


def _parse(path: str, view: memoryview) -> Artifact:
    metadata: dict[str, str] = {}
    graph = hashlib.sha256()
    graphs = 0
    for field, value in _fields(view):
        with value:  # a file of which a view is left, if only in a traceback, cannot be closed
            if field == GRAPH_FIELD:
                graph.update(value)
                graphs += 1
            elif field == METADATA_FIELD:
                pair = {number: bytes(text).decode() for number, text in _fields(memoryview(bytes(value)))}
                metadata[pair.get(1, "")] = pair.get(2, "")
    if graphs != 1 or SPEC_KEY not in metadata:
        raise ValueError("no model spec inside" if graphs else "not an ONNX file")
    refuse_changed(path, metadata)
    spec = ModelSpec.from_json(metadata[SPEC_KEY])
    if graph.hexdigest() != spec.graph_sha256:
        raise _tampered(path, "the graph is not the one that the spec was written for")
    golden = Golden.from_text(metadata[GOLDEN_KEY]) if GOLDEN_KEY in metadata else None
    head = Head.from_text(metadata[HEAD_KEY]) if HEAD_KEY in metadata else None
    if head is not None and len(head.bias) != len(spec.labels):
        raise ValueError(f"linear head of {len(head.bias)} classes, the spec has {len(spec.labels)}")
    return Artifact(path, spec, golden, head)


def _tampered(path: str, found: str) -> SegError:
    return SegError("E-MODEL-TAMPERED", Exit.MODEL, path, found, "export or copy the model again")


def _fields(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Length-delimited fields of one protobuf message; others are skipped. Raises ValueError on damage."""
    at = 0
    while at < len(view):
        key, at = _varint(view, at)
        kind = key & 7
        if kind == 2:
            length, at = _varint(view, at)
            if at + length > len(view):
                raise ValueError("the file is cut short")
            yield key >> 3, view[at : at + length]
            at += length
        elif kind == 0:
            _, at = _varint(view, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("not an ONNX file")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(view) and shift < 64:
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("not an ONNX file, or cut short")


def _looks_like(path: str) -> str | None:
    """What a wrong file probably is."""
    with open(path, "rb") as file:
        start = file.read(64)
    known = {
        b"version https://git-lfs": "is a Git LFS pointer, not the model",
        b"<!DOCTYPE": "is an HTML page, not a model",
        b"<html": "is an HTML page, not a model",
        b"PK\x03\x04": "is a zip or PyTorch file, not an ONNX model",
        b"\x1f\x8b": "is gzip data, not an ONNX model",
    }
    return next((text for magic, text in known.items() if start.startswith(magic)), None)
