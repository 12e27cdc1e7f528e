"""`seg-train --evaluate`: runs and artifacts on data of their own kind, and on data that is not."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from known import plain_spec, write_artifact

from seg.train.cli import app

Score = Callable[..., tuple[int, str]]
FILES = {"validation.json", "validation.csv", "worst-cases.png"}


@pytest.fixture
def score(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Score]:
    """score(data, model, *flags) -> (exit status, stderr); results go to tmp_path / "out"."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(data: Path, model: object, *flags: object) -> tuple[int, str]:
        words = [data, "--evaluate", model, *flags, *(() if "-o" in flags else ("-o", tmp_path / "out"))]
        with pytest.raises(SystemExit) as caught:
            app([str(word) for word in words])
        return int(caught.value.code or 0), capsys.readouterr().err

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_cases: Callable[..., Path]) -> Path:
    return write_cases(tmp_path_factory.mktemp("score") / "data", 6, (16, 16, 16))


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    """A tiny run that held one of the cases out."""
    handler = signal.getsignal(signal.SIGTERM)
    flags = ["--window", "16", "--width", "2", "--iterations", "4", "-d", "cpu", "--precision", "fp32", "-q"]
    with pytest.raises(SystemExit):
        app([str(data), "-o", str(data.parent / "run"), "--labeled", "3", "--validate-every", "2", *flags])
    signal.signal(signal.SIGTERM, handler)
    return data.parent / "run"


@pytest.fixture
def artifact(tmp_path: Path) -> str:
    """Bright voxels are the object: nearly right on the phantoms, whose balls are 80 above a noise of 100 +- 15."""
    return write_artifact(tmp_path / "bright.onnx", plain_spec(labels=("background", "ball")), (140.0,))


