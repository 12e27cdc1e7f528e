"""All series below one path: headers read once and sorted into what may be volumes and what is set aside.

Only objects of the classes in `VOLUME_CLASSES` can be volumes. Structured reports, segmentations, presentation states,
a DICOMDIR and files of other kinds are counted and left alone; projection images and secondary captures are refused if
there is nothing else.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from ..errors import Exit, SegError
from .files import COPY_AGAIN, Entry, Store
from .frames import VOLUME_CLASSES
from .header import Header, read_header, text, whole_number, words

MAX_IMAGES = 20_000
MODALITIES = ("CT", "MR", "PT")
NAMED = 3  # files named in a message
_UID = re.compile(r"[0-9.]{1,64}")
# Image classes that hold no volume, by what a user calls them (DICOM PS3.4 B.5).
_FLAT = {
    "1.2.840.10008.5.1.4.1.1.1": "projection radiographs (CR, DX, MG)",
    "1.2.840.10008.5.1.4.1.1.12": "X-ray angiography",
    "1.2.840.10008.5.1.4.1.1.13": "X-ray 3D or tomosynthesis",
    "1.2.840.10008.5.1.4.1.1.3": "ultrasound",
    "1.2.840.10008.5.1.4.1.1.6": "ultrasound",
    "1.2.840.10008.5.1.4.1.1.7": "secondary captures",
    "1.2.840.10008.5.1.4.1.1.20": "nuclear medicine",
    "1.2.840.10008.5.1.4.1.1.77": "visible light images",
}


@dataclass(frozen=True, eq=False)
class SeriesHeaders:
    """The objects of one series, as found.

    Attributes
    ----------
    uid : SeriesInstanceUID. Never shown but by --list, never part of a path.
    headers : those that may belong to a volume, in the order of their file names.
    localizers : those whose ImageType says LOCALIZER.
    """

    uid: str
    headers: tuple[Header, ...]
    localizers: tuple[Header, ...]

    @property
    def number(self) -> int | None:
        """SeriesNumber."""
        try:
            return whole_number(self.headers[0], "SeriesNumber")
        except SegError:
            return None

    @property
    def modality(self) -> str:
        """Modality, "CT" or "MR" mostly."""
        return text(self.headers[0], "Modality")

    @property
    def shown_modality(self) -> str:
        """The modality if it is one of the standard's for volumes: nothing else is told."""
        return self.modality if self.modality in MODALITIES else "other"

    @property
    def study(self) -> tuple[str, str]:
        """Patient and study, for comparisons alone."""
        return text(self.headers[0], "PatientID"), text(self.headers[0], "StudyInstanceUID")


@dataclass(frozen=True, eq=False)
class Study:
    """Everything below one path.

    Attributes
    ----------
    path : as the user typed it.
    series : those with at least one object that may belong to a volume, ordered by number and UID.
    aside : what was set aside -> how many.
    """

    path: str
    series: tuple[SeriesHeaders, ...]
    aside: dict[str, int] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """What was set aside, one line."""
        if not self.aside:
            return []
        return ["set aside: " + ", ".join(f"{count} {what}" for what, count in sorted(self.aside.items()))]


def scan(store: Store) -> Study:
    """Read all headers of a store.

    Raises
    ------
    SegError : E-DCM-EMPTY (exit 10), E-DCM-HEADER, E-DCM-TAG (11), E-DCM-KIND, E-DCM-UID (12), E-LIMIT-FILES (13).
    """
    aside: Counter[str] = Counter()
    groups: dict[str, list[Header]] = defaultdict(list)
    strangers: list[Entry] = []
    flat = 0
    for entry in store.entries:
        header = read_header(store, entry)
        if header is None:
            strangers.append(entry)
            continue
        kind = text(header, "SOPClassUID")
        if not kind and (kind := text(header, "MediaStorageSOPClassUID", header.dataset.file_meta)):
            header.dataset.SOPClassUID = kind
        if not kind and not header.preamble:  # an element of group 8 alone proves nothing
            strangers.append(entry)
        elif not kind or (kind in VOLUME_CLASSES and not header.keyword):
            found = "has no pixel data" if kind else "does not say what it is (SOPClassUID)"
            raise SegError("E-DCM-TRUNC", Exit.INPUT_CORRUPT, header.name, found, COPY_AGAIN, "a whole image")
        elif kind not in VOLUME_CLASSES:
            what = _flat(kind)
            flat += what is not None
            aside[what or "DICOM objects that are no images"] += 1
        else:
            groups[_uid(header, "SeriesInstanceUID")].append(header)
        if sum(map(len, groups.values())) > MAX_IMAGES:
            found, fix = f"holds over {MAX_IMAGES:,} images", "give the folder of one study or series"
            raise SegError("E-LIMIT-FILES", Exit.LIMIT, store.path, found, fix)
    _refuse_namesakes(strangers, [header for headers in groups.values() for header in headers])
    if strangers:
        aside["files that are not DICOM"] = len(strangers)
    found_series = [_without_localizers(uid, headers) for uid, headers in groups.items()]
    series = [one for one in found_series if one.headers]
    aside["localizers"] += sum(len(one.localizers) for one in found_series)
    aside += Counter()  # drops zeros
    if not series:
        raise _nothing(store.path, aside, flat)
    series.sort(key=lambda one: (one.number is None, one.number or 0, one.uid))
    return Study(store.path, tuple(series), dict(aside))


