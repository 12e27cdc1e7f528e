"""One DICOM object's header, without its pixels, and the strict reading of its numbers.

pydicom parses; what it lets pass (values that are no numbers, objects cut in their middle) is refused here when it is
needed. Headers are read once, from the first bytes of a file, and keep no private elements.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ..errors import Exit, SegError
from .files import COPY_AGAIN, Entry, Store, is_dicom

if TYPE_CHECKING:
    from pydicom import Dataset

EXPORT_AGAIN = "export the series again from its source"
_FIRST = 1 << 16  # bytes that hold the header of nearly every single-frame image
_LARGEST = 1 << 28  # of a header
_MAX_DEFLATED = 1 << 20  # deflate grows a thousandfold, and pydicom inflates the whole object
_DEFLATED = "1.2.840.10008.1.2.1.99"
_PIXELS = {0x0008: "FloatPixelData", 0x0009: "DoubleFloatPixelData", 0x0010: "PixelData"}  # of group 7FE0
_UNDEFINED = 0xFFFFFFFF
_PROGRAMS = (b"MZ", b"\x7fELF")


@dataclass(frozen=True, eq=False)
class Header:
    """One object.

    Attributes
    ----------
    dataset : everything before the pixels but private elements.
    entry : the file it is in.
    offset : bytes before the first byte of the pixel data's value, 0 without pixel data.
    length : bytes of that value, -1 if it is in fragments of undefined length.
    keyword : "PixelData", "FloatPixelData", "DoubleFloatPixelData" or "".
    syntax : transfer syntax UID.
    preamble : whether the file starts as the standard says.
    program : whether it starts like a program of Windows or Linux too (CVE-2019-11687).
    """

    dataset: "Dataset"
    entry: Entry
    offset: int
    length: int
    keyword: str
    syntax: str
    preamble: bool
    program: bool = False

    @property
    def name(self) -> str:
        """For messages."""
        return self.entry.name

    @property
    def label(self) -> str:
        """For messages that name the path that was given too."""
        return self.entry.label


@functools.cache
def quieten_pydicom() -> None:
    """pydicom and highdicom quote values of elements in warnings and logs, which may be a patient's name."""
    import logging
    import warnings

    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE
    for name in ("pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        warnings.filterwarnings("ignore", module=name)


def read_header(store: Store, entry: Entry) -> Header | None:
    """The header of an entry, or None if it is no DICOM object.

    Raises
    ------
    SegError : E-DCM-HEADER, E-DCM-TRUNC (exit 11), E-LIMIT-SIZE (13), or an error of reading.
    """
    count, why = _FIRST, "is too long"
    while count <= _LARGEST:
        start = store.read(entry, 0, count)
        if not is_dicom(start):
            _refuse_by_name(entry, start)
            return None
        whole = len(start) >= entry.size
        try:
            if (header := _parse(start, entry, whole)) is not None:
                return header
        except SegError:
            raise
        except Exception as error:  # whatever a damaged object makes pydicom raise, RecursionError among it
            why = f"cannot be read ({type(error).__name__})"
        if whole:
            break
        count *= 16
    raise SegError("E-DCM-HEADER", Exit.INPUT_CORRUPT, entry.name, f"has a header that {why}", COPY_AGAIN)


def _refuse_by_name(entry: Entry, start: bytes) -> None:
    """What is called .dcm and is not DICOM may be a slice that did not arrive."""
    if entry.name.lower().endswith((".dcm", ".ima", ".dcm.gz")):
        found = "is no DICOM object" if start else "is an empty file"
        fix = "copy it again, or move it away if it does not belong to the scan"
        raise SegError("E-DCM-HEADER", Exit.INPUT_CORRUPT, entry.name, found, fix)


def _parse(start: bytes, entry: Entry, whole: bool) -> Header | None:
    """The header in the first bytes of a file; None if more bytes are needed."""
    from pydicom import dcmread

    quieten_pydicom()
    preamble = start[128:132] == b"DICM"
    if preamble and _DEFLATED.encode() in start[132:1024]:
        if entry.size > _MAX_DEFLATED:
            found, fix = "is a large deflated object", "convert it to another transfer syntax"
            raise SegError("E-LIMIT-SIZE", Exit.LIMIT, entry.name, found, fix, f"at most {_MAX_DEFLATED:,} bytes")
        if not whole:
            return None
    stream = BytesIO(start)
    dataset = dcmread(stream, stop_before_pixels=True, force=True)
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    if syntax == _DEFLATED:
        return _inflated(start, dataset, entry)
    if not syntax:
        syntax = "1.2.840.10008.1.2" if dataset.original_encoding[0] else "1.2.840.10008.1.2.1"
    at = stream.tell()
    if at >= len(start) and not whole:
        return None
    offset, length, keyword = _pixel_element(start[at : at + 12], at, dataset)
    _strip(dataset)
    return Header(dataset, entry, offset, length, keyword, syntax, preamble, start.startswith(_PROGRAMS))


def _pixel_element(head: bytes, at: int, dataset: "Dataset") -> tuple[int, int, str]:
    """Offset and length of the value of the pixel data element whose first bytes are `head`, and its keyword."""
    implicit, little = dataset.original_encoding
    order = "little" if little else "big"

    def number(first: int, count: int) -> int:
        return int.from_bytes(head[first : first + count], order)  # type: ignore[arg-type]

    if len(head) < 8 or number(0, 2) != 0x7FE0 or number(2, 2) not in _PIXELS:
        return 0, 0, ""
    first = 4 if implicit else 8
    length = number(first, 4)
    return at + first + 4, -1 if length == _UNDEFINED else length, _PIXELS[number(2, 2)]


def _inflated(start: bytes, dataset: "Dataset", entry: Entry) -> Header:
    """A deflated object has no place in its file where the pixels begin: they are kept."""
    from pydicom import dcmread

    full = dcmread(BytesIO(start))
    keyword = next((word for word in _PIXELS.values() if word in full), "")
    _strip(dataset)
    length = len(full[keyword].value) if keyword else 0
    return Header(dataset, entry, -1 if keyword else 0, length, keyword, _DEFLATED, True)


def _strip(dataset: "Dataset") -> None:
    """Remove what nobody needs, so that thousands of headers fit in memory."""
    from pydicom.tag import Tag

    tags = list(dataset.keys())  # the dataset itself would iterate over converted elements
    for tag in tags:
        if tag.is_private:
            del dataset[tag]
    icon = Tag("IconImageSequence")
    if icon in dataset:
        del dataset[icon]


def bad_tag(header: Header, keyword: str, found: str, expected: str) -> SegError:
    """The error for a value that is not what the standard says."""
    return SegError("E-DCM-TAG", Exit.INPUT_CORRUPT, header.name, f"{keyword} {found}", EXPORT_AGAIN, expected)


def text(header: Header, keyword: str, dataset: "Dataset | None" = None) -> str:
    """A string, "" if the element is absent or empty. Raises SegError E-DCM-TAG."""
    value = _value(header, keyword, dataset)
    return "" if value is None else str(value).strip()


def words(header: Header, keyword: str, dataset: "Dataset | None" = None) -> tuple[str, ...]:
    """The parts of a string with several values, such as ImageType. Raises SegError E-DCM-TAG."""
    value = _value(header, keyword, dataset)
    if value is None:
        return ()
    return tuple(str(part) for part in ([value] if isinstance(value, str) else value))


def numbers(header: Header, keyword: str, count: int, dataset: "Dataset | None" = None) -> tuple[float, ...] | None:
    """`count` finite numbers, or None if the element is absent or empty.

    Raises
    ------
    SegError : E-DCM-TAG (exit 11) for anything else; the value itself is not quoted.
    """
    value = _value(header, keyword, dataset)
    if value is None or value == "":
        return None
    expected = "1 finite number" if count == 1 else f"{count} finite numbers"
    try:
        items: list[Any] = [value] if isinstance(value, str | int | float) else list(value)
        parts = tuple(float(item) for item in items)
    except (TypeError, ValueError) as error:
        raise bad_tag(header, keyword, "is no number", expected) from error
    if not parts:
        return None
    if len(parts) != count or not all(map(math.isfinite, parts)):
        found = f"has {len(parts)} values" if len(parts) != count else "is not finite"
        raise bad_tag(header, keyword, found, expected)
    return parts


def number(header: Header, keyword: str, dataset: "Dataset | None" = None) -> float | None:
    """One finite number or None. Raises SegError E-DCM-TAG."""
    found = numbers(header, keyword, 1, dataset)
    return None if found is None else found[0]


def whole_number(header: Header, keyword: str, least: int = 0) -> int | None:
    """An integer of at least `least`, or None. Raises SegError E-DCM-TAG."""
    found = number(header, keyword)
    if found is None:
        return None
    if found != int(found) or found < least:
        raise bad_tag(header, keyword, f"is {found:g}", f"a whole number from {least}")
    return int(found)


def item(header: Header, keyword: str, dataset: "Dataset") -> "Dataset | None":
    """The first item of a sequence, or None. Raises SegError E-DCM-TAG."""
    found = items(header, keyword, dataset)
    return found[0] if found else None


def items(header: Header, keyword: str, dataset: "Dataset | None" = None) -> "Sequence[Dataset]":
    """The items of a sequence, none if it is absent or empty. Raises SegError E-DCM-TAG."""
    from pydicom.sequence import Sequence as Items

    value = _value(header, keyword, dataset)
    if value is None or not len(value):
        return ()
    if not isinstance(value, Items):
        raise bad_tag(header, keyword, "is no sequence", "a sequence")
    return value


def _value(header: Header, keyword: str, dataset: "Dataset | None") -> Any:
    """pydicom converts values when they are asked for, and raises then."""
    try:
        return (header.dataset if dataset is None else dataset).get(keyword)
    except Exception as error:
        raise bad_tag(header, keyword, f"cannot be read ({type(error).__name__})", "a value of its kind") from error
