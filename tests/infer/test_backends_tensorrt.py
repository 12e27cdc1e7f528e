"""The TensorRT backend on a fake runtime: shapes, streams, graphs and failures of calls.

The fake proves our own logic only; the real runtime is exercised by test_backends_gpu.py on a machine that has one.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fake_cuda
import numpy as np
import pytest
from fake_plans import WINDOW, install, write_plan
from fake_tensorrt import fake_logits

from seg.infer.backends import on_device, open_backend
from seg.infer.errors import Exit, SegError

Write = Callable[..., str]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> fake_cuda.Gpu:
    return install(monkeypatch, tmp_path)


@pytest.fixture
def write(gpu: fake_cuda.Gpu, tmp_path: Path) -> Write:
    return partial(write_plan, tmp_path)


def noise(count: int, channels: int = 1, window: tuple[int, ...] = WINDOW, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, channels, *window), dtype=np.float32)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_number_of_windows(write: Write, channels: int, graphs: bool) -> None:
    """Batches of two in flight at once; every call and every batch size gets its own logits."""
    backend = open_backend("tensorrt", write((2, channels, *WINDOW)), "cuda:0", graphs=graphs)
    for number, count in enumerate((1, 2, 3, 4, 5, 7, 2, 7, 1)):
        x = noise(count, channels, seed=number)
        np.testing.assert_array_equal(backend.run(x), fake_logits(x, 3))
    backend.close()


def test_strided_windows_are_taken(write: Write) -> None:
    backend = open_backend("tensorrt", write())
    x = noise(3, 1, WINDOW[::-1]).transpose(0, 1, 4, 3, 2)
    np.testing.assert_array_equal(backend.run(x), fake_logits(x, 3))


def test_slices_for_a_2d_plan(write: Write) -> None:
    backend = open_backend("tensorrt", write((4, 1, 6, 5)))
    x = noise(2, 1, (6, 5, 7))  # 14 slices
    expected = np.stack([fake_logits(x[..., z], 3) for z in range(7)], axis=-1)
    found = backend.run(x)
    assert found.shape == (2, 3, 6, 5, 7)
    np.testing.assert_array_equal(found, expected)


def test_one_capture_for_each_shape_and_address(gpu: fake_cuda.Gpu, write: Write) -> None:
    backend = open_backend("tensorrt", write())
    for count in (2, 2, 2, 1, 1, 2):
        backend.run(noise(count))
    assert gpu.faults.counts == {"contexts": 2, "captures": 2, "computed": 6, "launches": 4}
    backend.run(noise(4))  # the second pair of buffers
    assert (gpu.faults.counts["contexts"], gpu.faults.counts["captures"]) == (3, 3)


def on_gpu(gpu: fake_cuda.Gpu, x: np.ndarray) -> fake_cuda.Array:
    array = gpu.allocate(x.shape, np.float32)
    gpu.current[-1].add(lambda: np.copyto(array.host, x))  # still under way when the backend is called
    return array


@pytest.mark.parametrize("profile", [(2, 1, *WINDOW), (5, 1, 6, 5)])
def test_the_device_path(gpu: fake_cuda.Gpu, write: Write, profile: tuple[int, ...]) -> None:
    """No host copy, in the order of the caller's stream."""
    backend = open_backend("tensorrt", write(profile))
    xp, run = on_device(backend)
    assert xp is sys.modules["cupy"]
    for number, count in enumerate((2, 1, 3, 2)):
        x = noise(count, seed=number)
        slices = len(profile) == 4
        expected = np.stack([fake_logits(x[..., z], 3) for z in range(4)], axis=-1) if slices else fake_logits(x, 3)
        with fake_cuda.Stream(gpu, non_blocking=True), sys.modules["cupy"].cuda.Device(0):
            np.testing.assert_array_equal(run(on_gpu(gpu, x)).get(), expected)
    np.testing.assert_array_equal(backend.run(noise(3)).shape, (3, 3, *WINDOW))


def test_the_host_path_waits_for_the_device_path(gpu: fake_cuda.Gpu, write: Write) -> None:
    """Both use the same buffers."""
    backend = open_backend("tensorrt", write())
    first, second = noise(2, seed=1), noise(2, seed=2)
    backend.run(first)
    with fake_cuda.Stream(gpu, non_blocking=True), sys.modules["cupy"].cuda.Device(0):
        pending = backend.device_run(on_gpu(gpu, first))  # type: ignore[attr-defined]
        copied = pending.copy()
        np.testing.assert_array_equal(backend.run(second), fake_logits(second, 3))
        assert copied.get().shape == (2, 3, *WINDOW)


def test_another_window_is_refused(write: Write) -> None:
    backend = open_backend("tensorrt", write())
    with pytest.raises(SegError, match=r"E-ENGINE-SHAPE.*1 x 6 x 5 x 5.*expected 1 x 6 x 5 x 4") as caught:
        backend.run(noise(1, 1, (6, 5, 5)))
    assert caught.value.exit == Exit.RUNTIME


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ({"deserialize": True}, "E-MODEL-LOAD", "serialisation assertion failed"),
        ({"context": True}, "E-ENGINE-RUN", "no execution context"),
        ({"profile": True}, "E-ENGINE-RUN", "profile 0 was refused"),
        ({"input_shape": True}, "E-ENGINE-RUN", "input shape .* was refused"),
        ({"unknown_shapes": ("image",)}, "E-ENGINE-RUN", "no shape is known for image"),
        ({"address": True}, "E-ENGINE-RUN", "address of image was refused"),
        ({"enqueue": True}, "E-ENGINE-RUN", "could not be enqueued"),
        ({"memory": True}, "E-DEVICE-MEMORY", "does not fit"),
        ({"no_driver": True}, "E-DEVICE", "no CUDA-capable device"),
    ],
)
def test_failures_of_the_runtime(gpu: fake_cuda.Gpu, write: Write, fault: dict[str, Any], code: str, said: str) -> None:
    path = write()
    for name, value in fault.items():
        setattr(gpu.faults, name, value)
    with pytest.raises(SegError, match=f"{code}: .*{said}"):
        open_backend("tensorrt", path).run(noise(1))
    for name in fault:
        setattr(gpu.faults, name, getattr(fake_cuda.Faults(), name))
    np.testing.assert_array_equal(open_backend("tensorrt", path).run(noise(1)), fake_logits(noise(1), 3))


def test_a_failed_call_leaves_the_backend_usable(gpu: fake_cuda.Gpu, write: Write) -> None:
    backend = open_backend("tensorrt", write())
    backend.run(noise(2))
    gpu.faults.input_shape = True
    with pytest.raises(SegError, match="E-ENGINE-RUN"):
        backend.run(noise(3, seed=4))  # the second batch needs a context of its own
    gpu.faults.input_shape = False
    np.testing.assert_array_equal(backend.run(noise(3, seed=5)), fake_logits(noise(3, seed=5), 3))


def test_close_then_run(write: Write) -> None:
    backend = open_backend("tensorrt", write())
    backend.run(noise(1))
    backend.close()
    backend.close()
    with pytest.raises(RuntimeError, match="closed"):
        backend.run(noise(1))
