"""The trainings behind accuracy.py: one row a training, none twice, a killed one continued."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in {"accuracy", "experiments", "environment"} - before:
        sys.modules.pop(name, None)


@pytest.fixture
def phantoms(tmp_path: Path) -> Path:
    from experiments import write_phantoms

    return Path(write_phantoms(tmp_path / "data"))


def command(phantoms: Path, tmp_path: Path, *flags: str) -> list[str]:
    fixed = f"--name t --data {phantoms} --window 16 --width 2 --runs {tmp_path} --results {tmp_path} --labels 2"
    return [sys.executable, str(FOLDER / "accuracy.py"), *fixed.split(), *flags]


def finish(words: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


def content(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "accuracy-t.json").read_text())
    return found


def test_rows_are_the_checkpoint(phantoms: Path, tmp_path: Path) -> None:
    flags = ("--iterations", "2", "--methods", "supervised", "crossmatch:paper,eta=0.1")
    first = finish(command(phantoms, tmp_path, *flags, "--seeds", "0"))
    assert first.returncode == 0, first.stderr
    done = content(tmp_path)["rows"]
    again = finish(command(phantoms, tmp_path, *flags, "--seeds", "0", "1"))
    rows = content(tmp_path)["rows"]
    assert rows[:2] == done  # not trained again
    assert again.stderr.count(" s\n") == 2
    assert [(row["method"], row["seed"]) for row in rows[2:]] == [("supervised", 1), ("crossmatch:paper,eta=0.1", 1)]
    run = json.loads((tmp_path / "t" / "crossmatch-paper-eta=0.1_2_seed1" / "config.json").read_text())
    assert run["method"]["preset"] == "paper"
    assert run["method"]["options"]["eta"] == 0.1
    assert run["loop"]["seed"] == 1
    assert "| supervised | 2 | 0 |" in again.stdout
    assert "| crossmatch:paper,eta=0.1 | 2 | 2 |" in again.stdout
    other = finish(command(phantoms, tmp_path, "--iterations", "3"))
    assert other.returncode == 1
    assert "another size (iterations 2, now 3); choose another --name" in other.stderr


def test_a_killed_training_goes_on_where_it_was(phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[loop]\nsave_seconds = 0.0\nlog_every = 1\n")
    flags = ("--config", str(tmp_path / "c.toml"), "--seeds", "0", "--methods", "supervised", "--iterations", "40")
    words = command(phantoms, tmp_path, *flags)
    run = tmp_path / "t" / "supervised_2_seed0"
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        while not (run / "checkpoint.previous.pt").exists():
            time.sleep(0.01)
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "accuracy-t.json").exists()
    steps = len((run / "metrics.jsonl").read_text().splitlines())
    assert 0 < steps < 40
    before = (run / "metrics.jsonl").read_text().splitlines()[0]
    assert finish(words).returncode == 0
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert lines[0] == before
    assert [json.loads(line)["step"] for line in lines] == list(range(40))
    assert len(content(tmp_path)["rows"]) == 1


def test_the_fully_labelled_row_is_for_methods_without_unlabelled_scans() -> None:
    from accuracy import plan_rows

    rows = plan_rows(["supervised", "crossmatch:paper"], [8, "all"], [0, 1])
    assert [(r.method, r.labels, r.seed) for r in rows] == [
        ("supervised", 8, 0),
        ("crossmatch:paper", 8, 0),
        ("supervised", "all", 0),
        ("supervised", 8, 1),
        ("crossmatch:paper", 8, 1),
        ("supervised", "all", 1),
    ]


def test_mean_and_spread_over_seeds() -> None:
    from accuracy import table

    def row(method: str, seed: int, dice: float) -> dict[str, Any]:
        mean = dict(dice=dice, jaccard=dice / 2, hd95=10 * dice, asd=dice)
        return dict(method=method, labels=10, seed=seed, labeled=10, unlabeled=0, mean=mean)

    lines = table([row("a", 0, 0.8), row("b", 0, 0.5), row("a", 1, 0.9), row("a", 2, 0.88)]).splitlines()
    spread = 100 * stdev([0.8, 0.9, 0.88])
    assert lines[2].startswith(f"| a | 10 | 0 | 86.00 ± {spread:.2f} | 43.00 ± {spread / 2:.2f} | 8.60 ± ")
    assert lines[2].endswith("| 3 |")
    assert lines[3] == "| b | 10 | 0 | 50.00 | 25.00 | 5.00 | 0.50 | 1 |"


def test_a_misspelled_method_is_refused_before_anything_runs(phantoms: Path, tmp_path: Path) -> None:
    found = finish(command(phantoms, tmp_path, "--methods", "crossmatch:best"))
    assert found.returncode == 1
    assert "crossmatch:best: choose from" in found.stderr
    found = finish(command(phantoms, tmp_path, "--methods", "supervised,ema"))
    assert "'ema' is not NAME=VALUE" in found.stderr
    found = finish(command(phantoms, tmp_path, "--methods", "supervised", "crossmatch:paper,etta=0.1"))
    assert "etta" in found.stderr
    assert found.returncode != 0
    assert not (tmp_path / "t").exists()
