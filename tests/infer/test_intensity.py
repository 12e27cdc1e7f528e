"""A CT model refuses what cannot be Hounsfield units, and takes every CT; other models take any unit."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import infer
from known import plain_spec

from seg.infer.errors import SegError
from seg.infer.intensity import check_intensities
from seg.infer.spec import Normalisation
from seg.infer.volume import Volume

CT = replace(plain_spec(), normalisation=Normalisation("fixed", -200, 300, 60, 80), intensity_range=(-1010.0, 1400.0))


def scan(low: float, high: float, **scaling: float) -> Volume:
    """A ramp of intensities with a little noise."""
    values = np.linspace(low, high, 40 * 30 * 20).reshape(1, 40, 30, 20)
    return Volume(values.astype(np.float32), np.eye(4), **scaling)


@pytest.mark.parametrize(("low", "high"), [(-1024, 3071), (-1000, 1200), (-150, 250), (-2048, 2000), (-90, 600)])
def test_ct_is_taken_whatever_its_window(low: float, high: float) -> None:
    check_intensities(scan(low, high), CT, "scan.nii")


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-1, 1), (0, 255), (0, 4095), (-3, 3), (2000, 5000), (7, 7)], ids=str
)
def test_another_unit_is_refused(low: float, high: float) -> None:
    with pytest.raises(SegError) as refused:
        check_intensities(scan(low, high), CT, "scan.nii")
    assert refused.value.code == "E-INTENSITY"
    assert refused.value.exit == 12


def test_the_scaling_counts() -> None:
    check_intensities(scan(0, 4095, slope=1.0, intercept=-1024.0), CT, "scan.nii")


def test_a_model_that_normalises_each_scan_takes_any() -> None:
    check_intensities(scan(0, 1), replace(CT, normalisation=Normalisation("zscore")), "scan.nii")
    check_intensities(scan(0, 1), replace(CT, intensity_range=None), "scan.nii")


def test_the_command_says_so_and_can_be_overruled(
    write_scan: Callable[..., str], threshold_model: Callable[..., str], tmp_path: Path
) -> None:
    path = write_scan("scan.nii.gz", np.random.default_rng(0).random((12, 10, 8)).astype(np.float32))
    model = threshold_model(intensity_range=(-1010.0, 1400.0))
    out = tmp_path / "mask.nii.gz"
    done: subprocess.CompletedProcess[str] = infer(path, "-o", str(out), "-m", model)
    assert done.returncode == 12
    assert "E-INTENSITY" in done.stderr
    assert "--force-intensity" in done.stderr
    assert not out.exists()
    assert infer(path, "-o", str(out), "-m", model, "--force-intensity").returncode == 0
    assert out.exists()


def test_a_scan_of_one_value_is_refused_by_every_model() -> None:
    spec = plain_spec(normalisation=Normalisation("zscore"))
    flat = np.full((2, 6, 5, 4), 7, np.int16)
    with pytest.raises(SegError, match="the value 7 in every voxel") as refused:
        check_intensities(Volume(flat, np.eye(4)), spec, "scan.nii")
    assert refused.value.exit == 12
    flat[1, 3, 2, 1] = 8  # of several channels one may be empty
    check_intensities(Volume(flat, np.eye(4)), spec, "scan.nii")
