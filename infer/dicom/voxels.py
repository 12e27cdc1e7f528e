"""The pixels of ordered planes -> one array of stored values, with one scaling or scaled plane by plane.

What the header claims is compared with the bytes that are there before memory is asked for or a decoder is called.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import Exit, SegError
from .decoders import LOSSY, Layout, decode, decoder_for, to_stored
from .files import COPY_AGAIN, Store
from .frames import Frame
from .header import EXPORT_AGAIN, Header, number, text, whole_number
from .study import named

_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Voxels:
    """The values of a volume.

    Attributes
    ----------
    stored : (columns, rows, slices); intensity = slope * stored + intercept. float32 intensities if planes are scaled
        differently.
    notes : things accepted but worth reporting.
    """

    stored: NDArray[np.generic]
    slope: float
    intercept: float
    notes: tuple[str, ...]


def layout_of(header: Header) -> Layout:
    """What a header says of its pixels, if it does not contradict itself.

    Raises
    ------
    SegError : E-DCM-PIXELS, E-DCM-TAG, E-DCM-TRUNC (exit 11).
    """
    names = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")
    rows, columns, allocated, stored, sign = (whole_number(header, name) for name in names)
    if rows is None or columns is None or allocated is None or stored is None or sign not in (0, 1):
        given = (rows, columns, allocated, stored, sign if sign in (0, 1) else None)
        absent = [name for name, value in zip(names, given, strict=True) if value is None]
        raise _contradiction(header, f"{named(absent)} missing or wrong", "a description of the pixels")
    if allocated not in (8, 16, 32) or not 0 < stored <= allocated:
        raise _contradiction(
            header, f"BitsAllocated {allocated}, BitsStored {stored}", "8, 16 or 32 bits, stored within"
        )
    high = whole_number(header, "HighBit")
    if high is not None and high != stored - 1:
        raise _contradiction(header, f"HighBit {high} for {stored} stored bits", str(stored - 1))
    if header.keyword != "PixelData" or not header.length:
        what = "empty pixel data" if not header.length else f"{header.keyword} instead of PixelData"
        raise SegError("E-DCM-TRUNC", Exit.INPUT_CORRUPT, header.name, f"has {what}", COPY_AGAIN)
    layout = Layout(rows, columns, allocated, stored, bool(sign))
    frames = whole_number(header, "NumberOfFrames") or 1
    if header.syntax in _NATIVE:
        there = header.length if header.offset < 0 else min(header.length, header.entry.size - header.offset)
        needed = rows * columns * frames * (allocated // 8)
        if there < needed:
            found = f"pixel data end after {max(0, there):,} of {needed:,} bytes"
            raise SegError("E-DCM-TRUNC", Exit.INPUT_CORRUPT, header.name, found, COPY_AGAIN)
    return layout


def layouts_of(frames: Sequence[Frame]) -> dict[int, Layout]:
    """The layout of each object, by the identity of its header. Raises SegError as `layout_of`."""
    return {key: layout_of(header) for key, header in {id(frame.header): frame.header for frame in frames}.items()}


def _contradiction(header: Header, found: str, expected: str) -> SegError:
    return SegError("E-DCM-PIXELS", Exit.INPUT_CORRUPT, header.name, found, EXPORT_AGAIN, expected)


def pixel_bytes(store: Store, header: Header) -> bytes:
    """The value of the pixel data element, as stored. Raises SegError."""
    layout_of(header)
    if header.offset < 0:  # deflated: see `header`
        from io import BytesIO

        from pydicom import dcmread

        value: bytes = dcmread(BytesIO(store.read(header.entry, 0, header.entry.size))).PixelData
        return value
    count = header.entry.size - header.offset if header.length < 0 else header.length
    return store.read(header.entry, header.offset, count)


def read_voxels(store: Store, frames: Sequence[Frame], layouts: dict[int, Layout], modality: str) -> Voxels:
    """Read, decode and scale planes, whose layouts are those of `layouts_of`.

    Raises
    ------
    SegError
        Exit 11: E-DCM-PIXELS, E-DCM-TRUNC, E-DCM-DECODE, E-DCM-TAG. Exit 12: E-DCM-RESCALE, E-DCM-UNITS, E-DCM-CODEC.
        Exit 13: E-LIMIT-MEMORY. Exit 21: E-DCM-DECODER.
    """
    notes = _check_scaling(frames, modality)
    luts = [frame.lookup_table() is not None for frame in frames]
    scales = {(frame.slope, frame.intercept) for frame in frames}
    plain = len(scales) == 1 and not any(luts) and len(set(layouts.values())) == 1
    dtype = next(iter(layouts.values())).dtype if plain else np.dtype(np.float32)
    volume: NDArray[np.generic] | None = None
    padding: dict[int, NDArray[np.bool_]] = {}
    order = _stored_order(frames)
    for place, values in zip(order, _planes(store, [frames[place] for place in order], layouts), strict=True):
        frame = frames[place]
        if modality == "CT":
            _find_padding(frame, values, layouts[id(frame.header)], place, padding)
        if volume is None:
            volume = _allocate(len(frames), frame, dtype)
        volume[place] = values if plain else _scaled(frame, values)
    assert volume is not None
    slope, intercept = (frames[0].slope or 1.0, frames[0].intercept or 0.0) if plain else (1.0, 0.0)
    _check_range(frames[0], volume, slope, intercept)
    if padding:
        notes.append(_fill_padding(volume, padding, slope))
    if any(frame.header.syntax in LOSSY or text(frame.header, "LossyImageCompression") == "01" for frame in frames):
        notes.append("the scan was compressed with loss")
    return Voxels(volume.transpose(2, 1, 0), slope, intercept, tuple(notes))


def _stored_order(frames: Sequence[Frame]) -> list[int]:
    """The places of the frames, object by object as they lie there: what is compressed is unpacked forward, once."""
    objects = {id(frame.header): place for place, frame in reversed(list(enumerate(frames)))}
    return sorted(range(len(frames)), key=lambda place: (objects[id(frames[place].header)], frames[place].index))


def _planes(store: Store, frames: Sequence[Frame], layouts: dict[int, Layout]) -> Iterator[NDArray[np.generic]]:
    """(rows, columns) stored values of each frame."""
    streams: dict[int, list[bytes]] = {}  # of the multi-frame object in work
    for frame in frames:
        header, layout = frame.header, layouts[id(frame.header)]
        if header.syntax in _NATIVE:
            yield _native(store, frame, layout)
            continue
        if id(header) not in streams:
            with _naming(frame):  # a syntax that nothing here reads may have pixels of any form
                decoder_for(header.syntax, layout.stored, layout.signed)
            streams = {id(header): _streams(store, header)}
        found = streams[id(header)]
        if len(found) < frame.index:
            what = f"has {len(found)} compressed frames, not number {frame.index}"
            raise SegError("E-DCM-TRUNC", Exit.INPUT_CORRUPT, header.name, what, COPY_AGAIN)
        with _naming(frame):
            values = decode(found[frame.index - 1], header.syntax, layout, frame.name)
        yield values


@contextmanager
def _naming(frame: Frame) -> Iterator[None]:
    """Errors of decoders get the file's name."""
    try:
        yield
    except SegError as error:
        raise SegError(
            error.code, error.exit, error.path or frame.header.name, error.found, error.fix, error.expected
        ) from error


