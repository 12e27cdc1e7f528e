"""RTSTRUCT: contours are asked which voxels they hold, by plain geometry and pydicom."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from contour_areas import windings
from known import plain_spec
from source_series import NAMES, ORIENTATIONS, SHAPE, classic, enhanced, mask, with_name

pytest.importorskip("contourpy")

from seg.infer.dicom.derived import save
from seg.infer.dicom.rtstruct import rtstruct_dataset
from seg.infer.dicom.series import DicomSeries
from seg.infer.errors import Exit, SegError
from seg.infer.preview import PALETTE

SPEC = plain_spec(name="heart", labels=("background", "left atrium", "odd thing"))
SHA256 = "ab" * 32
NOON = datetime(2026, 11, 21, 12, 0, 0)
SOURCES: dict[str, Callable[[], DicomSeries]] = {
    **{name: lambda cosines=cosines: classic(cosines) for name, cosines in ORIENTATIONS.items()},  # type: ignore[misc]
    "tilted gantry": lambda: classic(tilt=13.5),
    "enhanced": enhanced,
    "enhanced, sagittal, shared groups": lambda: enhanced(ORIENTATIONS["sagittal"], shared=True),
}


def made(series: DicomSeries, labels: np.ndarray, path: Path, **options: Any) -> pydicom.Dataset:
    """Written, and read again."""
    dataset = rtstruct_dataset(series, labels, SPEC, model_sha256=SHA256, **options)
    save(str(path), dataset, series, overwrite=False)
    return pydicom.dcmread(path)


def areas(rtstruct: pydicom.Dataset, series: DicomSeries, roi: int) -> np.ndarray:
    """(columns, rows, slices): voxels whose centre is inside a ROI."""
    to_voxel = np.linalg.inv(np.diag([-1.0, -1.0, 1.0, 1.0]) @ series.affine)
    found = np.zeros(series.shape, int)
    for contour in rtstruct.ROIContourSequence[roi - 1].get("ContourSequence", []):
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        assert (contour.ContourGeometricType, contour.NumberOfContourPoints) == ("CLOSED_PLANAR", len(points))
        voxels = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        (k,) = set(voxels[:, 2].round().astype(int).tolist())
        np.testing.assert_allclose(voxels[:, 2], k, atol=1e-3)
        (image,) = contour.ContourImageSequence
        if len(series.datasets) == 1:
            assert image.ReferencedFrameNumber == series.frames[k]
        else:
            assert image.ReferencedSOPInstanceUID == series.datasets[k].SOPInstanceUID
        corners = (voxels[:, :2] * 2).round() / 2  # 0.0001 mm were lost
        np.testing.assert_allclose(corners, voxels[:, :2], atol=1e-3)
        found[:, :, k] += windings(corners, series.shape[1::-1])[0].T
    return found % 2 == 1


@pytest.mark.parametrize("source", SOURCES)
def test_the_same_mask_comes_back(source: str, tmp_path: Path) -> None:
    series, labels = SOURCES[source](), mask()
    rtstruct = made(series, labels, tmp_path / "rt.dcm")
    for roi in (1, 2):
        np.testing.assert_array_equal(areas(rtstruct, series, roi), labels == roi)


def test_what_each_roi_is(tmp_path: Path) -> None:
    rtstruct = made(classic(), mask(), tmp_path / "rt.dcm")
    assert [roi.ROIName for roi in rtstruct.StructureSetROISequence] == list(SPEC.labels[1:])
    for number in (0, 1):
        roi, observation = rtstruct.StructureSetROISequence[number], rtstruct.RTROIObservationsSequence[number]
        assert roi.ROINumber == observation.ReferencedROINumber == number + 1
        assert roi.ROIGenerationAlgorithm == "AUTOMATIC"
        assert SHA256 in roi.ROIDerivationAlgorithmIdentificationSequence[0].AlgorithmParameters
        assert tuple(rtstruct.ROIContourSequence[number].ROIDisplayColor) == PALETTE[number]
    atrium, odd = rtstruct.RTROIObservationsSequence
    assert atrium.RTROIIdentificationCodeSequence[0].CodeValue == "82471001"
    assert (atrium.RTROIInterpretedType, odd.RTROIInterpretedType) == ("ORGAN", "")
    assert rtstruct.ApprovalStatus == "UNAPPROVED"


def test_it_refers_to_all_instances_of_its_series(tmp_path: Path) -> None:
    series = classic()
    rtstruct = made(series, mask(), tmp_path / "rt.dcm")
    (frame,) = rtstruct.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == series.datasets[0].FrameOfReferenceUID
    (source,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert source.SeriesInstanceUID == series.datasets[0].SeriesInstanceUID
    found = [image.ReferencedSOPInstanceUID for image in source.ContourImageSequence]
    assert found == [dataset.SOPInstanceUID for dataset in series.datasets]
    assert rtstruct.StudyInstanceUID == series.datasets[0].StudyInstanceUID
    assert rtstruct.PatientName == series.datasets[0].PatientName


def test_a_class_that_was_not_found_is_a_roi_without_contours(tmp_path: Path) -> None:
    rtstruct = made(classic(), np.zeros(SHAPE, np.uint8), tmp_path / "rt.dcm")
    assert len(rtstruct.StructureSetROISequence) == 2
    assert not any("ContourSequence" in item for item in rtstruct.ROIContourSequence)


def test_a_contour_of_many_points(tmp_path: Path) -> None:
    """Numbers of over 64 kB fit no element of explicit VR."""
    series = classic()
    large = (600, 600, 1)
    for dataset in series.datasets:
        dataset.Columns, dataset.Rows = 600, 600
    series = DicomSeries(series.datasets[:1], series.files[:1], (1,), series.affine, large, "CT")
    labels = np.zeros(large, np.uint8)
    labels[1:-1, 1:-1, 0] = (np.indices((598, 598)) % 4).any(axis=0)  # one part with many holes, some at its border
    (contour,) = made(series, labels, tmp_path / "rt.dcm").ROIContourSequence[0].ContourSequence
    assert len(contour.get_item("ContourData").value) > 65536
    assert contour.NumberOfContourPoints * 3 == len(contour.ContourData)


@pytest.mark.parametrize("which", NAMES)
def test_names_are_copied_byte_by_byte(which: str, tmp_path: Path) -> None:
    rtstruct = made(with_name(*NAMES[which], tmp_path), mask(), tmp_path / "rt.dcm")
    assert rtstruct.get_item("PatientName").value.rstrip(b" ") == NAMES[which][1]


def test_the_same_time_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        made(classic(), mask(), tmp_path / f"{name}.dcm", created=NOON)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    assert (tmp_path / "a.dcm").read_bytes()[:132] == bytes(128) + b"DICM"


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "rt.dcm").write_text("mine")
    with pytest.raises(SegError) as caught:
        made(classic(), mask(), tmp_path / "rt.dcm")
    assert (caught.value.code, caught.value.exit) == ("E-OUT-EXISTS", Exit.OUTPUT)
    assert (tmp_path / "rt.dcm").read_text() == "mine"


def test_without_contourpy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "contourpy", None)
    with pytest.raises(SegError, match=r"contourpy is not installed.*seg-toolkit\[rtstruct\]"):
        rtstruct_dataset(classic(), mask(), SPEC, model_sha256=SHA256)


def test_another_reader_understands_it(tmp_path: Path) -> None:
    """dcmtk's dcmdump reads every element; pydicom wrote contours as they stand in the file."""
    if shutil.which("dcmdump") is None:
        pytest.skip("dcmdump of dcmtk is not installed")
    made(classic(), mask(), tmp_path / "rt.dcm")
    done = subprocess.run(["dcmdump", tmp_path / "rt.dcm"], capture_output=True, text=True, check=True)
    assert done.stdout.count("ContourData") == done.stdout.count("CLOSED_PLANAR") > 5
    assert not [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))]
