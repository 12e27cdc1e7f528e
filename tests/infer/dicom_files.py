"""DICOM series as files, made by code, of voxels whose mask is known; and what may be wrong with them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
ORIGIN = (-31.25, 12.5, 77.0)
SPACING = (0.8, 1.1)  # mm between rows, between columns
STEP = 2.5

Edit = Callable[[int, Dataset], None]  # slice number from 0, dataset to change


def uid(*content: object) -> str:
    """The same for the same content."""
    return str(generate_uid(entropy_srcs=["dicom_files", *map(str, content)]))


def plane_vectors(orientation: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Along row, along column, normal."""
    row, column = np.array(orientation, float).reshape(2, 3)
    return row, column, np.cross(row, column)


def dataset_of(voxels: np.ndarray, modality: str = "CT", series: object = 1) -> Dataset:
    """What all objects of a series have in common; voxels (columns, rows, slices) give pixel description."""
    dataset = Dataset()
    dataset.SOPClassUID = MR if modality == "MR" else CT
    dataset.Modality = modality
    dataset.PatientID, dataset.PatientName = "4711", "Doe^Jane"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid("study"), uid("series", series)
    dataset.FrameOfReferenceUID = uid("frame of reference")
    dataset.SeriesNumber = series if isinstance(series, int) else None
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Columns, dataset.Rows = voxels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = 8 * voxels.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    dataset.PixelRepresentation = int(voxels.dtype.kind == "i")
    if modality == "CT":
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    return dataset


def pixels(plane: np.ndarray) -> bytes:
    """(columns, rows, ...) as stored, padded to even length."""
    data = np.ascontiguousarray(plane.T).tobytes()
    return data + b"\0" * (len(data) % 2)


def save(path: Path, dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
    """As a file of the standard's form."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID") or CT
    meta.MediaStorageSOPInstanceUID = str(dataset.get("SOPInstanceUID") or "1.2")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = Dataset(dataset)
    whole.file_meta = meta
    if "PixelData" in whole:
        whole["PixelData"].VR = "OW" if whole.BitsAllocated > 8 else "OB"
    implicit, little = syntax == "1.2.840.10008.1.2", syntax != "1.2.840.10008.1.2.2"
    dcmwrite(path, whole, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    voxels: np.ndarray,
    *,
    modality: str = "CT",
    series: object = 1,
    orientation: Sequence[float] = AXIAL,
    step: float = STEP,
    heights: Sequence[float] | None = None,
    sideways: float = 0.0,
    edit: Edit | None = None,
    name: Callable[[int], str] = "{:03}.dcm".format,
    syntax: str = ExplicitVRLittleEndian,
    skip: Sequence[int] = (),
) -> list[Path]:
    """One object per slice of voxels (columns, rows, slices); returns the files, in slice order.

    Parameters
    ----------
    heights : mm of each slice along the normal, instead of multiples of `step`.
    sideways : mm by which each slice is shifted along the columns against the one before (a gantry tilt).
    edit : changes a dataset before it is written.
    skip : slices that are not written.
    """
    _, column, normal = plane_vectors(orientation)
    paths = []
    for k in range(voxels.shape[2]):
        if k in skip:
            continue
        dataset = dataset_of(voxels, modality, series)
        dataset.SOPInstanceUID, dataset.InstanceNumber = uid("instance", series, k), k + 1
        place = np.array(ORIGIN) + normal * (step * k if heights is None else heights[k]) + column * sideways * k
        dataset.ImagePositionPatient = [format(v, ".9g") for v in place]
        dataset.ImageOrientationPatient = [format(v, ".12g")[:16] for v in orientation]
        dataset.PixelSpacing = list(SPACING)
        dataset.SliceThickness = 1.0
        dataset.PixelData = pixels(voxels[:, :, k])
        if edit is not None:
            edit(k, dataset)
        paths.append(save(folder / name(k), dataset, syntax))
    return paths


def enhanced_dataset(
    voxels: np.ndarray,
    *,
    orientation: Sequence[float] = AXIAL,
    order: Sequence[int] | None = None,
    scaling: Sequence[tuple[float, float]] | None = None,
) -> Dataset:
    """The same voxels (columns, rows, slices) as one multi-frame object.

    Parameters
    ----------
    order : slice of each frame.
    scaling : slope and intercept of each slice.
    """
    normal = plane_vectors(orientation)[2]
    order = range(voxels.shape[2]) if order is None else order
    dataset = dataset_of(voxels)
    del dataset.RescaleSlope, dataset.RescaleIntercept
    dataset.SOPClassUID, dataset.SOPInstanceUID = ENHANCED_CT, uid("enhanced")
    dataset.NumberOfFrames = len(order)
    plane, measures = Dataset(), Dataset()
    plane.ImageOrientationPatient = [format(v, ".12g")[:16] for v in orientation]
    measures.PixelSpacing, measures.SliceThickness = list(SPACING), 1.0
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for k in order:
        place, content, values, groups = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [format(v, ".9g") for v in np.array(ORIGIN) + normal * STEP * k]
        content.StackID, content.InStackPositionNumber = "1", k + 1
        slope, intercept = (1, 0) if scaling is None else scaling[k]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, intercept, "HU"
        groups.PlanePositionSequence, groups.FrameContentSequence = [place], [content]
        groups.PixelValueTransformationSequence = [values]
        dataset.PerFrameFunctionalGroupsSequence.append(groups)
    dataset.PixelData = pixels(voxels[:, :, list(order)])
    return dataset


def ras_affine(orientation: Sequence[float] = AXIAL, step: float = STEP, sideways: float = 0.0) -> np.ndarray:
    """(4, 4) voxel (column, row, slice) -> mm, RAS, of the series that `write_series` writes."""
    row, column, normal = plane_vectors(orientation)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = row * SPACING[1], column * SPACING[0]
    lps[:3, 2], lps[:3, 3] = normal * step + column * sideways, ORIGIN
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def setting(**elements: Any) -> Edit:
    """An edit that sets elements of every slice; None deletes one."""
    return on(None, **elements)


def on(slices: Sequence[int] | None, **elements: Any) -> Edit:
    """The same for some slices."""

    def edit(k: int, dataset: Dataset) -> None:
        if slices is not None and k not in slices:
            return
        for keyword, value in elements.items():
            if value is None:
                if keyword in dataset:
                    delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return edit
