"""NIfTI-1 and NIfTI-2 headers: which bytes are one, what it says, and what is refused before any voxel is read.

Field layouts come from nibabel's header classes; every check is made here, since nibabel repairs or passes some faults.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from .errors import Exit, SegError
from .nibabel_ import header_classes
from .nifti_geometry import Form, geometry_of
from .nifti_stream import COPY_AGAIN, GZIP, ByteStream, refuse_compressed
from .volume import Shape3, spacing_of

_SIZES = {348: 1, 540: 2}  # sizeof_hdr -> NIfTI version
_SINGLE = {1: b"n+1\0", 2: b"n+2\0\r\n\x1a\n"}  # magic of a header with its voxels in the same file
_PAIR = {1: b"ni1\0", 2: b"ni2\0\r\n\x1a\n"}  # magic of a header whose voxels are in another file
_TYPES = {
    2: "uint8",
    4: "int16",
    8: "int32",
    16: "float32",
    64: "float64",
    256: "int8",
    512: "uint16",
    768: "uint32",
    1024: "int64",
    1280: "uint64",
}
_COMPLEX = ("complex voxels", "export the magnitude image")
_COLOUR = ("a colour image", "export the grey series")
_REFUSED_TYPES = {1: ("1-bit voxels", "convert the scan to uint8"), 32: _COMPLEX, 1792: _COMPLEX, 2048: _COMPLEX}
_REFUSED_TYPES |= {128: _COLOUR, 2304: _COLOUR}
_LOOKS = {
    GZIP: "gzip inside gzip",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF document",
    b"NRRD": "an NRRD file",
    b"\x89HDF": "an HDF5 or MINC file",
    b"version https://git-lfs": "a Git LFS pointer (was the real file fetched?)",
    b"/annex/objects": "a git-annex pointer (was the real file fetched?)",
}
_REEXPORT = "export the scan again from its source"


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """A checked header.

    Attributes
    ----------
    path : file as the user typed it.
    shape : (X, Y, Z) in voxels; a 2D image has Z = 1.
    channels : size of the fourth axis, 1 if there is none.
    affine : (4, 4) float64, voxel index -> mm, RAS+.
    dtype : stored type, in this machine's byte order.
    slope, intercept : intensity = slope * stored + intercept.
    notes : things accepted but worth reporting.
    raw : nibabel NIfTI-1 or NIfTI-2 header with the file's own bytes and byte order.
    form : where the affine comes from; "pixdim" means that left and right are not known.
    pair : whether the voxels are in a separate .img file.
    """

    path: str
    shape: Shape3
    channels: int
    affine: NDArray[np.float64]
    dtype: np.dtype[np.generic]
    slope: float
    intercept: float
    notes: tuple[str, ...]
    raw: Any
    form: Form = "sform"
    pair: bool = False

    @property
    def offset(self) -> int:
        """Bytes before the first voxel."""
        return int(self.raw["vox_offset"])

    @property
    def size_known(self) -> bool:
        """Whether voxel sizes mean something: 1 x 1 x 1 in no stated unit is what is left when they were lost."""
        return bool(int(self.raw["xyzt_units"]) & 7) or not np.allclose(spacing_of(self.affine), 1.0)

    @property
    def version(self) -> int:
        """NIfTI version, 1 or 2."""
        return _SIZES[int(self.raw["sizeof_hdr"])]


def read_header(path: str, stream: ByteStream, prefer: Literal["sform", "qform"] | None = None) -> NiftiHeader:
    """Read and check the header at the start of a stream, leaving the stream just after it.

    Parameters
    ----------
    path : file as the user typed it, for messages.
    stream : unread stream.
    prefer : which of two disagreeing forms to believe.

    Raises
    ------
    SegError
        E-IN-KIND (exit 10), E-NII-NOTNIFTI, E-NII-TRUNC, E-NII-HEADER, E-NII-DIMS (11), E-NII-5D, E-NII-TYPE or a
        E-GEO code (12).
    """
    raw = _parse(path, stream)
    shape, channels = _dims(path, raw)
    dtype = _dtype(path, raw)
    pair = _is_pair(path, raw)
    _check_offset(path, raw, pair, stream)
    slope, intercept = _scaling(path, raw)
    placed = geometry_of(path, raw, shape, prefer)
    notes = list(placed.notes)
    if slope < 0:
        notes.append(f"scl_slope is negative ({slope:g})")
    if int(raw["bitpix"]) != 8 * dtype.itemsize:
        notes.append(f"bitpix is {int(raw['bitpix'])} for {dtype}, the datatype is used")
    header = NiftiHeader(
        path, shape, channels, placed.affine, dtype, slope, intercept, tuple(notes), raw, placed.form, pair
    )
    if header.size_known:
        return header
    note = "voxels are 1 x 1 x 1 in no stated unit: taken as mm, but the true sizes may have been lost"
    return replace(header, notes=(*header.notes, note))


def _parse(path: str, stream: ByteStream) -> Any:
    """The nibabel header object, once the bytes are known to be one."""
    start = _read(stream, 348)
    sizes = {order: int.from_bytes(start[:4], "little" if order == "<" else "big") for order in "<>"}
    order = next((o for o, size in sizes.items() if size in _SIZES), None)
    if order is None or len(start) < 348:
        _refuse_foreign(path, stream, start)
    version = _SIZES[sizes[order]]
    if version == 2:
        start += _read(stream, 540 - 348)
        if len(start) < 540:
            _refuse_foreign(path, stream, start)
    # nibabel takes a third of a second to import, which no command should pay before it needs a header.
    return header_classes()[version - 1](start, endianness=order, check=False)


def _read(stream: ByteStream, count: int) -> bytes:
    buffer = bytearray(count)
    return bytes(buffer[: stream.readinto(memoryview(buffer))])


def _refuse_foreign(path: str, stream: ByteStream, start: bytes) -> NoReturn:
    """Say what a file is that does not start with a whole NIfTI header."""
    if not stream.gzip:
        refuse_compressed(path, start)
    if stream.cut:
        found = f"the gzip stream ends after {len(start):,} bytes of content"
        raise SegError("E-NII-TRUNC", Exit.INPUT_CORRUPT, path, found, COPY_AGAIN, "at least a header of 348")
    whole = len(start) == 348  # a cut version 2 header is known by its size field, not by its magic
    if whole and (start[344:] in (_SINGLE[1], _PAIR[1]) or start[4:8] in (_SINGLE[2][:4], _PAIR[2][:4])):
        _bad(path, "E-NII-HEADER", f"sizeof_hdr is {int.from_bytes(start[:4], 'little')}", "348 or 540")
    found = f"is not NIfTI, it looks like {_looks_like(start)}"
    raise SegError("E-NII-NOTNIFTI", Exit.INPUT_CORRUPT, path, found, "give a .nii or .nii.gz file")


def _looks_like(start: bytes) -> str:
    if not start:
        return "an empty file"
    if known := next((name for magic, name in _LOOKS.items() if start.startswith(magic)), ""):
        return known
    if start[128:132] == b"DICM":
        return "a DICOM file"
    if int.from_bytes(start[:4], "little") in _SIZES or int.from_bytes(start[:4], "big") in _SIZES:
        return f"a NIfTI header cut after {len(start)} bytes"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page (was the download logged in?)"
    text = all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in start)
    return "text" if text else "something else"


def _is_pair(path: str, raw: Any) -> bool:
    """Whether the magic says that the voxels are in another file."""
    version = _SIZES[int(raw["sizeof_hdr"])]
    magic = raw.binaryblock[344:348] if version == 1 else raw.binaryblock[4:12]
    if magic == _SINGLE[version]:
        return False
    if magic == _PAIR[version]:
        if not path.lower().endswith((".hdr", ".img", ".hdr.gz", ".img.gz")):
            _bad(path, "E-NII-HEADER", f"magic {magic!r} belongs to a .hdr and .img pair", repr(_SINGLE[version]))
        return True
    if not any(magic):
        found = "has no NIfTI magic; Analyze 7.5 headers do not tell left from right"
        fix = "convert the scan to NIfTI from its source"
        raise SegError("E-NII-NOTNIFTI", Exit.INPUT_CORRUPT, path, found, fix)
    _bad(path, "E-NII-HEADER", f"magic is {magic!r}", repr(_SINGLE[version]))


def _dims(path: str, raw: Any) -> tuple[Shape3, int]:
    """(X, Y, Z) and the size of the fourth axis."""
    count = int(raw["dim"][0])
    if not 1 <= count <= 7:
        _bad(path, "E-NII-DIMS", f"dim[0], the number of axes, is {count}", "1 to 7")
    sizes = [int(size) for size in raw["dim"][1 : count + 1]]
    for axis, size in enumerate(sizes, 1):
        if size < 1:
            _bad(path, "E-NII-DIMS", f"dim[{axis}], the size of axis {axis}, is {size}", "1 or more")
    while len(sizes) > 4 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) > 4:
        found = f"has {len(sizes)} axes, {' x '.join(map(str, sizes))}"
        fix = "export one scalar 3D or 4D image"
        raise SegError("E-NII-5D", Exit.INPUT_REFUSED, path, found, fix, "at most 4 axes")
    x, y, z, channels = sizes + [1] * (4 - len(sizes))
    return (x, y, z), channels


def _dtype(path: str, raw: Any) -> np.dtype[np.generic]:
    code = int(raw["datatype"])
    if code in _REFUSED_TYPES:
        found, fix = _REFUSED_TYPES[code]
        raise SegError("E-NII-TYPE", Exit.INPUT_REFUSED, path, f"holds {found} (datatype {code})", fix, "real numbers")
    if code not in _TYPES:
        _bad(path, "E-NII-HEADER", f"datatype is {code}", f"one of {', '.join(map(str, _TYPES))}")
    return np.dtype(_TYPES[code])


def _check_offset(path: str, raw: Any, pair: bool, stream: ByteStream) -> None:
    offset = float(raw["vox_offset"])
    least = 0 if pair else {1: 352, 2: 544}[_SIZES[int(raw["sizeof_hdr"])]]
    if not math.isfinite(offset) or offset != int(offset) or offset < least:
        _bad(path, "E-NII-HEADER", f"vox_offset is {offset:g}", f"a whole number from {least}")
    if not pair and offset > stream.capacity:
        _bad(path, "E-NII-HEADER", f"vox_offset is {offset:.0f} in a file of {stream.size:,} bytes", "less")


def _scaling(path: str, raw: Any) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or NaN means none, whatever the intercept."""
    slope, intercept = float(raw["scl_slope"]), float(raw["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if math.isinf(slope):
        _bad(path, "E-NII-HEADER", f"scl_slope is {slope}", "a finite number")
    if not math.isfinite(intercept):
        _bad(path, "E-NII-HEADER", f"scl_inter is {intercept} with scl_slope {slope:g}", "a finite number")
    return slope, intercept


def _bad(path: str, code: str, found: str, expected: str) -> NoReturn:
    raise SegError(code, Exit.INPUT_CORRUPT, path, found, _REEXPORT, expected)
