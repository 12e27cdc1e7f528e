"""Real series: the volumes that dcm2niix makes of them, voxel by voxel, and equal masks from DICOM and NIfTI.

Where dcm2niix is installed it converts the series now; otherwise what it gave (v1.0.20220720) is compared by digest.
"""

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import run

from seg.infer.dicom.read import DicomOptions, read, survey
from seg.infer.errors import SegError
from seg.infer.volume import Reorientation

DATA = Path(os.environ.get("SEG_DATA") or Path(__file__).parents[4] / "shared" / "data") / "dicom"
T1, FLAIR, CROP = "mr_study/11-T1post-18670", "mr_study/36468-FLAIRreg-58706", "mr_study/11_HCropVolume"

HEAD = [
    [0.68749994, 0, -0.001671635, -94.63430649],
    [-3.3129e-05, 0.675323725, -1.217915297, -132.245548304],
    [0.000173676, 0.12881802, 6.384876251, -52.563744952],
]
# Folder, --series, --time-point; sha256 of the voxels in RAS order as little-endian int16, S fastest; affine; scaling.
CONVERTED = [
    ("ct_axial_5mm", None, None, "9b4a035e0538a2def752c71c370c87adb9bf64080b110d9d2f832d653268fb87",
     [[0.451171875, 0, 0, -115.048828125], [0, 0.451171875, 0, -228.698822021], [0, 0, 5, 696.210021973]], (1, -1024)),
    (T1, None, None, "6d6cd1817bd06f9ad23563e86a6671013523dc4b95c4def3948c063443816515", HEAD, (1, 0)),
    (FLAIR, None, None, "aba1724703c69f3577f157ecb37874438a13f93e92670a3f62d188c08ac5821e", HEAD, (1, 0)),
    (CROP, None, None, "b00627a573e9c8b18af34baf273feb97e14f0bdf64dee96972fae9c9d7e2e2ee",
     [[1, 0, 0, -33], [0, 1, 0, -49], [0, 0, 1, 1]], (1, 0)),
    ("mr_temporal", None, 3, "8057e21e33cedca2f4fca893a4aa7e44087c3f143e11ae96c26d700b24ff6dd2",
     [[3.75, 0, 0, -118.125], [0, 3.75, 0, -92.906005859], [0, 0, 5, -17.6875]], (1, 0)),
    ("mr_enhanced", "6", 4, "18ca28fc474fdb143cbebde4e38bed83d2038939c332204dda67942195a83098",
     [[3.375, 0, 2.4e-06, -102.834999084], [0, 3.375, 2.4e-06, -154.147705078],
      [-3.375e-06, -3.375e-06, 2.400000095, -5.403134867]], (1, 0)),
]  # fmt: skip
SERIES = {row[0]: row for row in CONVERTED}


def folder(name: str) -> str:
    path = DATA / name
    if not path.is_dir():
        pytest.skip(f"no {name} under {DATA}: set SEG_DATA")
    return str(path)


