"""seg-infer from a DICOM series to a DICOM mask; others' programs read it."""

import os
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from commands import infer, run
from dicom_files import enhanced_dataset, save, write_series
from known import boxes, plain_spec, write_artifact

from seg.infer.manifest import NAME

DATA = Path(os.environ.get("SEG_DATA", Path(__file__).parents[4] / "shared" / "data")) / "dicom"


@pytest.fixture
def model(tmp_path: Path) -> str:
    """Two classes by brightness, one with a standard code."""
    spec = plain_spec(name="bright", labels=("background", "left atrium", "very bright"))
    return write_artifact(tmp_path / "bright.onnx", spec, (1.5, 2.5))


def expected() -> np.ndarray:
    """(columns, rows, slices) of `boxes`, whose values are 2, 3 and 4."""
    return np.digitize(boxes(), (1.5, 2.5)).astype(np.uint8)


def series_of(folder: Path) -> str:
    """A series whose file names say nothing of its order."""
    write_series(folder, boxes(), name=lambda k: f"{(k * 4) % 9}.dcm")
    return str(folder)


def by_source(path: Path, folder: Path) -> np.ndarray:
    """(columns, rows, slices) of a SEG, through its references."""
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in folder.iterdir()]
    sources.sort(key=lambda dataset: dataset.ImagePositionPatient[2])
    seg = highdicom.seg.segread(path)
    return seg.get_pixels_by_source_instance(
        [dataset.SOPInstanceUID for dataset in sources], combine_segments=True, assert_missing_frames_are_empty=True
    ).T


