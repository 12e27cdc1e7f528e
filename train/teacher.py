"""The teacher of a distillation: a trained run or an exported artifact, frozen, and what a student must have in common.

Both stand behind the backend contract of inference: an artifact runs on the engine that would run it for a scan, so a
shipped int8 model teaches on a CPU at the speed it segments with.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seg.infer.artifact import load, resolve
from seg.infer.backends import Backend, engine_for, open_backend
from seg.infer.errors import Exit, SegError
from seg.infer.spec import ModelSpec

from .evaluate import ModuleBackend

_OF = {2: "slices", 3: "volumes"}
_SLICES = {"RAS": "axial slices, turned to RAS", "slices": "slices as they are stored"}  # by orientation


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen network with its spec.

    Attributes
    ----------
    path : the run or artifact, as typed.
    spec : grid, intensities and classes, which are the student's too.
    width : channels of its first stage, or None where the artifact does not tell.
    sha256 : of the weights: a resumed distillation has the same teacher.
    """

    path: str
    spec: ModelSpec
    width: int | None
    sha256: str
    backend: Backend

    @classmethod
    def of_run(
        cls, path: str, module: nn.Module, config: dict[str, Any], device: torch.device, precision: torch.dtype
    ) -> "Teacher":
        """The deployed network of a run with its config.json."""
        digest = hashlib.sha256()
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        spec = ModelSpec.from_dict(config["spec"])
        backend = ModuleBackend(module.eval().to(device), device, precision)
        return cls(path, spec, config["network"]["width"], digest.hexdigest(), backend)

    @classmethod
    def of_artifact(cls, model: str, device: torch.device) -> "Teacher":
        """A file that seg-export wrote, or the name of a shipped model.

        Raises
        ------
        SegError : as `artifact.load` and `open_backend` do.
        """
        artifact = load(resolve(model))
        where = "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"
        threads = torch.get_num_threads()
        backend = open_backend(
            engine_for(artifact.path, where), artifact.path, where, precision="fp32", threads=threads
        )
        width = artifact.spec.card.get("training", {}).get("width")
        return cls(model, artifact.spec, width, artifact.spec.graph_sha256, backend)

    def logits(self, x: Tensor) -> Tensor:
        """(N, C, X, Y, Z) network input -> (N, K, X, Y, Z) float32 logits on x's device, without gradient."""
        if isinstance(self.backend, ModuleBackend):
            return self.backend.logits(x.detach())
        return torch.tensor(self.backend.run(x.detach().cpu().numpy()), device=x.device)

    def describe(self) -> dict[str, Any]:
        """For the run's config and the model card."""
        return {"name": self.spec.name, "width": self.width, "sha256": self.sha256}

    def refuse(self, student: ModelSpec) -> None:
        """Raise unless the student's slices, classes, channels and window are such that the teacher can teach.

        Raises
        ------
        SegError : E-TEACHER.
        """
        mine = self.spec
        fix = "train on the data and settings that the teacher was made for"
        if student.dims != mine.dims:
            found, expected = (f"a network for {_OF[dims]}" for dims in (student.dims, mine.dims))
            fix = "choose another --network, or another teacher"
        elif student.orientation != mine.orientation:
            found, expected = (_SLICES[spec.orientation] for spec in (student, mine))
        elif student.label_values != mine.label_values:
            found, expected = f"the data have the values {student.label_values}", f"the teacher's, {mine.label_values}"
        elif len(student.channels) != len(mine.channels):
            found, expected = f"the scans have {len(student.channels)} channels", f"the teacher's {len(mine.channels)}"
        elif sorted(student.channels) == sorted(mine.channels) and student.channels != mine.channels:
            found, expected = f"channels {', '.join(student.channels)}", f"the teacher's {', '.join(mine.channels)}"
        elif mine.tiling == "window" and student.window != mine.window:
            found, expected = f"window {student.window}", f"the only one the teacher takes, {mine.window}"
        elif any(w % s for w, s in zip(student.window, mine.stride, strict=True)):
            found, expected = f"window {student.window}", f"a multiple of the teacher's stride {mine.stride}"
        else:
            return
        raise SegError("E-TEACHER", Exit.INPUT_REFUSED, self.path, found, fix, expected)