def upright(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Axes in RAS order."""
    turn = Reorientation.to_ras(affine)
    return np.ascontiguousarray(turn.apply(voxels)), turn.affine(affine, voxels.shape)


def convert(name: str, target: Path, number: str | None) -> nib.Nifti1Image:
    """What dcm2niix makes of a folder; skipped where it is not installed."""
    if shutil.which("dcm2niix") is None:
        pytest.skip("dcm2niix is not installed")
    target.mkdir(parents=True)
    words = ["dcm2niix", "-z", "n", "-f", "%s_%r", "-o", str(target), folder(name)]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    found = [p for p in target.glob("*.nii") if number is None or p.name.startswith(f"{number}_")]
    assert len(found) == 1
    return nib.load(found[0])


def assert_same_grid(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> None:
    """Within 1e-4 mm at every corner."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)])
    assert np.abs(corners @ (affine - other).T).max() < 1e-4


@pytest.mark.parametrize("name", SERIES)
def test_the_volume_of_dcm2niix(name: str, tmp_path: Path) -> None:
    """Voxels exactly, affine within 1e-4 mm, scaling the same."""
    _, series, time, *_ = SERIES[name]
    image = convert(name, tmp_path / "nii", series)
    scan = read(folder(name), DicomOptions(series, time))
    theirs = np.asarray(image.dataobj.get_unscaled())
    theirs = theirs if time is None else theirs[..., time - 1]
    ours, affine = upright(scan.volume.voxels[0], scan.volume.affine)
    voxels, other = upright(theirs, image.affine)
    np.testing.assert_array_equal(ours, voxels)
    assert_same_grid(affine, other, ours.shape)
    assert (scan.volume.slope, scan.volume.intercept) == (image.dataobj.slope, image.dataobj.inter)


@pytest.mark.parametrize("name", SERIES)
def test_stored_numbers(name: str) -> None:
    """The same without dcm2niix, and whatever the order of the files."""
    _, series, time, digest, stored, scaling = SERIES[name]
    scan = read(folder(name), DicomOptions(series, time))
    voxels, affine = upright(scan.volume.voxels[0], scan.volume.affine)
    assert hashlib.sha256(np.ascontiguousarray(voxels.astype("<i2")).tobytes()).hexdigest() == digest
    assert_same_grid(affine, np.array([*stored, [0, 0, 0, 1]]), voxels.shape)
    assert (scan.volume.slope, scan.volume.intercept) == scaling


@pytest.mark.parametrize("name", ["ct_axial_5mm", CROP, T1])
def test_names_and_order_of_files_do_not_matter(name: str, tmp_path: Path) -> None:
    files = sorted(p for p in Path(folder(name)).iterdir() if p.name != "DIRFILE")
    scan = read(folder(name))
    for seed in range(2):
        names = [f"{n:05}" for n in range(len(files))]
        random.Random(seed).shuffle(names)
        (tmp_path / str(seed)).mkdir()
        for file, new in zip(files, names, strict=True):
            (tmp_path / str(seed) / new).symlink_to(file)
        other = read(str(tmp_path / str(seed)))
        np.testing.assert_array_equal(other.volume.voxels, scan.volume.voxels)
        np.testing.assert_array_equal(other.volume.affine, scan.volume.affine)


@pytest.mark.parametrize(
    ("name", "series", "code", "says"),
    [
        ("ct_localizer", None, "E-DCM-KIND", "1 localizers"),
        ("ct_variable_spacing", None, "E-DCM-SPACING", "from 1.081 to 6.999 mm"),
        ("mr_temporal", None, "E-DCM-TIME", "10 time points of 15 slices"),
        ("mr_enhanced", "6", "E-DCM-TIME", "4 time points of 6 slices"),
        ("mr_enhanced", "801", "E-DCM-STACKS", "differ in echo time, image type"),
        ("mr_study", None, "E-DCM-SERIES", "holds 3 series"),
    ],
)
def test_what_is_refused(name: str, series: str | None, code: str, says: str) -> None:
    with pytest.raises(SegError) as caught:
        read(folder(name), DicomOptions(series, resample_tilt=True))
    assert (caught.value.code, caught.value.exit) == (code, 12)
    assert says in caught.value.found


def test_the_tilted_series_once_its_spacing_is_even(tmp_path: Path) -> None:
    """The real tilt of 18.5 degrees, on the five slices that are 4.22 mm apart along the table."""
    for name in ("09", "10", "11", "12", "13"):
        (tmp_path / f"{name}.dcm").symlink_to(Path(folder("ct_variable_spacing")) / f"{name}.dcm")
    with pytest.raises(SegError, match=r"tilted by 18\.5 degrees") as caught:
        read(str(tmp_path))
    assert caught.value.code == "E-DCM-TILT"
    scan = read(str(tmp_path), DicomOptions(resample_tilt=True))
    assert scan.restore is not None
    assert scan.series is not None
    axes = scan.volume.affine[:3, :3]
    assert np.abs(np.triu(axes.T @ axes, 1)).max() < 1e-9
    bone = scan.volume.intensities()[0] > 300
    back = scan.restore(bone.astype(np.uint8))
    centre = scan.series.affine @ [*np.argwhere(back).mean(axis=0), 1]
    straight = scan.volume.affine @ [*np.argwhere(bone).mean(axis=0), 1]
    np.testing.assert_allclose(centre, straight, atol=0.1)


def masks(tmp_path: Path, nifti: Path, words: list[str], dicom: str, *more: str) -> list[np.ndarray]:
    """Masks of the DICOM and the NIfTI form of a scan, in RAS order."""
    found = []
    for number, source in enumerate(([dicom, *more], [str(nifti)])):
        out = tmp_path / f"mask{number}.nii.gz"
        assert run(*source, "-o", str(out), "-q", *words) == 0
        mask = nib.load(out)
        found.append(upright(np.asarray(mask.dataobj), mask.affine)[0])
    return found


def as_nifti(name: str, tmp_path: Path, number: str | None = None) -> Path:
    """dcm2niix' file, or without dcm2niix one with the digest that it would have."""
    if shutil.which("dcm2niix") is not None:
        return Path(convert(name, tmp_path / "nii", number).get_filename())
    volume = read(folder(name)).volume
    voxels, affine = upright(volume.voxels[0], volume.affine)
    image = nib.Nifti1Image(voxels.astype(np.int16), affine)
    image.header.set_slope_inter(volume.slope, volume.intercept)
    nib.save(image, tmp_path / "scan.nii")
    return tmp_path / "scan.nii"


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_hippocampus_of_a_study(tmp_path: Path, precision: str) -> None:
    """The shipped model picks its series, and the mask is that of the NIfTI file, voxel by voxel."""
    words = ["-m", "hippocampus", "--precision", precision]
    ours, theirs = masks(tmp_path, as_nifti(CROP, tmp_path), words, folder("mr_study"), "--series", "auto")
    np.testing.assert_array_equal(ours, theirs)
    assert hashlib.sha256(ours.tobytes()).hexdigest() == hashlib.sha256(theirs.tobytes()).hexdigest()
    assert ours.shape == (34, 50, 40)
    assert set(np.unique(ours)) == {0, 1, 2}
    assert 2000 < (ours > 0).sum() < 5000  # mm^3: a hippocampus


def test_ct_by_threshold(tmp_path: Path, threshold_model: Callable[..., str]) -> None:
    """With resampling: soft tissue and bone of the CT, equal from both forms."""
    model = threshold_model(thresholds=(20.0, 300.0), spacing=(1.0, 1.0, 5.0))
    ours, theirs = masks(tmp_path, as_nifti("ct_axial_5mm", tmp_path), ["-m", model], folder("ct_axial_5mm"))
    np.testing.assert_array_equal(ours, theirs)
    assert all((ours == value).sum() > 10_000 for value in (0, 1, 2))


def test_the_series_of_the_study() -> None:
    study, candidates = survey(folder("mr_study"))
    assert [candidate.series.number for candidate in candidates] == [11, 36468, None]
    assert [candidate.contrasts for candidate in candidates] == [["T1"], ["FLAIR"], []]
    assert all(candidate.error is None for candidate in candidates)
    assert study.aside == {}


def test_a_real_series_with_a_slice_missing(tmp_path: Path) -> None:
    for file in Path(folder("ct_axial_5mm")).iterdir():
        if file.name != "I150":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(SegError, match="1 of 28 slices are missing") as caught:
        read(str(tmp_path))
    assert caught.value.code == "E-DCM-MISSING"
