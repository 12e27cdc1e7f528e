"""Interruption and resumption of real, tiny runs: what is lost, what is refused, and that nothing else differs."""

import errno
import fcntl
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import sample
from torch import Tensor

from seg.infer.errors import Exit, SegError
from seg.train import device, job, training
from seg.train.augment import WeakAugmentation
from seg.train.config import Engine, refuse_changes
from seg.train.loader import Data
from seg.train.loop import Loop, LoopConfig
from seg.train.methods.supervised import Supervised
from seg.train.processes import Processes
from seg.train.run import CHECKPOINT, PREVIOUS, load_checkpoint, locked
from seg.train.settings import Settings

STEPS = 10
TOML = f"""
iterations = {STEPS}
window = [16, 16, 16]
width = 2
device = "cpu"
precision = "fp32"
validate_every = 4

[method]
name = "crossmatch"

[loop]
save_seconds = 0
log_every = 1
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, write_cases: Callable[..., Path]) -> Path:
    """A folder with data/, config.toml, and full/: a run that was never disturbed."""
    root = tmp_path_factory.mktemp("loop")
    write_cases(root / "data", 5, (20, 18, 17), unlabeled=2)
    (root / "config.toml").write_text(TOML)
    train(root, "full")
    return root


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert {number: signal.getsignal(number) for number in previous} == previous, "a run leaves no handler behind"


def train(
    root: Path,
    name: str,
    *,
    resume: bool = False,
    data: str = "data",
    report: Callable[[int], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    **changes: Any,
) -> None:
    """`seg-train` in this process."""
    given = {"output", *changes}
    settings = Settings((str(root / data),), str(root / name), **changes).with_file(str(root / "config.toml"), given)
    training.train(settings, resume=resume, say=say, report=lambda step, *_: report(step))


SLOW_TRAIN = """
import time
from seg.train import loop
from seg.train.cli import main
save = loop.save_checkpoint
loop.save_checkpoint = lambda *state: (time.sleep(0.1), save(*state))
main()
"""


def start(root: Path, name: str) -> "subprocess.Popen[str]":
    """`seg-train` in a process of its own, slow between a step's log line and its checkpoint: signals come there."""
    command = [sys.executable, "-c", SLOW_TRAIN, str(root / "data"), "-q"]
    command += ["-o", str(root / name), "--config", str(root / "config.toml")]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for_step(run: Path, step: int) -> None:
    """Until that many steps are logged."""
    end = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or steps_logged(run) < step:
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.002)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps_logged(run: Path) -> int:
    """Also of a log whose last line is cut off."""
    return (run / "metrics.jsonl").read_text().count('"lr"')


def digest(run: Path) -> str:
    """Hash of all weights and statistics, optimiser included."""
    state, _ = load_checkpoint(run)
    found = hashlib.sha256(str(state["step"]).encode())
    moments = state["optimizers"]["student"]["state"]
    tensors = {**state["method"], **{f"{k}.{name}": t for k, one in moments.items() for name, t in one.items()}}
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].numpy().tobytes())
    return found.hexdigest()


def assert_same_run(root: Path, name: str) -> None:
    assert metrics(root / name) == metrics(root / "full")
    assert digest(root / name) == digest(root / "full")
    cases = [json.loads((root / run / "validation.json").read_text())["cases"] for run in (name, "full")]
    assert cases[0] == cases[1]


class Interrupted(Exception):
    """Raised by a test inside a run."""


def interrupt_at(step: int) -> Callable[[int], None]:
    def report(now: int) -> None:
        if now == step:
            raise Interrupted

    return report


def test_undisturbed_run(workplace: Path) -> None:
    lines = metrics(workplace / "full")
    assert [line["step"] for line in lines if "lr" in line] == list(range(STEPS))
    assert [line["step"] for line in lines if "dice" in line] == [3, 7]
    assert {"supervised", "image", "teacher", "assistant"} <= lines[0].keys()
    losses = [line["supervised"] for line in lines if "lr" in line]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert list((workplace / "full" / "tensorboard").iterdir())
    assert sorted(json.loads((workplace / "full" / "config.json").read_text())["split"]["unlabeled"]) == [
        "scan05",
        "scan06",
    ]


def test_validation_tells_its_step(workplace: Path) -> None:
    assert json.loads((workplace / "full" / "validation.json").read_text())["step"] == STEPS
    with pytest.raises(Interrupted):
        train(workplace, "between", report=interrupt_at(6))
    assert json.loads((workplace / "between" / "validation.json").read_text())["step"] == 4


