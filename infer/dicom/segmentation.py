"""DICOM SEG out: a mask as segments on the series' own slices, made by highdicom.

BINARY, one bit plane per class and slice, is the default: viewers and archives have read it since 2006. LABELMAP, one
plane per slice that holds all classes, came into the standard in 2024 and not all of them read it yet.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..preview import PALETTE
from ..spec import ModelSpec
from .codes import PRIVATE_SCHEME, codes_of, long_string
from .derived import (
    Making,
    algorithm,
    complete,
    concept,
    copy_elements,
    decimal,
    equipment,
    frame_of_reference,
    header_value,
    is_multiframe,
    new_uids,
    position,
    series_number,
)
from .header import quieten_pydicom
from .planes import class_planes
from .series import DicomSeries

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom import Dataset

Kind = Literal["BINARY", "LABELMAP"]

# Highdicom asks for these; `complete` brings the source's values, which it would not all accept.
_BLANK = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "ReferringPhysicianName"),
    *("StudyDate", "StudyTime", "StudyID"),
)
# What made the source, for the Contributing Equipment Sequence, and how its pixels were compressed.
_PROVENANCE = (
    *("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber", "StationName"),
    *("InstitutionName", "InstitutionalDepartmentName", "InstitutionAddress", "AcquisitionDateTime"),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)


def segmentation_dataset(
    series: DicomSeries,
    labels: NDArray[np.integer],
    spec: ModelSpec,
    *,
    model_sha256: str,
    kind: Kind = "BINARY",
    omit_empty_frames: bool = True,
    created: datetime | None = None,
) -> "Dataset":
    """A mask as a DICOM SEG in memory.

    It keeps patient and study, and is a new series. Each frame refers to the one instance (and frame) of the source
    that it lies on. Segment numbers are the classes' indices in the spec; a class that was not found is described all
    the same. The same mask of the same series by the same model has the same UIDs every time.

    Parameters
    ----------
    series : the source.
    labels : (columns, rows, slices) label values of the spec.
    spec : of the model; labels, and codes if it has them.
    model_sha256 : digest of the artifact.
    omit_empty_frames : leave out slices without the class. Of an empty mask one remains, for a SEG has a frame.
    created : local time of making; now, if not given.

    Raises
    ------
    ValueError : if the mask's shape is not the series', or it holds an unknown value.
    """
    import highdicom

    quieten_pydicom()
    planes = class_planes(labels, spec.label_values, series.shape)
    making = Making(spec, model_sha256, created or datetime.now())
    empty = omit_empty_frames and not planes.any()
    series_uid, instance_uid, dimensions_uid = new_uids(f"{kind} {omit_empty_frames}", series, planes, making)
    if empty:  # highdicom would keep the frames of all classes, which may be gigabytes of nothing
        planes[0, 0, 0] = 1
    dataset = highdicom.seg.Segmentation(
        source_images=_source_images(series),
        pixel_array=planes,
        segmentation_type=kind,
        segment_descriptions=_descriptions(making),
        series_instance_uid=series_uid,
        series_number=series_number(series),
        sop_instance_uid=instance_uid,
        instance_number=1,
        omit_empty_frames=omit_empty_frames,
        content_label="SEGMENTATION",
        content_description=making.name,
        content_date=making.created.date(),
        content_time=making.created.time().replace(microsecond=0),
        specific_character_set=None,
        **equipment(making),
    )
    if empty:
        dataset.PixelData = bytes(len(dataset.PixelData))
    _refer_to_frames(dataset, series)
    _fix_by_content(dataset, dimensions_uid, making.created)
    complete(dataset, series, making)
    return dataset


def _source_images(series: DicomSeries) -> "list[Dataset]":
    """The series as highdicom takes it: what it reads and no more, so that no flaw elsewhere in a header stops it.

    Highdicom wants one orientation for all slices, to the last digit, and of a multi-frame image wants it shared, where
    scanners write it for each frame; the first slice's stands for all. It would copy the spacing between slices from
    the header, which may be wrong; where there is none, it measures it from the positions.
    """
    from pydicom import Dataset

    multiframe = is_multiframe(series)
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [decimal(v) for v in header_value(series, 0, "ImageOrientationPatient")]
    measures.PixelSpacing = [decimal(v) for v in header_value(series, 0, "PixelSpacing")]
    measures.SliceThickness = _thickness(series)
    images = []
    for header in series.datasets:
        image = Dataset()
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            setattr(image, keyword, header[keyword].value)
        image.FrameOfReferenceUID = frame_of_reference(series)
        image.Columns, image.Rows = series.shape[:2]
        images.append(image)
    for keyword in _BLANK:
        setattr(images[0], keyword, "")
    copy_elements(images[0], series.datasets[0], _PROVENANCE)
    planes = []
    for number in range(series.shape[2]):
        plane = Dataset()
        plane.ImagePositionPatient = position(series, number)
        planes.append(plane)
    if not multiframe:
        for image, plane in zip(images, planes, strict=True):
            for part in (orientation, measures, plane):
                image.update(part)
        return images
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    images[0].NumberOfFrames = len(planes)
    images[0].SharedFunctionalGroupsSequence = [shared]
    images[0].PerFrameFunctionalGroupsSequence = []
    for plane in planes:
        groups = Dataset()
        groups.PlanePositionSequence = [plane]
        images[0].PerFrameFunctionalGroupsSequence.append(groups)
    return images


def _thickness(series: DicomSeries) -> Any:
    """Of a slice in mm: what the header says, or the distance to the next."""
    try:
        stated = decimal(header_value(series, 0, "SliceThickness"))
    except Exception:  # whatever pydicom raises at a damaged element, which says nothing of where the slices are
        stated = 0.0
    return stated if 0 < stated < np.inf else decimal(np.linalg.norm(series.affine[:3, 2]))


def _descriptions(making: Making) -> "list[SegmentDescription]":
    """What each segment is, how it came about, and its colour, which is that of the preview."""
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription

    descriptions = []
    for number, codes in enumerate(codes_of(making.spec), start=1):
        description = SegmentDescription(
            segment_number=number,
            segment_label=long_string(making.spec.labels[number]) or f"class {number}",
            segmented_property_category=concept(codes.category),
            segmented_property_type=concept(codes.type),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm(making),
            anatomic_regions=[concept(codes.region)] if codes.region else None,
            display_color=CIELabColor.from_rgb(*PALETTE[(number - 1) % len(PALETTE)]),
        )
        if codes.modifiers:
            (kind,) = description.SegmentedPropertyTypeCodeSequence
            kind.SegmentedPropertyTypeModifierCodeSequence = [concept(code) for code in codes.modifiers]
        if codes.type.scheme == PRIVATE_SCHEME:
            description.SegmentDescription = "private code: the model names no standard one for this label"
        descriptions.append(description)
    return descriptions


def _refer_to_frames(dataset: "Dataset", series: DicomSeries) -> None:
    """Frame numbers of the slices in the source, for highdicom was told of those frames alone, in slice order."""
    if not is_multiframe(series):
        return
    references = {}  # one object stands in the frames of all segments
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        references[id(source)] = source
    for source in references.values():
        source.ReferencedFrameNumber = series.frames[source.ReferencedFrameNumber - 1]


def _fix_by_content(dataset: "Dataset", dimensions_uid: str, created: datetime) -> None:
    """Replace what highdicom draws by lot, and the time at which it says that it was at work."""
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions_uid
    dataset.ContributingEquipmentSequence[-1].ContributionDateTime = f"{created:%Y%m%d%H%M%S}"
