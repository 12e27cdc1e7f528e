"""Reading NIfTI: every odd input gives the right voxels or its own error, never wrong voxels."""

import os
import random
import re
import socket
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nifti_bytes import (
    AFFINE,
    CODES,
    FIELDS,
    SHAPE,
    SROW,
    VOXELS,
    data,
    gz,
    header,
    image,
    sheared,
    turned,
    with_values,
    zeros_gz,
)

from seg.infer import nifti
from seg.infer.errors import Exit, SegError
from seg.infer.nifti_stream import ByteStream

NAN, INF = float("nan"), float("inf")
GOOD = gz(image())
BIG = np.zeros((200, 200, 3), "u1")  # large enough for a small turn to move its corners

Content = bytes | dict[str, bytes] | Callable[[], object]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests use relative paths, so that "as typed" differs from resolved."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def place(content: Content, path: str = "scan.nii.gz") -> None:
    if callable(content):
        content()
        return
    for name, text in ({path: content} if isinstance(content, bytes) else content).items():
        if os.path.lexists(name):
            os.unlink(name)  # a new file is cheap, truncating one makes some file systems wait for the disk
        Path(name).write_bytes(text)


def flipped(content: bytes, at: int, bit: int = 1) -> bytes:
    changed = bytearray(content)
    changed[at] ^= bit
    return bytes(changed)


def stored_flip() -> bytes:
    """A voxel changed inside a gzip stream that still inflates: only the checksum can tell."""
    stored = gz(image(), 0)
    return flipped(stored, stored.index(data(VOXELS)) + 20)


def unix_socket() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("scan.nii.gz")


def pair(**edits: Any) -> bytes:
    return header(VOXELS, magic=b"ni1\0", **({"vox_offset": 0} | edits))


@dataclass
class Refused:
    """One input that must be refused: what it is, how, and what the message says."""

    row: str
    content: Content
    code: str
    exit: Exit
    says: str = ""
    path: str = "scan.nii.gz"
    names: str = ""  # the path in the message, if not the one given
    options: dict[str, Any] = field(default_factory=dict)


MISSING, CORRUPT, NO, LIMIT = Exit.INPUT_MISSING, Exit.INPUT_CORRUPT, Exit.INPUT_REFUSED, Exit.LIMIT
TRUNC, HEADER, DIMS, NOTNIFTI = "E-NII-TRUNC", "E-NII-HEADER", "E-NII-DIMS", "E-NII-NOTNIFTI"
RANDOM = np.random.default_rng(0).integers(-2000, 2000, (16, 16, 16)).astype("i2")
WHOLE = gz(image(RANDOM))
LARGE = (3, 32767, 32767, 32767, 1, 1, 1, 1)

