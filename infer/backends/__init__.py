"""Contract 3, the backend: one loaded network on one device. Geometry, softmax and files stay outside.

A backend takes float32 windows and returns float32 logits. Asking for a device, provider or package that is not there
raises: nothing falls back silently. Backends are loaded by name from the table below; to add one, add a file and a row.
"""

from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import Exit, SegError


class Backend(Protocol):
    """What the sliding window needs of an engine."""

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, X, Y, Z) float32 network input -> (N, K, X, Y, Z) float32 logits, valid until the next call."""
        ...

    def close(self) -> None:
        """Release the network and its memory. Further calls of `run` are invalid."""
        ...


def to_slices(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, C, X, Y, Z) -> (N * Z, C, X, Y): what a 2D network takes."""
    return np.ascontiguousarray(x.transpose(0, 4, 1, 2, 3)).reshape(-1, *x.shape[1:4])


def from_slices(y: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """(N * Z, K, X, Y) -> (N, K, X, Y, Z) view, for N = `count`."""
    return y.reshape(count, -1, *y.shape[1:]).transpose(0, 2, 3, 4, 1)


BACKENDS: dict[str, tuple[str, str]] = {  # name -> (module, class)
    "openvino": ("openvino_", "OpenVinoBackend"),
}


def open_backend(name: str, path: str, device: str, **options: Any) -> Backend:
    """Load the network in `path` with the engine `name` on `device` ("auto", "cpu", "cuda:N").

    Raises
    ------
    SegError : E-DEVICE when the engine cannot run there, E-MODEL-LOAD when it cannot read the file.
    """
    if device not in ("auto", "cpu"):
        raise SegError(
            "E-DEVICE",
            Exit.RUNTIME,
            "",
            f"the engine {name} does not run on {device}",
            "use -d cpu",
        )
    module, attribute = BACKENDS[name]
    backend: Backend = getattr(import_module(f".{module}", __name__), attribute)(path, **options)
    return backend
