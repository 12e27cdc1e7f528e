"""Plans and their sidecars: those of another machine, model or author are refused before TensorRT sees them."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fake_cuda
import fake_tensorrt
import pytest
from fake_plans import WINDOW, install, write_plan

from seg.infer.backends import open_backend
from seg.infer.backends.engine_file import load_engine, sidecar
from seg.infer.errors import Exit, SegError

Write = Callable[..., str]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> fake_cuda.Gpu:
    return install(monkeypatch, tmp_path)


@pytest.fixture
def write(gpu: fake_cuda.Gpu, tmp_path: Path) -> Write:
    return partial(write_plan, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"tensorrt": "11.4.0.106"},
        {"gpu": "Another GPU"},
        {"compute_capability": "8.9"},
        {"profile": (4, 1, *WINDOW)},
    ],
)
def test_a_plan_for_another_machine(write: Write, change: dict[str, Any]) -> None:
    path = write(plan=fake_tensorrt.fake_plan((2, 1, *WINDOW), 3), **change)
    with pytest.raises(SegError, match=r"E-ENGINE-KEY: .*was built for") as caught:
        open_backend("tensorrt", path)
    assert caught.value.exit == Exit.RUNTIME
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("asked", [{"precision": "fp16"}, {"graph_sha256": "cd" * 32}])
def test_a_plan_of_another_model_or_precision(write: Write, asked: dict[str, str]) -> None:
    with pytest.raises(SegError, match="E-ENGINE-KEY") as caught:
        open_backend("tensorrt", write(), **asked)
    assert caught.value.exit == Exit.RUNTIME
    open_backend("tensorrt", write(), precision="fp32", graph_sha256="ab" * 32).close()


def flip(path: str) -> None:
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    Path(path).write_bytes(data)


def reword(path: str) -> None:
    """Give an engine of another GPU this GPU's name."""
    content = json.loads(Path(sidecar(path)).read_text())
    content["key"]["precision"] = "bf16"
    Path(sidecar(path)).write_text(json.dumps(content))


def other_key(path: str) -> None:
    key = Path(os.environ["SEG_CACHE"]) / "seal.key"
    key.unlink()
    key.write_bytes(bytes(32))
    key.chmod(0o600)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        reword,
        other_key,
        lambda path: Path(sidecar(path)).unlink(),
        lambda path: Path(sidecar(path)).write_text("{}"),
        lambda path: Path(sidecar(path)).write_text("[1]"),
        lambda path: Path(sidecar(path)).write_bytes(b"\xff"),
    ],
    ids=["flipped byte", "changed key", "foreign", "no sidecar", "empty", "list", "no text"],
)
def test_only_plans_of_our_own(gpu: fake_cuda.Gpu, write: Write, damage: Callable[[str], None]) -> None:
    path = write()
    damage(path)
    gpu.faults.deserialize = True  # TensorRT would say so: it must not even see the plan
    with pytest.raises(SegError, match="E-UNSEALED") as caught:
        open_backend("tensorrt", path)
    assert caught.value.exit == Exit.MODEL


@pytest.mark.parametrize(
    ("changes", "said"), [({"output": "features"}, "the output logits"), ({"dtype": 1}, "must be float32")]
)
def test_a_plan_with_other_tensors(write: Write, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SegError, match=f"E-MODEL-LOAD.*{said}"):
        open_backend("tensorrt", write(plan=fake_tensorrt.fake_plan((2, 1, *WINDOW), 3, **changes)))


def test_the_artifact_allows_the_plans_window_only(write: Write) -> None:
    artifact = load_engine(write())
    assert (artifact.spec.tiling, artifact.spec.window) == ("window", WINDOW)
    assert load_engine(write((4, 1, 6, 5))).spec.window == (6, 5, 1)
