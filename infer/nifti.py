"""NIfTI in and out: a scan is read whole or refused, a mask is written on the scan's exact grid.

A read fails on anything that could end in a wrong mask: damage (the gzip checksum is always verified), contradictions
in the header, voxels that are not numbers. What is accepted although it is odd is listed in the header's notes.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .atomic import atomic_file, refuse_existing
from .errors import Exit, SegError
from .nifti_header import NiftiHeader, read_header
from .nifti_stream import open_stream
from .nifti_voxels import check_values, load_voxels
from .volume import Volume

__all__ = ["NiftiHeader", "Scan", "check_output", "inspect", "parts", "read", "write_mask"]

_SLAB = 1 << 22  # mask voxels compressed at a time
_GZIP_LEVEL = 1  # isal's levels 1 to 3 differ little on masks, level 1 is the fastest


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan with the header its mask will be written like.

    Attributes
    ----------
    header : checked header; its notes include those of reading the voxels.
    volume : (C, X, Y, Z) stored values with the scaling to apply, affine in mm, RAS+.
    """

    header: NiftiHeader
    volume: Volume


def inspect(path: str, *, prefer: Literal["sform", "qform"] | None = None) -> NiftiHeader:
    """Read and check a header alone, at a cost of a few kB.

    Parameters
    ----------
    path : .nii or .hdr/.img, plain or gzip (told by content).
    prefer : which form to believe where sform and qform disagree by over a voxel; without it that is refused.

    Raises
    ------
    SegError
        Exit 10, 11 or 12, see `read`.
    """
    with open_stream(_sibling(path, ".img", ".hdr")) as stream:
        return read_header(path, stream, prefer)


def parts(path: str) -> list[str]:
    """The files that a scan is made of: itself, or header and image."""
    return list(dict.fromkeys([_sibling(path, ".img", ".hdr"), _sibling(path, ".hdr", ".img")]))


def read(
    path: str,
    *,
    max_voxels: int = 2_000_000_000,
    nonfinite: Literal["refuse", "zero"] = "refuse",
    volume: int | None = None,
    channels: int = 1,
    prefer: Literal["sform", "qform"] | None = None,
) -> Scan:
    """Read a scan, to the end of its stream.

    Parameters
    ----------
    path : .nii or .hdr/.img, plain or gzip (told by content).
    max_voxels : limit on the voxels of all volumes in the file, checked before anything is allocated or inflated.
    nonfinite : "zero" gives NaN and infinite voxels the intensity 0 and adds a note.
    volume : index from 0 of the volume to take from a 4D file.
    channels : how many volumes the model takes; a 4D file of as many is read as channels.
    prefer : which form to believe where sform and qform disagree by over a voxel; without it that is refused.

    Returns
    -------
    Scan
        Voxels of the stored dtype for 8 to 32-bit integers and float32, else float32.

    Raises
    ------
    SegError
        Exit 10: E-IN-MISSING, E-IN-READ, E-IN-KIND, E-IN-CHANGED. Exit 11: E-NII-NOTNIFTI, E-NII-TRUNC, E-NII-CRC,
        E-NII-HEADER, E-NII-DIMS. Exit 12: E-NII-4D, E-NII-5D, E-NII-TYPE, E-NII-RANGE, E-NII-NONFINITE,
        E-GEO-SINGULAR, E-GEO-FORMS, E-GEO-SHEAR, E-GEO-UNITS. Exit 13: E-LIMIT-VOXELS, E-LIMIT-SIZE, E-LIMIT-MEMORY.
    """
    with open_stream(_sibling(path, ".img", ".hdr")) as stream:
        header = read_header(path, stream, prefer)
        first, count = _choose_volumes(header, volume, channels)
        _check_voxels(header, max_voxels)
        if header.pair:
            stream.drain()  # the header's own checksum
            with open_stream(_sibling(path, ".hdr", ".img")) as image:
                flat, notes = load_voxels(header, image, first, count)
        else:
            flat, notes = load_voxels(header, stream, first, count)
    notes += check_values(header, flat, nonfinite)
    x, y, z = header.shape
    voxels = flat.reshape((count, z, y, x)).transpose(0, 3, 2, 1)  # x varies fastest in the file
    header = replace(header, notes=header.notes + tuple(notes))
    return Scan(header, Volume(voxels, header.affine, header.slope, header.intercept))


def write_mask(path: str, mask: NDArray[np.generic], like: NiftiHeader, *, overwrite: bool = False) -> None:
    """Write a mask on the exact grid of a scan, whole or not at all.

    Shape, sform, qform, their codes, pixdim and xyzt_units are the scan's own bytes, as are byte order and NIfTI
    version; nothing descriptive is copied, so no name can travel along. The same mask gives the same bytes.

    Parameters
    ----------
    path : target ending in .nii or .nii.gz.
    mask : (X, Y, Z) uint8 or uint16 label values in the scan's own axis order.
    like : header of the scan.
    overwrite : replace an existing file.

    Raises
    ------
    ValueError
        If the mask's shape or dtype is wrong.
    SegError
        An E-OUT code: exit 2 for the suffix, else 30.
    """
    if mask.shape != like.shape or mask.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"mask must be uint8 or uint16 {like.shape}, found {mask.dtype} {mask.shape}")
    compress = _suffix(path) == ".nii.gz"
    with atomic_file(path, overwrite=overwrite) as file:
        if not compress:
            file.writelines(_mask_bytes(mask, like))
            return
        from isal import isal_zlib

        # Unlike a gzip file object, a bare stream stores no file name and no time.
        deflate = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, 31)
        file.writelines(deflate.compress(piece) for piece in _mask_bytes(mask, like))
        file.write(deflate.flush())