@pytest.mark.parametrize(("options", "kind"), [((), "BINARY"), (("--format", "labelmap"), "LABELMAP")])
def test_a_series_and_its_seg(
    options: tuple[str, ...], kind: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, out = series_of(tmp_path / "scan"), tmp_path / "mask.dcm"
    assert run(scan, "-o", str(out), "-m", model, *options) == 0
    np.testing.assert_array_equal(by_source(out, tmp_path / "scan"), expected())
    seg = highdicom.seg.segread(out)
    assert (seg.SegmentationType, str(seg.PatientName), seg.PatientID) == (kind, "Doe^Jane", "4711")
    said = capsys.readouterr().err
    assert "no standard code is known for very bright" in said
    assert "Doe" not in said


def test_a_multiframe_file_and_its_seg(model: str, tmp_path: Path) -> None:
    order = [3, 0, 8, 5, 1, 7, 2, 6, 4]
    scan, out = save(tmp_path / "scan.dcm", enhanced_dataset(boxes(), order=order)), tmp_path / "mask.dcm"
    assert run(str(scan), "-o", str(out), "-m", model) == 0
    seg, source = highdicom.seg.segread(out), pydicom.dcmread(scan)
    frames = [order.index(k) + 1 for k in range(9)]
    options = {"combine_segments": True, "assert_missing_frames_are_empty": True}
    found = seg.get_pixels_by_source_frame(source.SOPInstanceUID, frames, **options)
    np.testing.assert_array_equal(found.T, expected())


def test_a_tilted_series_gets_its_mask_on_its_own_slices(model: str, tmp_path: Path) -> None:
    """The network sees straight voxels; the boxes' flat faces across the tilt may move by a voxel, nothing else."""
    folder, out = tmp_path / "scan", tmp_path / "mask.dcm"
    write_series(folder, boxes(), sideways=0.2)
    assert run(str(folder), "-o", str(out), "-m", model, "--resample-tilt") == 0
    found = by_source(out, folder)
    assert (found == expected()).mean() > 0.97
    assert set(np.unique(found)) == {0, 1, 2}


def test_rtstruct(model: str, tmp_path: Path) -> None:
    pytest.importorskip("contourpy")
    out = tmp_path / "rt.dcm"
    assert run(series_of(tmp_path / "scan"), "-o", str(out), "-m", model, "--format", "rtstruct") == 0
    dataset = pydicom.dcmread(out)
    assert [roi.ROIName for roi in dataset.StructureSetROISequence] == ["left atrium", "very bright"]
    assert [len(item.ContourSequence) for item in dataset.ROIContourSequence] == [2, 6]  # slices with each


def test_rtstruct_without_its_extra_stops_before_any_work(model: str, tmp_path: Path) -> None:
    scan, out = series_of(tmp_path / "scan"), tmp_path / "rt.dcm"
    program = "import sys; sys.modules['contourpy'] = None"
    done = infer(scan, "-o", str(out), "-m", model, "--format", "rtstruct", program=program)
    assert done.returncode == 21
    assert 'pip install "seg-toolkit[rtstruct]"' in done.stderr
    assert "model:" not in done.stderr
    assert not out.exists()


def test_several_series_into_a_folder(model: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_series(tmp_path / "scans" / name, boxes(), series=name)
    arguments = [str(tmp_path / "scans" / name) for name in ("a", "b")]
    options = ("-o", str(tmp_path / "out"), "-m", model, "--format", "seg")
    assert run(*arguments, *options) == 0
    for name in ("a", "b"):
        np.testing.assert_array_equal(
            by_source(tmp_path / "out" / f"{name}.dcm", tmp_path / "scans" / name), expected()
        )
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run(*arguments, *options, "--continue") == 0  # all are done
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("form", ["seg", "labelmap", "rtstruct"])
def test_masks_without_a_record(form: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After a stop between mask and record the mask is known again, though its time of making is in it; one that
    somebody has touched is not, though all its identifiers are as they were."""
    if form == "rtstruct":
        pytest.importorskip("contourpy")
    call = (series_of(tmp_path / "scan"), "-o", str(tmp_path / "out"), "-m", model, "--format", form)
    (tmp_path / "out").mkdir()
    assert run(*call) == 0
    mask, record = tmp_path / "out" / "scan.dcm", tmp_path / "out" / NAME
    made = mask.read_bytes()
    record.unlink()
    assert run(*call, "--continue") == 0
    assert mask.read_bytes() == made
    record.unlink()
    changed = made[:-3] + bytes([made[-3] ^ 1]) + made[-2:]
    mask.write_bytes(changed)
    capsys.readouterr()
    assert run(*call, "--continue") == 30
    assert "E-OUT-EXISTS" in capsys.readouterr().err
    assert mask.read_bytes() == changed


def test_a_dicom_mask_needs_a_dicom_scan(model: str, tmp_path: Path, write_scan: Callable[..., str]) -> None:
    assert run(write_scan("scan.nii.gz", boxes()), "-o", str(tmp_path / "mask.dcm"), "-m", model) == 2
    assert not (tmp_path / "mask.dcm").exists()


def test_a_nifti_mask_needs_no_dicom_writer(model: str, tmp_path: Path) -> None:
    """highdicom takes a quarter of a second to load."""
    program = "import sys; sys.modules['highdicom'] = None"
    done = infer(series_of(tmp_path / "scan"), "-o", str(tmp_path / "mask.nii.gz"), "-m", model, program=program)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there")
def test_a_real_hippocampus(tmp_path: Path) -> None:
    """The one series of a real study that the model is made for, chosen by --series auto."""
    out = tmp_path / "mask.dcm"
    done = infer(str(DATA / "mr_study"), "-o", str(out), "-m", "hippocampus", "--series", "auto")
    assert done.returncode == 0, done.stderr
    seg = highdicom.seg.segread(out)
    folder = DATA / "mr_study" / "11_HCropVolume"
    uid = pydicom.dcmread(next(folder.glob("*.dcm")), stop_before_pixels=True).SeriesInstanceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == uid
    labels = by_source(out, folder)
    millilitres = [float((labels == value).sum()) / 1000 for value in (1, 2)]  # 1 mm voxels
    assert 0.5 < millilitres[0] < 4
    assert 0.5 < millilitres[1] < 4
    types = [seg.get_segment_description(n).segmented_property_type for n in (1, 2)]
    assert [kind.value for kind in types] == ["5366008", "5366008"]
    modifiers = [kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning for kind in types]
    assert modifiers == ["Anterior", "Posterior"]
    assert "no standard code" not in done.stderr