def test_memory_is_what_the_container_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_memory", lambda: 12345)
    assert device.memory_of(torch.device("cpu")) == 12345
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert device.memory_of(torch.device("cpu")) == 12345 // 2


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 50))])
def test_killed_and_resumed_is_the_same_run(workplace: Path, number: int) -> None:
    """Anywhere between two checkpoints, and while one is written: the same weights, moments, log and validation."""
    for attempt in range(5):  # on a busy machine the killer may come too late: that proves nothing
        step, delay, name = random.randint(1, 4), random.uniform(0, 0.15), f"killed{number}-{attempt}"
        run = start(workplace, name)
        wait_for_step(workplace / name, step)
        time.sleep(delay)
        run.kill()
        killed = run.wait() == -signal.SIGKILL
        if killed and steps_logged(workplace / name) < STEPS:
            break
    else:
        pytest.fail(f"always finished before it was killed, last {delay:.3f} s after step {step}")
    train(workplace, name, resume=True)
    assert_same_run(workplace, name)


def test_sigterm_saves_and_says_so(workplace: Path) -> None:
    run = start(workplace, "stopped")
    wait_for_step(workplace / "stopped", 3)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 143
    assert "E-STOPPED" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    state, _ = load_checkpoint(workplace / "stopped")
    assert 3 <= state["step"] < STEPS
    assert state["step"] == steps_logged(workplace / "stopped")
    train(workplace, "stopped", resume=True)
    assert_same_run(workplace, "stopped")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_step_first(number: signal.Signals, tmp_path: Path) -> None:
    loop = plain_loop(tmp_path, report=lambda step, *_: os.kill(os.getpid(), number) if step == 2 else None)
    with pytest.raises(SegError) as caught:
        loop.run()
    assert caught.value.exit == 128 + number
    assert load_checkpoint(tmp_path)[0]["step"] == 2


def test_resume_before_the_first_checkpoint(workplace: Path) -> None:
    with pytest.raises(Interrupted):
        train(workplace, "early", report=interrupt_at(1))
    assert not (workplace / "early" / CHECKPOINT).exists()
    assert len(metrics(workplace / "early")) == 1
    train(workplace, "early", resume=True)
    assert_same_run(workplace, "early")


def test_torn_checkpoint_falls_back(workplace: Path) -> None:
    run = workplace / "torn"
    with pytest.raises(Interrupted):
        train(workplace, "torn", report=interrupt_at(7))
    assert load_checkpoint(run)[0]["step"] == 6
    assert len([line for line in metrics(run) if "lr" in line]) == 7
    whole = (run / CHECKPOINT).read_bytes()
    (run / CHECKPOINT).write_bytes(whole[: len(whole) // 2])
    assert load_checkpoint(run)[0]["step"] == 5
    said: list[str] = []
    with pytest.raises(Interrupted):
        train(workplace, "torn", resume=True, say=said.append, report=interrupt_at(7))
    assert [line for line in said if f"{CHECKPOINT} is damaged" in line]
    assert [line["step"] for line in metrics(run) if "lr" in line] == list(range(7)), "no line twice, none lost"
    for name in (CHECKPOINT, PREVIOUS):  # the damaged one never took the place of the good one
        assert torch.load(run / name, weights_only=True)["step"] in (5, 6)
    said.clear()
    train(workplace, "torn", resume=True, say=said.append)
    assert not [line for line in said if "damaged" in line]
    assert_same_run(workplace, "torn")


def test_damaged_checkpoint_is_set_aside_before_the_next_save(workplace: Path) -> None:
    run = workplace / "aside"
    with pytest.raises(Interrupted):
        train(workplace, "aside", report=interrupt_at(3))
    (run / CHECKPOINT).write_bytes(b"torn")
    with pytest.raises(Interrupted):
        train(workplace, "aside", resume=True, report=interrupt_at(2))  # before anything is saved
    assert not (run / CHECKPOINT).exists()
    assert load_checkpoint(run)[0]["step"] == 1


def test_two_torn_checkpoints(workplace: Path) -> None:
    run = workplace / "lost"
    with pytest.raises(Interrupted):
        train(workplace, "lost", report=interrupt_at(4))
    for name in (CHECKPOINT, PREVIOUS):
        (run / name).write_bytes(b"torn")
    with pytest.raises(SegError) as caught:
        train(workplace, "lost", resume=True)
    assert (caught.value.code, caught.value.exit) == ("E-RUN-NONE", Exit.MODEL)


def test_resuming_a_finished_run_changes_nothing(workplace: Path) -> None:
    with pytest.raises(Interrupted):
        train(workplace, "done", report=interrupt_at(STEPS))
    train(workplace, "done", resume=True)
    before = digest(workplace / "done")
    train(workplace, "done", resume=True)
    assert digest(workplace / "done") == before
    assert_same_run(workplace, "done")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"seed": 1}, "loop.seed"),
        ({"iterations": STEPS + 1}, "loop.iterations"),
        ({"method": "supervised"}, "method.name"),
        ({"window": (32, 16, 16)}, "spec.window"),
        ({"loop": {"save_seconds": 0, "log_every": 2}}, "loop.log_every was 1, now 2"),
    ],
)
def test_resume_with_other_flags_is_refused(workplace: Path, changes: dict[str, Any], field: str) -> None:
    before = digest(workplace / "full"), metrics(workplace / "full")
    with pytest.raises(SegError) as caught:
        train(workplace, "full", resume=True, **changes)
    assert (caught.value.code, caught.value.exit) == ("E-RUN-CONFIG", 12)
    assert field in str(caught.value)
    assert (digest(workplace / "full"), metrics(workplace / "full")) == before


