"""The voxels of a checked NIfTI header: into memory in one pass, with nothing lost and nothing invented."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import Exit, SegError
from .nifti_header import NiftiHeader
from .nifti_stream import COPY_AGAIN, ByteStream

_CHUNK = 1 << 20  # voxels converted at a time
_KEPT = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "float32")
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)


def load_voxels(
    header: NiftiHeader, stream: ByteStream, first: int, count: int
) -> tuple[NDArray[np.generic], list[str]]:
    """Read `count` volumes from number `first` on, then the stream to its end.

    Parameters
    ----------
    header : checked header.
    stream : stream of the file that holds the voxels, at or before the first one.

    Returns
    -------
    voxels : (count * Z * Y * X,) values in file order (x fastest), stored dtype or float32.
    notes : things accepted but worth reporting.

    Raises
    ------
    SegError
        E-NII-TRUNC, E-NII-CRC (exit 11), E-NII-RANGE (12), E-LIMIT-SIZE, E-LIMIT-MEMORY (13), E-IN-CHANGED (10).
    """
    voxels_each = header.shape[0] * header.shape[1] * header.shape[2]
    total = voxels_each * header.channels * header.dtype.itemsize
    if header.pair and stream.size == header.offset + total:
        stream.treat_as_plain()  # a first voxel may look like the gzip magic
    _check_capacity(header, stream, total)
    flat = _allocate(header, voxels_each * count)
    stream.skip(header.offset + first * voxels_each * header.dtype.itemsize - stream.position)
    _fill(header, stream, flat)
    stream.skip(header.offset + total - stream.position)
    return flat, _finish(header, stream, total)


def check_values(header: NiftiHeader, flat: NDArray[np.generic], nonfinite: Literal["refuse", "zero"]) -> list[str]:
    """Make sure that every intensity is a finite float32. Returns notes; with "zero", changes `flat` in place.

    Raises
    ------
    SegError
        E-NII-NONFINITE or E-NII-RANGE, exit 12.
    """
    notes = []
    if flat.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # min and max carry a NaN on, so that no mask array is needed
            low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            notes.append(_treat_nonfinite(header, flat, nonfinite))
            low, high = float(flat.min()), float(flat.max())
    else:
        info = np.iinfo(flat.dtype.name)
        low, high = float(info.min), float(info.max)
        if _scaled_peak(header, low, high) > _LARGEST:  # the type's bounds are not enough, look at the values
            low, high = float(flat.min()), float(flat.max())
    peak = _scaled_peak(header, low, high)
    if peak > _LARGEST or abs(header.slope) < _SMALLEST:
        found = f"scl_slope {header.slope:g} and scl_inter {header.intercept:g} scale voxels to {peak:.3g}"
        fix = "rescale the intensities to an ordinary range"
        raise SegError("E-NII-RANGE", Exit.INPUT_REFUSED, header.path, found, fix, "float32 numbers")
    return notes


def _scaled_peak(header: NiftiHeader, low: float, high: float) -> float:
    return abs(header.slope) * max(abs(low), abs(high)) + abs(header.intercept)


def _check_capacity(header: NiftiHeader, stream: ByteStream, total: int) -> None:
    """Refuse sizes that the file cannot hold, before any memory is asked for."""
    if header.offset + total <= stream.capacity:
        return
    if stream.gzip:
        found = f"{stream.size:,} gzip bytes cannot hold the header's {total:,} bytes of voxel data"
        raise SegError("E-NII-TRUNC", Exit.INPUT_CORRUPT, stream.path, found, COPY_AGAIN)
    raise _truncated(header, stream, max(0, stream.size - header.offset), total)


def _truncated(header: NiftiHeader, stream: ByteStream, present: int, total: int) -> SegError:
    found = f"voxel data end after {present:,} of {total:,} bytes"
    return SegError("E-NII-TRUNC", Exit.INPUT_CORRUPT, stream.path, found, COPY_AGAIN)


def _allocate(header: NiftiHeader, count: int) -> NDArray[np.generic]:
    dtype = header.dtype if header.dtype.name in _KEPT else np.dtype(np.float32)
    try:
        return np.empty(count, dtype)
    except (MemoryError, ValueError) as error:  # ValueError: more than an array can address
        found = f"{count * dtype.itemsize:,} bytes of voxels do not fit in memory"
        fix = "use a machine with more memory, or crop the scan"
        raise SegError("E-LIMIT-MEMORY", Exit.LIMIT, header.path, found, fix) from error


def _fill(header: NiftiHeader, stream: ByteStream, flat: NDArray[np.generic]) -> None:
    """Read into `flat`; stops early at the end of the stream, which the caller sees from its position."""
    stored = header.dtype.newbyteorder(header.raw.endianness)
    if flat.dtype == header.dtype:
        stream.readinto(flat.view(np.uint8).data)
        if not stored.isnative:
            flat.byteswap(inplace=True)
        return
    buffer = np.empty(min(_CHUNK, flat.size), stored)
    for start in range(0, flat.size, _CHUNK):
        part = buffer[: flat.size - start]
        if stream.readinto(part.view(np.uint8).data) < part.nbytes:
            return
        flat[start : start + part.size] = _to_float32(header, part)


def _to_float32(header: NiftiHeader, part: NDArray[np.generic]) -> NDArray[np.float32]:
    """64-bit integers must survive exactly; float64 may round but not overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = part.astype(np.float32)
        if part.dtype.kind == "f":
            lost = np.isinf(values) & np.isfinite(part)
        else:
            # A float at the type's upper end would wrap when cast back, and so seem to agree.
            lost = (values >= 2.0 ** (64 if part.dtype.kind == "u" else 63)) | (values.astype(part.dtype) != part)
    if lost.any():
        found = f"{header.dtype} voxel {part[lost][0].item()} does not fit float32"
        fix = "convert the scan to int32 or float32"
        raise SegError("E-NII-RANGE", Exit.INPUT_REFUSED, header.path, found, fix)
    return values


def _finish(header: NiftiHeader, stream: ByteStream, total: int) -> list[str]:
    """Read to the end, where the checksum is; what comes after the voxels is counted and ignored."""
    end = header.offset + total
    reached = stream.position
    surplus = stream.drain() if reached == end else 0
    stream.check_unchanged()
    if reached < end:
        raise _truncated(header, stream, max(0, reached - header.offset), total)
    notes = []
    if surplus:
        notes.append(f"{surplus:,} bytes after the voxel data were ignored")
    if stream.trailing:
        notes.append(f"{stream.trailing:,} bytes after the gzip stream were ignored")
    return notes


def _treat_nonfinite(header: NiftiHeader, flat: NDArray[np.generic], rule: Literal["refuse", "zero"]) -> str:
    bad = ~np.isfinite(flat)
    count = int(np.count_nonzero(bad))
    share = f"{count:,} of {flat.size:,} voxels ({100 * count / flat.size:.3g} %) are NaN or infinite"
    if rule == "refuse":
        fix = "repair the scan, or pass --nonfinite zero to set them to 0"
        raise SegError("E-NII-NONFINITE", Exit.INPUT_REFUSED, header.path, share, fix, "finite numbers")
    flat[bad] = -header.intercept / header.slope  # the stored value whose intensity is 0
    return f"{share}, set to 0"
