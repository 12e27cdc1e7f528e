"""What intensities tell: CT or MR, their range, and how they are normalised. Arithmetic on `CaseFacts`."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from seg.infer.spec import Normalisation

from .cases import refusal
from .facts import QUANTILES, CaseFacts

HOUNSFIELD_AIR = -500.0  # an integer scan that goes below holds air in Hounsfield units


def guess_modality(facts: Sequence[CaseFacts]) -> tuple[Literal["CT", "MR"], list[str]]:
    """CT if every scan holds integers and goes down to air; a mixture counts as MR, with a note."""
    looks = [all(c.integral and c.minimum <= HOUNSFIELD_AIR for c in fact.channels) for fact in facts]
    if all(looks):
        return "CT", []
    doubt = f"{sum(looks)} of {len(looks)} cases look like CT; all are normalised one by one, as MR is"
    return "MR", [doubt] if any(looks) else []


def intensity_range(facts: Sequence[CaseFacts]) -> tuple[float, float]:
    """The range most training scans lie in: 5th percentile of the scans' 0.5, 95th of their 99.5 percentile.

    Percentiles of scans, since one scan in another unit would stretch the extremes without bound.
    """
    low, high = (
        np.percentile([c.low for f in facts for c in f.channels], 5),
        np.percentile([c.high for f in facts for c in f.channels], 95),
    )
    return float(f"{low:.6g}"), float(f"{high:.6g}")


def fixed_normalisation(facts: Sequence[CaseFacts]) -> Normalisation:
    """Clip to the 0.5 and 99.5 percentile of all foreground voxels, centre and scale by their mean and deviation."""
    parts = [
        (sum(n for value, n in fact.class_voxels.items() if value > 0), channel)
        for fact in facts
        for channel in fact.channels
        if channel.foreground
    ]
    if not parts:
        raise refusal("PLAN", "", "no label has a foreground voxel", "give at least one such case")
    counts = np.array([count for count, _ in parts], np.float64)
    share = counts / counts.sum()
    means = np.array([channel.foreground_mean for _, channel in parts])
    deviations = np.array([channel.foreground_std for _, channel in parts])
    mean = float(share @ means)
    std = float(np.sqrt(share @ (deviations**2 + (means - mean) ** 2)))
    values = np.array([channel.foreground for _, channel in parts]).ravel()
    weights = np.repeat(share, len(QUANTILES)) / len(QUANTILES)
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order]) - weights[order] / 2  # mass up to the middle of each quantile's own share
    lower, upper = np.interp((0.005, 0.995), below, values[order]).tolist()
    lower, upper, mean, std = (float(f"{value:.6g}") for value in (lower, upper, mean, max(std, 1e-6)))
    return Normalisation("fixed", lower, upper, mean, std)
