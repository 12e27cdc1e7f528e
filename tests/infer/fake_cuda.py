"""A FAKE of CUDA and CuPy: no GPU, no speed, no kernels. It tests our own stream, copy and graph logic only.

Work is queued on streams and done as late as an ordering allows: a copy or a computation that does not wait for what it
needs finds poison (NaN) instead of data, and a copy that does not wait for readers of its target destroys what they
should have read. Nothing here says anything about real CUDA. `Faults` makes calls fail on purpose.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

GPU = "Fake GPU 9000"
CAPABILITY = (9, 0)


@dataclass
class Faults:
    """Calls that shall fail, and counters of what was done."""

    deserialize: bool = False
    context: bool = False
    profile: bool = False
    input_shape: bool = False
    unknown_shapes: tuple[str, ...] = ()
    address: bool = False
    enqueue: bool = False
    memory: bool = False
    no_driver: bool = False
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


class Gpu:
    """Fake device memory by address, fake streams by handle, and the state that CUDA keeps per thread."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.memory: dict[int, np.ndarray] = {}
        self.streams: dict[int, Stream] = {}
        self.devices: list[int] = []
        self.null = Stream(self, handle=0)
        self.current = [self.null]
        self._next = 1 << 20

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> "Array":
        """Poisoned memory at a new address."""
        if self.faults.memory:
            raise OutOfMemoryError("fake: out of memory")
        array = np.full(shape, np.nan, dtype) if dtype == np.float32 else np.zeros(shape, dtype)
        address, self._next = self._next, self._next + max(512, array.nbytes)
        self.memory[address] = array.reshape(-1)
        return Array(self, array, address)

    def flat(self, address: int, count: int) -> np.ndarray:
        return self.memory[address][:count]


class OutOfMemoryError(MemoryError):
    """cupy.cuda.memory.OutOfMemoryError."""


class Stream:
    """A queue of work, done when somebody needs it: `synchronize`, or a wait for one of its events."""

    def __init__(self, gpu: Gpu, handle: int | None = None, non_blocking: bool = False) -> None:
        self.gpu, self.non_blocking = gpu, non_blocking
        self.ptr = handle if handle is not None else 1000 + len(gpu.streams)
        gpu.streams[self.ptr] = self
        self.queue: list[Callable[[], None]] = []
        self.done = 0
        self.captured: list[Callable[[], None]] | None = None

    def add(self, work: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def run_to(self, position: int) -> None:
        while self.done < position:
            work = self.queue[self.done]
            self.done += 1
            work()

    def synchronize(self) -> None:
        assert self.captured is None, "synchronize while capturing"
        self.run_to(len(self.queue))

    def record(self, event: "Event") -> "Event":
        event.stream, event.position = self, len(self.queue)
        return event

    def wait_event(self, event: "Event") -> None:
        stream, position = event.stream, event.position
        assert stream is not None, "waiting for an event that was never recorded"
        self.add(lambda: stream.run_to(position))

    def begin_capture(self) -> None:
        assert self.ptr != 0, "the default stream cannot be captured"
        assert self.done == len(self.queue), "captured behind unfinished work"
        self.captured = []

    def end_capture(self) -> "Graph":
        assert self.captured is not None
        work, self.captured = self.captured, None
        self.gpu.faults.count("captures")
        return Graph(work, self.gpu.faults)

    def __enter__(self) -> "Stream":
        self.gpu.current.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.gpu.current.pop()


@dataclass
class Event:
    """A position in a stream."""

    stream: Stream | None = None
    position: int = 0


@dataclass
class Graph:
    """Captured work."""

    work: list[Callable[[], None]]
    faults: Faults

    def launch(self, stream: Stream) -> None:
        self.faults.count("launches")
        for work in self.work:
            stream.add(work)


class Array:
    """A fake device array: copies are queued on the current stream; NumPy cannot read it by accident."""

    __array__ = None

    def __init__(self, gpu: Gpu, host: np.ndarray, address: int) -> None:
        self.gpu, self.host = gpu, host
        self.shape, self.ndim, self.size, self.flags = host.shape, host.ndim, host.size, host.flags
        self.data = Pointer(gpu, address)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> "Array":
        view = self.host[key]
        offset = view.__array_interface__["data"][0] - self.host.__array_interface__["data"][0]
        return Array(self.gpu, view, self.data.ptr + offset)

    def __setitem__(self, key: Any, value: "Array") -> None:
        assert self.gpu.devices, "no device is current"
        self.gpu.current[-1].add(lambda: np.copyto(self.host[key], value.host))

    def transpose(self, *axes: int) -> "Array":
        return Array(self.gpu, self.host.transpose(*axes), self.data.ptr)

    def reshape(self, *shape: int) -> "Array":
        view = self.host.reshape(*shape)
        if np.shares_memory(view, self.host):
            return Array(self.gpu, view, self.data.ptr)
        made = self.gpu.allocate(view.shape, view.dtype)
        self.gpu.current[-1].add(lambda: np.copyto(made.host, self.host.reshape(*shape)))
        return made

    def copy(self) -> "Array":
        made = self.gpu.allocate(self.shape, self.host.dtype)
        self.gpu.current[-1].add(lambda: np.copyto(made.host, self.host))
        return made

    def get(self) -> np.ndarray:
        """Copy to the host, waiting for the current stream alone, as CuPy does."""
        self.gpu.current[-1].synchronize()
        return self.host.copy()


@dataclass
class Pointer:
    """cupy.cuda.MemoryPointer."""

    gpu: Gpu
    ptr: int

    def copy_from_host_async(self, address: int, size: int, stream: Stream) -> None:
        source = self._pinned(address, size)
        stream.add(lambda: np.copyto(self.gpu.flat(self.ptr, size // 4), source))

    def copy_to_host_async(self, address: int, size: int, stream: Stream) -> None:
        target = self._pinned(address, size)
        target[:] = np.nan
        stream.add(lambda: np.copyto(target, self.gpu.flat(self.ptr, size // 4)))

    def _pinned(self, address: int, size: int) -> np.ndarray:
        for block in self.gpu.memory.get(-1, []):
            if block.ctypes.data == address and block.nbytes >= size:
                return block[: size // 4]
        raise AssertionError("an asynchronous copy from or to memory that is not pinned")


def fake_cupy(gpu: Gpu) -> ModuleType:
    """The part of CuPy that the backend uses."""

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            gpu.devices.append(self.index)

        def __exit__(self, *_: object) -> None:
            gpu.devices.pop()

    def pinned(size: int) -> np.ndarray:
        block = np.full(size // 4, np.nan, np.float32)
        gpu.memory.setdefault(-1, []).append(block)  # type: ignore[arg-type]
        return block

    def device_count() -> int:
        if gpu.faults.no_driver:
            raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return 1

    cupy = ModuleType("cupy")
    cupy.empty = gpu.allocate
    cupy.cuda = SimpleNamespace(
        Device=Device,
        Stream=lambda non_blocking: Stream(gpu, non_blocking=non_blocking),
        Event=lambda disable_timing: Event(),
        alloc=lambda size: gpu.allocate((size,), np.uint8).data,
        alloc_pinned_memory=pinned,
        get_current_stream=lambda: gpu.current[-1],
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=SimpleNamespace(
            getDeviceCount=device_count,
            driverGetVersion=lambda: 13000,
            getDeviceProperties=lambda index: {"name": GPU.encode(), "major": CAPABILITY[0], "minor": CAPABILITY[1]},
        ),
    )
    return cupy
