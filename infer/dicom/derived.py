"""What every object that is derived from a series shares: whose it is, where it lies, who made it, how it is stored.

Values of the source's header pass through here and go nowhere but into the new object: no message, log or file name
has them. Identifiers and geometry of a `DicomSeries` are sound; flaws of its headers elsewhere do not stop an output.
"""

import hashlib
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..atomic import atomic_file
from ..errors import Exit, SegError
from ..nifti_write import same_file
from ..spec import Code, ModelSpec
from .codes import PRIVATE_SCHEME, long_string, uncoded
from .series import DicomSeries

if TYPE_CHECKING:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import CodedConcept
    from pydicom import Dataset

MAKER = "seg-toolkit"
SERIES_OFFSET = 9000  # the new series' number is the source's plus this: listed behind the study's own series

# The General Study module (PS3.3 C.7.2.1) and the visit; groups 0010 and 0012 are the patient's, whole.
_STUDY = (
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber"),
    *("IssuerOfAccessionNumberSequence", "ReferringPhysicianName", "ReferringPhysicianIdentificationSequence"),
    *("PhysiciansOfRecord", "PhysiciansOfRecordIdentificationSequence", "NameOfPhysiciansReadingStudy"),
    *("PhysiciansReadingStudyIdentificationSequence", "ConsultingPhysicianName", "RequestingService"),
    *("ReferencedStudySequence", "ProcedureCodeSequence", "ReasonForPerformedProcedureCodeSequence"),
    *("AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "AdmissionID", "ServiceEpisodeID"),
)
_PATIENT_GROUPS = (0x0010, 0x0012)
_OF_SERIES = (0x0012_0071, 0x0012_0072)  # the one part of group 0012 that is about the series
_MACROS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
}


@dataclass(frozen=True)
class Making:
    """How a mask came about, as the new object will say.

    Attributes
    ----------
    spec : of the model.
    model_sha256 : digest of the artifact.
    created : local time that goes into the object. The same mask made at the same time gives the same bytes.
    """

    spec: ModelSpec
    model_sha256: str
    created: datetime

    @property
    def name(self) -> str:
        """Of the algorithm."""
        return long_string(f"{MAKER} {self.spec.name}")

    @property
    def version(self) -> str:
        """Of the algorithm: this software's; the weights are told apart by their digest."""
        return __version__


def is_multiframe(series: DicomSeries) -> bool:
    """Whether one file holds all the slices."""
    return "PerFrameFunctionalGroupsSequence" in series.datasets[0]


def header_value(series: DicomSeries, number: int, keyword: str) -> Any:
    """What the header says of slice `number`, from 0; a multi-frame image in its functional groups. None if absent."""
    if not is_multiframe(series):
        return series.datasets[number].get(keyword)
    header = series.datasets[0]
    groups = [header.PerFrameFunctionalGroupsSequence[series.frames[number] - 1]]
    groups += header.get("SharedFunctionalGroupsSequence") or []
    macros = (group.get(_MACROS[keyword]) for group in groups)
    return next((macro[0].get(keyword) for macro in macros if macro and keyword in macro[0]), None)


def position(series: DicomSeries, number: int) -> list[Any]:
    """ImagePositionPatient of a slice: x, y, z in LPS mm."""
    return [decimal(value) for value in header_value(series, number, "ImagePositionPatient")]


def decimal(value: Any) -> Any:
    """A number as DS: the source's own text where that has at most the 16 characters allowed."""
    from pydicom.valuerep import DSfloat

    return value if isinstance(value, DSfloat) and len(str(value)) <= 16 else DSfloat(float(value), auto_format=True)


def frame_of_reference(series: DicomSeries) -> str:
    """The source's frame of reference; of a source without one (not allowed, but seen), one that is its series' own."""
    header = series.datasets[0]
    return str(header.get("FrameOfReferenceUID") or _uid("frame of reference", header.SeriesInstanceUID))


def new_uids(kind: str, series: DicomSeries, planes: NDArray[np.unsignedinteger], making: Making) -> list[str]:
    """Three new UIDs, for series, instance and what else needs one.

    They are the same for the same mask of the same source by the same model: what is made twice, after a crash or by
    two nodes, is one object, and an archive keeps one.
    """
    digest = hashlib.sha256()
    for bit in range((len(making.spec.labels) - 1).bit_length()):
        digest.update(np.packbits(planes & (1 << bit)).data)  # an eighth of the bytes for one class
    for number, frame in enumerate(series.frames):
        header = series.datasets[0 if is_multiframe(series) else number]
        digest.update(f"{header.SOPInstanceUID} {frame} ".encode())
    content = (kind, digest.hexdigest(), making.spec.to_json(), making.model_sha256, making.version)
    return [_uid(part, *content) for part in ("series", "instance", "other")]


