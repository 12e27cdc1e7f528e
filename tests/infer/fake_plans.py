"""A fake machine with a GPU, and sealed plans for it."""

import sys
from pathlib import Path
from typing import Any

import fake_cuda
import fake_tensorrt
import pytest
from known import plain_spec

from seg.infer.backends.engine_file import EngineKey, write_engine

WINDOW = (6, 5, 4)


def install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> fake_cuda.Gpu:
    """A fake GPU with fake CuPy and fake TensorRT installed, and a private cache below `folder`."""
    gpu = fake_cuda.Gpu(fake_cuda.Faults())
    monkeypatch.setitem(sys.modules, "cupy", fake_cuda.fake_cupy(gpu))
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.fake_tensorrt(gpu))
    monkeypatch.setenv("SEG_CACHE", str(folder / "cache"))
    return gpu


def write_plan(
    folder: Path, profile: tuple[int, ...] = (2, 1, *WINDOW), classes: int = 3, *, plan: bytes = b"", **changes: Any
) -> str:
    """Path of a sealed fake plan; `changes` are those of the key."""
    key = {
        "onnx_sha256": "ab" * 32,
        "tensorrt": fake_tensorrt.VERSION,
        "driver": "13.0",
        "gpu": fake_cuda.GPU,
        "compute_capability": "9.0",
        "profile": profile,
        "precision": "fp32",
    }
    path = str(folder / "model.engine")
    spec = plain_spec(labels=("background", *(f"class {k}" for k in range(1, classes))))
    content = plan or fake_tensorrt.fake_plan(profile, classes)
    write_engine(path, content, EngineKey(**{**key, **changes}), spec, overwrite=True)
    return path
