"""One received object: is it whole, and what must be known of it. Nothing else is read, and no pixel is decoded."""

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydicom.filereader import data_element_generator, read_preamble
from pydicom.multival import MultiValue
from pydicom.uid import UID

from .names import is_uid

TRANSFER_SYNTAX = 0x00020010
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
LONG = 1 << 12  # bytes; longer values are passed over
TAGS = {
    0x00080016: "sop_class",
    0x00080018: "sop_instance",
    0x0020000D: "study",
    0x0020000E: "series",
    0x00080060: "modality",
    0x0008103E: "description",
    0x00180015: "body_part",
    0x00201209: "expected",
}


class Truncated(ValueError):
    """The data set ends inside an element, or before the pixels."""


@dataclass(frozen=True)
class Facts:
    """What the node decides by: texts as received, and the digest of the data set's bytes."""

    sop_class: str = ""
    sop_instance: str = ""
    study: str = ""
    series: str = ""
    modality: str = ""
    description: str = ""
    body_part: str = ""
    expected: str = ""
    digest: str = ""

    def uids_are_valid(self) -> bool:
        """Whether the four UIDs are UIDs."""
        return all(map(is_uid, (self.sop_class, self.sop_instance, self.study, self.series)))

    def series_length(self) -> int | None:
        """NumberOfSeriesRelatedInstances (0020,1209), where it is a sensible number."""
        text = self.expected
        return int(text) if text.isascii() and text.isdigit() and len(text) < 7 and int(text) > 0 else None


def read_facts(path: Path) -> Facts:
    """Walk through the elements of a DICOM file that is stored uncompressed or with compressed frames.

    Raises
    ------
    Truncated : the data set stops inside an element, or has no pixels.
    Exception : whatever pydicom raises for what it cannot parse; its text may quote the data.
    """
    with open(path, "rb") as file:
        read_preamble(file, force=False)
        syntax = UID(_meta(file).get(TRANSFER_SYNTAX, ""))
        start = file.tell()
        try:
            values = _walk(file, syntax)
        except (EOFError, RecursionError, struct.error) as error:
            raise Truncated("an element has no end") from error
        file.seek(start)
        digest = hashlib.sha256(f"{syntax}\n".encode())
        while block := file.read(1 << 20):
            digest.update(block)
    return Facts(**values, digest=digest.hexdigest())


def _meta(file: BinaryIO) -> dict[int, str]:
    """Group 0002, always explicit little endian; the file is left after it."""
    elements = data_element_generator(file, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2)
    return {int(element.tag): _text(element.value) for element in elements}


def _walk(file: BinaryIO, syntax: UID) -> dict[str, str]:
    """Values of `TAGS`, all elements checked to lie inside the file."""
    values: dict[str, str] = {}
    end, size, pixels = file.tell(), os.fstat(file.fileno()).st_size, False
    for element in data_element_generator(file, syntax.is_implicit_VR, syntax.is_little_endian, defer_size=LONG):
        length = getattr(element, "length", None)  # of a sequence that was parsed there is none
        value_at = getattr(element, "value_tell", 0)
        end = file.tell() if length in (None, 0xFFFFFFFF) else value_at + int(length)
        if end > size:
            raise Truncated("the last element is cut short")
        pixels = pixels or int(element.tag) in PIXELS
        if name := TAGS.get(int(element.tag)):
            values[name] = _text(element.value)
    file.seek(end)
    if any(file.read(8)):  # fewer than an element's header; zeros are padding
        raise Truncated("the last element's header is cut short")
    if not pixels:
        raise Truncated("there are no pixels")
    return values


def _text(value: Any) -> str:
    """The first value of a short text element."""
    if isinstance(value, MultiValue):
        value = value[0] if value else ""
    text = value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""
    return text.partition("\\")[0].strip(" \0")
