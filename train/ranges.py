"""Ranges of the settings of method, augmentation and loop, by name; `settings.override` checks their types.

What is not named here is at least 0; `ranges` of a method's configuration go before these. A value outside would train
nonsense, or end in an error of torch's after the data have been read.
"""

from dataclasses import asdict
from math import inf, nextafter
from sys import float_info
from typing import TYPE_CHECKING

from seg.infer.errors import Exit, SegError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_NOT_NEGATIVE = (0.0, inf)
_SHARE = (0.0, 1.0)
_BELOW_ONE = (0.0, nextafter(1.0, 0.0))
_LEAST = float_info.min  # less is 0 where denormals are, as in training
_ABOVE_ZERO = (_LEAST, inf)
_SOME = (1.0, inf)
RANGES: dict[str, tuple[float, float]] = {  # closed; each element of a list must be inside
    "labeled_batch": _SOME,
    "dropout": _BELOW_ONE,
    "stretch": _ABOVE_ZERO,
    "betas": _BELOW_ONE,
    "warm_up": _SHARE,
    "ema": _BELOW_ONE,
    "eta": _SHARE,
    "gap": _BELOW_ONE,
    "threshold": _SHARE,
    "temperature": _ABOVE_ZERO,
    "passes": (2.0, inf),
    "steepness": _ABOVE_ZERO,
    "pretraining": _SHARE,
    "kept": (_LEAST, 1.0),
    "feature_dropout": _BELOW_ONE,
    "ring": _SOME,
    "samples": _SOME,
    "of_class": _SOME,
    "prototypes": _SOME,
    "burn_in": _SHARE,
    "sharpening": _ABOVE_ZERO,
    "down": _ABOVE_ZERO,
    "down_shares": _SHARE,
    "up": _ABOVE_ZERO,
    "up_share": _SHARE,
    "rounds": _SHARE,
    "scales": _ABOVE_ZERO,
    "curriculum": (_LEAST, 1.0),
    "rotation": (0.0, 180.0),
    "mirror": (0, 2),
    "foreground": _SHARE,
    "overhang": (0.0, 0.5),
    "log_every": _SOME,
}


def refuse_out_of_range(config: "DataclassInstance", where: str) -> None:
    """Raise SegError, E-CONFIG, for the first value outside its range, NaN among them, and for an axis named twice."""
    ranges = {**RANGES, **getattr(config, "ranges", {})}
    for name, value in asdict(config).items():
        values = value if isinstance(value, (tuple, list)) else (value,)
        low, high = ranges.get(name, _NOT_NEGATIVE)
        numbers = [v for v in values if isinstance(v, (int, float))]
        twice = name == "mirror" and len(set(values)) < len(values)
        if twice or not all(low <= v <= high for v in numbers):
            expected = "each of the axes 0, 1, 2 once at most" if name == "mirror" else _described(low, high)
            raise SegError("E-CONFIG", Exit.USAGE, "", f"[{where}] {name} is {value!r}", "correct the value", expected)


def _described(low: float, high: float) -> str:
    if high == inf:
        return "more than 0" if 0 < low < 1 else f"at least {low:g}"
    return f"from {low:g} up to but not 1" if 0 < 1 - high < 1e-9 else f"from {low:g} to {high:g}"
