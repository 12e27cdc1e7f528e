"""DICOM series without pixels, as the readers hand them over: made by code, or read from real files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from seg.infer.dicom.series import DicomSeries

AXIAL, CORONAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]
ORIENTATIONS = {
    "axial": AXIAL,
    "coronal": CORONAL,
    "sagittal": SAGITTAL,
    "axial from above": [-1, 0, 0, 0, 1, 0],
    "coronal from behind": [-1, 0, 0, 0, 0, -1],
    "sagittal from the right": [0, -1, 0, 0, 0, -1],
    "oblique": [0.9848077530, 0.1736481777, 0, -0.1710100717, 0.9698463104, 0.1736481777],
    "nearly axial": [0.99999996693059, -4.81874506e-05, -0.0002526198484, 2.046187e-10, 0.98228909079532, -0.187371668],
}
SHAPE = (7, 5, 6)  # columns, rows, slices; odd numbers of bits to a slice
SPACING = (0.8, 1.1)  # between rows, between columns
CT, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4.1"

# Elements that headers lack, or have wrong.
FLAWS: dict[str, dict[str, Any]] = {
    "without patient and study": dict.fromkeys(
        [
            *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyDate", "StudyTime"),
            *("StudyID", "AccessionNumber", "ReferringPhysicianName", "SeriesNumber", "PositionReferenceIndicator"),
        ]
    ),
    "without frame of reference": {"FrameOfReferenceUID": None},
    "without thickness": {"SliceThickness": None},
    "thickness of zero": {"SliceThickness": 0},
    "wrong spacing between slices": {"SpacingBetweenSlices": -7},
    "lossy compressed": {"LossyImageCompression": "01", "LossyImageCompressionRatio": 10},
}
# Character set, and a patient's name as bytes in a file.
NAMES: dict[str, tuple[Any, bytes]] = {
    "Latin": ("ISO_IR 100", "Äneas^Rüdiger".encode("latin-1")),
    "Japanese": (
        ["", "ISO 2022 IR 87"],
        rb"Yamada^Tarou=|$B;3ED|(B^|$BB@O:|(B=|$B$d$^$@|(B^|$B$?$m$&|(B".replace(b"|", b"\x1b"),
    ),
    "Korean": (
        ["", "ISO 2022 IR 149"],
        b"Hong^Gildong=|$)C\xfb\xf3^|$)C\xd1\xce\xd4\xd7=|$)C\xc8\xab^|$)C\xb1\xe6\xb5\xbf".replace(b"|", b"\x1b"),
    ),
    "Chinese": ("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab"),
    "Unicode": ("ISO_IR 192", "Wang^XiaoDong=王^小東".encode()),
    "Cyrillic": ("ISO_IR 144", "Люксембург".encode("iso8859_5")),
    "not declared": (None, "Äneas^Rüdiger".encode("latin-1")),
}  # fmt: skip


def uid(*content: str) -> str:
    """The same for the same content."""
    return str(generate_uid(entropy_srcs=["source_series", *content]))


def header(**elements: Any) -> Dataset:
    """Patient, study and series of a CT image."""
    dataset = Dataset()
    values = {
        "SpecificCharacterSet": "ISO_IR 100",
        "SOPClassUID": CT,
        "SOPInstanceUID": uid("instance"),
        "StudyInstanceUID": uid("study"),
        "SeriesInstanceUID": uid("series"),
        "FrameOfReferenceUID": uid("frame of reference"),
        "Modality": "CT",
        "PatientName": "Doe^Jane",
        "PatientID": "4711",
        "PatientBirthDate": "19500102",
        "PatientSex": "F",
        "PatientAge": "071Y",
        "StudyDate": "20210203",
        "StudyTime": "121314",
        "StudyID": "S1",
        "AccessionNumber": "A1",
        "StudyDescription": "Heart",
        "ReferringPhysicianName": "Gregory^House",
        "SeriesNumber": 3,
        "Manufacturer": "Scanners Inc",
        "PositionReferenceIndicator": "",
        "SliceThickness": 2.5,
    }
    for keyword, value in (values | elements).items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


def geometry(orientation: Sequence[float], step: float, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """(4, 4) LPS affine of voxels (column, row, slice), and the position of each slice."""
    row, column = np.array(orientation, float).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * SPACING[1], column * SPACING[0]
    affine[:3, 2] = np.cross(row, column) * step + column * step * np.tan(np.deg2rad(tilt))
    affine[:3, 3] = (-31.25, 12.5, 77.0)
    return affine, affine[:3, 3] + np.arange(SHAPE[2])[:, None] * affine[:3, 2]


def ras(affine: np.ndarray) -> np.ndarray:
    """An LPS affine in RAS."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def classic(orientation: Sequence[float] = AXIAL, step: float = 2.5, tilt: float = 0, **elements: Any) -> DicomSeries:
    """One object per slice."""
    affine, positions = geometry(orientation, step, tilt)
    datasets = []
    for number, place in enumerate(positions):
        dataset = header(SOPInstanceUID=uid("instance", str(number)), InstanceNumber=SHAPE[2] - number, **elements)
        dataset.Columns, dataset.Rows = SHAPE[:2]
        dataset.PixelSpacing = list(SPACING)
        dataset.ImageOrientationPatient = list(orientation)
        dataset.ImagePositionPatient = place.round(6).tolist()
        datasets.append(dataset)
    files = tuple(f"/nowhere/{number}.dcm" for number in range(SHAPE[2]))
    return DicomSeries(tuple(datasets), files, (1,) * SHAPE[2], ras(affine), SHAPE, datasets[0].Modality)


