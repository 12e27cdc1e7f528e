"""Compressed pixels: one frame's code stream -> its stored values, by a decoder that has proved itself.

A decoder is tried on code streams with known pixels before it is first used, for each transfer syntax, depth and sign:
there are decoders that give wrong pixels without an error. What a code stream says of its own extent is compared with
the header before any decoder sees it.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Exit, SegError, missing_extra
from .header import quieten_pydicom
from .known_answers import COLUMNS, KNOWN_ANSWERS, ROWS, KnownAnswer

RLE, BASELINE, EXTENDED = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
JPEG_LS, JPEG_LS_LOSSY = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"
JPEG_2000, JPEG_2000_LOSSY = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"
LOSSY = (BASELINE, EXTENDED, JPEG_LS_LOSSY, JPEG_2000_LOSSY)
_HEADERS = 1024  # bytes of a stream that may be something else than pixels; a constant image takes an eighth per pixel
_END = b"\xff\xd9"  # of every JPEG, JPEG-LS and JPEG 2000 code stream


@dataclass(frozen=True)
class Layout:
    """What the header says of a frame: extent in voxels, bits allocated and stored per sample, two's complement."""

    rows: int
    columns: int
    allocated: int
    stored: int
    signed: bool

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the stored values."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")


Decode = Callable[[bytes, str, Layout], NDArray[np.generic]]


def _pydicom(plugin: str, stream: bytes, syntax: str, layout: Layout) -> NDArray[np.generic]:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    options: dict[str, Any] = dict(
        rows=layout.rows,
        columns=layout.columns,
        samples_per_pixel=1,
        bits_allocated=layout.allocated,
        bits_stored=layout.stored,
        pixel_representation=int(layout.signed),
        number_of_frames=1,
        photometric_interpretation="MONOCHROME2",
        pixel_keyword="PixelData",
    )
    values, _ = get_decoder(syntax).as_array(encapsulate([stream], has_bot=False), decoding_plugin=plugin, **options)
    return values


def _imagecodecs(stream: bytes, syntax: str, layout: Layout) -> NDArray[np.generic]:
    import imagecodecs

    read = imagecodecs.jpeg2k_decode if syntax in (JPEG_2000, JPEG_2000_LOSSY) else imagecodecs.jpeg8_decode
    values: NDArray[np.generic] = read(stream)
    return values


# Package that decodes, and how: the first that is installed and right is used. gdcm is not among them, since it ends
# the process on damaged JPEG streams; pylibjpeg is there so that its fault is told (see `known_answers`).
_PILLOW, _CHARLS = ("PIL", functools.partial(_pydicom, "pillow")), ("jpeg_ls", functools.partial(_pydicom, "pyjpegls"))
_TURBO, _PYLIBJPEG = ("imagecodecs", _imagecodecs), ("pylibjpeg.utils", functools.partial(_pydicom, "pylibjpeg"))
DECODERS: dict[str, tuple[tuple[str, Decode], ...]] = {
    RLE: (("pydicom", functools.partial(_pydicom, "pydicom")),),
    BASELINE: (_PILLOW, _TURBO),
    EXTENDED: (_TURBO, _PILLOW),
    **dict.fromkeys(LOSSLESS, (_TURBO, _PYLIBJPEG)),
    **dict.fromkeys((JPEG_LS, JPEG_LS_LOSSY), (_CHARLS,)),
    **dict.fromkeys((JPEG_2000, JPEG_2000_LOSSY), (_TURBO, _PILLOW)),
}


def decode(stream: bytes, syntax: str, layout: Layout, name: str) -> NDArray[np.generic]:
    """One frame.

    Parameters
    ----------
    stream : its code stream, fragments joined.
    syntax : transfer syntax UID, one of `DECODERS`.
    name : file and frame, for messages.

    Returns
    -------
    values : (rows, columns) of ``layout.dtype``.

    Raises
    ------
    SegError : E-DCM-CODEC (exit 12), E-DCM-DECODER (21), E-DCM-DECODE or E-DCM-TRUNC (11).
    """
    read = decoder_for(syntax, layout.stored, layout.signed)
    if syntax != RLE:
        _check_stream(stream, syntax, layout, name)
    try:
        values = read(stream, syntax, layout)
    except Exception as error:  # decoders raise what they like
        raise _broken(name, f"cannot be decoded ({type(error).__name__})") from error
    if values.shape != (layout.rows, layout.columns):
        raise _broken(name, f"decodes to {values.shape} values")
    if len(stream) > _HEADERS + values.size // 4 and values.min() == values.max():
        raise _broken(name, f"decodes {len(stream):,} bytes to one single value")
    return to_stored(values, layout)


def to_stored(values: NDArray[np.generic], layout: Layout) -> NDArray[np.generic]:
    """Words -> stored values: bits above the stored ones are cleared, or filled with the sign."""
    words = np.ascontiguousarray(values).astype(f"u{layout.allocated // 8}", copy=False).view(layout.dtype)
    unused = layout.allocated - layout.stored
    if unused:
        words = (words << unused) >> unused
    return words


