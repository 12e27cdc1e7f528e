"""A FAKE array module: arrays that refuse to mix with NumPy's, or to become one by accident, as CuPy's do."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


class Strict(np.lib.mixins.NDArrayOperatorsMixin):
    """An array in another memory: `get` is the only way to NumPy."""

    def __init__(self, held: np.ndarray) -> None:
        self.held = held

    def get(self) -> np.ndarray:
        return np.array(self.held)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("implicit conversion to NumPy")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return wrap(getattr(ufunc, method)(*unwrap(inputs), **unwrap(options)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # NumPy's other ways in, such as __array_interface__
            raise AttributeError(name)
        found = getattr(self.held, name)
        return calling(found) if callable(found) else wrap(found)

    def __getitem__(self, key: Any) -> Any:
        return wrap(self.held[unwrap(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.held[unwrap(key)] = unwrap(value)

    def __len__(self) -> int:
        return len(self.held)

    def __iter__(self) -> Iterator["Strict"]:
        return map(Strict, self.held)

    def __bool__(self) -> bool:
        return bool(self.held)


def asarray(array: Any) -> Strict:
    """The only way from NumPy."""
    return array if isinstance(array, Strict) else Strict(np.array(array))


def calling(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **options: wrap(function(*unwrap(given), **unwrap(options)))


def wrap(value: Any) -> Any:
    return Strict(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def unwrap(value: Any) -> Any:
    if isinstance(value, Strict):
        return value.held
    if isinstance(value, np.ndarray):
        raise TypeError("a NumPy array among those of another memory")
    if isinstance(value, tuple | list):
        return type(value)(map(unwrap, value))
    if isinstance(value, dict):
        return {key: unwrap(v) for key, v in value.items()}
    return value


def __getattr__(name: str) -> Any:
    return calling(getattr(np, name))
