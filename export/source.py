"""What the forms of a model are made from: a run's network, or its fp32 artifact and the int8 form beside that."""

import os
from dataclasses import dataclass, replace

from torch import nn

from seg.infer.artifact import INT8_SUFFIX, Golden, load
from seg.infer.backends import open_backend
from seg.infer.backends.triton_ import model_name
from seg.infer.compute import stored_precision
from seg.infer.errors import Exit, SegError
from seg.infer.spec import ModelSpec

from .onnx_ import golden_of
from .proof import Original


@dataclass(frozen=True)
class Source:
    """What the forms are made from.

    Attributes
    ----------
    path : fp32 artifact; None for a run.
    module : the run's network; None for an artifact.
    """

    spec: ModelSpec
    golden: Golden
    path: str | None = None
    module: nn.Module | None = None

    @classmethod
    def of_run(cls, module: nn.Module, spec: ModelSpec) -> "Source":
        """The network of a run."""
        return cls(spec, golden_of(module.cpu().float().eval(), spec), module=module)

    @classmethod
    def of_artifact(cls, path: str) -> "Source":
        """An fp32 artifact.

        Raises
        ------
        SegError : E-EXPORT-SOURCE (exit 2) for another form or one without a golden pair, E-MODEL-*.
        """
        artifact = load(path)
        found = stored_precision(artifact.spec) if path.endswith(".onnx") else "another form"
        if found != "fp32" or artifact.golden is None:
            found = f"is {found}" if found != "fp32" else "has no golden pair"
            fix = "give the run, or the fp32 .onnx file that seg-export wrote from it"
            raise SegError("E-EXPORT-SOURCE", Exit.USAGE, path, found, fix, "an fp32 artifact")
        return cls(artifact.spec, artifact.golden, path=path)

    @property
    def name(self) -> str:
        """Of the files: the model's."""
        return model_name(self.spec)

    def is_made_from(self, path: str) -> bool:
        """Whether a file is the artifact, or the int8 file beside it."""
        if self.path is None or not os.path.exists(path):
            return False
        own = (self.path, _beside(self.path))
        return any(os.path.exists(file) and os.path.samefile(file, path) for file in own)

    def original(self) -> Original:
        """The fp32 network: torch's own for a run, else the artifact in OpenVINO."""
        if self.module is not None:
            return Original.of(self.module)
        assert self.path is not None
        return Original("fp32", open_backend("openvino", self.path, "cpu", precision="fp32"))


def int8_beside(path: str) -> str | None:
    """The int8 form of the same model beside an fp32 artifact, if there is one.

    Raises
    ------
    SegError : E-EXPORT-SOURCE, exit status 20, when the file there is another model's.
    """
    beside = _beside(path)
    if not os.path.isfile(beside):
        return None
    mine, other = load(path).spec, load(beside).spec
    if _identity(mine) != _identity(other) or stored_precision(other) != "int8":
        fix = "remove it, or export it again from the same run with the same options"
        raise SegError("E-EXPORT-SOURCE", Exit.MODEL, beside, f"is not the int8 form of {path}", fix)
    return beside


def _identity(spec: ModelSpec) -> tuple[ModelSpec, object]:
    """What all forms of a model share."""
    return replace(spec, card={}, versions={}, graph_sha256=""), spec.card.get("training")


def _beside(path: str) -> str:
    return path.removesuffix(".onnx") + INT8_SUFFIX
