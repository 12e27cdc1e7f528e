"""NIfTI out: a mask on the scan's exact grid, whole or not at all."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .atomic import Overwrite, atomic_file, refuse_existing
from .errors import Exit, SegError
from .nifti_header import NiftiHeader

_SLAB = 1 << 22  # mask voxels compressed at a time
_GZIP_LEVEL = 1  # isal's levels 1 to 3 differ little on masks, level 1 is the fastest


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
    _write(path, _header(like, mask.dtype), [mask], like, overwrite)


def mask_sha256(path: str, mask: NDArray[np.generic], like: NiftiHeader) -> str:
    """Digest of the file that `write_mask` would write, without writing it."""
    digest = hashlib.sha256()
    for piece in _stored(path, _header(like, mask.dtype), [mask], like):
        digest.update(piece)
    return digest.hexdigest()


def write_probabilities(path: str, maps: NDArray[np.uint8], like: NiftiHeader, *, overwrite: Overwrite = False) -> None:
    """Write the probability of each class but the background as a 4D file; stored bytes are 255 * p (scl_slope 1/255).

    Parameters
    ----------
    maps : (X, Y, Z, K - 1) uint8 in the scan's own axis order.
    overwrite : as of `atomic_file`.

    Raises
    ------
    SegError
        As `write_mask`.
    """
    header = _header(like, maps.dtype)
    header["dim"][:5] = [4, *maps.shape]
    header["scl_slope"] = 1 / 255
    _write(path, header, [maps[..., k] for k in range(maps.shape[3])], like, overwrite)


def _write(
    path: str, header: Any, volumes: Sequence[NDArray[np.generic]], like: NiftiHeader, overwrite: Overwrite
) -> None:
    suffix_of(path)
    with atomic_file(path, overwrite=overwrite) as file:
        file.writelines(_stored(path, header, volumes, like))


def _stored(path: str, header: Any, volumes: Sequence[NDArray[np.generic]], like: NiftiHeader) -> Iterator[bytes]:
    """The bytes of the file, compressed if its name says so."""
    if suffix_of(path) == ".nii":
        yield from _content(header, volumes, like)
        return
    from isal import isal_zlib

    # Unlike a gzip file object, a bare stream stores no file name and no time.
    deflate = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, 31)
    for piece in _content(header, volumes, like):
        yield deflate.compress(piece)
    yield deflate.flush()


def check_output(path: str, inputs: Iterable[str], overwrite: bool) -> None:
    """Refuse an output that could not be written, or must not be, before any time is spent on inference.

    Parameters
    ----------
    path : output as the user typed it, NIfTI or DICOM (.dcm).
    inputs : files that must not be replaced.
    overwrite : whether an existing file or link may be replaced.

    Raises
    ------
    SegError
        E-OUT-SUFFIX (exit 2), E-OUT-DIR, E-OUT-SAME, E-OUT-EXISTS or E-OUT-KIND (exit 30).
    """
    if not path.lower().endswith(".dcm"):
        suffix_of(path)
    folder = os.path.dirname(path) or os.curdir
    if not os.path.isdir(folder):
        found = "its folder is a file" if os.path.exists(folder) else "its folder does not exist"
        raise SegError("E-OUT-DIR", Exit.OUTPUT, path, found, "create the folder, or choose another path")
    if not os.access(folder, os.W_OK | os.X_OK):
        fix = "change its permissions, or choose another path"
        raise SegError("E-OUT-DIR", Exit.OUTPUT, path, "its folder cannot be written to", fix)
    for source in inputs:
        if same_file(path, source):
            fix = "choose another output, inputs are never replaced"
            raise SegError("E-OUT-SAME", Exit.OUTPUT, path, "is the input itself", fix)
    refuse_existing(path, overwrite)


def same_file(path: str, source: str) -> bool:
    """Whether both names lead to one file (device and inode), through links of either kind."""
    try:
        return os.path.samefile(path, source)
    except (OSError, ValueError):  # one of them is not there
        return False


def suffix_of(path: str) -> str:
    """ ".nii" or ".nii.gz". Raises SegError E-OUT-SUFFIX (exit 2) for other names."""
    name = os.path.basename(path).lower()
    for suffix in (".nii.gz", ".nii"):
        if name.endswith(suffix) and name != suffix:
            return suffix
    fix = "name the output like mask.nii.gz, or mask.dcm for a DICOM series"
    raise SegError("E-OUT-SUFFIX", Exit.USAGE, path, "is no NIfTI file name", fix, "a name ending in .nii or .nii.gz")


def _content(header: Any, volumes: Sequence[NDArray[np.generic]], like: NiftiHeader) -> Iterator[bytes]:
    """The file's content: header, an empty extension flag, voxels with x fastest, some slices at a time."""
    yield header.binaryblock + bytes(4)
    for volume in volumes:
        stored = volume.dtype.newbyteorder(like.raw.endianness)
        step = max(1, _SLAB // (volume.shape[0] * volume.shape[1]))
        for z in range(0, volume.shape[2], step):
            yield volume[:, :, z : z + step].astype(stored, copy=False).tobytes(order="F")


def _header(like: NiftiHeader, dtype: np.dtype[np.generic]) -> Any:
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