def written(tmp_path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((tmp_path / "out" / "validation.json").read_text())
    return content


def split(data: Path, content: dict[str, list[str]]) -> Path:
    path = data.parent / "split.json"
    path.write_text(json.dumps(content))
    return path


def test_training_ends_with_an_evaluation(trained: Path) -> None:
    assert FILES | {"curves.png"} <= {path.name for path in trained.iterdir()}
    result = json.loads((trained / "validation.json").read_text())
    assert result["unit"] == "voxel"  # nibabel's default header names no unit
    assert len(result["cases"]) == 1


def test_a_run_gets_the_figures_of_its_own_validation_again(
    score: Score, data: Path, trained: Path, tmp_path: Path
) -> None:
    status, text = score(data, trained)
    assert status == 0, text
    assert "foreground" in text
    assert "validation.csv" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    again, own = written(tmp_path), json.loads((trained / "validation.json").read_text())
    assert again["cases"] == own["cases"]
    assert again["trained_on"] == 0


def test_cases_that_were_trained_on_are_named(score: Score, data: Path, trained: Path, tmp_path: Path) -> None:
    status, text = score(data, trained, "--cases", "all")
    assert status == 0
    assert len(written(tmp_path)["cases"]) == 6
    assert written(tmp_path)["trained_on"] == 3  # a supervised run sees no unlabelled scan
    assert "warning: 3 of the 6 cases were trained on: " in text
    assert "the names of training cases" not in text


def test_scans_that_were_trained_on_are_known_under_other_names(
    score: Score, write_cases: Callable[..., Path], data: Path, trained: Path, tmp_path: Path
) -> None:
    """One is there turned around and renamed; another scan has a training case's name."""
    first, second = json.loads((trained / "config.json").read_text())["split"]["labeled"][:2]
    other = write_cases(tmp_path / "other", 8, (16, 16, 16))
    turned = np.diag([-1.0, 1, 1, 1]) + 15 * np.eye(4, k=3)
    for part in ("images", "labels"):
        seen, new = (
            np.asarray(nib.load(folder / part / f"{case}.nii.gz").dataobj)
            for folder, case in ((data, first), (other, "scan07"))
        )
        shutil.rmtree(other / part)
        (other / part).mkdir()
        nib.save(nib.Nifti1Image(seen[::-1], turned), other / part / "new.nii.gz")
        nib.save(nib.Nifti1Image(new, np.eye(4)), other / part / f"{second}.nii.gz")
    status, text = score(other, trained, "--cases", "all")
    assert status == 0, text
    assert "warning: 1 of the 2 cases were trained on: new\n" in text
    assert f"warning: 1 of the 2 cases have the names of training cases: {second}\n" in text
    assert written(tmp_path)["trained_on"] == 1


def test_of_an_artifact_nobody_knows_what_it_was_trained_on(
    score: Score, data: Path, artifact: str, tmp_path: Path
) -> None:
    assert score(data, artifact, "--cases", "all")[0] == 0
    assert written(tmp_path)["trained_on"] is None


def test_an_artifact_on_all_cases_and_on_a_split(score: Score, data: Path, artifact: str, tmp_path: Path) -> None:
    assert score(data, artifact, "--cases", "all")[0] == 0
    mean = written(tmp_path)["mean"]["ball"]
    assert 0.9 < mean["dice"] < 1
    path = split(data, {"train": ["scan00"], "val": ["scan01", "scan03"], "test": ["scan02"]})
    for which, ids in (("val", ["scan01", "scan03"]), ("test", ["scan02"])):
        assert score(data, artifact, "--cases", which, "--split", path, "--overwrite")[0] == 0
        assert list(written(tmp_path)["cases"]) == ids


def test_without_a_split_an_artifact_needs_to_be_told(score: Score, data: Path, artifact: str, trained: Path) -> None:
    status, text = score(data, artifact)
    assert status == 12
    assert "no split says which cases are val" in text
    assert "--cases all" in text
    status, text = score(data, trained, "--cases", "test")
    assert status == 12
    status, text = score(data, artifact, "--split", split(data, {"val": ["scan77"]}))
    assert status == 12
    assert "no labelled case scan77" in text


def test_of_two_folders_with_splits_one_must_be_named(
    score: Score, write_cases: Callable[..., Path], data: Path, trained: Path, artifact: str, tmp_path: Path
) -> None:
    """A run has its own."""
    own = json.loads((trained / "config.json").read_text())["split"]["val"]
    both = []
    for name, val in (("a", "scan00"), ("b", "scan07")):
        folder = write_cases(tmp_path / name, 8, (16, 16, 16))
        (folder / "splits.json").write_text(json.dumps({"val": [val]}))
        both.append(folder)
    for part in ("images", "labels"):  # scans of one name are refused: 0 to 5 here, 6 and 7 there
        for number in range(8):
            (both[number < 6] / part / f"scan{number:02}.nii.gz").unlink()
    status, text = score(both[0], artifact, both[1])
    assert (status, "say which with --split" in text) == (12, True), text
    status, text = score(both[0], trained, both[1])
    assert status == 0, text
    assert list(written(tmp_path)["cases"]) == own


def test_labels_that_the_model_does_not_know_are_refused(
    score: Score, write_cases: Callable[..., Path], artifact: str, tmp_path: Path
) -> None:
    data = write_cases(tmp_path / "two", 3, (16, 16, 16), classes=3)
    status, text = score(data, artifact, "--cases", "all")
    assert status == 12
    assert "of the model are [0, 1]" in text
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 1, "b": 2}}))
    status, text = score(data, artifact, "--cases", "all")
    assert status == 12
    assert "declares the values [0, 1, 2], expected [0, 1]" in text
    assert not (tmp_path / "out").exists()


def test_a_class_that_no_label_has_is_told(score: Score, data: Path, tmp_path: Path) -> None:
    model = write_artifact(tmp_path / "m.onnx", plain_spec(labels=("background", "ball", "lesion")), (140.0, 1000.0))
    status, text = score(data, model, "--cases", "all")
    assert status == 0
    assert "warning: lesion is in no label" in text