def _uid(*content: str) -> str:
    """UUID-derived (PS3.5 B.2), so that no organisation's root is borrowed."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(0).join(content)).int}"


def series_number(series: DicomSeries) -> int:
    """Number of the new series: the source's, further back in the list."""
    try:
        return SERIES_OFFSET + max(0, min(int(series.datasets[0].SeriesNumber), 1 << 30))
    except Exception:  # whatever a damaged value makes pydicom raise
        return SERIES_OFFSET


def complete(dataset: "Dataset", series: DicomSeries, making: Making) -> None:
    """Give an object its patient and study, and everything else that is no matter of its kind.

    Elements of the source's header come as they are, in the source's character set; one whose value cannot be read is
    left out. Where a name of ours is not ASCII, the whole object is written in UTF-8.
    """
    header = series.datasets[0]
    patient = [tag for tag in header.keys() if tag.group in _PATIENT_GROUPS and tag not in _OF_SERIES]  # noqa: SIM118
    copy_elements(dataset, header, (*patient, *_STUDY))
    characters = header.get("SpecificCharacterSet")
    if not f"{making.spec.name} {making.spec.labels} {making.spec.codes}".isascii():
        characters = "ISO_IR 192"
    if characters:
        dataset.SpecificCharacterSet = characters
    date, time = f"{making.created:%Y%m%d}", f"{making.created:%H%M%S}"
    for keyword in ("InstanceCreation", "Series"):
        setattr(dataset, f"{keyword}Date", date)
        setattr(dataset, f"{keyword}Time", time)
    dataset.FrameOfReferenceUID = frame_of_reference(series)
    dataset.PositionReferenceIndicator = header.get("PositionReferenceIndicator", "")


def copy_elements(dataset: "Dataset", header: "Dataset", keywords: Iterable[str | int]) -> None:
    """Copy the elements that are there; not those whose value cannot be understood.

    Items of sequences are read before: in the copy they would be taken for text in its own character set.
    """
    for keyword in keywords:
        try:
            if keyword in header:
                element = header[keyword]
                for item in element.value if element.VR == "SQ" else ():
                    for _ in item.iterall():
                        pass
                dataset[keyword] = element
        except Exception:  # whatever a damaged value makes pydicom raise
            continue


def equipment(making: Making) -> dict[str, Any]:
    """Who made the object, as arguments of highdicom: the device is the model, its serial number the digest."""
    return {
        "manufacturer": MAKER,
        "manufacturer_model_name": making.name,
        "software_versions": making.version,
        "device_serial_number": making.model_sha256[:64],
        "series_description": making.name,
        "coding_schemes": [_private_scheme()] if uncoded(making.spec) else None,
    }


def _private_scheme() -> "CodingSchemeIdentificationItem":
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    name = f"{MAKER} labels without a code"
    return CodingSchemeIdentificationItem(PRIVATE_SCHEME, name, responsible_organization=MAKER)


def algorithm(making: Making) -> "AlgorithmIdentificationSequence":
    """Which algorithm, and with which weights."""
    from highdicom import AlgorithmIdentificationSequence
    from pydicom.sr.codedict import codes

    return AlgorithmIdentificationSequence(
        name=making.name,
        family=codes.DCM.ArtificialIntelligence,
        version=making.version,
        source=MAKER,
        parameters={"model": long_string(making.spec.name), "sha256": making.model_sha256},
    )


def concept(code: Code) -> "CodedConcept":
    """A code as highdicom has it."""
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, code.meaning)


def created(path: str) -> datetime | None:
    """When a file of ours says that it was made, None if it is no such file."""
    from pydicom import dcmread

    try:
        header = dcmread(path, stop_before_pixels=True)
        return datetime.strptime(header.InstanceCreationDate + header.InstanceCreationTime, "%Y%m%d%H%M%S")
    except Exception:  # somebody's file may be anything
        return None


def digest(dataset: "Dataset") -> str:
    """SHA-256 of the file that `save` would write."""
    from io import BytesIO

    from pydicom import dcmwrite

    file = BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return hashlib.sha256(file.getbuffer()).hexdigest()


def save(path: str, dataset: "Dataset", series: DicomSeries, *, overwrite: bool) -> None:
    """Write a DICOM file, whole or not at all; the preamble is zero.

    Raises
    ------
    SegError : E-OUT-SAME when it is one of the series' own files, and what `atomic_file` raises; exit 30.
    """
    from pydicom import dcmwrite

    if any(same_file(path, file) for file in series.files):
        fix = "choose another output, inputs are never replaced"
        raise SegError("E-OUT-SAME", Exit.OUTPUT, path, "is a file of the series itself", fix)
    with atomic_file(path, overwrite=overwrite) as file:
        dcmwrite(file, dataset, enforce_file_format=True)
