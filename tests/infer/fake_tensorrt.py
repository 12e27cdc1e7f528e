"""A FAKE of TensorRT on top of fake_cuda: one made-up network. It tests our own shape, stream and graph logic only.

Nothing here says anything about real TensorRT. What the fake insists on is what the real one documents: the profile
before the shape, no default stream, activation memory set, a warm-up before a capture, and no change of a context that
a captured graph still needs.
"""

import json
from types import ModuleType
from typing import Any

import numpy as np
from fake_cuda import Gpu

VERSION = "10.16.1.11"


def fake_plan(profile: tuple[int, ...], classes: int, **changes: object) -> bytes:
    """Bytes that the fake runtime takes for a plan: logits k = (k + 1) * mean over channels + 0.1 * k * ramp."""
    return json.dumps({"profile": profile, "classes": classes, "output": "logits", **changes}).encode()


def fake_logits(x: np.ndarray, classes: int) -> np.ndarray:
    """What the fake network computes, (N, C, ...) -> (N, K, ...)."""
    mean = x.mean(axis=1, dtype=np.float64)
    ramp = np.linspace(-1, 1, mean[0].size).reshape(mean.shape[1:])
    return np.stack([(k + 1) * mean + 0.1 * k * ramp for k in range(classes)], axis=1).astype(np.float32)


class ILogger:
    """Base of loggers."""

    INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2


class TensorIOMode:
    NONE, INPUT, OUTPUT = 0, 1, 2


class DataType:
    FLOAT, HALF = 0, 1


class ExecutionContextAllocationStrategy:
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = 0, 1, 2


class ICudaEngine:
    """One input "image" and one output."""

    def __init__(self, plan: dict[str, Any], gpu: Gpu) -> None:
        self.plan, self.gpu = plan, gpu
        self.num_io_tensors = 2
        self.device_memory_size_v2 = 4096

    def get_tensor_name(self, index: int) -> str:
        return ("image", self.plan["output"])[index]

    def get_tensor_mode(self, name: str) -> int:
        return TensorIOMode.INPUT if name == "image" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> int:
        return self.plan.get("dtype", DataType.FLOAT)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        n, *rest = self.plan["profile"]
        return [(1, *rest), (n, *rest), (n, *rest)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        _, channels, *rest = self.plan["profile"]
        return (-1, channels if name == "image" else self.plan["classes"], *rest)

    def create_execution_context(self, strategy: int) -> "IExecutionContext | None":
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        self.gpu.faults.count("contexts")
        return None if self.gpu.faults.context else IExecutionContext(self)


class IExecutionContext:
    """Refuses to run before everything is set, and its graphs once anything was set again."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._gpu = engine, engine.gpu
        self._profile: int | None = None
        self._shape: tuple[int, ...] | None = None
        self._addresses: dict[str, int] = {}
        self._memory = self._version = self._enqueued = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self._gpu.memory[memory].nbytes >= size
        self._memory, self._version = memory, self._version + 1

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert self._gpu.streams[stream].non_blocking, "the default stream"
        self._profile, self._version = index, self._version + 1
        return not self._gpu.faults.profile

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile == 0, "a shape before the profile"
        largest = self._engine.plan["profile"]
        if self._gpu.faults.input_shape or list(shape[1:]) != list(largest[1:]) or not 1 <= shape[0] <= largest[0]:
            return False
        self._shape, self._version = shape, self._version + 1
        return True

    def infer_shapes(self) -> list[str]:
        return list(self._gpu.faults.unknown_shapes)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name], self._version = memory, self._version + 1
        return not self._gpu.faults.address

    def execute_async_v3(self, stream_handle: int) -> bool:
        stream = self._gpu.streams[stream_handle]
        assert stream.non_blocking, "the default stream"
        assert self._shape is not None, "no shape"
        assert self._memory, "no activation memory"
        if self._gpu.faults.enqueue:
            return False
        if stream.captured is not None:
            assert self._enqueued == self._version, "captured without a warm-up since the last change"
        self._enqueued, version, shape = self._version, self._version, self._shape
        source, target = self._addresses["image"], self._addresses[self._engine.plan["output"]]
        classes = self._engine.plan["classes"]

        def compute() -> None:
            assert version == self._version, "the context was changed after the graph was captured"
            x = self._gpu.flat(source, int(np.prod(shape))).reshape(shape)
            logits = fake_logits(x, classes)
            self._gpu.flat(target, logits.size)[:] = logits.reshape(-1)
            self._gpu.faults.count("computed")

        stream.add(compute)
        return True


def fake_tensorrt(gpu: Gpu) -> ModuleType:
    """The part of tensorrt that the backend uses."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
            if gpu.faults.deserialize:
                self.logger.log(ILogger.ERROR, "fake: serialisation assertion failed")
                return None
            return ICudaEngine(json.loads(plan), gpu)

    trt = ModuleType("tensorrt")
    trt.__version__ = VERSION
    for member in (ILogger, TensorIOMode, DataType, ExecutionContextAllocationStrategy, ICudaEngine, IExecutionContext):
        setattr(trt, member.__name__, member)
    trt.Runtime = Runtime
    return trt