def enhanced(orientation: Sequence[float] = AXIAL, shared: bool = False, **elements: Any) -> DicomSeries:
    """One object for all slices, which lie in it in no order and between frames of another stack."""
    affine, positions = geometry(orientation, 2.5, 0)
    dataset = header(SOPClassUID=ENHANCED_MR, Modality="MR", **({"SliceThickness": None} | elements))
    dataset.Columns, dataset.Rows = SHAPE[:2]
    frames = (4, 9, 2, 7, 11, 6)
    dataset.NumberOfFrames = 12
    plane, measures = Dataset(), Dataset()
    plane.ImageOrientationPatient = list(orientation)
    measures.PixelSpacing, measures.SliceThickness = list(SPACING), 2.0
    common = Dataset()
    common.PlaneOrientationSequence, common.PixelMeasuresSequence = [plane], [measures]
    dataset.SharedFunctionalGroupsSequence = [common if shared else Dataset()]
    groups = []
    for number in range(1, 13):
        group, place = Dataset(), Dataset()
        lies = positions[frames.index(number)] if number in frames else positions[0] + 1000
        place.ImagePositionPatient = lies.round(6).tolist()
        group.PlanePositionSequence = [place]
        if not shared:
            group.PlaneOrientationSequence, group.PixelMeasuresSequence = [plane], [measures]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return DicomSeries((dataset,), ("/nowhere/enhanced.dcm",), frames, ras(affine), SHAPE, "MR")


def mask(shape: tuple[int, int, int] = SHAPE, classes: int = 3) -> np.ndarray:
    """Labels at random, so that no flip or swap leaves them unchanged; the first slice is empty."""
    labels = np.random.default_rng(5).integers(0, classes, shape).astype(np.uint8)
    labels[:, :, 0] = 0
    return labels


def with_name(character_set: Any, name: bytes, tmp_path: Path) -> DicomSeries:
    """A series whose headers were read from a file with these bytes in it."""
    series = classic(SpecificCharacterSet=None, PatientName="NAMENAME", PatientComments="COMMENTS")
    datasets = []
    for dataset in series.datasets:
        dataset.SpecificCharacterSet = character_set
        if character_set is None:
            del dataset.SpecificCharacterSet
        path = tmp_path / "source.dcm"
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dcmwrite(path, dataset, enforce_file_format=True)
        padded = name + b" " * (len(name) % 2)
        data = path.read_bytes().replace(b"PN\x08\x00NAMENAME", b"PN" + len(padded).to_bytes(2, "little") + padded)
        path.write_bytes(data)
        datasets.append(dcmread(path))
    return replace(series, datasets=tuple(datasets))


def from_folder(folder: Path) -> DicomSeries:
    """A real series of single-frame images, by the plainest way that a regular one can be read."""
    found = []
    for path in sorted(folder.iterdir()):
        dataset = dcmread(path, stop_before_pixels=True, force=True)
        if "ImagePositionPatient" in dataset:
            found.append((dataset, str(path)))
    first = found[0][0]
    row, column = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    found.sort(key=lambda pair: float(np.array(pair[0].ImagePositionPatient, float) @ np.cross(row, column)))
    positions = np.array([dataset.ImagePositionPatient for dataset, _ in found], float)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * first.PixelSpacing[1], column * first.PixelSpacing[0]
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(found) - 1)
    affine[:3, 3] = positions[0]
    datasets, files = zip(*found, strict=True)
    shape = (int(first.Columns), int(first.Rows), len(found))
    return DicomSeries(datasets, files, (1,) * len(found), ras(affine), shape, first.Modality)


def from_enhanced(path: Path) -> DicomSeries:
    """A real enhanced image whose frames all have their own place."""
    dataset = dcmread(path, stop_before_pixels=True)
    groups = dataset.PerFrameFunctionalGroupsSequence
    row, column = np.array(groups[0].PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    spacing = groups[0].PixelMeasuresSequence[0].PixelSpacing
    positions = np.array([group.PlanePositionSequence[0].ImagePositionPatient for group in groups], float)
    order = np.argsort(positions @ np.cross(row, column))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * spacing[1], column * spacing[0]
    affine[:3, 2] = (positions[order[-1]] - positions[order[0]]) / (len(order) - 1)
    affine[:3, 3] = positions[order[0]]
    frames = tuple(int(number) + 1 for number in order)
    shape = (int(dataset.Columns), int(dataset.Rows), len(order))
    return DicomSeries((dataset,), (str(path),), frames, ras(affine), shape, dataset.Modality)