def _refuse_namesakes(strangers: list[Entry], headers: list[Header]) -> None:
    """What is no DICOM object and is called like the slices beside it may be a slice that did not arrive whole."""
    slices = {_family(header.name): header.label for header in headers}
    for entry in strangers:
        if (like := slices.get(_family(entry.name))) is not None:
            found = f"is {'no DICOM object' if entry.size else 'an empty file'} and is called like the slice {like}"
            fix = "copy it again, or move it away if it does not belong to the scan"
            raise SegError("E-DCM-HEADER", Exit.INPUT_CORRUPT, entry.name, found, fix)


def _family(name: str) -> tuple[str, str]:
    """Folder and name without its numbers."""
    folder, _, base = name.rpartition("/")
    return folder, re.sub("[0-9]+", "0", base)


def _flat(kind: str) -> str | None:
    """What an image class without volumes is called, None for a class that is no image."""
    return next((name for uid, name in _FLAT.items() if kind == uid or kind.startswith(uid + ".")), None)


def _without_localizers(uid: str, headers: list[Header]) -> SeriesHeaders:
    chosen: list[Header] = []
    localizers: list[Header] = []
    for header in headers:
        (localizers if "LOCALIZER" in words(header, "ImageType") else chosen).append(header)
    return SeriesHeaders(uid, tuple(chosen), tuple(localizers))


def _uid(header: Header, keyword: str) -> str:
    """A UID of digits and dots: everything else is an attack or damage. It is not quoted."""
    value = text(header, keyword)
    if not _UID.fullmatch(value):
        found = f"{keyword} is {'no valid UID' if value else 'missing'}"
        fix = "export the series again from its source"
        raise SegError("E-DCM-UID", Exit.INPUT_REFUSED, header.name, found, fix, "digits and dots, at most 64")
    return value


def check_identity(series: SeriesHeaders) -> None:
    """Make sure that all objects of a series are of one patient, study and frame of reference, with good UIDs.

    Raises
    ------
    SegError : E-DCM-UID, E-DCM-MIXED, E-DCM-TAG.
    """
    first = series.headers[0]
    for header in series.headers:
        for keyword in ("SOPInstanceUID", "StudyInstanceUID"):
            _uid(header, keyword)
        if text(header, "FrameOfReferenceUID"):
            _uid(header, "FrameOfReferenceUID")
        for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "Modality"):
            if text(header, keyword) != text(first, keyword):
                found = f"has another {keyword} than {first.label}, in one series"
                fix = "sort the files into their series again"
                raise SegError("E-DCM-MIXED", Exit.INPUT_REFUSED, header.name, found, fix)


def _nothing(path: str, aside: Counter[str], flat: int) -> SegError:
    """Why there is no volume: images that cannot be one, or no images."""
    what = ", ".join(f"{count} {name}" for name, count in sorted(aside.items()))
    if flat or aside["localizers"]:
        found, fix = f"has no series that is a volume: {what}", "give a CT, MR or PET series"
        return SegError("E-DCM-KIND", Exit.INPUT_REFUSED, path, found, fix)
    found = f"has no DICOM image: {what}" if what else "has no DICOM image"
    return SegError("E-DCM-EMPTY", Exit.INPUT_MISSING, path, found, "give a folder or zip file of a series")


def named(names: list[str]) -> str:
    """ "a, b, c and 4 more"."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