REFUSED = [
    *[Refused(f"N01 {p} %", WHOLE[: len(WHOLE) * p // 100], TRUNC, CORRUPT) for p in (1, 10, 50, 90, 99)],
    *[Refused(f"N01 last {n}", GOOD[:-n], TRUNC, CORRUPT, "checksum") for n in range(1, 8)],
    Refused("N01 counts", gz(image()[:-30]), TRUNC, CORRUPT, "after 90 of 120 bytes"),
    Refused("N02 stored", stored_flip(), "E-NII-CRC", CORRUPT, "checksum"),
    Refused("N02 length", flipped(GOOD, -1), "E-NII-CRC", CORRUPT),
    Refused("N02 deflate", GOOD[:10] + b"\xff" * 200, "E-NII-CRC", CORRUPT),
    Refused("N02 second member", GOOD + flipped(GOOD, -5), "E-NII-CRC", CORRUPT),
    Refused("N03 second member cut", GOOD + GOOD[:-3], TRUNC, CORRUPT),
    Refused("N05 empty", b"", NOTNIFTI, CORRUPT, "empty"),
    Refused("N05 empty gz", gz(b""), NOTNIFTI, CORRUPT, "empty"),
    Refused("N05 header cut", image()[:100], NOTNIFTI, CORRUPT, "cut after 100 bytes", "scan.nii"),
    Refused("N05 v2 cut", image(version=2)[:400], NOTNIFTI, CORRUPT, "cut after 400 bytes", "scan.nii"),
    Refused("N05 text", b"no image " * 50, NOTNIFTI, CORRUPT, "like text"),
    Refused("N05 short text", b"\x1f", NOTNIFTI, CORRUPT, "something else"),
    Refused("N05 png", b"\x89PNG\r\n" + bytes(500), NOTNIFTI, CORRUPT, "PNG"),
    Refused("N05 html", b"\n<!DOCTYPE html>" + bytes(500), NOTNIFTI, CORRUPT, "logged in"),
    Refused("N05 dicom", bytes(128) + b"DICM" + bytes(500), NOTNIFTI, CORRUPT, "DICOM"),
    Refused("N05 twice gz", gz(GOOD), NOTNIFTI, CORRUPT, "gzip inside gzip"),
    Refused("N05 pointer", b"version https://git-lfs.example/spec", NOTNIFTI, CORRUPT, "LFS"),
    Refused("N05 analyze", image(magic=b""), NOTNIFTI, CORRUPT, "Analyze"),
    Refused("N06 magic", image(magic=b"n+3\0"), HEADER, CORRUPT, "n+3"),
    Refused("N06 magic v2", image(version=2, magic=b"n+2\0\n\x1a\n"), HEADER, CORRUPT, "n+2"),
    Refused("N06 sizeof_hdr", image(sizeof_hdr=349), HEADER, CORRUPT, "sizeof_hdr is 349"),
    Refused("N06 sizeof_hdr v2", image(version=2, sizeof_hdr=500), HEADER, CORRUPT, "sizeof_hdr is 500"),
    Refused("N06 datatype", image(datatype=999), HEADER, CORRUPT, "datatype is 999"),
    Refused("N06 float128", image(datatype=1536), HEADER, CORRUPT, "datatype is 1536"),
    Refused("N06 pair magic in .nii", image(magic=b"ni1\0"), HEADER, CORRUPT, ".hdr and .img"),
    *[Refused(f"N07 {v}", image(vox_offset=v), HEADER, CORRUPT, "vox_offset") for v in (0, -1, 300, 352.5, NAN, INF)],
    Refused("N07 v2", image(version=2, vox_offset=352), HEADER, CORRUPT, "vox_offset is 352"),
    Refused("N07 huge", image(vox_offset=1e9), HEADER, CORRUPT, "vox_offset is 1000000000", "scan.nii"),
    Refused("N07 huge gz", gz(image(vox_offset=1e9)), HEADER, CORRUPT, "vox_offset is 1000000000"),
    Refused("N08", image()[:-10], TRUNC, CORRUPT, "after 110 of 120 bytes", "scan.nii"),
    Refused("N08 nothing", image()[:352], TRUNC, CORRUPT, "after 0 of 120 bytes", "scan.nii"),
    Refused("N09 plain", image(dim=LARGE, datatype=2), "E-LIMIT-VOXELS", LIMIT, "35,181,150,961,663", "scan.nii"),
    Refused("N09 gz", gz(image(dim=LARGE)), "E-LIMIT-VOXELS", LIMIT),
    Refused("N09 raised limit", gz(image(dim=LARGE)), TRUNC, CORRUPT, "cannot hold", options={"max_voxels": 10**15}),
    Refused("N09 237 MB", image(dim=(3, 512, 512, 450, 1, 1, 1, 1)), TRUNC, CORRUPT, "120 of 235,929,600"),
    Refused("N09 v2", image(version=2, dim=(3, 2**40, 2**40, 2**40, 1, 1, 1, 1)), "E-LIMIT-VOXELS", LIMIT),
    Refused("N10 limit", GOOD, "E-LIMIT-VOXELS", LIMIT, "= 60 voxels", options={"max_voxels": 59}),
    Refused("N10 surplus", lambda: place(GOOD + zeros_gz(65)), "E-LIMIT-SIZE", LIMIT, "more than the header"),
    *[Refused(f"N11 axes {n}", image(dim=(n, *[1] * 7)), DIMS, CORRUPT, f"axes, is {n}") for n in (0, 8, -1)],
    *[Refused(f"N11 size {n}", image(dim=(3, 5, n, 3, 1, 1, 1, 1)), DIMS, CORRUPT, "dim[2]") for n in (0, -4)],
    Refused("N14", image(np.zeros((5, 4, 3, 3), "u1")), "E-NII-4D", NO, "3 volumes"),
    Refused("N14 other", image(np.zeros((5, 4, 3, 3), "u1")), "E-NII-4D", NO, options={"channels": 2}),
    Refused("N14 volume", image(np.zeros((5, 4, 3, 3), "u1")), "E-NII-4D", NO, "volume 3", options={"volume": 3}),
    Refused("N14 negative", image(np.zeros((5, 4, 3, 3), "u1")), "E-NII-4D", NO, options={"volume": -1}),
    Refused("N15", image(np.zeros((5, 4, 3, 1, 3), "u1")), "E-NII-5D", NO, "5 x 4 x 3 x 1 x 3"),
    *[Refused(f"N16 {c}", image(datatype=c), "E-NII-TYPE", NO, "colour") for c in (128, 2304)],
    *[Refused(f"N17 {c}", image(datatype=c), "E-NII-TYPE", NO, "complex") for c in (32, 1792, 2048)],
    Refused("N17 bits", image(datatype=1), "E-NII-TYPE", NO, "1-bit"),
    Refused("N18 int64", image(with_values("i8", 5, 2**24 + 1)), "E-NII-RANGE", NO, "16777217"),
    Refused("N18 int64 top", image(with_values("i8", 2**63 - 1)), "E-NII-RANGE", NO, "9223372036854775807"),
    Refused("N18 uint64 top", image(with_values("u8", 2**64 - 1)), "E-NII-RANGE", NO, "18446744073709551615"),
    Refused("N18 float64", image(with_values("f8", 1e39)), "E-NII-RANGE", NO, "1e+39"),
    Refused("N19 NaN", image(with_values("f4", NAN)), "E-NII-NONFINITE", NO, "1 of 60 voxels (1.67 %)"),
    Refused("N19 inf", image(with_values("f4", -INF, INF)), "E-NII-NONFINITE", NO, "2 of 60"),
    Refused("N19 float64", image(with_values("f8", NAN)), "E-NII-NONFINITE", NO, "1 of 60"),
    Refused("N19 all", image(np.full(SHAPE, NAN, "f4")), "E-NII-NONFINITE", NO, "(100 %)"),
    Refused("N22 inter NaN", image(scl_slope=2, scl_inter=NAN), HEADER, CORRUPT, "scl_inter"),
    Refused("N22 inter inf", image(scl_slope=2, scl_inter=-INF), HEADER, CORRUPT, "scl_inter"),
    Refused("N22 slope inf", image(scl_slope=INF), HEADER, CORRUPT, "scl_slope"),
    Refused("N23 integer", image(with_values("u2", 60000), scl_slope=1e36), "E-NII-RANGE", NO, "6e+40"),
    Refused("N23 float", image(with_values("f4", 1e20), scl_slope=1e20), "E-NII-RANGE", NO, "1e+40"),
    Refused("N23 vanishing", image(version=2, scl_slope=1e-60), "E-NII-RANGE", NO, "1e-60"),
    Refused("N24 25 mm", image(quatern=(0, 0, 0, 18, 8, -9)), "E-GEO-FORMS", NO, "differ by 25 mm (12.5 voxels)"),
    Refused("N24 0.6 degree", image(BIG, quatern=turned(0.6)), "E-GEO-FORMS", NO, "at a corner"),
    Refused("N26 column", image(srow=(0.0, *SROW[1:])), "E-GEO-SINGULAR", NO, "determinant 0"),
    Refused("N26 row", image(srow=(*SROW[:8], 0, 0, 0, -9)), "E-GEO-SINGULAR", NO),
    Refused("N26 duplicate", image(srow=(2, 2, 0, 0, 1, 1, 0, 0, 0, 0, 3, 0)), "E-GEO-SINGULAR", NO),
    Refused("N27 sform NaN", image(srow=(NAN, *SROW[1:])), HEADER, CORRUPT, "srow_x"),
    Refused("N27 sform inf", image(srow=(*SROW[:11], INF)), HEADER, CORRUPT, "srow_z"),
    Refused("N27 quaternion", image(quatern=(0.9, 0.9, 0, 0, 0, 0)), HEADER, CORRUPT, "quatern_b, c, d", "scan.nii"),
    Refused("N27 offset", image(sform_code=0, quatern=(0, 0, 0, 0, INF, 0)), HEADER, CORRUPT, "qoffset_y"),
    Refused("N27 qfac", image(sform_code=0, pixdim=(NAN, *[1.0] * 7)), HEADER, CORRUPT, "pixdim[0]"),
    Refused("N28 0.3", image(BIG, srow=sheared(0.3), qform_code=0), "E-GEO-SHEAR", NO, "voxels at a corner"),
    Refused("N28 0.02", image(BIG, srow=sheared(0.02), qform_code=0), "E-GEO-SHEAR", NO),
    *[
        Refused(f"N29 {v}", image(sform_code=0, pixdim=(1, 2, v, *[1.0] * 5)), HEADER, CORRUPT, "pixdim[2]")
        for v in (0, NAN, INF)
    ],
    Refused("N30 small", image(xyzt_units=0, srow=tuple(v / 1e3 for v in SROW), qform_code=0), "E-GEO-UNITS", NO),
    Refused("N30 large", image(xyzt_units=7, srow=tuple(v * 1e3 for v in SROW), qform_code=0), "E-GEO-UNITS", NO),
    Refused("N34 no .img", {"a.hdr": pair()}, "E-IN-MISSING", MISSING, "not exist", "a.hdr", "a.img"),
    Refused("N34 no .hdr", {"a.img": data(VOXELS)}, "E-IN-MISSING", MISSING, "not exist", "a.img", "a.hdr"),
    Refused(
        "N34 .hdr damaged",
        {"a.hdr.gz": flipped(gz(pair()), -5), "a.img": data(VOXELS)},
        "E-NII-CRC",
        CORRUPT,
        "checksum",
        "a.hdr.gz",
    ),
    Refused("N34 .hdr cut", {"a.hdr.gz": gz(pair())[:-5], "a.img": data(VOXELS)}, TRUNC, CORRUPT, "", "a.hdr.gz"),
    Refused("N34 short", {"a.hdr": pair(), "a.img": bytes(99)}, TRUNC, CORRUPT, "99 of 120", "a.hdr", "a.img"),
    Refused("N37 fifo", lambda: os.mkfifo("scan.nii.gz"), "E-IN-KIND", MISSING, "pipe"),
    Refused("N37 device", b"", "E-IN-KIND", MISSING, "device", "/dev/zero"),
    Refused("N37 socket", unix_socket, "E-IN-KIND", MISSING, "socket"),
    *[
        Refused(f"N38 {name}", magic + bytes(600), "E-IN-KIND", MISSING, f"{name} compressed")
        for name, magic in {"Zstandard": b"\x28\xb5\x2f\xfd", "bzip2": b"BZh9", "xz": b"\xfd7zXZ\0"}.items()
    ],
    Refused("N38 zip", b"PK\x03\x04", "E-IN-KIND", MISSING, "zip compressed"),
    Refused("P01 folder", lambda: os.mkdir("scan.nii.gz"), "E-IN-KIND", MISSING, "folder"),
    Refused("P01 absent", lambda: None, "E-IN-MISSING", MISSING, "does not exist"),
    Refused("P01 under a file", {"f": b""}, "E-IN-MISSING", MISSING, path="f/scan.nii"),
    Refused("P06 dangling", lambda: os.symlink("gone", "scan.nii.gz"), "E-IN-MISSING", MISSING, "link"),
    Refused("P06 loop", lambda: os.symlink("scan.nii.gz", "scan.nii.gz"), "E-IN-READ", MISSING, "loop"),
    Refused("P08 newline", b"", NOTNIFTI, CORRUPT, path="a\nb.nii", names=r"a\nb.nii"),
    Refused("P08 undecodable", b"", NOTNIFTI, CORRUPT, path="a\udcff.nii", names=r"a\udcff.nii"),
    Refused("P08 name too long", lambda: None, "E-IN-READ", MISSING, "too long", path="a" * 300 + ".nii"),
    Refused("P08 null byte", lambda: None, "E-IN-MISSING", MISSING, path="a\0b.nii", names=r"a\x00b.nii"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.row)
def test_refused(case: Refused, in_folder: Path) -> None:
    if case.path != "/dev/zero":
        place(case.content, case.path)
    before = sorted(os.listdir())
    with pytest.raises(SegError) as caught:
        nifti.read(case.path, **case.options)
    error = caught.value
    assert (error.code, error.exit) == (case.code, case.exit), str(error)
    line = str(error)
    assert line.startswith(f"{case.code}: {case.names or case.path}: ")
    assert case.says in line
    assert line.isprintable()
    assert line.count(". Fix: ") == 1
    assert str(in_folder) not in line
    assert sorted(os.listdir()) == before


@dataclass
class Accepted:
    """One odd input that must be read: what it is and what is noted about it."""

    row: str
    content: Content
    note: str = ""
    path: str = "scan.nii.gz"
    options: dict[str, Any] = field(default_factory=dict)
    voxels: Any = None  # (C, X, Y, Z) or (X, Y, Z) intensities, the usual ones if None
    affine: Any = None


SCALED = {"scl_slope": 0.5, "scl_inter": 4}
FOUR = np.arange(120).reshape((5, 4, 3, 2), order="F").astype("u1")
TINY = tuple(v * 1000 for v in SROW)
ROWS = {"qform_code": 0, "srow": TINY, "pixdim": (1, 2000, 1500, 3000, 1, 1, 1, 1)}
QFORM = {"sform_code": 0, "srow": (0,) * 12}
SHIFTED = AFFINE + np.array([[0, 0, 0, 25], [0] * 4, [0] * 4, [0] * 4])
EXTENDED = header(VOXELS, vox_offset=384)[:348] + b"\1\0\0\0" + b"\xff\xff\xff\x7f" + b"BAD!" * 7 + data(VOXELS)

ACCEPTED = [
    Accepted("plain", image(), path="scan.nii"),
    Accepted("gz", GOOD),
    Accepted("N03 garbage", GOOD + b"garbage" * 14, "98 bytes after the gzip stream"),
    Accepted("N03 zeros", GOOD + bytes(512), "512 bytes after the gzip stream"),
    Accepted("N03 members", gz(image()[:300]) + gz(image()[300:357]) + gz(image()[357:])),
    Accepted("N03 one byte", GOOD + b"\x1f", "1 bytes after the gzip stream"),
    Accepted("N04 plain named gz", image()),
    Accepted("N04 gz named nii", GOOD, path="scan.nii"),
    Accepted("N08 more", image() + bytes(10), "10 bytes after the voxel data"),
    Accepted("N08 more gz", gz(image() + bytes(10)), "10 bytes after the voxel data"),
    Accepted("N12 2D", image(VOXELS[:, :, 0]), voxels=VOXELS[:, :, :1]),
    Accepted("N12 one slice", image(VOXELS[:, :, :1]), voxels=VOXELS[:, :, :1]),
    Accepted("N12 one row", image(VOXELS[:1]), voxels=VOXELS[:1]),
    Accepted("N13", image(VOXELS[..., None])),
    Accepted("N13 trailing ones", image(VOXELS[..., None, None, None])),
    Accepted("N14 channels", gz(image(FOUR)), options={"channels": 2}, voxels=np.moveaxis(FOUR, -1, 0)),
    Accepted("N14 first", gz(image(FOUR)), options={"volume": 0}, voxels=FOUR[..., 0]),
    Accepted("N14 last", image(FOUR), options={"volume": 1}, voxels=FOUR[..., 1]),
    Accepted("N14 last of many", gz(image(FOUR)), options={"volume": 1, "channels": 2}, voxels=FOUR[..., 1]),
    *[Accepted(f"types {t}", image(np.abs(VOXELS // 4).astype(t)), voxels=np.abs(VOXELS // 4)) for t in CODES],
    Accepted(
        "N18 int64",
        image(with_values("i8", -(2**24), 2**40, -(2**63))),
        voxels=with_values("f8", -(2**24), 2**40, -(2**63)),
    ),
    Accepted("N18 uint64", image(with_values("u8", 2**63)), voxels=with_values("f8", 2**63)),
    Accepted("N18 float64", image(with_values("f8", 0.1, 3e38)), voxels=with_values("f4", 0.1, 3e38)),
    Accepted(
        "N19 zero",
        image(with_values("f4", NAN, INF, 7)),
        "2 of 60 voxels (3.33 %) are NaN or infinite, set to 0",
        options={"nonfinite": "zero"},
        voxels=with_values("f4", 0, 0, 7),
    ),
    Accepted(
        "N19 zero scaled",
        image(with_values("f4", NAN, 8), **SCALED),
        "1 of 60",
        options={"nonfinite": "zero"},
        voxels=with_values("f4", -8, 8, 1) * 0.5 + 4,
    ),
    Accepted("N20", image(np.full(SHAPE, -1024, "i2")), voxels=np.full(SHAPE, -1024)),
    *[Accepted(f"N21 {s} {i}", image(scl_slope=s, scl_inter=i)) for s in (0, NAN) for i in (0, NAN, 5)],
    Accepted("N21 scaling", image(**SCALED), voxels=VOXELS * 0.5 + 4),
    Accepted("N22 negative", image(scl_slope=-2), "scl_slope is negative", voxels=VOXELS * -2.0),
    Accepted(
        "N23 large", image(with_values("u2", 60000), scl_slope=1e30), voxels=with_values("f4", 60000) * np.float32(1e30)
    ),
    Accepted("N24 0.2 voxel", image(quatern=(0, 0, 0, -6.6, 8, -9)), "differ by 0.4 mm (0.2 voxels) at a corner"),
    Accepted("N24 sform", image(quatern=(0, 0, 0, 18, 8, -9)), options={"prefer": "sform"}),
    Accepted("N24 qform", image(quatern=(0, 0, 0, 18, 8, -9)), options={"prefer": "qform"}, affine=SHIFTED),
    Accepted("N24 sform, no qform", image(quatern=(2, 0, 0, 0, 0, 0)), options={"prefer": "sform"}),
    Accepted("N24 only sform", image(qform_code=0), options={"prefer": "qform"}),
    Accepted("qform", image(**QFORM)),
    Accepted(
        "qform rounding",
        image(**QFORM | {"quatern": (0, 0, 1.000001, -7, 8, -9)}),
        affine=AFFINE * [[-1, 1, 1, 1], [1, -1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]],
    ),
    Accepted(
        "N25",
        image(qform_code=0, sform_code=0),
        "left and right are not known",
        affine=np.array([[-2, 0, 0, 4], [0, 1.5, 0, -2.25], [0, 0, 3, -3], [0, 0, 0, 1]]),
    ),
    Accepted(
        "N28 tiny", image(srow=sheared(1e-6), qform_code=0), affine=np.array([*sheared(1e-6), 0, 0, 0, 1]).reshape(4, 4)
    ),
    Accepted("N28 small", image(srow=sheared(0.02)), affine=np.array([*sheared(0.02), 0, 0, 0, 1]).reshape(4, 4)),
    *[
        Accepted(f"N29 {v}", image(pixdim=(1, 2, v, 3, 1, 1, 1, 1), qform_code=0), "the sform is used")
        for v in (0, -1.5, NAN, 7)
    ],
    Accepted(
        "N29 negative qform", image(**QFORM | {"pixdim": (1, 2, -1.5, 3, 1, 1, 1, 1)}), "pixdim[2] is -1.5, its sign"
    ),
    Accepted("N29 qfac 0", image(**QFORM | {"pixdim": (0, 2, 1.5, 3, 1, 1, 1, 1)})),
    Accepted("N29 qfac -1", image(**QFORM | {"pixdim": (-1, 2, 1.5, 3, 1, 1, 1, 1)}), affine=AFFINE * [1, 1, -1, 1]),
    Accepted(
        "N29 single slice",
        image(VOXELS[..., :1], **QFORM | {"pixdim": (1, 2, 1.5, 0, 1, 1, 1, 1)}),
        "taken as 1",
        voxels=VOXELS[..., :1],
        affine=AFFINE / [1, 1, 3, 1],
    ),
    Accepted("N30 micron", image(xyzt_units=3, **ROWS), "micron were converted to mm"),
    Accepted(
        "N30 metre", image(xyzt_units=1, srow=tuple(v / 1000 for v in SROW), qform_code=0), "metre were converted"
    ),
    Accepted("N30 with time", image(xyzt_units=2 | 8)),
    Accepted("N30 unknown", image(xyzt_units=0)),
    *[Accepted(f"N33 {n}", image(np.full((n, 1, 2), n, "u1")), voxels=np.full((n, 1, 2), n)) for n in (1, 2, 7)],
    *[
        Accepted(f"N34 v{v} {o}", gz(image(version=v, order=o, **SCALED)), voxels=VOXELS * 0.5 + 4)
        for v in (1, 2)
        for o in "<>"
    ],
    Accepted("N34 big-endian int64", image(VOXELS.astype("i8"), order=">")),
    Accepted("N34 bad extension", EXTENDED, path="scan.nii"),
    Accepted("N34 .hdr", {"a.hdr": pair(), "a.img": data(VOXELS)}, path="a.hdr"),
    Accepted("N34 .img", {"a.hdr": pair(), "a.img": data(VOXELS)}, path="a.img"),
    Accepted("N34 upper case", {"A.HDR": pair(), "A.IMG": data(VOXELS)}, path="A.IMG"),
    Accepted("N34 .img.gz", {"a.hdr": pair(), "a.img.gz": gz(data(VOXELS))}, path="a.hdr"),
    Accepted("N34 .hdr.gz", {"a.hdr.gz": gz(pair()), "a.img.gz": gz(data(VOXELS))}, path="a.hdr.gz"),
    Accepted("N34 offset", {"a.hdr": pair(vox_offset=7), "a.img": bytes(7) + data(VOXELS)}, path="a.hdr"),
    Accepted(
        "N34 pair v2",
        {"a.hdr": header(VOXELS, 2, magic=b"ni2\0\r\n\x1a\n", vox_offset=0), "a.img": data(VOXELS)},
        path="a.hdr",
    ),
    Accepted(
        "N34 .img like gzip",
        {
            "a.hdr": header(with_values("u1", 31, 139, 8), magic=b"ni1\0", vox_offset=0),
            "a.img": data(with_values("u1", 31, 139, 8)),
        },
        path="a.hdr",
        voxels=with_values("u1", 31, 139, 8),
    ),
    Accepted("N34 single named .hdr", image(), path="a.hdr"),
    Accepted("bitpix", image(bitpix=8), "bitpix is 8 for int16"),
    Accepted("P06 link", lambda: (place(GOOD, "real"), os.symlink("real", "scan.nii.gz"))),
    *[
        Accepted(f"P08 {n!r}", GOOD, path=n)
        for n in ("a b.nii.gz", "-o.nii", "é.nii", "e\u0301.nii", "$(touch pwned)", "\udcff", "a" * 255)
    ],
]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.row)
def test_accepted(case: Accepted) -> None:
    place(case.content, case.path)
    before = sorted(os.listdir())
    scan = nifti.read(case.path, **case.options)
    wanted = np.asarray(VOXELS if case.voxels is None else case.voxels)
    np.testing.assert_array_equal(
        scan.volume.intensities(), (wanted if wanted.ndim == 4 else wanted[None]).astype("f4")
    )
    np.testing.assert_allclose(scan.volume.affine, AFFINE if case.affine is None else case.affine, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(scan.header.affine, scan.volume.affine)
    assert scan.header.shape == scan.volume.shape
    assert scan.header.path == case.path
    assert [note for note in scan.header.notes if case.note in note] if case.note else scan.header.notes == ()
    assert all(note.isprintable() for note in scan.header.notes)
    inspected = nifti.inspect(case.path, prefer=case.options.get("prefer"))
    np.testing.assert_array_equal(inspected.affine, scan.header.affine)
    assert sorted(os.listdir()) == before


def test_peak_memory_of_bombs_is_small() -> None:
    """N09, N10: refused before anything is allocated."""
    place(image(dim=LARGE), "plain.nii")
    place(image(dim=(3, 1000, 1000, 1000, 1, 1, 1, 1)), "claims 2 GB.nii")
    place(gz(image(dim=(3, 1000, 1000, 1000, 1, 1, 1, 1))), "claims 2 GB.nii.gz")
    place(gz(image(dim=(3, 4096, 4096, 300, 1, 1, 1, 1), datatype=2)) + zeros_gz(16) * 300, "inflates.nii.gz")
    place(GOOD + zeros_gz(16) * 5, "surplus.nii.gz")
    place(gz(header(VOXELS, vox_offset=65 << 20)) + zeros_gz(64), "offset.nii.gz")
    nib.load("plain.nii")  # what importing nibabel costs is not what is measured
    codes = {}
    tracemalloc.start()
    for name in sorted(os.listdir()):
        with pytest.raises(SegError) as caught:
            nifti.read(name)
        codes[name] = caught.value.code
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert codes == {
        "claims 2 GB.nii": TRUNC,
        "claims 2 GB.nii.gz": TRUNC,
        "inflates.nii.gz": "E-LIMIT-VOXELS",
        "offset.nii.gz": TRUNC,
        "plain.nii": "E-LIMIT-VOXELS",
        "surplus.nii.gz": "E-LIMIT-SIZE",
    }
    assert peak < 5_000_000


def test_bombs_under_an_address_space_limit() -> None:
    """The whole process stays within 300 MB more than it needs to import, and memory it cannot get is an error."""
    place(gz(image(dim=LARGE)), "bomb.nii.gz")
    place(gz(header(VOXELS, dim=(3, 1000, 1000, 800, 1, 1, 1, 1), datatype=2)) + zeros_gz(64) * 12, "real.nii.gz")
    code = """
import resource, nibabel
from seg.infer import nifti
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for name in ("bomb.nii.gz", "real.nii.gz"):
    try:
        nifti.read(name)
    except nifti.SegError as error:
        print(error.code, int(error.exit))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n") == ["E-LIMIT-VOXELS 13", "E-LIMIT-MEMORY 13", ""], done.stderr


def test_every_cut_of_a_gzip_file_is_refused() -> None:
    """N01, at each byte."""
    for length in range(len(GOOD)):
        place(GOOD[:length])
        with pytest.raises(SegError) as caught:
            nifti.read("scan.nii.gz")
        assert caught.value.code == (TRUNC if length >= 2 else NOTNIFTI), length


@pytest.mark.parametrize("level", [0, 6])
def test_no_damaged_bit_of_a_gzip_file_changes_the_scan(level: int) -> None:
    """N02, at each bit: an error, or the very same scan (a bit that carries nothing, as in the time stamp)."""
    small = gz(image(VOXELS[:2, :2, :2]), level)
    place(small)
    good = nifti.read("scan.nii.gz")
    survived = 0
    for at in range(len(small)):
        for bit in range(8):
            place(flipped(small, at, 1 << bit))
            try:
                scan = nifti.read("scan.nii.gz")
            except SegError:
                continue
            survived += 1
            assert scan.header.raw.binaryblock == good.header.raw.binaryblock
            np.testing.assert_array_equal(scan.volume.voxels, good.volume.voxels)
            np.testing.assert_array_equal(scan.volume.affine, good.volume.affine)
    assert 6 * 8 <= survived < len(small), "time, flags and system in the gzip header, codes that no symbol uses"


@pytest.mark.parametrize("length", [4094, 4095, 4096, 4097])
def test_gzip_member_that_ends_where_a_chunk_of_the_reader_ends(length: int) -> None:
    """N03, where what follows a member is not yet in memory."""
    member = gz(image()[:400])
    fields = length - len(member) - 2
    padded = member[:3] + b"\4" + member[4:10] + fields.to_bytes(2, "little") + bytes(fields) + member[10:]
    assert len(padded) == length
    place(padded + gz(image()[400:]) + b"garbage")
    scan = nifti.read("scan.nii.gz")
    np.testing.assert_array_equal(scan.volume.voxels[0], VOXELS)
    assert scan.header.notes == ("7 bytes after the gzip stream were ignored",)


def test_mutated_headers_never_crash() -> None:
    """Random fields get random and extreme values; the answer is a sound scan or a `SegError`."""
    generator = random.Random(1)
    extremes = [b"\0", b"\xff", b"\x7f\x80\0\0"[::-1], b"\x7f\xc0\0\0"[::-1], b"\xff\xff\xff\x7f", b"\1"]
    outcomes = set()
    for version in (1, 2):
        good = image(version=version)
        for _ in range(1500):
            content = bytearray(good)
            for _ in range(generator.randint(1, 3)):
                offset, kind = FIELDS[version][generator.choice(sorted(FIELDS[version])[:-1])]
                at = offset + generator.randrange(struct.calcsize("=" + kind))
                piece = generator.choice([*extremes, generator.randbytes(2)])
                content[at : at + len(piece)] = piece
            place(bytes(content))
            try:
                scan = nifti.read("scan.nii.gz", max_voxels=100_000, volume=0)
                outcomes.add("scan")
                assert np.isfinite(scan.volume.intensities()).all()
                assert np.isfinite(np.linalg.inv(scan.volume.affine)).all()
            except SegError as error:
                outcomes.add(error.code)
    assert {"scan", HEADER, DIMS, "E-NII-TYPE", TRUNC} <= outcomes


def test_affine_agrees_with_nibabel() -> None:
    """Random qforms and sforms, both versions and byte orders."""
    rng = np.random.default_rng(5)
    for number in range(60):
        quaternion = rng.normal(size=4)
        quaternion *= np.sign(quaternion[0]) / np.linalg.norm(quaternion)
        zooms = rng.uniform(0.3, 5, 3)
        turn = nib.quaternions.quat2mat(quaternion) * zooms
        version, order = 1 + number % 2, "<>"[number // 2 % 2]
        edits: dict[str, Any] = {
            "pixdim": (rng.choice([-1.0, 1.0]), *zooms, 1, 1, 1, 1),
            "quatern": (*quaternion[1:], *rng.uniform(-200, 200, 3)),
            "srow": tuple(np.hstack([turn, rng.uniform(-200, 200, (3, 1))]).flat),
            "qform_code": number % 3 != 0,
            "sform_code": number % 3 == 0,
        }
        place(image(version=version, order=order, **edits), "scan.nii")
        found = nifti.inspect("scan.nii")
        assert found.form == ("sform" if number % 3 == 0 else "qform")
        np.testing.assert_allclose(found.affine, nib.load("scan.nii").affine, rtol=1e-5, atol=1e-5)


def test_nibabel_files_are_read_alike() -> None:
    """Files of the usual writer, with its extensions: voxels, scaling and affine as nibabel gives them."""
    rng = np.random.default_rng(6)
    affine = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.7, 0.2, 0.1) * [-1, 1.2, 2.5], [3, 4, 5])
    values = rng.normal(100, 50, (7, 6, 5))
    for kind in (nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair):
        scan = kind(values, affine)
        scan.set_data_dtype(np.int16)  # so that nibabel picks a slope and an intercept
        scan.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"text"))
        name = "scan.img" if kind is nib.Nifti1Pair else "scan.nii.gz"
        nib.save(scan, name)
        ours = nifti.read(name)
        np.testing.assert_allclose(ours.volume.intensities()[0], nib.load(name).get_fdata(), rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(ours.volume.affine, affine, rtol=1e-6, atol=1e-5)
        assert ours.volume.voxels.dtype == np.int16
        assert ours.header.channels == 1


def test_integers_stay_as_stored() -> None:
    """No float copy of a scan is made while it is read; the voxels are a view of one buffer."""
    for name in ("i1", "u1", "i2", "u2", "i4", "u4", "f4"):
        place(gz(image(np.abs(VOXELS // 4).astype(name), order=">")))
        voxels = nifti.read("scan.nii.gz").volume.voxels
        assert voxels.dtype == np.dtype(name)
        assert voxels.dtype.isnative
        assert voxels[0].flags.f_contiguous


@pytest.mark.parametrize("change", ["append", "touch"])
def test_file_that_changes_while_it_is_read(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """N37."""
    place(image(), "scan.nii")
    drain = ByteStream.drain

    def meddle(stream: ByteStream) -> int:
        if change == "append":
            with open("scan.nii", "ab") as file:
                file.write(b"more")
        os.utime("scan.nii", ns=(1, 1))
        return drain(stream)

    monkeypatch.setattr(ByteStream, "drain", meddle)
    with pytest.raises(SegError) as caught:
        nifti.read("scan.nii")
    assert (caught.value.code, caught.value.exit) == ("E-IN-CHANGED", MISSING)


@pytest.mark.parametrize("content", [image(RANDOM), WHOLE], ids=["plain", "gz"])
def test_disk_error_while_reading(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    place(content)
    fdopen = os.fdopen

    class Failing:
        def __init__(self, *args: Any, **options: Any) -> None:
            self.file = fdopen(*args, **options)
            self.calls = 0

        def __getattr__(self, name: str) -> Any:
            if name in ("read", "readinto"):
                self.calls += 1
                if self.calls > 1:
                    raise OSError(5, "Input/output error")
            return getattr(self.file, name)

    monkeypatch.setattr(os, "fdopen", Failing)
    with pytest.raises(SegError) as caught:
        nifti.read("scan.nii.gz")
    assert (caught.value.code, caught.value.exit) == ("E-IN-READ", MISSING)
    assert "Input/output error" in str(caught.value)


def test_no_descriptor_stays_open() -> None:
    place(GOOD)
    place(GOOD[:50], "cut.nii.gz")
    place({"a.hdr": pair(), "a.img": data(VOXELS)})
    nifti.read("scan.nii.gz")
    before = os.listdir("/proc/self/fd")
    for name in ("scan.nii.gz", "cut.nii.gz", "a.hdr", "absent.nii"):
        try:
            nifti.read(name)
        except SegError:
            assert name in ("cut.nii.gz", "absent.nii")
    assert os.listdir("/proc/self/fd") == before


def test_import_does_not_load_nibabel() -> None:
    code = "import sys, seg.infer.nifti; sys.exit('nibabel' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_code_of_the_reader_is_tested() -> None:
    """A code that no row raises is a code that nobody has seen work."""
    folder = Path(nifti.__file__).parent
    names = ("nifti_geometry", "nifti_header", "nifti_stream", "nifti_voxels")
    source = "".join((folder / f"{name}.py").read_text() for name in names)
    raised = set(re.findall(r'"(E-[A-Z0-9]+-[A-Z0-9]+)"', source))
    tested = {case.code for case in REFUSED} | {"E-IN-CHANGED", "E-LIMIT-MEMORY"}  # have tests of their own
    assert raised - tested == set()