def _native(store: Store, frame: Frame, layout: Layout) -> NDArray[np.generic]:
    header, count = frame.header, layout.rows * layout.columns * (layout.allocated // 8)
    if header.offset < 0:
        data = pixel_bytes(store, header)[(frame.index - 1) * count : frame.index * count]
    else:
        data = store.read(header.entry, header.offset + (frame.index - 1) * count, count)
    if len(data) < count:
        found = f"pixel data end after {len(data):,} of {count:,} bytes"
        raise SegError("E-DCM-TRUNC", Exit.INPUT_CORRUPT, frame.name, found, COPY_AGAIN)
    words = np.frombuffer(data, f"u{layout.allocated // 8}")
    if header.syntax == _BIG_ENDIAN:
        if layout.allocated == 8:
            found, fix = "8-bit pixels in big endian, whose order is not certain", "convert to little endian"
            raise SegError("E-DCM-CODEC", Exit.INPUT_REFUSED, frame.name, found, fix)
        words = words.byteswap()
    return to_stored(words.reshape(layout.rows, layout.columns), layout)


def _streams(store: Store, header: Header) -> list[bytes]:
    """The code streams of an object's frames (DICOM PS3.5 A.4)."""
    from pydicom.encaps import generate_frames

    count = whole_number(header, "NumberOfFrames") or 1
    try:
        return list(generate_frames(pixel_bytes(store, header), number_of_frames=count))
    except SegError:
        raise
    except Exception as error:
        found = f"its compressed pixels are damaged ({type(error).__name__})"
        raise SegError("E-DCM-DECODE", Exit.INPUT_CORRUPT, header.name, found, COPY_AGAIN) from error


def _allocate(slices: int, frame: Frame, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    try:
        return np.empty((slices, frame.rows, frame.columns), dtype)
    except (MemoryError, ValueError) as error:
        found = f"{slices} slices of {frame.columns} x {frame.rows} voxels do not fit in memory"
        fix = "use a machine with more memory, or crop the scan"
        raise SegError("E-LIMIT-MEMORY", Exit.LIMIT, frame.header.name, found, fix) from error


def _check_scaling(frames: Sequence[Frame], modality: str) -> list[str]:
    """All planes are scaled, or none; CT in Hounsfield units. Returns notes."""
    bare = [f for f in frames if f.slope is None and f.intercept is None and f.lookup_table() is None]
    half = [f for f in frames if (f.slope is None) != (f.intercept is None)]
    if half or (bare and len(bare) < len(frames)):
        lacking = half or bare
        found = f"{len(lacking)} of {len(frames)} slices lack RescaleSlope or RescaleIntercept: "
        found += named([frame.label for frame in lacking])
        raise SegError("E-DCM-RESCALE", Exit.INPUT_REFUSED, lacking[0].header.name, found, EXPORT_AGAIN)
    if modality != "CT":
        return []
    odd = next((frame for frame in frames if _unit(frame) not in ("", "HU")), None)
    if odd is not None:
        fix = "choose the series in Hounsfield units"
        found = "the unit of its values (RescaleType) is not Hounsfield's"
        raise SegError("E-DCM-UNITS", Exit.INPUT_REFUSED, odd.name, found, fix, "HU")
    return (
        ["a CT without RescaleSlope and RescaleIntercept: stored values are taken as Hounsfield units"] if bare else []
    )


def _unit(frame: Frame) -> str:
    table = frame.lookup_table()
    return frame.unit() if table is None else text(frame.header, "ModalityLUTType", table)


def _scaled(frame: Frame, values: NDArray[np.generic]) -> NDArray[np.float32]:
    """One plane's intensities, by its own lookup table or slope and intercept."""
    if frame.lookup_table() is not None:
        from pydicom.pixels.processing import apply_modality_lut

        try:
            table: NDArray[np.float32] = apply_modality_lut(values, frame.header.dataset).astype(np.float32)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            found = "its lookup table (ModalityLUTSequence) is damaged"
            raise SegError("E-DCM-RESCALE", Exit.INPUT_REFUSED, frame.header.name, found, EXPORT_AGAIN) from error
        return table
    return values.astype(np.float32) * np.float32(frame.slope or 1.0) + np.float32(frame.intercept or 0.0)


def _check_range(frame: Frame, volume: NDArray[np.generic], slope: float, intercept: float) -> None:
    """Every intensity must be a finite float32."""
    low, high = float(volume.min()), float(volume.max())
    peak = abs(slope) * max(abs(low), abs(high)) + abs(intercept)
    if not peak <= _LARGEST:
        found, fix = f"RescaleSlope and RescaleIntercept scale pixels to {peak:.3g}", EXPORT_AGAIN
        raise SegError("E-DCM-RESCALE", Exit.INPUT_REFUSED, frame.header.name, found, fix, "float32 numbers")


def _find_padding(
    frame: Frame, values: NDArray[np.generic], layout: Layout, place: int, padding: dict[int, NDArray[np.bool_]]
) -> None:
    """Note which voxels of a CT lie outside what was reconstructed (PixelPaddingValue)."""
    header = frame.header
    first = number(header, "PixelPaddingValue")
    if first is None:
        return
    last = number(header, "PixelPaddingRangeLimit")
    bounds = sorted(_as_stored(value, layout) for value in (first, first if last is None else last))
    outside = (values >= bounds[0]) & (values <= bounds[1])  # type: ignore[operator]
    if outside.any():
        padding[place] = outside


def _as_stored(value: float, layout: Layout) -> int:
    """A padding value, which some write as unsigned for signed pixels, as a stored value."""
    word = np.array([int(value) % (1 << layout.allocated)]).astype(f"u{layout.allocated // 8}")
    return int(word.view(layout.dtype)[0])


def _fill_padding(volume: NDArray[np.generic], padding: dict[int, NDArray[np.bool_]], slope: float) -> str:
    """Give padding voxels the lowest intensity of the others."""
    lowest = max if slope < 0 else min
    valid = [volume[k][~padding[k]] if k in padding else volume[k] for k in range(len(volume))]
    extremes = [(part.max() if slope < 0 else part.min()) for part in valid if part.size]
    count = sum(int(np.count_nonzero(outside)) for outside in padding.values())
    if extremes:
        for place, outside in padding.items():
            volume[place][outside] = lowest(extremes)
    return f"{count:,} padding voxels were given the lowest value"


def unusual(frames: Sequence[Frame]) -> list[str]:
    """Notes on objects that are read although they are not as the standard wants them."""
    bare = [frame for frame in frames if not frame.header.preamble]
    notes = [f"{len(bare)} files lack the DICOM preamble"] if bare else []
    if programs := sum(frame.header.program for frame in frames):
        notes.append(f"{programs} files start like a program: nothing of that is read or written")
    if any(text(frame.header, "BurnedInAnnotation") == "YES" for frame in frames):
        notes.append("text is burned into the image")
    return notes
