"""Writing masks: the scan's grid to the byte, nothing else of it, and only where it may be written."""

import gzip
import itertools
import os
import random
import signal
import socket
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nifti_bytes import (
    AFFINE,
    CODES,
    SHAPE,
    START,
    TEXTS,
    VOXELS,
    data,
    field_bytes,
    gz,
    header,
    image,
    with_values,
)

from seg.infer import nifti, nifti_write
from seg.infer.errors import Exit, SegError

MASK = (VOXELS > 0).astype("u1") * 3
GRID = ("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern", "srow")
ODD: dict[str, Any] = {  # values that any recomputation of the grid would change
    "pixdim": (-1.0, 2.1, -1.5, 0.0, 0.7, 9, 8, 7),
    "srow": (2.0000002, 1e-7, 0, -7.1, 0, 1.5, 0, 8.3, 0, 0, 3.0, -9.7),
    "quatern": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    "qform_code": 0,
    "sform_code": 4,
    "xyzt_units": 2 | 16,
    "scl_slope": 3,
    "scl_inter": -8,
}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests use relative paths, so that "as typed" differs from resolved."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scan_header(content: bytes) -> nifti.NiftiHeader:
    Path("scan.nii").write_bytes(content)
    return nifti.inspect("scan.nii")


def content_of(path: str) -> bytes:
    content = Path(path).read_bytes()
    return gzip.decompress(content) if path.endswith(".gz") else content


@pytest.mark.parametrize(
    ("version", "order", "name", "dtype"),
    list(itertools.product((1, 2), "<>", ("mask.nii", "mask.nii.gz"), ("u1", "u2"))),
)
def test_grid_is_the_scans_to_the_byte(version: int, order: str, name: str, dtype: str) -> None:
    source = image(version=version, order=order, **ODD)
    mask = MASK.astype(dtype) * (1 if dtype == "u1" else 300)
    nifti_write.write_mask(name, mask, scan_header(source))
    written = content_of(name)
    for field in GRID:
        assert field_bytes(written, field, version) == field_bytes(source, field, version), field
    expected = header(mask, version, order, **ODD | {"scl_slope": 1, "scl_inter": 0, "datatype": CODES[dtype]})
    assert written == expected + data(mask, order)
    loaded = nib.load(name)
    assert type(loaded) is (nib.Nifti1Image if version == 1 else nib.Nifti2Image)
    np.testing.assert_array_equal(np.asarray(loaded.dataobj), mask)
    np.testing.assert_array_equal(loaded.affine, nib.load("scan.nii").affine)
    ours = nifti.read(name)
    np.testing.assert_array_equal(ours.volume.voxels[0], mask)
    np.testing.assert_array_equal(ours.volume.affine, nifti.inspect("scan.nii").affine)


@pytest.mark.parametrize(
    ("source", "shape", "dim"),
    [
        (image(VOXELS[..., None]), SHAPE, (3, *SHAPE, 1, 1, 1, 1)),
        (image(np.zeros((*SHAPE, 2), "i2")), SHAPE, (3, *SHAPE, 1, 1, 1, 1)),
        (image(VOXELS[:, :, 0]), (5, 4, 1), (2, 5, 4, 1, 1, 1, 1, 1)),
        (image(VOXELS[:, :, :1]), (5, 4, 1), (3, 5, 4, 1, 1, 1, 1, 1)),
    ],
    ids=["3D as 4D", "two channels", "2D", "one slice"],
)
def test_mask_has_the_spatial_axes_of_the_scan(source: bytes, shape: tuple[int, ...], dim: tuple[int, ...]) -> None:
    mask = np.arange(np.prod(shape), dtype="u1").reshape(shape)
    nifti_write.write_mask("mask.nii.gz", mask, scan_header(source))
    assert tuple(nib.load("mask.nii.gz").header["dim"]) == dim
    np.testing.assert_array_equal(nifti.read("mask.nii.gz").volume.voxels[0], mask)


def test_pair_gives_a_single_file() -> None:
    Path("a.hdr").write_bytes(header(VOXELS, magic=b"ni1\0", vox_offset=0))
    Path("a.img").write_bytes(data(VOXELS))
    nifti_write.write_mask("mask.nii", MASK, nifti.read("a.hdr").header)
    assert content_of("mask.nii") == image(MASK)


