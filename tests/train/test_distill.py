"""Distillation: the loss against the formula, the teachers it takes and refuses, runs that are stopped and resumed."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from tiny import confident_vnet, make_batch
from torch import Tensor

from seg.export.onnx_ import export
from seg.export.run import load_run
from seg.infer.artifact import load, metadata_of
from seg.infer.backends import Backend
from seg.infer.errors import SegError
from seg.infer.spec import ModelSpec, Normalisation
from seg.train import training
from seg.train.config import trained_method
from seg.train.methods import Distill
from seg.train.methods.distill import DistillConfig, divergence, imitation_dice
from seg.train.networks.vnet import VNet
from seg.train.run import load_checkpoint
from seg.train.settings import Settings
from seg.train.teacher import Teacher

TINY = dict(window=(16, 16, 16), device="cpu", precision="fp32", validate_every=0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_cases: Callable[..., Path]) -> Path:
    """data/ with labelled and unlabelled scans, teacher/ (a run of width 4) and teacher.onnx."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("distill")
    write_cases(folder / "data", 5, (20, 18, 17), unlabeled=2)
    train(folder, "teacher", width=4, iterations=3)
    export(*load_run(folder / "teacher"), str(folder / "teacher.onnx"))
    return folder


def train(root: Path, name: str, data: str = "data", *, resume: bool = False, **changes: object) -> None:
    settings = Settings((str(root / data),), str(root / name), **{**TINY, **changes})  # type: ignore[arg-type]
    training.train(settings, resume=resume, say=lambda _: None)


def test_divergence_by_hand() -> None:
    """Two voxels, two classes: T^2 times the mean of sum q log(q / p) at temperature T."""
    z = torch.tensor([[[0.0, 2.0], [1.0, -1.0]]])  # (1, K, 2)
    t = torch.tensor([[[3.0, 0.0], [0.0, 0.0]]])

    def sigmoid(v: float) -> float:
        return 1 / (1 + math.exp(-v))

    expected = 0.0
    for mine, theirs in ((0.0 - 1.0, 3.0), (2.0 + 1.0, 0.0)):  # logit of class 0 against class 1
        p, q = sigmoid(mine / 2), sigmoid(theirs / 2)
        expected += q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert divergence(z, t, 2.0).item() == pytest.approx(4 * expected / 2, rel=1e-5)


def test_the_gradient_keeps_its_size_at_every_temperature() -> None:
    """What T^2 is for (Hinton, section 2): at high temperature the gradient tends to (z - t) / K over the voxels."""
    z, t = torch.zeros(1, 2, 4), torch.tensor([[[1.0] * 4, [-1.0] * 4]])

    def gradient(temperature: float) -> float:
        logits = z.clone().requires_grad_()
        divergence(logits, t, temperature).backward()
        return float(logits.grad.abs().sum())  # type: ignore[union-attr]

    assert gradient(50.0) == pytest.approx(1.0, rel=1e-3)
    assert 0.7 < gradient(1.0) / gradient(50.0) < 1.0


def test_a_perfect_pupil_has_no_soft_loss() -> None:
    z = torch.randn(2, 3, 4, 4, 4)
    assert divergence(z, z, 2.0).item() == pytest.approx(0.0, abs=1e-6)
    sure = 50 * (z == z.max(dim=1, keepdim=True).values).float()
    assert imitation_dice(sure, sure).item() == pytest.approx(0.0, abs=1e-4)
    assert imitation_dice(sure.roll(1, dims=1), sure).item() == pytest.approx(1.0, abs=1e-4)


def distill(**changes: float) -> Distill:
    torch.manual_seed(0)
    method = Distill(VNet(width=2), replace(DistillConfig(), **changes), 100)  # type: ignore[arg-type]
    method.teacher = torch.no_grad()(confident_vnet().eval())
    return method.train()


def test_weight_divides_between_labels_and_teacher() -> None:
    batch = make_batch(DistillConfig())

    def run(weight: float) -> dict[str, Tensor]:
        return distill(weight=weight).losses(batch, 0)

    hard, half, soft = run(0.0), run(0.5), run(1.0)
    assert soft["supervised"].item() == hard["divergence"].item() == hard["imitation"].item() == 0.0
    for name, full in (("supervised", hard), ("divergence", soft), ("imitation", soft)):
        assert half[name].item() == pytest.approx(full[name].item() / 2)


