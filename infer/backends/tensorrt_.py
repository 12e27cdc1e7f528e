"""Native TensorRT: a plan built for this GPU, one window shape, any batch up to the plan's, as CUDA graphs.

Written to the calls that TensorRT 10.16 and 11.4 share. One compute stream; windows and logits travel in pinned memory
on two further streams, so that one batch is copied while another is computed. `device_run` copies nothing to the host.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Exit, SegError, missing_extra
from . import Precision, closed, cuda_index, from_slices, load_error, no_device, to_slices
from .cuda_graphs import PROFILE, Network, Slot
from .cupy_ import cupy_on
from .engine_file import read_engine

REBUILD = "build it again here from the .onnx artifact with seg-export"


class TensorRtBackend:
    """One plan on one GPU.

    Parameters
    ----------
    path : plan (.engine, .plan) that seg-export built here, with its JSON beside it.
    device : "auto" is cuda:0; "cuda:N".
    precision : the precision the plan must have been built in; "auto" takes any.
    threads : no meaning here.
    output : the output the plan must have.
    graph_sha256 : the artifact's `ModelSpec.graph_sha256` that the plan must come from; "" takes any.
    graphs : replay captured CUDA graphs; False enqueues every time.

    Attributes
    ----------
    xp, device : CuPy, and the device as its context manager.
    batch : windows (2D: slices) computed at once; `run` takes any number.

    Raises
    ------
    SegError : E-EXTRA, E-DEVICE, E-DEVICE-MEMORY, E-UNSEALED, E-ENGINE-KEY, E-MODEL-LOAD.
    """

    def __init__(
        self,
        path: str,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        threads: int = 0,
        output: str = "logits",
        graph_sha256: str = "",
        graphs: bool = True,
    ) -> None:
        if device == "cpu":
            raise no_device("tensorrt", device, "it needs an NVIDIA GPU", "use -d cuda:0, or run the .onnx artifact")
        self._path = path
        index = cuda_index(device) or 0
        try:
            import tensorrt as trt
        except ImportError as error:
            raise missing_extra("tensorrt", "gpu") from error
        self.xp: Any = cupy_on(index, "tensorrt")
        file = read_engine(path)
        wanted = {"onnx_sha256": graph_sha256, "precision": "" if precision == "auto" else precision}
        given = {name: value for name, value in wanted.items() if value}
        file.key.refuse_mismatch(path, **key_here(trt, self.xp, index), **given)
        self.device: Any = self.xp.cuda.Device(index)
        with self.device:
            self._logger = message_logger(trt)
            self._runtime: Any = trt.Runtime(self._logger)
            engine = self._runtime.deserialize_cuda_engine(file.plan)
            if engine is None:
                raise load_error(path, "TensorRT", self._logger.last or "no reason given", REBUILD)
            source, target = _tensors(trt, engine, path, output)
            profile = tuple(engine.get_tensor_profile_shape(source, PROFILE)[2])
            file.key.refuse_mismatch(path, profile=profile)
            self._shape = profile
            self.batch = profile[0]
            self._classes = engine.get_tensor_shape(target)[1]
            self._stream: Any = self.xp.cuda.Stream(non_blocking=True)
            try:
                self._slots = [Slot(self.xp, profile, (profile[0], self._classes, *profile[2:])) for _ in range(2)]
                self._network: Network | None = Network(self.xp, trt, engine, (source, target), graphs, self._failure)
            except self.xp.cuda.memory.OutOfMemoryError as error:
                fix = "use a plan with a smaller window or batch, another device, or -d cpu with the .onnx artifact"
                raise SegError("E-DEVICE-MEMORY", Exit.RUNTIME, path, "does not fit into the GPU", fix) from error
            self._before, self._after = (self.xp.cuda.Event(disable_timing=True) for _ in range(2))
        self._logits: NDArray[np.float32] = np.empty(0, np.float32)

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, X, Y, Z) -> (N, K, X, Y, Z) for the plan's window; the result is valid until the next call."""
        network = self._ready()
        given = self._checked(x)
        shape = (len(given), self._classes, *given.shape[2:])
        if self._logits.shape != shape:
            self._logits = np.empty(shape, np.float32)
        with self.device:
            for stream in (self._stream, *(slot.stream for slot in self._slots)):
                stream.synchronize()  # nothing of an earlier call may still use the buffers
            flying: list[tuple[Slot, int]] = []
            for number, first in enumerate(range(0, len(given), self.batch)):
                if len(flying) == len(self._slots):
                    self._collect(*flying.pop(0))
                slot = self._slots[number % len(self._slots)]
                part = given[first : first + self.batch]
                slot.upload(part)
                self._stream.wait_event(slot.stream.record(slot.arrived))
                network.enqueue(self._stream, part.shape, slot)
                slot.stream.wait_event(self._stream.record(slot.computed))
                slot.download(len(part))
                flying.append((slot, first))
            for slot, first in flying:
                self._collect(slot, first)
        return from_slices(self._logits, len(x)) if x.ndim > given.ndim else self._logits

    def device_run(self, x: Any) -> Any:
        """`run` on CuPy arrays of this device, in the order of the current stream; the host does not wait."""
        network = self._ready()
        with self.device:
            given = self._checked(x)
            whole = len(given) <= self.batch
            slot, current = self._slots[0], self.xp.cuda.get_current_stream()
            logits = slot.target if whole else self.xp.empty((len(given), *slot.target.shape[1:]), np.float32)
            self._stream.wait_event(current.record(self._before))  # x is there, and the last logits were used
            with self._stream:
                for first in range(0, len(given), self.batch):
                    part = given[first : first + self.batch]
                    slot.source[: len(part)] = part
                    network.enqueue(self._stream, part.shape, slot)
                    if not whole:
                        logits[first : first + len(part)] = slot.target[: len(part)]
            current.wait_event(self._stream.record(self._after))
            logits = logits[: len(given)]
        return from_slices(logits, len(x)) if x.ndim > given.ndim else logits

    def close(self) -> None:
        """Release graphs, contexts, buffers, engine and runtime, in this order."""
        if self._network is not None:
            with self.device:
                self._stream.synchronize()
                self._network = None
                self._slots.clear()
                self._runtime = None

    def _ready(self) -> "Network":
        if self._network is None:
            raise closed()
        return self._network

    def _checked(self, x: Any) -> Any:
        """Windows as the plan takes them; SegError E-ENGINE-SHAPE for any other extent."""
        given = to_slices(x) if len(self._shape) == 4 else x
        if given.shape[1:] != self._shape[1:] or len(given) == 0:
            found, expected = (" x ".join(map(str, shape[1:])) for shape in (given.shape, self._shape))
            raise SegError(
                "E-ENGINE-SHAPE",
                Exit.RUNTIME,
                self._path,
                f"a window of {found} (channels first) was asked for",
                "leave --window out, or build a plan for that window",
                expected,
            )
        return given

    def _collect(self, slot: "Slot", first: int) -> None:
        slot.stream.synchronize()
        self._logits[first : first + slot.count] = slot.received[: slot.count]

    def _failure(self, what: str) -> SegError:
        said = self._logger.last.strip().splitlines()
        found = f"TensorRT: {what}" + (f" ({said[-1]})" if said else "")
        return SegError("E-ENGINE-RUN", Exit.RUNTIME, self._path, found, REBUILD)


def key_here(trt: Any, cupy: Any, index: int) -> dict[str, str]:
    """The part of an `EngineKey` that the machine decides."""
    properties = cupy.cuda.runtime.getDeviceProperties(index)
    driver = int(cupy.cuda.runtime.driverGetVersion())  # 13000 is 13.0
    return {
        "tensorrt": str(trt.__version__),
        "driver": f"{driver // 1000}.{driver % 1000 // 10}",
        "gpu": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
    }


def _tensors(trt: Any, engine: Any, path: str, output: str) -> tuple[str, str]:
    """Names of the input and of `output`, both float32; nothing else may be there."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    if len(inputs) != 1 or [name for name in names if name not in inputs] != [output]:
        raise load_error(path, "TensorRT", f"expected one input and the output {output}, found {names}", REBUILD)
    if any(engine.get_tensor_dtype(name) != trt.DataType.FLOAT for name in names):
        raise load_error(path, "TensorRT", "input and output must be float32", REBUILD)
    return inputs[0], output


def message_logger(trt: Any) -> Any:
    """Keeps the last error instead of printing it."""

    class Messages(trt.ILogger):  # type: ignore[misc]
        last = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = msg

    return Messages()
