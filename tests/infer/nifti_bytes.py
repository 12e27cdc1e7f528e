"""NIfTI files built with struct from the format's own offsets, so that nibabel can serve as an independent reader."""

import gzip
import struct
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

FIELDS = {
    1: {
        "sizeof_hdr": (0, "i"),
        "dim": (40, "8h"),
        "datatype": (70, "h"),
        "bitpix": (72, "h"),
        "pixdim": (76, "8f"),
        "vox_offset": (108, "f"),
        "scl_slope": (112, "f"),
        "scl_inter": (116, "f"),
        "xyzt_units": (123, "B"),
        "qform_code": (252, "h"),
        "sform_code": (254, "h"),
        "quatern": (256, "6f"),  # quatern_b, c, d and qoffset_x, y, z
        "srow": (280, "12f"),
        "magic": (344, "4s"),
    },
    2: {
        "sizeof_hdr": (0, "i"),
        "magic": (4, "8s"),
        "datatype": (12, "h"),
        "bitpix": (14, "h"),
        "dim": (16, "8q"),
        "pixdim": (104, "8d"),
        "vox_offset": (168, "q"),
        "scl_slope": (176, "d"),
        "scl_inter": (184, "d"),
        "qform_code": (344, "i"),
        "sform_code": (348, "i"),
        "quatern": (352, "6d"),
        "srow": (400, "12d"),
        "xyzt_units": (500, "i"),
    },
}
TEXTS = {  # offset and size of data_type, db_name, descrip, aux_file, intent_name
    1: ((4, 10), (14, 18), (148, 80), (228, 24), (328, 16)),
    2: ((240, 80), (320, 24), (508, 16)),
}
START = {1: 352, 2: 544}  # first voxel of a single file without extensions
CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768, "i8": 1024, "u8": 1280}

SHAPE = (5, 4, 3)
SROW = (2.0, 0, 0, -7, 0, 1.5, 0, 8, 0, 0, 3.0, -9)
AFFINE = np.array([*SROW, 0, 0, 0, 1]).reshape(4, 4)
VOXELS = (np.arange(60).reshape(SHAPE, order="F") * 7 - 100).astype("i2")

Array = NDArray[Any]


def header(array: Array, version: int = 1, order: str = "<", **edits: Any) -> bytes:
    """A valid header for `array` with four bytes of empty extension flag, then the edits (a value or tuple a field)."""
    values: dict[str, Any] = {
        "sizeof_hdr": 348 if version == 1 else 540,
        "magic": b"n+1\0" if version == 1 else b"n+2\0\r\n\x1a\n",
        "dim": (array.ndim, *array.shape, *[1] * (7 - array.ndim)),
        "datatype": CODES.get(array.dtype.str[1:], 0),
        "bitpix": 8 * array.dtype.itemsize,
        "pixdim": (1.0, 2.0, 1.5, 3.0, 1.0, 1.0, 1.0, 1.0),
        "vox_offset": START[version],
        "scl_slope": 1,
        "scl_inter": 0,
        "xyzt_units": 2,
        "qform_code": 1,
        "sform_code": 1,
        "quatern": (0, 0, 0, -7, 8, -9),
        "srow": SROW,
    }
    block = bytearray(START[version])
    for name, value in (values | edits).items():
        offset, kind = FIELDS[version][name]
        struct.pack_into(order + kind, block, offset, *(value if isinstance(value, tuple) else (value,)))
    return bytes(block)


def data(array: Array, order: str = "<") -> bytes:
    """Voxels as stored: x fastest."""
    return array.astype(array.dtype.newbyteorder(order)).tobytes(order="F")


def image(array: Array = VOXELS, version: int = 1, order: str = "<", **edits: Any) -> bytes:
    """A whole single-file NIfTI."""
    return header(array, version, order, **edits) + data(array, order)


def field_bytes(content: bytes, name: str, version: int = 1) -> bytes:
    """The bytes of one header field."""
    offset, kind = FIELDS[version][name]
    return content[offset : offset + struct.calcsize("<" + kind)]


def with_values(dtype: str, *values: float) -> Array:
    """Ones of `dtype` in the test shape, the first voxels set to `values`."""
    array = np.ones(SHAPE, dtype)
    array.T.flat[: len(values)] = values
    return array


def turned(degrees: float) -> tuple[float, ...]:
    """quatern and qoffset of a turn about z that keeps voxel 0 in place."""
    return (0, 0, float(np.sin(np.radians(degrees) / 2)), -7, 8, -9)


def sheared(amount: float) -> tuple[float, ...]:
    """srow with y leaning towards x by `amount` mm per mm."""
    return (2.0, 1.5 * amount, 0, -7, 0, 1.5, 0, 8, 0, 0, 3.0, -9)


def gz(content: bytes, level: int = 6) -> bytes:
    """One gzip member."""
    return gzip.compress(content, level, mtime=0)


def zeros_gz(mebibytes: int) -> bytes:
    """A gzip member that inflates to that many MiB of zeros."""
    deflate = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)
    return b"".join(deflate.compress(bytes(1 << 20)) for _ in range(mebibytes)) + bytes(deflate.flush())