def test_resume_with_another_label_is_refused(
    workplace: Path, tmp_path: Path, write_cases: Callable[..., Path]
) -> None:
    data = write_cases(tmp_path / "data", 5, (20, 18, 17), unlabeled=2)
    scan, other = (data / "labels" / f"scan{n:02}.nii.gz" for n in labelled(workplace / "full")[:2])
    scan.write_bytes(other.read_bytes())
    with pytest.raises(SegError) as caught:
        train(workplace, "full", resume=True, data=str(data))
    assert caught.value.code == "E-RUN-CONFIG"
    assert "data was" in str(caught.value)


def labelled(run: Path) -> list[int]:
    return [int(name[-2:]) for name in json.loads((run / "config.json").read_text())["split"]["labeled"]]


def test_resume_does_not_depend_on_free_memory(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def window() -> list[int]:
        found: list[int] = json.loads((workplace / "roomy" / "config.json").read_text())["spec"]["window"]
        return found

    common: dict[str, Any] = dict(window=None, method="supervised", method_options={"labeled_batch": 1}, width=1)
    monkeypatch.setattr(job, "memory_of", lambda _: 1 << 32)
    with pytest.raises(Interrupted):
        train(workplace, "roomy", report=interrupt_at(2), **common)
    assert window() == [32, 32, 32]
    monkeypatch.setattr(job, "memory_of", lambda _: 5 << 20)
    with pytest.raises(SegError, match="window was"):  # what the planner would choose now
        refuse_changes(workplace / "roomy", planned(workplace, **common))
    with pytest.raises(Interrupted):
        train(workplace, "roomy", resume=True, report=interrupt_at(2), **common)
    assert window() == [32, 32, 32]


def test_a_run_goes_on_where_the_plan_and_precision_would_be_others(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common: dict[str, Any] = dict(method="supervised", width=None)
    monkeypatch.setattr("seg.train.plan.CPU_WIDTH", {2: 2, 3: 2})
    with pytest.raises(Interrupted):
        train(workplace, "moved", report=interrupt_at(2), precision="bf16", **common)
    monkeypatch.setattr("seg.train.plan.CPU_WIDTH", {2: 3, 3: 3})
    with pytest.raises(Interrupted):
        train(workplace, "moved", resume=True, report=interrupt_at(2), precision="auto", **common)
    found = json.loads((workplace / "moved" / "config.json").read_text())
    assert (found["network"]["width"], found["engine"]["precision"]) == (2, "bfloat16")
    for changes, field in (({"width": 3}, "network.width"), ({"precision": "fp32"}, "engine.precision")):
        with pytest.raises(SegError, match=field):
            train(workplace, "moved", resume=True, **(common | changes))


def planned(root: Path, **changes: Any) -> dict[str, Any]:
    settings = Settings((str(root / "data"),), "", **changes).with_file(str(root / "config.toml"), {*changes})
    engine = Engine(torch.device("cpu"), torch.float32, False, Processes())
    return job.prepare_job(settings, lambda _: None, engine).config


def test_second_run_in_the_folder_is_refused(workplace: Path) -> None:
    with pytest.raises(SegError) as caught:
        train(workplace, "full")
    assert (caught.value.code, caught.value.exit) == ("E-RUN-EXISTS", 30)


def test_locked_folder_is_refused(workplace: Path) -> None:
    with open(workplace / "full" / ".lock", "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SegError) as caught:
            train(workplace, "full", resume=True)
    assert (caught.value.code, caught.value.exit) == ("E-RUN-LOCKED", 30)


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(SegError, match="no locks") as caught, locked(tmp_path / "run"):
        pass
    assert (caught.value.code, caught.value.exit) == ("E-RUN-DIR", 30)


def test_nonfinite_loss_stops_and_names_the_scans(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Supervised.losses

    def losses(self: Supervised, batch: Any, step: int, phase: str = "student") -> dict[str, Tensor]:
        found = plain(self, batch, step, phase)
        return found if step < 4 else {"supervised": found["supervised"] * float("nan")}

    monkeypatch.setattr(Supervised, "losses", losses)
    with pytest.raises(SegError) as caught:
        train(workplace, "nan", method="supervised")
    error = caught.value
    assert (error.code, error.exit) == ("E-NONFINITE", 21)
    assert "step 4" in error.found
    assert sum(f"scan{n:02}" in error.found for n in labelled(workplace / "nan")) >= 1
    state, note = load_checkpoint(workplace / "nan")
    assert (state["step"], note) == (4, None)
    assert all(torch.isfinite(t).all() for t in state["method"].values())


def test_a_signal_that_a_step_does_not_survive_is_a_stop(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile raises when the signal that stops the training ends its compiler, too."""

    def losses(*_: object) -> dict[str, Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("CppCompileError")

    monkeypatch.setattr(Supervised, "losses", losses)
    with pytest.raises(SegError, match="or start again if nothing was saved") as caught:
        train(workplace, "compiling", method="supervised")
    assert (caught.value.code, caught.value.exit) == ("E-STOPPED", 143)


def test_infinite_weights_are_noticed(workplace: Path) -> None:
    with pytest.raises(SegError) as caught:
        train(workplace, "inf", method="supervised", method_options={"lr": 1e38})
    assert caught.value.code == "E-NONFINITE"


def test_weights_are_judged_before_a_validation(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object) -> None:
        raise AssertionError("validated")

    monkeypatch.setattr("seg.train.training.validate", nothing)
    with pytest.raises(SegError, match="another folder with a lower learning rate") as caught:
        train(workplace, "diverged", method="supervised", method_options={"lr": 1e38}, validate_every=1)
    assert caught.value.code == "E-NONFINITE"


def plain_loop(folder: Path, **options: Any) -> Loop:
    torch.manual_seed(0)
    method = Supervised(torch.nn.Conv3d(1, 2, 1), Supervised.Config(labeled_batch=2), 6)
    data = Data([sample((10, 10, 10), foreground=300)], [])
    data = Data([type(s)(s.id, s.image / 200, (s.label > 0).astype("uint8")) for s in data.labeled], [])  # type: ignore[operator]
    config = LoopConfig(6, (8, 8, 8), log_every=1, save_seconds=0)
    augmentation = WeakAugmentation()
    return Loop(method, data, config, augmentation, folder, torch.device("cpu"), torch.float32, **options)


def test_batches_depend_on_the_step_alone(tmp_path: Path) -> None:
    first, second = plain_loop(tmp_path), plain_loop(tmp_path)
    torch.manual_seed(99)
    second.loader.load(7)
    a, b = (loop.loader.load(3).batch for loop in (first, second))
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.y, b.y)
    assert not torch.equal(first.loader.load(4).batch.x, a.x)


def test_dropout_draws_other_numbers_than_augmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, seeds = plain_loop(tmp_path), []

    def seen(batch: Any, _: int) -> dict[str, Tensor]:
        seeds.extend([batch.generator.initial_seed(), torch.initial_seed()])
        return {"supervised": torch.zeros(())}

    monkeypatch.setattr(loop, "train_step", seen)
    for _ in range(2):
        loop._one_step(loop.loader)
    assert len(set(seeds)) == 4


def test_unlabelled_scans_are_demanded(tmp_path: Path) -> None:
    method = Supervised(torch.nn.Conv3d(1, 2, 1), Supervised.Config(unlabeled_batch=2), 6)  # type: ignore[call-arg]
    with pytest.raises(SegError) as caught:
        Loop(
            method,
            Data([sample((10, 10, 10))], []),
            LoopConfig(6, (8, 8, 8)),
            WeakAugmentation(),
            tmp_path,
            torch.device("cpu"),
            torch.float32,
        )
    assert caught.value.code == "E-DATA-UNLABELED"