@pytest.mark.parametrize("version", [1, 2])
def test_no_text_is_copied(version: int) -> None:
    """N36: canaries in every text field and in an extension."""
    source = bytearray(image(version=version, vox_offset=START[version] + 32))
    for offset, size in TEXTS[version]:
        source[offset : offset + size] = b"CANARY" + b"\xaa" * (size - 6)
    extension = b"\1\0\0\0" + (32).to_bytes(4, "little") + (6).to_bytes(4, "little") + b"CANARY in a comment     "
    source[START[version] - 4 : START[version]] = extension
    like = scan_header(bytes(source))
    assert b"CANARY" in like.raw.binaryblock, "the canaries must have been there"
    for name in ("mask.nii", "mask.nii.gz"):
        nifti_write.write_mask(name, MASK, like)
        written = content_of(name)
        assert written == image(MASK, version=version)
        assert b"CANARY" not in written
        assert b"\xaa" not in written


def test_same_mask_gives_the_same_bytes() -> None:
    like = scan_header(image())
    for name in ("one.nii.gz", "other name.nii.gz"):
        nifti_write.write_mask(name, MASK, like)
    written = Path("one.nii.gz").read_bytes()
    assert written == Path("other name.nii.gz").read_bytes()
    assert written[:3] == b"\x1f\x8b\x08"
    assert written[3] == 0, "no file name, comment or extra field"
    assert written[4:8] == bytes(4), "no time"


def test_any_memory_layout_gives_the_same_file() -> None:
    """A mask comes back from reorientation as a flipped and permuted view; slabs must not change the result."""
    mask = np.random.default_rng(0).integers(0, 4, (211, 113, 300)).astype("u1")
    like = scan_header(image(mask))
    assert mask.size > nifti_write._SLAB, "more than one slab"
    for number, layout in enumerate((mask, np.asfortranarray(mask), mask[::-1, :, ::-1].copy()[::-1, :, ::-1])):
        nifti_write.write_mask(f"{number}.nii", layout, like)
        assert content_of(f"{number}.nii") == image(mask)


@pytest.mark.parametrize("mask", [MASK[:-1], MASK.astype("i2"), MASK.astype(bool), MASK[None]])
def test_wrong_mask_is_a_bug(mask: Any) -> None:
    like = scan_header(image())
    with pytest.raises(ValueError, match="mask must be"):
        nifti_write.write_mask("mask.nii", mask, like)
    assert os.listdir() == ["scan.nii"]


def test_existing_file_is_kept_without_overwrite() -> None:
    like = scan_header(image())
    Path("mask.nii").write_bytes(b"mine")
    with pytest.raises(SegError) as caught:
        nifti_write.write_mask("mask.nii", MASK, like)
    assert (caught.value.code, caught.value.exit) == ("E-OUT-EXISTS", Exit.OUTPUT)
    assert Path("mask.nii").read_bytes() == b"mine"
    nifti_write.write_mask("mask.nii", MASK, like, overwrite=True)
    assert Path("mask.nii").read_bytes() == image(MASK)


def test_mask_over_its_own_scan_survives() -> None:
    """The header object holds all that is needed, so that even this cannot lose the grid."""
    scan = nifti.read(scan_header(image(with_values("f4", 7))).path)
    nifti_write.write_mask("scan.nii", MASK, scan.header, overwrite=True)
    np.testing.assert_allclose(nifti.read("scan.nii").volume.affine, AFFINE)


REFUSED = {
    "P10 png": ("mask.png", "E-OUT-SUFFIX", Exit.USAGE),
    "P10 none": ("mask", "E-OUT-SUFFIX", Exit.USAGE),
    "P10 gz": ("mask.gz", "E-OUT-SUFFIX", Exit.USAGE),
    "P10 no stem": (".nii.gz", "E-OUT-SUFFIX", Exit.USAGE),
    "P02 same": ("scan.nii", "E-OUT-SAME", Exit.OUTPUT),
    "P02 dot": ("./scan.nii", "E-OUT-SAME", Exit.OUTPUT),
    "P02 through a folder": ("folder/../scan.nii", "E-OUT-SAME", Exit.OUTPUT),
    "P02 symbolic link": ("soft.nii", "E-OUT-SAME", Exit.OUTPUT),
    "P02 hard link": ("hard.nii", "E-OUT-SAME", Exit.OUTPUT),
    "P03 exists": ("other.nii", "E-OUT-EXISTS", Exit.OUTPUT),
    "P04 no folder": ("absent/mask.nii", "E-OUT-DIR", Exit.OUTPUT),
    "P04 file as folder": ("scan.nii/mask.nii", "E-OUT-DIR", Exit.OUTPUT),
    "P04 folder": ("folder.nii", "E-OUT-DIR", Exit.OUTPUT),
    "P07 link": ("victim.nii", "E-OUT-EXISTS", Exit.OUTPUT),
    "P07 dangling link": ("dangling.nii", "E-OUT-EXISTS", Exit.OUTPUT),
    "pipe": ("pipe.nii", "E-OUT-KIND", Exit.OUTPUT),
    "socket": ("socket.nii", "E-OUT-KIND", Exit.OUTPUT),
    "name too long": ("a" * 300 + ".nii", "E-OUT-DIR", Exit.OUTPUT),
}
FREE = ("mask.nii", "mask.nii.gz", "MASK.NII.GZ", "folder/mask.nii", "folder/../mask.nii")
REPLACEABLE = ("other.nii", "victim.nii", "dangling.nii")