def check_output(path: str, inputs: Iterable[str], overwrite: bool) -> None:
    """Refuse an output that could not be written, or must not be, before any time is spent on inference.

    Parameters
    ----------
    path : output as the user typed it.
    inputs : files that must not be replaced.
    overwrite : whether an existing file or link may be replaced.

    Raises
    ------
    SegError
        E-OUT-SUFFIX (exit 2), E-OUT-DIR, E-OUT-SAME, E-OUT-EXISTS or E-OUT-KIND (exit 30).
    """
    _suffix(path)
    folder = os.path.dirname(path) or os.curdir
    if not os.path.isdir(folder):
        found = "its folder is a file" if os.path.exists(folder) else "its folder does not exist"
        raise SegError("E-OUT-DIR", Exit.OUTPUT, path, found, "create the folder, or choose another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        fix = "change its permissions, or choose another path"
        raise SegError("E-OUT-DIR", Exit.OUTPUT, path, "its folder cannot be written to", fix)
    for source in inputs:
        if _same_file(path, source):
            fix = "choose another output, inputs are never replaced"
            raise SegError("E-OUT-SAME", Exit.OUTPUT, path, "is the input itself", fix)
    refuse_existing(path, overwrite)


def _same_file(path: str, source: str) -> bool:
    """Whether both names lead to one file (device and inode), through links of either kind."""
    try:
        return os.path.samefile(path, source)
    except (OSError, ValueError):  # one of them is not there
        return False


def _suffix(path: str) -> str:
    name = os.path.basename(path).lower()
    for suffix in (".nii.gz", ".nii"):
        if name.endswith(suffix) and name != suffix:
            return suffix
    fix = "name the output like mask.nii.gz"
    raise SegError("E-OUT-SUFFIX", Exit.USAGE, path, "is no NIfTI file name", fix, "a name ending in .nii or .nii.gz")


def _mask_bytes(mask: NDArray[np.generic], like: NiftiHeader) -> Iterator[bytes]:
    """The file's content: header, an empty extension flag, voxels with x fastest, some slices at a time."""
    yield _mask_header(like, mask.dtype).binaryblock + bytes(4)
    stored = mask.dtype.newbyteorder(like.raw.endianness)
    step = max(1, _SLAB // (mask.shape[0] * mask.shape[1]))
    for z in range(0, mask.shape[2], step):
        yield mask[:, :, z : z + step].astype(stored, copy=False).tobytes(order="F")


def _mask_header(like: NiftiHeader, dtype: np.dtype[np.generic]) -> Any:
    """A fresh header with the scan's placement and nothing else of it."""
    raw = like.raw
    header = type(raw)(endianness=raw.endianness)
    placement = ("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z")
    quaternion = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
    for name in placement + quaternion:
        header[name] = raw[name]
    axes = min(3, int(raw["dim"][0]))
    header["dim"] = [axes, *like.shape, 1, 1, 1, 1]
    header["datatype"], header["bitpix"] = (2, 8) if dtype == np.uint8 else (512, 16)
    header["vox_offset"] = 352 if like.version == 1 else 544
    header["scl_slope"], header["scl_inter"] = 1, 0
    return header


def _choose_volumes(header: NiftiHeader, volume: int | None, channels: int) -> tuple[int, int]:
    """First volume and how many to read."""
    stored = header.channels
    if volume is not None:
        if 0 <= volume < stored:
            return volume, 1
        found = f"there is no volume {volume}"
        fix = "choose another with --volume"
        raise SegError("E-NII-4D", Exit.INPUT_REFUSED, header.path, found, fix, f"0 to {stored - 1}")
    if stored in (1, channels):
        return 0, stored
    found = f"is 4D with {stored} volumes"
    fix = "choose one with --volume, counted from 0"
    raise SegError("E-NII-4D", Exit.INPUT_REFUSED, header.path, found, fix, str(channels))


def _check_voxels(header: NiftiHeader, limit: int) -> None:
    x, y, z = header.shape
    count = x * y * z * header.channels
    if count > limit:
        size = " x ".join(map(str, (x, y, z, header.channels) if header.channels > 1 else (x, y, z)))
        found = f"the header claims {size} = {count:,} voxels"
        fix = "check the file, or raise the limit with --max-voxels"
        raise SegError("E-LIMIT-VOXELS", Exit.LIMIT, header.path, found, fix, f"at most {limit:,}")


def _sibling(path: str, have: str, want: str) -> str:
    """`path`, or if its suffix is `have` (perhaps with .gz) the other half of the pair, which may be plain or gzip."""
    stem, gz = (path[:-3], path[-3:]) if path.lower().endswith(".gz") else (path, "")
    if not stem.lower().endswith(have):
        return path
    other = stem[: -len(have)] + (want.upper() if stem.endswith(have.upper()) else want)
    candidates = [other + gz, other + ("" if gz else ".gz")]
    return next((name for name in candidates if os.path.exists(name)), candidates[0])
