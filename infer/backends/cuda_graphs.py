"""Contexts, CUDA graphs and copy buffers of the TensorRT backend."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SegError

PROFILE = 0  # plans have one optimisation profile


class Slot:
    """Buffers of one batch in flight: pinned -> device -> network -> device -> pinned, copies on its own stream."""

    def __init__(self, cupy: Any, source: tuple[int, ...], target: tuple[int, ...]) -> None:
        self.source, self.target = cupy.empty(source, np.float32), cupy.empty(target, np.float32)
        self.sent, self.received = (_pinned(cupy, shape) for shape in (source, target))
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.arrived, self.computed = (cupy.cuda.Event(disable_timing=True) for _ in range(2))
        self.count = 0

    def upload(self, part: NDArray[np.float32]) -> None:
        """Start copying a batch to the device."""
        self.count = len(part)
        np.copyto(self.sent[: self.count], part)
        self.source.data.copy_from_host_async(self.sent.ctypes.data, part.size * 4, self.stream)

    def download(self, count: int) -> None:
        """Start copying `count` windows' logits to the host."""
        size = self.received[:count].nbytes
        self.target.data.copy_to_host_async(self.received.ctypes.data, size, self.stream)


class Network:
    """Enqueues the plan; each (profile, shape, addresses) gets a context of its own and is captured once.

    A captured graph dies with a change of its context, hence one context a graph. All share one block of activation
    memory, which is safe because all run on one stream.
    """

    def __init__(
        self,
        cupy: Any,
        trt: Any,
        engine: Any,
        tensors: tuple[str, str],
        graphs: bool,
        failure: Callable[[str], SegError],
    ) -> None:
        self._trt, self._engine, self._tensors, self._graphs, self._fail = trt, engine, tensors, graphs, failure
        self._size = int(engine.device_memory_size_v2)
        self._memory = cupy.cuda.alloc(max(1, self._size))
        self._held: dict[tuple[Any, ...], tuple[Any, Any]] = {}  # key -> (context, graph or None)

    def enqueue(self, stream: Any, shape: tuple[int, ...], slot: Slot) -> None:
        """Compute slot.target from slot.source on `stream`, for the first `shape[0]` windows."""
        key = (PROFILE, tuple(shape), slot.source.data.ptr, slot.target.data.ptr)
        context, graph = self._held.get(key, (None, None))
        if graph is not None:
            graph.launch(stream)
            return
        if context is None:
            context = self._context(stream, key)
        self._execute(context, stream)  # this call's work; it also settles what must not be captured
        if self._graphs:
            stream.synchronize()
            stream.begin_capture()
            try:
                self._execute(context, stream)
            except BaseException:
                with suppress(RuntimeError):
                    stream.end_capture()
                raise
            graph = stream.end_capture()
        self._held[key] = (context, graph)

    def _context(self, stream: Any, key: tuple[Any, ...]) -> Any:
        profile, shape, *addresses = key
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise self._fail("no execution context")
        context.set_device_memory(self._memory.ptr, self._size)
        if not context.set_optimization_profile_async(profile, stream.ptr):
            raise self._fail(f"profile {profile} was refused")
        if not context.set_input_shape(self._tensors[0], shape):
            raise self._fail(f"input shape {shape} was refused")
        missing = context.infer_shapes()
        if missing:
            raise self._fail(f"no shape is known for {', '.join(missing)}")
        for name, address in zip(self._tensors, addresses, strict=True):
            if not context.set_tensor_address(name, address):
                raise self._fail(f"the address of {name} was refused")
        return context

    def _execute(self, context: Any, stream: Any) -> None:
        if not context.execute_async_v3(stream.ptr):
            raise self._fail("the network could not be enqueued")


def _pinned(cupy: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    count = int(np.prod(shape))
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(count * 4), np.float32, count).reshape(shape)