def test_faulty_scans_and_other_channels_are_refused(
    score: Score, write_cases: Callable[..., Path], artifact: str, tmp_path: Path
) -> None:
    data = write_cases(tmp_path / "bad", 2, (16, 16, 16))
    model = write_artifact(tmp_path / "m.onnx", plain_spec(channels=("t1", "t2")), (0.5,))
    status, text = score(data, model, "--cases", "all")
    assert status == 12
    assert "E-CHANNELS" in text
    assert "1 channels, expected 2: t1, t2" in text
    nib.save(nib.Nifti1Image(np.ones((9, 9, 9), np.uint8), np.eye(4)), data / "labels" / "scan01.nii.gz")
    status, text = score(data, artifact, "--cases", "all")
    assert status == 12
    assert "scan01" in text
    assert not (tmp_path / "out").exists()


def test_slices_are_no_volumes(score: Score, write_cases: Callable[..., Path], artifact: str, tmp_path: Path) -> None:
    status, text = score(write_cases(tmp_path / "flat", 2, (16, 16, 1)), artifact, "--cases", "all")
    assert (status, "E-GEO-2D" in text) == (12, True)
    assert not (tmp_path / "out").exists()


def test_an_evaluation_is_replaced_when_asked(score: Score, data: Path, artifact: str, tmp_path: Path) -> None:
    assert score(data, artifact, "--cases", "all")[0] == 0
    before = (tmp_path / "out" / "validation.json").read_bytes()
    status, text = score(data, "hippocampus", "--cases", "all")
    assert (status, "E-OUT-EXISTS" in text) == (30, True)
    assert (tmp_path / "out" / "validation.json").read_bytes() == before
    assert score(data, artifact, "--cases", "all", "--overwrite")[0] == 0


def test_nothing_of_a_run_or_of_the_data_is_overwritten(score: Score, data: Path, trained: Path) -> None:
    before = (trained / "validation.json").read_bytes()
    status, text = score(data, trained, "-o", trained)
    assert (status, "E-RUN-EXISTS" in text) == (30, True)
    assert (trained / "validation.json").read_bytes() == before
    for place in (data, data / "images", data.parent):
        status, text = score(data, trained, "-o", place)
        assert (status, "E-OUT-SAME" in text) == (30, True)


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--iterations", "3"], "--evaluate does not take --iterations"),
        (["--resume"], "--evaluate does not take --resume"),
        (["--cases", "some"], "some"),
        (["--cases", "all", "--split", "none.json"], "--cases all does not take --split"),
    ],
)
def test_flags_of_training_are_refused(score: Score, data: Path, trained: Path, flags: list[str], found: str) -> None:
    status, text = score(data, trained, *flags)
    assert status == 2
    assert found in " ".join(text.replace("│", " ").split())


def test_what_is_no_model_is_refused(score: Score, data: Path, tmp_path: Path) -> None:
    status, text = score(data, tmp_path / "nothing.onnx")
    assert (status, "E-MODEL-MISSING" in text) == (20, True)
    (tmp_path / "empty").mkdir()
    status, text = score(data, tmp_path / "empty")
    assert (status, "E-RUN-NONE" in text) == (20, True)


def test_an_unfinished_run_is_told(score: Score, data: Path, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    config = json.loads((copy / "config.json").read_text())
    config["loop"]["iterations"] = 9
    (copy / "config.json").write_text(json.dumps(config))
    status, text = score(data, copy)
    assert status == 0
    assert "warning: the run is unfinished, at step 4 of 9" in text


def test_findings_are_told_to_those_who_want_quiet(score: Score, trained: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    images = sorted((tmp_path / "data" / "images").iterdir())[:2]
    for image in images:
        image.write_bytes(b"no scan")
    status, text = score(tmp_path / "data", trained, "--cases", "all", "-q")
    assert status == 11
    lines = text.splitlines()
    assert [line.split(": ")[1].split(" ", 1)[1] for line in lines[:2]] == [str(image) for image in images]
    assert lines[2].startswith(f"seg-train: error E-DATA-CHECK: {images[0]}: 2 errors, the first is E-NII-")
    assert len(lines) == 3
