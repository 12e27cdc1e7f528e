"""The weight of unsupervised losses over a run."""

import math


def gaussian_ramp(t: float) -> float:
    """exp(-5 (1 - t)^2) for t in [0, 1], 1 from t = 1 on (Laine and Aila 2017; ramps.sigmoid_rampup of UA-MT)."""
    return math.exp(-5.0 * (1.0 - min(max(t, 0.0), 1.0)) ** 2)


def ramped(step: int, share: float, iterations: int) -> float:
    """The ramp at `step` of a run whose first `share` it takes; 0 is full weight from the first step."""
    length = share * iterations
    return gaussian_ramp(step / length) if length > 0 else 1.0