@pytest.fixture
def crowded() -> None:
    Path("scan.nii").write_bytes(image())
    Path("other.nii").write_bytes(b"other")
    os.mkdir("folder")
    os.mkdir("folder.nii")
    os.symlink("scan.nii", "soft.nii")
    os.link("scan.nii", "hard.nii")
    os.symlink("other.nii", "victim.nii")
    os.symlink("absent", "dangling.nii")
    os.mkfifo("pipe.nii")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.nii")


@pytest.mark.usefixtures("crowded")
@pytest.mark.parametrize("row", REFUSED)
def test_output_is_refused_before_any_work(row: str) -> None:
    path, code, status = REFUSED[row]
    before = sorted(os.listdir())
    for overwrite in (False, True):
        if overwrite and path in REPLACEABLE:
            nifti_write.check_output(path, ["scan.nii"], overwrite)
            continue
        with pytest.raises(SegError) as caught:
            nifti_write.check_output(path, ["unrelated.nii", "scan.nii"], overwrite)
        assert (caught.value.code, caught.value.exit) == (code, status)
        assert str(caught.value).startswith(f"{code}: {path}: ")
        assert str(caught.value).isprintable()
    assert sorted(os.listdir()) == before


@pytest.mark.usefixtures("crowded")
@pytest.mark.parametrize("path", FREE)
def test_free_output_is_accepted_and_nothing_is_made(path: str) -> None:
    nifti_write.check_output(path, ["scan.nii", "unrelated.nii"], False)
    assert not os.path.lexists(path)
    nifti_write.write_mask(path, MASK, nifti.inspect("scan.nii"))
    np.testing.assert_array_equal(nifti.read(path).volume.voxels[0], MASK)


@pytest.mark.usefixtures("crowded")
@pytest.mark.parametrize("path", REPLACEABLE)
def test_link_is_replaced_and_its_target_kept(path: str) -> None:
    """P07."""
    nifti_write.write_mask(path, MASK, nifti.inspect("scan.nii"), overwrite=True)
    assert not os.path.islink(path)
    assert Path(path).read_bytes() == image(MASK)
    assert path == "other.nii" or Path("other.nii").read_bytes() == b"other"
    assert not os.path.exists("absent")


def test_read_only_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """P04. The superuser may write anywhere, so the kernel's answer is replaced."""
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    with pytest.raises(SegError) as caught:
        nifti_write.check_output("mask.nii", [], False)
    assert (caught.value.code, caught.value.exit) == ("E-OUT-DIR", Exit.OUTPUT)
    assert asked == [(os.curdir, os.W_OK | os.X_OK)]


def test_mask_of_a_compressed_scan_keeps_its_grid() -> None:
    Path("scan.nii.gz").write_bytes(gz(image(**ODD)))
    nifti_write.write_mask("mask.nii.gz", MASK, nifti.read("scan.nii.gz").header)
    assert field_bytes(content_of("mask.nii.gz"), "srow") == field_bytes(image(**ODD), "srow")


def test_mask_writer_killed_at_random_moments() -> None:
    """P14: the mask is absent or one of the two being written, readable to its checksum."""
    generator = random.Random(0)
    masks = [np.random.default_rng(seed).integers(0, 200, (60, 60, 60)).astype("u1") for seed in (1, 2)]
    like = scan_header(image(masks[0]))
    seen = 0
    for _ in range(30):
        child = os.fork()
        if child == 0:
            while True:
                for mask in masks:
                    nifti_write.write_mask("mask.nii.gz", mask, like, overwrite=True)
        time.sleep(generator.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if os.path.exists("mask.nii.gz"):
            seen += 1
            voxels = nifti.read("mask.nii.gz").volume.voxels[0]
            assert any(np.array_equal(voxels, mask) for mask in masks)
            os.unlink("mask.nii.gz")
        assert len(os.listdir()) <= 2, "the scan and at most one stale file"
    assert seen > 0, "no writer came to its end, so nothing was tested"
