"""Scans whose channels are the volumes of one 4-D file, as the Medical Segmentation Decathlon has them."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from seg.export.cli import app as export_app
from seg.infer.cli import app as infer_app
from seg.train.cli import app as train_app

TINY = ["--window", "16", "--width", "2", "--iterations", "2", "-d", "cpu", "--precision", "fp32", "-q"]
Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """call(app, *words) -> (exit status, stderr)."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(app: Callable[[list[str]], None], *words: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            app([str(word) for word in words])
        return int(caught.value.code or 0), capsys.readouterr().err

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def decathlon(tmp_path: Path, write_cases: Callable[..., Path]) -> Path:
    """imagesTr/ with 4-D files of two channels, the second one noise of its own, labelsTr/ and dataset.json."""
    folder = write_cases(tmp_path / "data", 5, (16, 16, 18))
    (folder / "images").rename(folder / "imagesTr")
    (folder / "labels").rename(folder / "labelsTr")
    for number, path in enumerate(sorted((folder / "imagesTr").iterdir())):
        first = np.asarray(nib.load(path).dataobj)
        second = np.random.default_rng(number).normal(500, 50, first.shape).astype(np.int16)
        nib.save(nib.Nifti1Image(np.stack([first, second], -1), np.eye(4)), path)
    declared = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "ball"}}
    (folder / "dataset.json").write_text(json.dumps(declared))
    return folder


def test_from_4d_files_to_a_mask(call: Call, decathlon: Path, tmp_path: Path) -> None:
    assert call(train_app, decathlon, "-o", tmp_path / "run", *TINY) == (0, "")
    spec = json.loads((tmp_path / "run" / "config.json").read_text())["spec"]
    assert spec["channels"] == ["T2", "ADC"]
    scan, model, mask = decathlon / "imagesTr" / "scan00.nii.gz", tmp_path / "m.onnx", tmp_path / "mask.nii.gz"
    words = [decathlon, "--evaluate", tmp_path / "run", "-o", tmp_path / "scores", "--cases", "all"]
    status, text = call(train_app, *words)
    assert status == 0, text
    assert len(json.loads((tmp_path / "scores" / "validation.json").read_text())["cases"]) == 5
    status, text = call(export_app, tmp_path / "run", "-o", model, "--verify", decathlon)
    assert status == 0, text
    status, text = call(infer_app, scan, "-o", mask, "-m", model)
    assert status == 0, text
    assert nib.load(mask).shape == (16, 16, 18)


def test_undeclared_volumes_are_no_channels(call: Call, decathlon: Path, tmp_path: Path) -> None:
    (decathlon / "dataset.json").unlink()
    status, text = call(train_app, decathlon, "-o", tmp_path / "run", *TINY)
    assert (status, "E-NII-4D" in text) == (12, True)
    assert "name them in dataset.json" in text


def test_a_scan_that_lacks_a_channel(call: Call, decathlon: Path, tmp_path: Path) -> None:
    path = decathlon / "imagesTr" / "scan03.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj)[..., 0], np.eye(4)), path)
    status, text = call(train_app, decathlon, "-o", tmp_path / "run", *TINY)
    assert status == 12, text
    assert "scan03" in text
    assert "1 channel" in text
