"""Array modules: the same code on NumPy arrays and on arrays that stay on a device (CuPy)."""

import sys
from typing import Any

import numpy as np


def module_of(array: Any) -> Any:
    """The module whose functions make arrays like this one: numpy, or cupy."""
    return np if isinstance(array, np.ndarray) else sys.modules[type(array).__module__.partition(".")[0]]


def to_host(array: Any) -> Any:
    """The same values as a NumPy array; NumPy arrays pass through."""
    return array if isinstance(array, np.ndarray) else array.get()
