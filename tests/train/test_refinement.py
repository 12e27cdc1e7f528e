"""Rounds of pseudo-labels in real, tiny runs: what they leave, that a kill changes nothing, that nobody peeks."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seg.infer.errors import SegError
from seg.train import training
from seg.train.run import load_checkpoint
from seg.train.settings import Settings

STEPS, ROUNDS = 10, (2, 5, 8)
OPTIONS: dict[str, Any] = dict(
    csc="both", weights="softmatch", burn_in=0.2, rounds=(0.2, 0.5, 0.8), enough=0.0, volume_bound=0.0, tolerance=1.0
)


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def workplace(one_thread: None, tmp_path_factory: pytest.TempPathFactory, write_cases: Callable[..., Path]) -> Path:
    """data/ with hidden labels of two unlabelled scans, and full/: a run that was never disturbed."""
    root = tmp_path_factory.mktemp("refinement")
    write_cases(root / "data", 6, (20, 18, 17), unlabeled=1)
    split = {"labeled2": ["scan00", "scan01"], "unlabeled": ["scan03", "scan04", "scan06"], "val": ["scan05"]}
    (root / "data" / "splits.json").write_text(json.dumps(split))
    train(root, "full")
    return root


def train(root: Path, name: str, *, resume: bool = False, stop: int | None = None, data: str = "data") -> None:
    def report(step: int, *_: object) -> None:
        if step == stop:
            raise Killed

    settings = Settings(
        (str(root / data),), str(root / name), method="hstf_crossmatch", labeled=2, iterations=STEPS,
        window=(16, 16, 16), width=2, device="cpu", precision="fp32", validate_every=0,
        method_options=dict(OPTIONS), loop={"save_seconds": 0, "log_every": 1},
    )  # fmt: skip
    training.train(settings, resume=resume, say=lambda _: None, report=report)


def digest(run: Path) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(load_checkpoint(run)[0]["method"].items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def reports(run: Path) -> list[dict[str, Any]]:
    return [json.loads((run / "refinement" / f"round-{n}.json").read_text()) for n in (1, 2, 3)]


def test_every_round_is_reported(workplace: Path) -> None:
    found = reports(workplace / "full")
    assert [report["step"] for report in found] == list(ROUNDS)
    assert [len(report["used"]) for report in found] == [2, 2, 3]  # half, three quarters, all
    for number, report in enumerate(found):
        assert sorted(report["cases"]) == ["scan03", "scan04", "scan06"]
        for case, facts in report["cases"].items():
            assert ("true_dice" in facts) == (case != "scan06")  # has no label at all
            assert 0 <= facts["quality"] <= 1
            assert (facts["churn"] is None) == (number == 0)
            assert {"entropy", "trusted_foreground", "components", "voxels"} <= facts.keys()
    assert (workplace / "full" / "refinement" / "rounds.png").read_bytes()[:4] == b"\x89PNG"


def test_two_banks_are_kept_and_hold_probabilities(workplace: Path) -> None:
    folder = workplace / "full" / "refinement"
    assert sorted(p.name for p in folder.glob("bank-*")) == ["bank-2", "bank-3"]
    stored = np.load(folder / "bank-3" / "scan03.npy")
    assert stored.shape == (3, 20, 18, 17)
    assert np.abs(stored[:-1].astype(int).sum(axis=0) - 255).max() <= 1
    assert set(np.unique(stored[-1])) <= {0, 255}


@pytest.mark.parametrize("stop", [2, 5, 9])
def test_a_killed_run_gives_the_same_weights(workplace: Path, stop: int) -> None:
    name = f"killed{stop}"
    with pytest.raises(Killed):
        train(workplace, name, stop=stop)
    train(workplace, name, resume=True)
    assert digest(workplace / name) == digest(workplace / "full")
    assert reports(workplace / name) == reports(workplace / "full")


def test_a_kill_within_a_round(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seg.train.refinement import Refinement

    plain = Refinement._case_round

    def killed(self: Refinement, sample: Any, number: int, before: Any) -> Any:
        if number == 2 and sample.id == "scan06":
            raise Killed
        return plain(self, sample, number, before)

    with monkeypatch.context() as patch:
        patch.setattr(Refinement, "_case_round", killed)
        with pytest.raises(Killed):
            train(workplace, "within")
    train(workplace, "within", resume=True)
    assert digest(workplace / "within") == digest(workplace / "full")


def test_a_full_disk_is_one_line_and_no_loss(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("seg.train.refinement.np.save", full)
        with pytest.raises(SegError, match="No space left") as caught:
            train(workplace, "disk")
    assert caught.value.code == "E-OUT-FULL"
    train(workplace, "disk", resume=True)
    assert digest(workplace / "disk") == digest(workplace / "full")


def test_hidden_labels_change_no_weight(workplace: Path) -> None:
    shutil.copytree(workplace / "data", workplace / "blind")
    for case in ("scan03", "scan04"):
        (workplace / "blind" / "labels" / f"{case}.nii.gz").unlink()
    train(workplace, "unseen", data="blind")
    assert digest(workplace / "unseen") == digest(workplace / "full")
    assert not any(
        "true_dice" in facts for report in reports(workplace / "unseen") for facts in report["cases"].values()
    )


def test_a_lost_bank_is_one_line(workplace: Path) -> None:
    with pytest.raises(Killed):
        train(workplace, "lost", stop=7)
    shutil.rmtree(workplace / "lost" / "refinement" / "bank-2")
    with pytest.raises(SegError) as caught:
        train(workplace, "lost", resume=True)
    assert caught.value.code == "E-RUN-BANK"
