"""One training in two processes: the same losses as in one, and what happens when a process is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seg.infer.errors import SegError
from seg.train.methods import MethodConfig
from seg.train.methods.crossmatch import CrossMatchConfig
from seg.train.methods.fixmatch import FixMatchConfig
from seg.train.processes import Processes, summed
from seg.train.run import load_checkpoint

# Dropout alone differs between processes by design: with one that depends on the channel alone nothing may differ.
SCRIPT = """
import sys, torch
import torch.nn.functional as F

def every_second(value, p=0.5, training=True, inplace=False):
    keep = torch.arange(value.shape[1]).view(1, -1, 1, 1, 1) % 2
    return value * keep if training else value

F.dropout3d = every_second
from seg.train.cli import main
main()
"""
TOML = """
iterations = 6
window = [32, 32, 32] # smaller ones leave batch norm four voxels at the bottom, whose rounding is not small
width = 2
device = "cpu"
precision = "fp32"
validate_every = 4

[method]
{method}
optimizer = "sgd"

[loop]
save_seconds = 0
log_every = 1
"""
METHODS = {
    "supervised": 'name = "supervised"\ndropout = 0.0',
    "paper": 'name = "crossmatch"\npreset = "paper"\nthreshold = 0.5',
    "official": 'name = "crossmatch"\npreset = "official"\nthreshold = 0.5',
    **{  # at their own rate of 0.01 rounding grows tenfold within six steps
        name: f'name = "{name}"\ndropout = 0.0\nlr = 0.001' for name in ("ua_mt", "urpc", "mc_net")
    },
    "hstf": 'name = "hstf"\ndropout = 0.0\nlr = 0.001\nburn_in = 0.0\nramp_up = 0.0\nrounds = []\nweights = "none"',
    "fast": 'name = "crossmatch"\nthreshold = 0.5\nramp_up = 0.0\nlabeled_batch = 4',
}


def start(arguments: list[str], count: int, script: str = SCRIPT) -> "list[subprocess.Popen[str]]":
    """What torchrun does: the same command in several processes that know of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(processes: "list[subprocess.Popen[str]]") -> list[tuple[int, str]]:
    """Exit status and stderr of each; none is left running."""
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def run(arguments: list[str], count: int) -> None:
    for status, text in finish(start(arguments, count)):
        assert status == 0, text


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_cases: Callable[..., Path]) -> Path:
    return write_cases(tmp_path_factory.mktemp("processes") / "data", 6, (34, 33, 35), unlabeled=2)


def command(data: Path, folder: Path, method: str, **changes: str) -> list[str]:
    text = TOML.format(method=METHODS[method])
    for old, new in changes.items():
        text = text.replace(old, new)
    (folder / f"{method}.toml").write_text(text)
    return [str(data), "--config", str(folder / f"{method}.toml"), "-q"]


def losses(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("step", "lr")} for line in lines if "lr" in line]


@pytest.mark.parametrize(
    "method", ["supervised", *(pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name != "supervised")]
)
def test_same_losses_as_one_process(data: Path, tmp_path: Path, method: str) -> None:
    arguments = command(data, tmp_path, method)
    for count in (1, 2):
        run([*arguments, "-o", str(tmp_path / str(count))], count)
    one, two = (losses(tmp_path / count) for count in "12")
    assert len(one) == len(two) == 6
    for a, b in zip(one, two, strict=True):
        assert a["supervised"] == pytest.approx(b["supervised"], rel=1e-4)
        # A voxel whose logits are equal up to rounding may take either label as a target.
        assert a == pytest.approx(b, rel=1e-4, abs=1e-4)
    assert one[0] != pytest.approx(one[-1], rel=1e-3)
    states = [load_checkpoint(tmp_path / count)[0]["method"] for count in "12"]
    for name, value in states[0].items():
        torch.testing.assert_close(
            states[1][name], value, rtol=1e-3, atol=1e-5 if method == "supervised" else 1e-4, msg=name
        )
    assert not (tmp_path / "2" / ".volumes").exists()