def test_unlabelled_crops_teach_too() -> None:
    """The hard term ignores them (batch norm apart, hence one statistic for both), the soft terms do not."""
    method = distill().eval()
    batch = make_batch(method.config)
    other = replace(batch, u=batch.u + 1)
    a, b = method.losses(batch, 0), method.losses(other, 0)
    assert torch.equal(a["supervised"], b["supervised"])
    assert not torch.equal(a["divergence"], b["divergence"])
    assert not torch.equal(a["imitation"], b["imitation"])


def test_a_student_becomes_its_teacher_without_a_label() -> None:
    """A teacher that knows bright from dark; the batch's labels, which say something else, have no weight."""
    torch.manual_seed(0)
    method = Distill(torch.nn.Conv3d(1, 2, 3, padding=1), replace(DistillConfig(), weight=1.0, ema=0.0), 100)
    method.teacher = lambda x: 4 * torch.cat([-x, x], dim=1)
    optimizer = torch.optim.AdamW(method.student.parameters(), 1e-1)
    batch = make_batch(method.config)
    batch = replace(batch, y=1 - batch.y)
    for step in range(40):
        optimizer.zero_grad()
        torch.stack(list(method.losses(batch, step).values())).sum().backward()
        optimizer.step()
    x = torch.cat([batch.x, batch.u])
    assert (method.student(x).argmax(dim=1) == (x[:, 0] > 0)).float().mean() > 0.95


def test_the_teacher_is_no_part_of_the_state() -> None:
    method = distill()
    assert set(method.state_dict()) == {
        f"{part}.{name}" for part in ("student", "average.network") for name in VNet(width=2).state_dict()
    }


def test_run_and_artifact_teach_the_same(root: Path) -> None:
    method, config, _ = trained_method(root / "teacher")
    of_run = Teacher.of_run("teacher", method.deployed(), config, CPU, torch.float32)
    of_file = Teacher.of_artifact(str(root / "teacher.onnx"), CPU)
    x = torch.randn(2, 1, 16, 16, 16)
    torch.testing.assert_close(of_run.logits(x), of_file.logits(x), atol=1e-4, rtol=1e-4)
    kept = of_file.logits(x)
    of_file.logits(x + 1)  # an engine may reuse its output's memory
    torch.testing.assert_close(kept, of_run.logits(x), atol=1e-4, rtol=1e-4)
    assert (of_run.width, of_file.width) == (4, 4)
    assert of_run.spec.spacing == of_file.spec.spacing


@pytest.mark.parametrize("teacher", ["teacher", "teacher.onnx"])
def test_a_distilled_run_exports_without_its_teacher(root: Path, tmp_path: Path, teacher: str) -> None:
    """Half the teacher's width unless asked; its grid and intensities; the card names it."""
    name = f"student of {teacher}"
    train(root, name, distill=str(root / teacher), iterations=2)
    config = json.loads((root / name / "config.json").read_text())
    of = json.loads((root / "teacher" / "config.json").read_text())
    assert (config["method"]["name"], config["network"]["width"]) == ("distill", 2)
    assert {k: config["spec"][k] for k in ("spacing", "normalisation", "labels", "window")} == {
        k: of["spec"][k] for k in ("spacing", "normalisation", "labels", "window")
    }
    assert set(json.loads((root / name / "metrics.jsonl").read_text().splitlines()[-1])) >= {"divergence", "imitation"}
    (root / teacher).rename(tmp_path / "away")
    try:
        student, spec = load_run(root / name)
    finally:
        (tmp_path / "away").rename(root / teacher)
    assert type(student) is VNet
    assert spec.card["training"]["teacher"]["name"] == "data"
    assert spec.card["training"]["teacher"]["width"] == 4


KILLED = """
import os, signal
from seg.train import loop
from seg.train.cli import main
save = loop.save_checkpoint
def kill(folder, state):
    save(folder, state)
    if state["step"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
loop.save_checkpoint = kill
main()
"""


