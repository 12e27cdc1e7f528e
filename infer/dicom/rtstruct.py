"""DICOM RTSTRUCT out: the classes of a mask as contours on the series' slices, for radiotherapy planning."""

from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..preview import PALETTE
from ..spec import ModelSpec
from .codes import ANATOMY, codes_of, long_string
from .contours import Points, outlines
from .derived import (
    MAKER,
    Making,
    algorithm,
    complete,
    concept,
    equipment,
    frame_of_reference,
    is_multiframe,
    new_uids,
    position,
    series_number,
)
from .header import quieten_pydicom
from .planes import class_planes
from .series import DicomSeries

if TYPE_CHECKING:
    from pydicom import Dataset

_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, retired; readers look for it here (C.8.8.5)


def rtstruct_dataset(
    series: DicomSeries,
    labels: NDArray[np.integer],
    spec: ModelSpec,
    *,
    model_sha256: str,
    created: datetime | None = None,
) -> "Dataset":
    """A mask as a DICOM RTSTRUCT in memory. Patient, study, references and UIDs are as in `segmentation_dataset`.

    Contours are closed and in LPS mm, on the plane of the slice that they refer to. A class that was not found is a
    ROI without contours.

    Parameters
    ----------
    series : the source.
    labels : (columns, rows, slices) label values of the spec.
    spec : of the model; labels, and codes if it has them.
    model_sha256 : digest of the artifact.
    created : local time of making; now, if not given.

    Raises
    ------
    ValueError : if the mask's shape is not the series', or it holds an unknown value.
    SegError : E-EXTRA, exit 21.
    """
    from highdicom.base import SOPClass
    from pydicom.uid import ImplicitVRLittleEndian

    quieten_pydicom()
    planes = class_planes(labels, spec.label_values, series.shape)
    making = Making(spec, model_sha256, created or datetime.now())
    series_uid, instance_uid, _ = new_uids("RTSTRUCT", series, planes, making)
    dataset = SOPClass(
        study_instance_uid=series.datasets[0].StudyInstanceUID,
        series_instance_uid=series_uid,
        series_number=series_number(series),
        sop_instance_uid=instance_uid,
        sop_class_uid=_SOP_CLASS,
        instance_number=1,
        modality="RTSTRUCT",
        transfer_syntax_uid=ImplicitVRLittleEndian,  # explicit VR has no room for contours of over 64 kB
        **equipment(making),
    )
    complete(dataset, series, making)
    dataset.StructureSetLabel = long_string(spec.name)[:16].strip() or MAKER
    dataset.StructureSetName = making.name
    dataset.StructureSetDate, dataset.StructureSetTime = dataset.SeriesDate, dataset.SeriesTime
    dataset.OperatorsName = ""
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.ReferencedFrameOfReferenceSequence = [_reference(series)]
    classes = range(1, len(spec.labels))
    dataset.StructureSetROISequence = [_roi(number, series, making) for number in classes]
    dataset.ROIContourSequence = [_contours(number, planes, series) for number in classes]
    dataset.RTROIObservationsSequence = [_observation(number, spec) for number in classes]
    return dataset


def _reference(series: DicomSeries) -> "Dataset":
    """Frame of reference, study, series and all its instances."""
    from pydicom import Dataset

    header = series.datasets[0]
    item, study, source = Dataset(), Dataset(), Dataset()
    source.SeriesInstanceUID = header.SeriesInstanceUID
    source.ContourImageSequence = [_image(dataset) for dataset in series.datasets]
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, header.StudyInstanceUID
    study.RTReferencedSeriesSequence = [source]
    item.FrameOfReferenceUID = frame_of_reference(series)
    item.RTReferencedStudySequence = [study]
    return item


def _image(header: "Dataset", frame: int | None = None) -> "Dataset":
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if frame is not None:
        item.ReferencedFrameNumber = frame
    return item


def _roi(number: int, series: DicomSeries, making: Making) -> "Dataset":
    """Name and origin of a class."""
    from pydicom import Dataset

    item = Dataset()
    item.ROINumber = number
    item.ReferencedFrameOfReferenceUID = frame_of_reference(series)
    item.ROIName = long_string(making.spec.labels[number]) or f"class {number}"
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = making.name
    item.ROIDerivationAlgorithmIdentificationSequence = algorithm(making)
    return item


def _observation(number: int, spec: ModelSpec) -> "Dataset":
    """What a class is."""
    from pydicom import Dataset

    codes = codes_of(spec)[number - 1]
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.RTROIIdentificationCodeSequence = [concept(codes.type)]
    item.RTROIInterpretedType = "ORGAN" if codes.category == ANATOMY else ""
    item.ROIInterpreter = ""
    return item


def _contours(number: int, planes: NDArray[np.unsignedinteger], series: DicomSeries) -> "Dataset":
    """Contours of a class, slice by slice, in the colour that the preview has for it."""
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedROINumber = number
    item.ROIDisplayColor = list(PALETTE[(number - 1) % len(PALETTE)])
    across, down = (series.affine[:3, axis] * (-1, -1, 1) for axis in (0, 1))  # RAS to LPS
    multiframe = is_multiframe(series)
    found = []
    for k, plane in enumerate(planes):
        area = plane == number
        origin = np.array(position(series, k), float)
        image = _image(series.datasets[0 if multiframe else k], series.frames[k] if multiframe else None)
        for points in outlines(area):
            found.append(_contour(origin + points[:, :1] * across + points[:, 1:] * down, image))
    if found:
        item.ContourSequence = found
    return item


def _contour(points: Points, image: "Dataset") -> "Dataset":
    """A closed polygon of (points, 3) LPS mm."""
    from pydicom import Dataset
    from pydicom.charset import default_encoding
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    item = Dataset()
    item.ContourImageSequence = [image]
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(points)
    text = "\\".join(f"{value:.4f}" for value in points.ravel().tolist()).encode()
    text += b" " * (len(text) % 2)
    # As it stands in the file: pydicom would make an object of each of what may be a million numbers.
    item[0x3006_0050] = RawDataElement(Tag(0x3006_0050), "DS", len(text), text, 0, True, True)
    item.set_original_encoding(True, True, default_encoding)
    return item
