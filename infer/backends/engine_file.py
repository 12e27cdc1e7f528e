"""A TensorRT plan and the JSON beside it: what it was built from and for, the model's spec, and the seal.

A plan has no room for metadata and fits one TensorRT version and one kind of GPU. `model.engine` therefore comes with
`model.engine.json`; both are covered by one seal (see `seal`), and both are read before TensorRT sees a byte.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..artifact import Artifact, Golden
from ..atomic import atomic_file, atomic_text
from ..errors import Exit, SegError
from ..spec import ModelSpec
from .seal import refuse_unsealed, seal, unsealed

FORMAT = 2


@dataclass(frozen=True)
class EngineKey:
    """What a plan fits.

    Attributes
    ----------
    onnx_sha256 : digest of the artifact's graph (`ModelSpec.graph_sha256`).
    tensorrt : version that built it, and the only one that runs it.
    driver : CUDA version of the driver it was built and proven with, such as "13.0".
    gpu : device name, for people; plans for one of the same compute capability but another name are slow or wrong.
    compute_capability : such as "9.0".
    profile : largest input (N, C, X, Y[, Z]); only N may be smaller.
    precision : "fp32", "bf16", "fp16" or "int8"; it lies in the network.
    best : N that it was tuned for.
    """

    onnx_sha256: str
    tensorrt: str
    driver: str
    gpu: str
    compute_capability: str
    profile: tuple[int, ...]
    precision: str
    best: int = 1

    def refuse_mismatch(self, path: str, **here: object) -> None:
        """Raise unless the fields in `here` are this key's. SegError E-ENGINE-KEY, exit status 21."""
        for name, value in here.items():
            found = getattr(self, name)
            if found != value:
                what = name.replace("_", " ")
                raise SegError(
                    "E-ENGINE-KEY",
                    Exit.RUNTIME,
                    path,
                    f"was built for {what} {found}",
                    "build it again here from the .onnx artifact with seg-export, or run the artifact itself",
                    str(value),
                )


@dataclass(frozen=True)
class EngineFile:
    """A plan read and found to be ours."""

    plan: bytes
    key: EngineKey
    spec: ModelSpec
    golden: Golden | None


def sidecar(path: str) -> str:
    """Path of the JSON beside the plan."""
    return f"{path}.json"


def write_engine(
    path: str, plan: bytes, key: EngineKey, spec: ModelSpec, golden: Golden | None = None, *, overwrite: bool = False
) -> None:
    """Write a plan that was just built here, sealed. Raises what `atomic_file` and `seal` raise."""
    content = {
        "format": FORMAT,
        "key": asdict(key),
        "spec": spec.to_json(),
        "golden": None if golden is None else golden.to_text(),
    }
    with atomic_file(path, overwrite=overwrite) as file:
        file.write(plan)
    text = {**content, "seal": seal(plan, _canonical(content))}
    atomic_text(sidecar(path), json.dumps(text, indent=1) + "\n")


def read_engine(path: str) -> EngineFile:
    """Read a plan and its sidecar and check the seal. Nothing is run.

    Raises
    ------
    SegError : E-MODEL-MISSING, E-UNSEALED.
    """
    try:
        with open(path, "rb") as file:
            plan = file.read()
    except OSError as error:
        raise SegError(
            "E-MODEL-MISSING", Exit.MODEL, path, f"cannot be read ({error.strerror})", "check the path"
        ) from error
    try:
        with open(sidecar(path), encoding="utf-8") as text:
            content = json.load(text)
        given = content.pop("seal")
        refuse_unsealed(path, str(given), plan, _canonical(content))
        if content["format"] != FORMAT:
            raise unsealed(path, f"has sidecar format {content['format']}, this version reads {FORMAT}")
        key = EngineKey(**{**content["key"], "profile": tuple(content["key"]["profile"])})
        golden = None if content["golden"] is None else Golden.from_text(content["golden"])
        return EngineFile(plan, key, ModelSpec.from_json(content["spec"]), golden)
    except OSError as error:
        raise unsealed(path, f"has no readable {sidecar(path)} ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unsealed(path, f"has a damaged {sidecar(path)}") from error


def load_engine(path: str) -> Artifact:
    """What `artifact.load` returns for a plan: its spec, with the plan's window as the only one allowed."""
    found = read_engine(path)
    x, y, z = (*found.key.profile[2:], 1)[:3]
    return Artifact(path, replace(found.spec, tiling="window", window=(x, y, z)), found.golden)


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
