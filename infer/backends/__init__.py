"""Contract 3, the backend: one loaded network on one device. Geometry, softmax and files stay outside.

A backend takes float32 windows and returns float32 logits. Asking for a device, provider or package that is not there
raises: nothing falls back silently. Backends are loaded by name from the table below; to add one, add a file and a row.
Importing this module imports no engine.

Engines on CUDA offer more: `xp`, the array module they keep their data in (CuPy), `device` (see `current_device`) and
`device_run(x) -> logits` on arrays of that module (see `on_device`).
"""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import Exit, SegError, lacks_memory, out_of_memory

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]


class Backend(Protocol):
    """What the sliding window needs of an engine."""

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, X, Y, Z) float32 network input -> (N, K, X, Y, Z) float32 logits, valid until the next call."""
        ...

    def close(self) -> None:
        """Release the network and its memory. Further calls of `run` raise RuntimeError."""
        ...


BACKENDS: dict[str, tuple[str, str]] = {  # name -> (module, class)
    "openvino": ("openvino_", "OpenVinoBackend"),
    "onnxruntime": ("onnxruntime_", "OnnxRuntimeBackend"),
    "tensorrt": ("tensorrt_", "TensorRtBackend"),
    "torch": ("torch_", "TorchBackend"),
    "triton": ("triton_", "TritonBackend"),
}


ONNX_ENGINES = ("openvino", "onnxruntime")
TRITON = "triton://"  # triton://HOST:PORT/MODEL is a model on a server


def engine_for(path: str, device: str = "auto") -> str:
    """Name of the engine for a model file: the suffix decides, and for ONNX the device."""
    if path.startswith(TRITON):
        return "triton"
    if path.endswith((".engine", ".plan")):
        return "tensorrt"
    if path.endswith(".pt2"):
        return "torch"
    return "openvino" if cuda_index(device) is None else "onnxruntime"


def open_backend(name: str, path: str, device: str = "auto", **options: Any) -> Backend:
    """Load the network in `path` with the engine `name` on `device` ("auto", "cpu", "cuda:N").

    All engines take `precision`, `threads` (0: all that the process may use) and `output` ("logits", or "features"
    where the graph offers them); further options are those of the engine's constructor.

    Raises
    ------
    SegError : E-DEVICE when the engine cannot run there, E-EXTRA when it is not installed, E-PRECISION when it cannot
        compute so, E-MODEL-LOAD when it cannot read the file.
    """
    if name not in BACKENDS:
        raise SegError("E-ENGINE", Exit.USAGE, "", f"no engine {name}", f"choose one of {', '.join(BACKENDS)}")
    module, attribute = BACKENDS[name]
    engine = getattr(import_module(f".{module}", __name__), attribute)
    backend: Backend = engine(path, device=device, **options)
    return backend


def on_device(backend: Backend) -> tuple[Any, Callable[[Any], Any]]:
    """The array module that windows should be in, and what runs them: (cupy, device_run) or (numpy, run)."""
    xp = getattr(backend, "xp", None)
    return (np, backend.run) if xp is None else (xp, backend.device_run)  # type: ignore[attr-defined]


def current_device(backend: Backend) -> AbstractContextManager[Any]:
    """Makes the backend's CUDA device the current one for work on its arrays; does nothing on the CPU."""
    device: AbstractContextManager[Any] = getattr(backend, "device", None) or nullcontext()
    return device


def cuda_index(device: str) -> int | None:
    """ "auto" or "cpu" -> None, "cuda" -> 0, "cuda:N" -> N. Raises SegError E-DEVICE for anything else."""
    if device in ("auto", "cpu"):
        return None
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", device)
    if match is None:
        raise SegError("E-DEVICE", Exit.USAGE, "", f"no device {device}", "use auto, cpu, cuda or cuda:N")
    return int(match[1] or 0)


def no_device(engine: str, device: str, reason: str, fix: str) -> SegError:
    """The error for an engine that cannot run where it was asked to."""
    return SegError("E-DEVICE", Exit.RUNTIME, "", f"the engine {engine} does not run on {device}: {reason}", fix)


def no_precision(engine: str, precision: str, fix: str) -> SegError:
    """The error for an engine that cannot compute as it was asked to."""
    return SegError("E-PRECISION", Exit.RUNTIME, "", f"the engine {engine} cannot compute in {precision} here", fix)


def load_error(path: str, engine: str, reason: BaseException | str, fix: str = "") -> SegError:
    """The error for a file that an engine refuses, with the last line of what it said; or that memory does not hold."""
    if isinstance(reason, BaseException) and lacks_memory(reason):
        return out_of_memory(path)
    said = (str(reason).strip().splitlines() or [type(reason).__name__])[-1]
    fix = fix or "export the model again with this version's seg-export"
    return SegError("E-MODEL-LOAD", Exit.MODEL, path, f"{engine} cannot load it ({said})", fix)


def closed() -> RuntimeError:
    """What `run` raises after `close`."""
    return RuntimeError("the backend is closed")


def to_slices(x: Any) -> Any:
    """(N, C, X, Y, Z) -> (N * Z, C, X, Y), C-contiguous: what a 2D network takes. NumPy or CuPy."""
    slices = x.transpose(0, 4, 1, 2, 3).reshape(-1, *x.shape[1:4])
    return slices if slices.flags.c_contiguous else slices.copy()


def sliced_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of `to_slices` of an array of `shape`."""
    n, c, x, y, z = shape
    return n * z, c, x, y


def from_slices(y: Any, count: int) -> Any:
    """(N * Z, K, X, Y) -> (N, K, X, Y, Z) view, for N = `count`."""
    return y.reshape(count, -1, *y.shape[1:]).transpose(0, 2, 3, 4, 1)
