"""Evaluation through the product's own inference path: the scan's grid, its preprocessing, tiling and stitching.

One protocol everywhere: the weights as they are, no post-processing, every case counts, an empty prediction is a
complete failure (see `seg.infer.metrics`). What the largest components alone would have is told beside it. Distances
are in mm, or in voxels where nothing says what a voxel measures.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seg.infer.backends import Backend
from seg.infer.components import keep_largest
from seg.infer.errors import SegError
from seg.infer.machine import available_memory
from seg.infer.metrics import evaluate as class_metrics
from seg.infer.nifti import inspect
from seg.infer.plan import TilingOptions, plan_scan
from seg.infer.predict import segment
from seg.infer.spec import ModelSpec
from seg.infer.stitch import Tiling
from seg.infer.volume import Volume

from .cases import Case
from .networks import run_windows
from .onednn import SingleVolumes
from .prepare import load_label, load_volume

MEMORY_SHARE = 0.7  # of what is free; the cost of an exported network is that of an engine, torch takes more
WORST = 3  # cases that are kept for the picture


class ModuleBackend:
    """A torch module behind the backend contract: float32 NumPy in and out."""

    def __init__(self, module: nn.Module, device: torch.device, precision: torch.dtype = torch.float32) -> None:
        self._module, self._device, self._precision = module, device, precision

    @torch.inference_mode()
    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, X, Y, Z) -> (N, K, X, Y, Z) logits, in evaluation mode."""
        result: NDArray[np.float32] = self.logits(torch.from_numpy(x).to(self._device)).cpu().numpy()
        return result

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """The same for tensors on the module's device."""
        training = self._module.training
        self._module.eval()
        with self._kernels():
            logits = run_windows(self._module, x)
        self._module.train(training)
        return logits.float()

    def _kernels(self) -> AbstractContextManager[Any]:
        if self._precision != torch.float32:
            return torch.autocast(self._device.type, self._precision)
        return SingleVolumes() if self._device.type == "cpu" else nullcontext()

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, eq=False)
class Worst:
    """A case that went badly: its mean Dice over the classes, and the predicted label values (X, Y, Z)."""

    case: Case
    dice: float
    mask: NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on some cases.

    Attributes
    ----------
    result : {"cases": {id: {label: {dice, jaccard, ...}}}, "mean": {label: {...}, "foreground": {...}}, "unit"}, with
        "unit" mm or voxel; see `seg.infer.metrics.ClassMetrics` for the figures. Where it was asked for,
        "largest_component" has "cases" and "mean" of the largest part of each class alone, and "default": whether the
        model keeps that.
    worst : the cases with the lowest Dice, the worst first.
    """

    result: dict[str, Any]
    worst: tuple[Worst, ...]


def evaluate(
    backend: Backend,
    cases: Sequence[Case],
    spec: ModelSpec,
    *,
    memory_bytes: int | None = None,
    keep: int = 0,
    largest: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Segment and score every labelled case at its own grid, with all components, also where the spec says otherwise.

    Parameters
    ----------
    memory_bytes : what the network may use; a scan that needs more is cut into tiles. By default all that is free.
    keep : how many of the worst cases to keep.
    largest : score the largest part of each class alone, too.
    tick : called after each case.

    Raises
    ------
    SegError : what reading and computing raise; E-LIMIT-MEMORY when not even a small tile fits.
    """
    per_case: dict[str, Any] = {}
    per_largest: dict[str, Any] = {}
    worst: list[Worst] = []
    units = set()
    for case in cases:
        if case.label is None:
            continue
        volume = load_volume(case, len(spec.channels))
        units.add(length_unit(case.images[0]))
        tiling = _tiling(case, volume, spec, int(MEMORY_SHARE * (memory_bytes or available_memory())))
        mask = segment(volume, replace(spec, largest_component=False), backend, tiling=tiling)
        truth = np.asarray(spec.label_values, mask.dtype)[load_label(case.label, spec.label_values)]
        per_case[case.id] = found = _scores(mask, truth, spec, volume)
        if largest:
            solid = keep_largest(mask)
            per_largest[case.id] = found if np.array_equal(solid, mask) else _scores(solid, truth, spec, volume)
        worst.append(Worst(case, float(np.mean([metrics["dice"] for metrics in found.values()])), mask))
        worst = sorted(worst, key=lambda entry: entry.dice)[:keep]
        tick()
    unit = "voxel" if units == {"voxel"} else "mm"
    result = {"cases": per_case, "mean": _mean(per_case, spec.labels[1:]), "unit": unit}
    if largest:
        mean = _mean(per_largest, spec.labels[1:])
        result["largest_component"] = {"cases": per_largest, "mean": mean, "default": spec.largest_component}
    return Evaluation(result, tuple(worst))


def _tiling(case: Case, volume: Volume, spec: ModelSpec, memory_bytes: int) -> Tiling:
    """As large as the memory allows; the engine's own hint for less is a flag of seg-infer."""
    sizes: dict[str, Any] = {"scan_bytes": volume.voxels.nbytes, "channels_out": len(spec.labels)}
    try:
        return plan_scan(volume.shape, volume.affine, spec, TilingOptions(), memory_bytes=memory_bytes, **sizes).tiling
    except SegError as error:
        if error.code != "E-LIMIT-MEMORY":
            raise
        fix = "free some memory, or use a machine with more"
        raise SegError(error.code, error.exit, case.images[0], error.found, fix, error.expected) from None


def _scores(mask: NDArray[Any], truth: NDArray[Any], spec: ModelSpec, volume: Volume) -> dict[str, dict[str, float]]:
    """Class -> its metrics."""
    found = class_metrics(mask, truth, spec.label_values, volume.spacing.tolist())
    names = dict(zip(spec.label_values, spec.labels, strict=True))
    return {names[value]: asdict(metrics) for value, metrics in found.items()}


def validate(
    module: nn.Module,
    cases: Sequence[Case],
    spec: ModelSpec,
    device: torch.device,
    precision: torch.dtype,
) -> dict[str, Any]:
    """`Evaluation.result` of a network in training."""
    return evaluate(ModuleBackend(module, device, precision), cases, spec, memory_bytes=free_memory(device)).result


def free_memory(device: torch.device) -> int:
    """Bytes that a network may still take: on a GPU those that are free and those that torch keeps for itself."""
    if device.type != "cuda":
        return available_memory()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + int(kept)


def length_unit(path: str) -> str:
    """ "mm", or "voxel" for a NIfTI file whose voxel sizes were lost."""
    return "mm" if not path.lower().endswith((".nii", ".nii.gz")) or inspect(path).size_known else "voxel"


def _mean(per_case: dict[str, Any], labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean over cases per label, and the mean of those over labels as "foreground"."""
    if not per_case:
        return {}
    names = next(iter(next(iter(per_case.values())).values())).keys()
    mean = {
        label: {name: float(np.mean([case[label][name] for case in per_case.values()])) for name in names}
        for label in labels
    }
    mean["foreground"] = {name: float(np.mean([mean[label][name] for label in labels])) for name in names}
    return mean
