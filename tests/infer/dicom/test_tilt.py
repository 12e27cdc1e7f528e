"""Gantry tilt (D06): straightened on request, and masks returned to the very slices."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import run
from dicom_files import SPACING, ras_affine, write_series
from known import boxes
from pydicom import dcmread

from seg.infer.dicom.read import DicomOptions, inspect, read

Model = Callable[..., str]
STRAIGHT = DicomOptions(resample_tilt=True)


def tilt_of(sideways: float) -> float:
    return float(np.degrees(np.arctan2(sideways, 2.5)))


@pytest.mark.parametrize("rows", [1, -1, 2])
def test_shifts_by_whole_voxels_are_exact(tmp_path: Path, rows: int) -> None:
    """Nothing is interpolated: every voxel of the series is in the straight grid, at its place in the world."""
    write_series(tmp_path, boxes(), sideways=rows * SPACING[0])
    scan = read(str(tmp_path), STRAIGHT)
    assert scan.series is not None
    assert scan.restore is not None
    np.testing.assert_allclose(scan.series.affine, ras_affine(sideways=rows * SPACING[0]), atol=1e-6)
    assert scan.volume.shape == (20, 15 + abs(rows) * 8, 9)
    axes = scan.volume.affine[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.diag([SPACING[1] ** 2, SPACING[0] ** 2, 2.5**2]), atol=1e-6)
    np.testing.assert_array_equal(scan.restore(scan.volume.voxels[0].astype(np.uint8)), boxes())
    inside = np.argwhere(scan.volume.intensities()[0] > 0)
    source = np.argwhere(boxes() > 0)
    world = np.c_[inside, np.ones(len(inside))] @ scan.volume.affine.T
    expected = np.c_[source, np.ones(len(source))] @ scan.series.affine.T
    np.testing.assert_allclose(sorted(map(tuple, world.round(4))), sorted(map(tuple, expected.round(4))), atol=2e-4)
    assert any(f"tilt of {abs(tilt_of(rows * 0.8)):.1f} degrees" in note for note in scan.header.notes)


def test_a_part_of_a_voxel(tmp_path: Path) -> None:
    """13.5 degrees: linear values are interpolated exactly, and no label is more than half a voxel off."""
    rows = np.arange(40)
    ramp = np.broadcast_to((100 * rows)[None, :, None], (12, 40, 11)).astype(np.int16)
    write_series(tmp_path, ramp, sideways=0.6)
    scan = read(str(tmp_path), STRAIGHT)
    assert scan.restore is not None
    straight = scan.volume.intensities()[0]
    labels = scan.restore((straight > 1950).astype(np.uint8))
    assert labels.shape == ramp.shape
    assert labels[ramp >= 2000 + 100].all()
    assert not labels[ramp <= 1900].any()
    header = inspect(str(tmp_path), STRAIGHT)
    assert header.shape == scan.volume.shape
    np.testing.assert_array_equal(header.affine, scan.volume.affine)


def test_masks_lie_on_the_slices(tmp_path: Path, threshold_model: Model) -> None:
    """Per instance: the SEG frame of each slice is that slice's mask. The NIfTI mask is at the same place."""
    paths = write_series(tmp_path / "s", boxes(), sideways=0.8)
    model, seg, nifti = threshold_model(), tmp_path / "seg.dcm", tmp_path / "mask.nii.gz"
    for out in (seg, nifti):
        assert run(str(tmp_path / "s"), "-o", str(out), "-m", model, "-q", "--resample-tilt") == 0
    dataset = dcmread(seg)
    frames = {}
    for number, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        image = groups.DerivationImageSequence[0].SourceImageSequence[0]
        frames[image.ReferencedSOPInstanceUID] = dataset.pixel_array.reshape(-1, 15, 20)[number]
    for k, path in enumerate(paths):
        expected = boxes()[:, :, k].T > 0
        found = frames.get(dcmread(path).SOPInstanceUID, np.zeros((15, 20)))
        np.testing.assert_array_equal(found, expected)
    mask = nib.load(nifti)
    voxels = np.argwhere(np.asarray(mask.dataobj) > 0)
    centre = mask.affine @ [*voxels.mean(axis=0), 1]
    source = ras_affine(sideways=0.8) @ [*np.argwhere(boxes() > 0).mean(axis=0), 1]
    np.testing.assert_allclose(centre, source, atol=1e-3)


def test_a_straight_series_is_left_alone(tmp_path: Path) -> None:
    write_series(tmp_path, boxes(), sideways=0.004)  # under a tenth of a voxel from end to end
    scan = read(str(tmp_path), STRAIGHT)
    assert scan.restore is None
    np.testing.assert_array_equal(scan.volume.voxels[0], boxes())