@functools.cache
def decoder_for(syntax: str, bits: int, signed: bool) -> Decode:
    """The first decoder of a transfer syntax that gives known answers of this depth and sign.

    Raises
    ------
    SegError : E-DCM-CODEC (exit 12) if none is installed, E-DCM-DECODER (21) if those that are give wrong pixels.
    """
    from pydicom.uid import UID

    quieten_pydicom()
    name = UID(syntax).name  # of one that pydicom does not know, what the header says
    title = "a private or unknown transfer syntax" if name == syntax else name
    if syntax not in DECODERS:
        found, fix = (
            f"pixels are encoded as {title}, which is not supported",
            "convert the series, say with dcmdjpeg",
        )
        raise SegError("E-DCM-CODEC", Exit.INPUT_REFUSED, "", found, fix)
    wrong = []
    for package, read in DECODERS[syntax]:
        try:
            importlib.import_module(package)
        except ImportError:
            continue
        if all(is_right(read, syntax, known) for known in known_answers(syntax, bits, signed)):
            return read
        wrong.append(package.partition(".")[0])
    if wrong:
        found = f"{' and '.join(wrong)} decode {title} to wrong pixels"
        raise SegError("E-DCM-DECODER", Exit.RUNTIME, "", found, missing_extra("", "codecs").fix)
    found = f"pixels are compressed as {title}, and no decoder is installed"
    raise SegError("E-DCM-CODEC", Exit.INPUT_REFUSED, "", found, missing_extra("", "codecs").fix)


def readable() -> list[str]:
    """UIDs of the compressed transfer syntaxes that are read here, whatever the depth and sign; lossless ones first."""
    found = []
    for syntax in sorted(DECODERS, key=LOSSY.__contains__):
        try:
            for known in KNOWN_ANSWERS[syntax]:
                decoder_for(syntax, known.bits, known.signed)
        except SegError:
            continue
        found.append(syntax)
    return found


def known_answers(syntax: str, bits: int, signed: bool) -> list[KnownAnswer]:
    """Those of the same word size and sign; at least one for each syntax, of any kind if need be."""
    every = KNOWN_ANSWERS[syntax]
    near = [known for known in every if (known.bits > 8) == (bits > 8) and known.signed == signed]
    return near or [known for known in every if (known.bits > 8) == (bits > 8)] or list(every)


def is_right(read: Decode, syntax: str, known: KnownAnswer) -> bool:
    """Whether a decoder gives a known answer."""
    layout = Layout(ROWS, COLUMNS, 8 if known.bits <= 8 else 16, known.bits, known.signed)
    try:
        values = to_stored(read(known.stream, syntax, layout), layout)
    except Exception:
        return False
    return (
        values.shape == (ROWS, COLUMNS) and int(np.abs(values.astype(np.int64) - known.pixels).max()) <= known.tolerance
    )


def _check_stream(stream: bytes, syntax: str, layout: Layout, name: str) -> None:
    """The stream must have its end marker and the header's extent, before native code allocates anything for it."""
    if _END not in stream[-4:]:  # a pad byte may follow, or an odd one of a careless writer
        found, fix = "its compressed pixels are cut", "copy the file again"
        raise SegError("E-DCM-TRUNC", Exit.INPUT_CORRUPT, name, found, fix)
    said = _extent_2000(stream) if syntax in (JPEG_2000, JPEG_2000_LOSSY) else _extent_jpeg(stream)
    if said != (layout.rows, layout.columns, 1):
        rows, columns, samples = said
        found = f"its code stream is of {columns} x {rows} pixels with {samples} samples"
        raise _broken(name, found, f"{layout.columns} x {layout.rows} with 1")


def _extent_jpeg(stream: bytes) -> tuple[int, int, int]:
    """Rows, columns and components of a JPEG or JPEG-LS frame header (ITU T.81 B.2.2, T.87 C.2.2); zeros if none."""
    at = 2
    while at + 10 <= len(stream) and stream[at] == 0xFF:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4])
        if marker in (0xC0, 0xC1, 0xC2, 0xC3, 0xF7):
            return int.from_bytes(stream[at + 5 : at + 7]), int.from_bytes(stream[at + 7 : at + 9]), stream[at + 9]
        at += 2 + length
    return 0, 0, 0


def _extent_2000(stream: bytes) -> tuple[int, int, int]:
    """The same of a JPEG 2000 code stream, which may be in a JP2 box (ISO 15444-1 A.5.1)."""
    at = stream.find(b"\xff\x4f\xff\x51")
    if at < 0 or at + 42 > len(stream):
        return 0, 0, 0
    fields = [int.from_bytes(stream[first : first + 4]) for first in range(at + 8, at + 24, 4)]
    return fields[1] - fields[3], fields[0] - fields[2], int.from_bytes(stream[at + 40 : at + 42])


def _broken(name: str, found: str, expected: str = "") -> SegError:
    fix = "copy the file again, or have it sent uncompressed"
    return SegError("E-DCM-DECODE", Exit.INPUT_CORRUPT, name, found, fix, expected)


def codec_table() -> str:
    """One line per transfer syntax: which decoder reads it here, or why none does."""
    from pydicom.uid import UID

    lines = []
    for syntax in DECODERS:
        known = {(known.bits, known.signed) for known in KNOWN_ANSWERS[syntax]}
        states = set()
        for bits, signed in sorted(known):
            try:
                read = decoder_for(syntax, bits, signed)
                states.add(next(package for package, other in DECODERS[syntax] if other is read).partition(".")[0])
            except SegError as error:
                states.add(f"not readable, {error.fix}")
        lines.append(f"{UID(syntax).name:<100} {', '.join(sorted(states))}")
    return "\n".join(lines)