def test_killed_and_resumed_is_the_undisturbed_run(root: Path) -> None:
    flags = dict(distill=str(root / "teacher.onnx"), iterations=6, loop={"save_seconds": 0.0, "log_every": 1})
    train(root, "undisturbed", **flags)
    (root / "c.toml").write_text("iterations = 6\nvalidate_every = 0\n[loop]\nsave_seconds = 0\nlog_every = 1\n")
    command = [sys.executable, "-c", KILLED, str(root / "data"), "-q", "-o", str(root / "killed"), "-d", "cpu"]
    command += ["--precision", "fp32", "--window", "16", "--config", str(root / "c.toml")]
    command += ["--distill", str(root / "teacher.onnx")]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert load_checkpoint(root / "killed")[0]["step"] == 3
    train(root, "killed", resume=True, **flags)
    states = [load_checkpoint(root / name)[0]["method"] for name in ("undisturbed", "killed")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert (root / "undisturbed" / "metrics.jsonl").read_text() == (root / "killed" / "metrics.jsonl").read_text()


def test_another_teacher_is_another_run(root: Path) -> None:
    train(root, "faithful", distill=str(root / "teacher"), iterations=2)
    with pytest.raises(SegError, match="E-RUN-CONFIG") as caught:
        train(root, "faithful", distill=str(root / "teacher.onnx"), iterations=2, resume=True)
    assert "teacher.sha256" in caught.value.found
    with pytest.raises(SegError, match="E-RUN-CONFIG"):
        train(root, "faithful", iterations=2, width=2, resume=True)


def changed_teacher(root: Path, path: Path, **changes: object) -> str:
    """The artifact with another spec; its graph is the same."""
    proto, teacher = onnx.load(root / "teacher.onnx"), load(str(root / "teacher.onnx"))
    onnx.helper.set_model_props(proto, metadata_of(replace(teacher.spec, **changes), teacher.golden))  # type: ignore[arg-type]
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "settings", "found"),
    [
        (dict(labels=("background", "a"), label_values=(0, 2)), {}, "the data have the values (0, 1, 2), "),
        (dict(channels=("T1", "T2")), {}, "the scans have 1 channels, "),
        ({}, dict(network="unet2d", window=(16, 16, 1)), "a network for slices, "),
        (dict(tiling="window"), dict(window=(32, 16, 16)), "window (32, 16, 16), "),
        (dict(stride=(32, 32, 32), window=(32, 32, 32)), {}, "window (16, 16, 16), "),
        ({}, dict(spacing=(2.0, 2.0, 2.0)), "spacing (2.0, 2.0, 2.0), "),
    ],
)
def test_a_teacher_of_something_else(
    root: Path, tmp_path: Path, changes: dict[str, object], settings: dict[str, object], found: str
) -> None:
    teacher = changed_teacher(root, tmp_path / "other.onnx", **changes)
    with pytest.raises(SegError) as caught:
        train(tmp_path, "run", data=os.path.relpath(root / "data", tmp_path), distill=teacher, **settings)
    assert caught.value.code == "E-TEACHER"
    assert found in str(caught.value)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("mine", "theirs", "found"),
    [
        (dict(orientation="slices"), {}, "slices as they are stored, axial slices, turned to RAS"),
        ({}, dict(orientation="slices"), "axial slices, turned to RAS, slices as they are stored"),
        (dict(channels=("T2", "T1")), dict(channels=("T1", "T2")), "channels T2, T1, the teacher's T1, T2"),
    ],
)
def test_a_teacher_that_sees_the_scans_otherwise(mine: dict[str, Any], theirs: dict[str, Any], found: str) -> None:
    spec = ModelSpec(
        "t", ("background", "a"), ("MR",), (None, None, None), Normalisation("zscore"), (16, 16, 1), (16, 16, 1), dims=2
    )
    teacher = Teacher("teacher.onnx", replace(spec, **theirs), 8, "", cast(Backend, None))
    with pytest.raises(SegError, match="E-TEACHER") as caught:
        teacher.refuse(replace(spec, **mine))
    assert f"{caught.value.found}, {caught.value.expected}" == found


@pytest.mark.parametrize("teacher", ["nothing.onnx", "empty"])
def test_no_teacher(root: Path, tmp_path: Path, teacher: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SegError) as caught:
        train(root, str(tmp_path / "run"), distill=str(tmp_path / teacher))
    assert caught.value.code in ("E-MODEL-MISSING", "E-RUN-NONE")
    assert caught.value.exit == 20


def test_a_ct_teacher_keeps_its_intensities(root: Path, tmp_path: Path) -> None:
    norm = Normalisation("fixed", -5.0, 300.0, 100.0, 20.0)
    teacher = changed_teacher(root, tmp_path / "ct.onnx", normalisation=norm)
    train(root, str(tmp_path / "run"), distill=teacher, iterations=1)
    spec = ModelSpec.from_dict(json.loads((tmp_path / "run" / "config.json").read_text())["spec"])
    assert spec.normalisation == norm
    assert np.isfinite(load_checkpoint(tmp_path / "run")[0]["method"]["student.head.weight"].numpy()).all()