@pytest.mark.slow
def test_torchrun(data: Path, tmp_path: Path) -> None:
    """As README has it."""
    scripts = Path(sys.executable).parent
    arguments = [*command(data, tmp_path, "fast"), "-o", str(tmp_path / "run")]
    both = ["--standalone", "--no-python", "--nproc-per-node", "2", str(scripts / "seg-train"), *arguments]
    done = subprocess.run([str(scripts / "torchrun"), *both], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["engine"]["processes"] == 2
    assert load_checkpoint(tmp_path / "run")[0]["step"] == 6


def test_a_lost_process_ends_the_others_and_resuming_goes_on(data: Path, tmp_path: Path) -> None:
    arguments = command(data, tmp_path, "fast", **{"iterations = 6": "iterations = 400"})
    folder = tmp_path / "run"
    processes = start([*arguments, "-o", str(folder)], 2)
    end = time.monotonic() + 200
    while not (folder / "checkpoint.pt").exists():
        assert time.monotonic() < end
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.05)
    processes[1].kill()
    (status, text), (killed, _) = finish(processes)
    assert (status, killed) == (21, -signal.SIGKILL)
    assert text.startswith("seg-train: error E-PEER: ")
    assert "--resume" in text
    assert text.count("\n") == 1
    before = load_checkpoint(folder)[0]["step"]
    assert 0 < before < 400

    again = start([*arguments, "-o", str(folder), "--resume"], 2)
    while load_checkpoint(folder)[0]["step"] <= before + 1:
        assert time.monotonic() < end
        time.sleep(0.1)
    for process in again:
        process.send_signal(signal.SIGTERM)
    (status, text), (other, silent) = finish(again)
    assert (status, other) == (143, 143)
    assert "E-STOPPED" in text
    assert silent == ""
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines() if '"lr"' in line]
    assert steps == list(range(load_checkpoint(folder)[0]["step"]))


def test_bad_data_are_told_once(tmp_path: Path, data: Path) -> None:
    arguments = command(data, tmp_path, "fast")
    nowhere = [str(tmp_path / "none"), *arguments[1:], "-o", str(tmp_path / "run")]
    (first, text), (second, silent) = finish(start(nowhere, 2))
    assert (first, second) == (10, 10)
    assert "E-DATA-MISSING" in text
    assert silent == ""


def test_alone() -> None:
    alone = Processes()
    assert alone.first
    assert alone.share(lambda: 3) == 3
    assert alone.any(True) is True
    assert alone.any(False) is False
    assert alone.mean({"a": torch.tensor(2.0)}) == {"a": 2.0}
    value = torch.ones(2)
    assert summed(value) is value


def test_batches_are_shared_equally_or_not_at_all() -> None:
    assert Processes(1, 2).portions({"labeled_batch": 4, "unlabeled_batch": 2}) == {
        "labeled_batch": 2,
        "unlabeled_batch": 1,
    }
    with pytest.raises(SegError) as caught:
        Processes(0, 3).portions({"labeled_batch": 4, "unlabeled_batch": 3, "mix_batch": 0})
    assert (caught.value.code, caught.value.exit) == ("E-CONFIG", 2)
    assert "labeled_batch 4 for 3 processes" in str(caught.value)
    assert caught.value.fix == "--set labeled_batch=6, or another number of processes"


def test_an_averaging_teacher_without_an_average_is_refused() -> None:
    with pytest.raises(SegError, match="teacher ema and ema 0"):
        CrossMatchConfig(ema=0.0).check()
    CrossMatchConfig(ema=0.0, teacher="apart").check()


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        (MethodConfig(), True),
        (CrossMatchConfig(), True),
        (CrossMatchConfig(unlabeled_batch=1), False),  # its own CutMix partner
        (CrossMatchConfig(unlabeled_batch=2, mix_batch=1), True),
        (CrossMatchConfig(unlabeled_batch=1, mix_batch=1), False),
        (CrossMatchConfig(unlabeled_batch=6, mix_batch=2), False),  # four scans with two partners
        (FixMatchConfig(unlabeled_batch=2), True),
        (FixMatchConfig(unlabeled_batch=1), False),
    ],
)
def test_a_batch_that_cannot_be_mixed_is_refused(options: Any, fits: bool) -> None:
    if fits:
        options.check()
    else:
        with pytest.raises(SegError, match="CutMix"):
            options.check()
