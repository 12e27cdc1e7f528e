"""NIfTI in: a scan is read whole or refused.

A read fails on anything that could end in a wrong mask: damage (the gzip checksum is always verified), contradictions
in the header, voxels that are not numbers. What is accepted although it is odd is listed in the header's notes.
"""

import os
from dataclasses import replace
from typing import Literal

from .errors import Exit, SegError
from .nifti_header import NiftiHeader, read_header
from .nifti_stream import open_stream
from .nifti_voxels import check_values, load_voxels
from .scan import Scan
from .volume import Volume

__all__ = ["NiftiHeader", "Scan", "as_read", "inspect", "parts", "read"]


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


def as_read(header: NiftiHeader, *, max_voxels: int, volume: int | None, channels: int) -> NiftiHeader:
    """A header with the number of volumes that `read` takes. Raises E-NII-4D and E-LIMIT-VOXELS as it does."""
    _, count = _choose_volumes(header, volume, channels)
    _check_voxels(header, max_voxels)
    return replace(header, channels=count)


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
