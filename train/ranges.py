"""Ranges of the settings of method, augmentation and loop, by name; `settings.override` checks their types.

A value outside would train nonsense, or end in an error of torch's after the data have been read.
"""

from dataclasses import asdict
from math import inf, nextafter
from typing import TYPE_CHECKING

from seg.infer.errors import Exit, SegError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_ANY = (0.0, inf)
_SHARE = (0.0, 1.0)
_BELOW_ONE = (0.0, nextafter(1.0, 0.0))
_ABOVE_ZERO = (nextafter(0.0, 1.0), inf)
_SOME = (1.0, inf)
RANGES: dict[str, tuple[float, float]] = {  # closed; each element of a list must be inside
    "labeled_batch": _SOME,
    "unlabeled_batch": _ANY,
    "mix_batch": _ANY,
    "dropout": _BELOW_ONE,
    "lr": _ANY,
    "weight_decay": _ANY,
    "stretch": _ABOVE_ZERO,
    "clip_norm": _ANY,
    "betas": _BELOW_ONE,
    "warm_up": _SHARE,
    "ramp_up": _ANY,
    "ema": _BELOW_ONE,
    "eta": _SHARE,
    "gap": _BELOW_ONE,
    "threshold": _SHARE,
    "rounds": _SHARE,
    "passes": (2.0, inf),
    "rotation": (0.0, 180.0),
    "scale": _ANY,
    "contrast": _ANY,
    "brightness": _ANY,
    "noise": _ANY,
    "mirror": (0, 2),
    "foreground": _SHARE,
    "log_every": _SOME,
    "save_seconds": _ANY,
}


def refuse_out_of_range(config: "DataclassInstance", where: str) -> None:
    """Raise SegError, E-CONFIG, for the first value outside its range, NaN among them, and for an axis named twice."""
    for name, value in asdict(config).items():
        values = value if isinstance(value, (tuple, list)) else (value,)
        low, high = RANGES.get(name, (-inf, inf))
        numbers = [v for v in values if isinstance(v, (int, float))]
        twice = name == "mirror" and len(set(values)) < len(values)
        if twice or not all(low <= v <= high for v in numbers):
            expected = "each of the axes 0, 1, 2 once at most" if name == "mirror" else _described(low, high)
            raise SegError("E-CONFIG", Exit.USAGE, "", f"[{where}] {name} is {value!r}", "correct the value", expected)


def _described(low: float, high: float) -> str:
    if high == inf:
        return "more than 0" if 0 < low < 1 else f"at least {low:g}"
    return f"from {low:g} up to but not 1" if 0 < 1 - high < 1e-9 else f"from {low:g} to {high:g}"
