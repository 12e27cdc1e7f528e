"""The options of computing, through the command line: plan, memory bound, protocol, probabilities, components."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import infer, run
from known import boxes

from seg.infer.components import keep_largest

Write = Callable[..., str]
Model = Callable[..., str]


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_dry_run_prints_the_plan_and_writes_nothing(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    scan, out = write_scan("scan.nii.gz", boxes()), tmp_path / "m.nii.gz"
    done = infer(scan, "-o", str(out), "-m", threshold_model(), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "scan 20 x 15 x 9" in done.stdout
    assert "one pass" in done.stdout
    assert not out.exists()
    done = infer(scan, "-o", str(out), "-m", threshold_model(), "--dry-run", "--window", "8,8,8")
    assert "windows of 8 x 8 x 8" in done.stdout


def test_a_memory_bound_cuts_the_scan_or_refuses_it(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    """The same mask from one pass and from the tiles that a bound forces; too small a bound is an error before work."""
    voxels = np.random.default_rng(0).integers(0, 2, (200, 200, 120)).astype(np.uint8)
    scan, model = write_scan("scan.nii", voxels), threshold_model(stride=(4, 4, 4), window=(16, 16, 16))
    outs, windows = [tmp_path / "1.nii", tmp_path / "2.nii"], []
    for out, bound in zip(outs, ("8G", "700M"), strict=True):
        report = tmp_path / "r.json"
        assert run(scan, "-o", str(out), "-m", model, "-q", "--max-memory", bound, "--report", str(report)) == 0
        windows.append(json.loads(report.read_text())["scans"][0]["plan"]["windows"])
        np.testing.assert_array_equal(read(out), voxels)
    assert windows[0] == 1 < windows[1]
    done = infer(scan, "-o", str(tmp_path / "3.nii"), "-m", model, "--max-memory", "50M")
    assert done.returncode == 13
    assert f"E-LIMIT-MEMORY: {scan}" in done.stderr
    assert not (tmp_path / "3.nii").exists()


def test_protocol_and_step_size(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    scan, model = write_scan("scan.nii.gz", boxes()), threshold_model()
    for words in (["--protocol", "crossmatch"], ["--window", "8,8,8", "--step-size", "0.5"], ["--tta"]):
        out = tmp_path / "m.nii.gz"
        assert run(scan, "-o", str(out), "-m", model, "-q", "--overwrite", *words) == 0
        np.testing.assert_array_equal(read(out), boxes() > 0)
    for words in (["--protocol", "crossmatch", "--overlap", "0.5"], ["--overlap", "0.5", "--step-size", "0.5"]):
        assert run(scan, "-o", str(tmp_path / "n.nii.gz"), "-m", model, *words) == 2


@pytest.mark.parametrize("size", ["0", "-1G", "much", ""])
def test_wrong_memory_sizes_are_usage_errors(size: str) -> None:
    assert run("scan.nii.gz", "-o", "m.nii.gz", "--max-memory", size) == 2


def test_precision_is_the_artifacts_own(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    """fp32 and int8 are forms of the file: asking a file for the other one is refused."""
    scan, out = write_scan("scan.nii.gz", boxes()), str(tmp_path / "m.nii.gz")
    done = infer(scan, "-o", out, "-m", threshold_model(), "--precision", "int8")
    assert (done.returncode, "E-PRECISION" in done.stderr) == (20, True)
    done = infer(scan, "-o", out, "-m", threshold_model(card={"precision": "int8"}), "--precision", "fp32")
    assert (done.returncode, "E-PRECISION" in done.stderr) == (20, True)
    assert run(scan, "-o", out, "-m", threshold_model(), "--precision", "fp32", "-q") == 0


def test_probabilities_lie_beside_the_mask(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    scan, out = write_scan("scan.nii.gz", boxes()), tmp_path / "m.nii.gz"
    assert run(scan, "-o", str(out), "-m", threshold_model((0.5, 1.5)), "-q", "--save-probabilities") == 0
    image = nib.load(tmp_path / "m_probabilities.nii.gz")
    assert image.shape == (20, 15, 9, 2)
    logits = np.stack([np.zeros(boxes().shape), boxes() - 0.5, 2 * boxes() - 2.0])
    expected = np.exp(logits) / np.exp(logits).sum(axis=0)
    np.testing.assert_allclose(image.get_fdata(), np.moveaxis(expected[1:], 0, 3), atol=0.5 / 255 + 1e-4)
    np.testing.assert_allclose(image.affine, nib.load(scan).affine)


def test_largest_component(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    """Of the three boxes of one class the largest stays; classes are judged apart."""
    scan, out = write_scan("scan.nii.gz", boxes()), tmp_path / "m.nii.gz"
    assert run(scan, "-o", str(out), "-m", threshold_model(), "-q", "--largest-component") == 0
    np.testing.assert_array_equal(read(out), boxes() == 4)
    labels = np.zeros((6, 6, 6), np.uint16)
    labels[0, 0, :3], labels[5, 5, :2], labels[3, 3, :2], labels[3, 0, 5] = 300, 300, 7, 7
    kept = keep_largest(labels)
    assert kept.dtype == np.uint16
    assert (kept == 300).sum() == 3
    assert (kept == 7).sum() == 2
    np.testing.assert_array_equal(keep_largest(np.zeros((3, 3, 3), np.uint8)), 0)
