"""Frames: the planes of single-frame and of enhanced multi-frame objects, described in the same way.

Enhanced objects keep in functional groups, per frame or shared by all, what single-frame objects keep in their header
(DICOM PS3.3 C.7.6.16). Only what decides about geometry and values is read at once; what tells repeated planes apart
is read when there are any.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import Exit, SegError
from .header import EXPORT_AGAIN, Header, bad_tag, item, items, number, numbers, text, whole_number, words

if TYPE_CHECKING:
    from pydicom import Dataset

Vector = NDArray[np.float64]

VOLUME_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.128": "PET",
    "1.2.840.10008.5.1.4.1.1.2.1": "enhanced CT",
    "1.2.840.10008.5.1.4.1.1.4.1": "enhanced MR",
    "1.2.840.10008.5.1.4.1.1.130": "enhanced PET",
    "1.2.840.10008.5.1.4.1.1.2.2": "legacy converted enhanced CT",
    "1.2.840.10008.5.1.4.1.1.4.4": "legacy converted enhanced MR",
    "1.2.840.10008.5.1.4.1.1.128.1": "legacy converted enhanced PET",
}
# Of an element that may differ between planes: its functional groups and keyword there, and the single-frame keyword.
_PLACES = {
    "position": ("PlanePositionSequence", "ImagePositionPatient", "ImagePositionPatient"),
    "orientation": ("PlaneOrientationSequence", "ImageOrientationPatient", "ImageOrientationPatient"),
    "spacing": ("PixelMeasuresSequence", "PixelSpacing", "PixelSpacing"),
    "thickness": ("PixelMeasuresSequence", "SliceThickness", "SliceThickness"),
    "slope": ("PixelValueTransformationSequence", "RescaleSlope", "RescaleSlope"),
    "intercept": ("PixelValueTransformationSequence", "RescaleIntercept", "RescaleIntercept"),
    "unit": ("PixelValueTransformationSequence", "RescaleType", "RescaleType"),
}
# What makes two planes at one place different images, and not the same at two times.
_KINDS = {
    "stack": ("FrameContentSequence", "StackID", "StackID"),
    "echo time": ("MREchoSequence", "EffectiveEchoTime", "EchoTime"),
    "inversion time": ("MRModifierSequence", "InversionTimes", "InversionTime"),
    "b-value": ("MRDiffusionSequence", "DiffusionBValue", "DiffusionBValue"),
    "image type": ("MRImageFrameTypeSequence CTImageFrameTypeSequence PETFrameTypeSequence", "FrameType", "ImageType"),
    "kernel": ("CTReconstructionSequence", "ConvolutionKernel", "ConvolutionKernel"),
    "kVp": ("CTXRayDetailsSequence", "KVP", "KVP"),
}
# What may order the times at one place, the best first.
_CLOCKS = {
    "temporal position": ("FrameContentSequence", "TemporalPositionIndex", "TemporalPositionIdentifier"),
    "trigger time": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", "TriggerTime"),
    "acquisition number": ("FrameContentSequence", "FrameAcquisitionNumber", "AcquisitionNumber"),
    "acquisition time": ("FrameContentSequence", "FrameAcquisitionDateTime", "AcquisitionTime"),
    "instance number": ("", "", "InstanceNumber"),
}
_COLOURS = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "MONOCHROME1", "MONOCHROME2")
_ORTHOGONAL = 1e-3  # of direction cosines, which are written with few digits
_FINEST, _COARSEST, _FARTHEST = 1e-4, 1e3, 1e5  # mm between voxels, and from the origin, that a scanner can mean


@dataclass(frozen=True, eq=False)
class Frame:
    """One plane, in patient coordinates (LPS, mm).

    Attributes
    ----------
    header : the object it is in.
    index : 1-based number in its object.
    position : (3,) centre of the first voxel.
    rows, columns : extent in voxels.
    along_row, along_column : (3,) unit vectors in which the column index and the row index grow.
    spacing : mm between rows, mm between columns.
    slope, intercept : of the rescale transformation, None where there is none.
    """

    header: Header
    index: int
    position: Vector
    rows: int
    columns: int
    along_row: Vector
    along_column: Vector
    spacing: tuple[float, float]
    slope: float | None
    intercept: float | None

    @property
    def name(self) -> str:
        """File, and frame of a multi-frame object, for messages."""
        return f"{self.header.name} frame {self.index}" if is_multiframe(self.header) else self.header.name

    @property
    def label(self) -> str:
        """The same without the path that was given."""
        return f"{self.header.label} frame {self.index}" if is_multiframe(self.header) else self.header.label

    @property
    def normal(self) -> Vector:
        """(3,) unit vector across the plane; along row, along column and it are right-handed."""
        return np.cross(self.along_row, self.along_column)

    def kinds(self) -> dict[str, str]:
        """What tells images at one place apart that are no time series."""
        return {name: value for name, places in _KINDS.items() if (value := self._text(places))}

    def clocks(self) -> dict[str, float]:
        """What may put images at one place into a time order."""
        found = {}
        for name, places in _CLOCKS.items():
            try:
                found[name] = float(self._text(places).replace(":", ""))
            except ValueError:
                continue
        return found

    def unit(self) -> str:
        """RescaleType."""
        return self._text(_PLACES["unit"])

    def thickness(self) -> float | None:
        """SliceThickness in mm."""
        dataset, keyword = _place(self.header, _groups(self.header, self.index), *_PLACES["thickness"])
        return number(self.header, keyword, dataset)

    def lookup_table(self) -> "Dataset | None":
        """The modality LUT, which takes the place of slope and intercept."""
        return item(self.header, "ModalityLUTSequence", self.header.dataset)

    def _text(self, places: tuple[str, str, str]) -> str:
        dataset, keyword = _place(self.header, _groups(self.header, self.index), *places)
        return "\\".join(words(self.header, keyword, dataset)) if keyword in _LISTS else text(
            self.header, keyword, dataset
        )  # fmt: skip


_PER_FRAME = "PerFrameFunctionalGroupsSequence"
_LISTS = ("ImageType", "FrameType", "ConvolutionKernel")


def is_multiframe(header: Header) -> bool:
    """Whether the object keeps its planes in functional groups."""
    return _PER_FRAME in header.dataset


def frames_of(header: Header) -> list[Frame]:
    """The planes of an object.

    Raises
    ------
    SegError : E-DCM-TAG, E-DCM-PIXELS (exit 11), E-DCM-GEOMETRY, E-DCM-COLOUR (12).
    """
    count = whole_number(header, "NumberOfFrames")
    whole_number(header, "PixelRepresentation")  # pydicom asks for it with every sequence
    groups = len(items(header, _PER_FRAME)) if is_multiframe(header) else 1
    if (1 if count is None else count) != groups:
        found = f"has {groups} descriptions of frames for NumberOfFrames {count}"
        raise SegError("E-DCM-PIXELS", Exit.INPUT_CORRUPT, header.name, found, EXPORT_AGAIN)
    rows, columns = (whole_number(header, keyword, 1) for keyword in ("Rows", "Columns"))
    if rows is None or columns is None:
        raise bad_tag(header, "Rows or Columns", "is missing", "both")
    _refuse_colour(header)
    return [_frame(header, index, rows, columns) for index in range(1, groups + 1)]


def _frame(header: Header, index: int, rows: int, columns: int) -> Frame:
    groups = _groups(header, index)

    def read(what: str, count: int) -> tuple[float, ...] | None:
        dataset, keyword = _place(header, groups, *_PLACES[what])
        return numbers(header, keyword, count, dataset)

    position, orientation, spacing = read("position", 3), read("orientation", 6), read("spacing", 2)
    missing = {"ImagePositionPatient": position, "ImageOrientationPatient": orientation, "PixelSpacing": spacing}
    if absent := [keyword for keyword, value in missing.items() if value is None]:
        raise MissingGeometry(header.label, absent)
    assert position is not None
    assert orientation is not None
    assert spacing is not None
    if min(spacing) < _FINEST or max(spacing) > _COARSEST:
        raise _bad_geometry(header, f"PixelSpacing is {spacing[0]:g}, {spacing[1]:g}", "lengths in mm")
    if max(map(abs, position)) > _FARTHEST:
        raise _bad_geometry(header, "ImagePositionPatient is far outside any scanner", f"at most {_FARTHEST:,.0f} mm")
    cosines = np.array(orientation).reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1)
    if np.abs(lengths - 1).max() > _ORTHOGONAL or abs(cosines[0] @ cosines[1]) > _ORTHOGONAL:
        raise _bad_geometry(header, "ImageOrientationPatient is no pair of perpendicular unit vectors", "such a pair")
    along_row, along_column = cosines / lengths[:, None]
    slope, intercept = read("slope", 1), read("intercept", 1)
    if slope is not None and slope[0] == 0:
        raise bad_tag(header, "RescaleSlope", "is 0", "another number")
    return Frame(
        header,
        index,
        np.array(position),
        rows,
        columns,
        along_row,
        along_column,
        (spacing[0], spacing[1]),
        None if slope is None else slope[0],
        None if intercept is None else intercept[0],
    )


class MissingGeometry(Exception):
    """Elements without which nobody knows where a plane is; gathered, so that all files are named at once."""

    def __init__(self, name: str, keywords: list[str]) -> None:
        super().__init__()
        self.name, self.keywords = name, keywords


def _bad_geometry(header: Header, found: str, expected: str) -> SegError:
    return SegError("E-DCM-GEOMETRY", Exit.INPUT_REFUSED, header.name, found, EXPORT_AGAIN, expected)


def _refuse_colour(header: Header) -> None:
    samples, photometric = whole_number(header, "SamplesPerPixel"), text(header, "PhotometricInterpretation")
    if samples not in (None, 1) or not photometric.startswith("MONOCHROME"):
        shown = photometric if photometric in _COLOURS else "no known photometric interpretation"
        found = f"holds colours ({shown})"
        fix = "choose the grey series"
        raise SegError("E-DCM-COLOUR", Exit.INPUT_REFUSED, header.name, found, fix, "MONOCHROME1 or MONOCHROME2")


def _groups(header: Header, index: int) -> "tuple[Dataset, ...]":
    """The functional groups of a frame, its own before the shared ones; none for a single-frame object."""
    if not is_multiframe(header):
        return ()
    shared = items(header, "SharedFunctionalGroupsSequence")
    return (items(header, _PER_FRAME)[index - 1], *shared[:1])


def _place(
    header: Header, groups: "tuple[Dataset, ...]", sequences: str, enhanced: str, classic: str
) -> "tuple[Dataset, str]":
    """Dataset and keyword under which an element is looked for."""
    if not groups:
        return header.dataset, classic
    for group in groups:
        for sequence in sequences.split():
            if (found := item(header, sequence, group)) is not None:
                return found, enhanced
    return header.dataset, enhanced or classic
