"""Validation through the product's own inference path: the scan's grid, its preprocessing, tiling and stitching."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from seg.infer.metrics import evaluate as class_metrics
from seg.infer.predict import TilingOptions, segment
from seg.infer.spec import ModelSpec

from .cases import Case
from .prepare import load_label, load_volume


class ModuleBackend:
    """A torch module behind the backend contract: float32 NumPy in and out."""

    def __init__(self, module: nn.Module, device: torch.device, precision: torch.dtype = torch.float32) -> None:
        self._module, self._device, self._precision = module, device, precision

    @torch.inference_mode()
    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, X, Y, Z) -> (N, K, X, Y, Z) logits, in evaluation mode."""
        training = self._module.training
        self._module.eval()
        tensor = torch.from_numpy(x).to(self._device)
        with torch.autocast(self._device.type, self._precision, enabled=self._precision != torch.float32):
            logits = self._module(tensor)
        self._module.train(training)
        result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result

    def close(self) -> None:
        """Nothing is held."""


def validate(
    module: nn.Module,
    cases: Sequence[Case],
    spec: ModelSpec,
    device: torch.device,
    precision: torch.dtype,
    options: TilingOptions | None = None,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Metrics of every labelled case at its own grid, and their means. Distances in mm.

    Returns
    -------
    {"cases": {id: {label: {dice, jaccard, ...}}}, "mean": {label: {...}, "foreground": {...}}}
    """
    backend = ModuleBackend(module, device, precision)
    per_case: dict[str, Any] = {}
    for case in cases:
        if case.label is None:
            continue
        volume = load_volume(case)
        mask = segment(volume, spec, backend, options or TilingOptions())
        indices = np.searchsorted(np.asarray(spec.label_values), mask)
        truth = load_label(case.label, spec.label_values)
        found = class_metrics(indices, truth, tuple(range(1, len(spec.labels))), volume.spacing.tolist())
        per_case[case.id] = {spec.labels[k]: asdict(metrics) for k, metrics in found.items()}
        tick()
    return {"cases": per_case, "mean": _mean(per_case, spec.labels[1:])}


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
