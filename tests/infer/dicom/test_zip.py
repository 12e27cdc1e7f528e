"""Series in zip files: the same volume, nothing written, and archives that are traps."""

import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from commands import run
from dicom_files import enhanced_dataset, save, write_series
from known import boxes

from seg.infer.dicom import files
from seg.infer.dicom.read import read
from seg.infer.errors import SegError

NAMES = [
    "../../../../tmp/evil.dcm",
    "/etc/evil.dcm",
    "C:\\Windows\\evil.dcm",
    "..\\..\\evil.dcm",
    "a/b/c.dcm",
    "a/b/c.dcm",  # twice the same name
    "con",
    "line\nbreak.dcm",
    "ü\udc80.dcm".encode("utf-8", "replace").decode(),
]


def pack(target: Path, sources: Sequence[Path], names: Sequence[str], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(target, "w", kind) as archive:
        for source, name in zip(sources, names, strict=True):
            archive.writestr(zipfile.ZipInfo(name), source.read_bytes(), kind)
    return target


@pytest.fixture
def slices(tmp_path: Path) -> list[Path]:
    return write_series(tmp_path / "series", boxes())


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_names_are_names_alone(
    tmp_path: Path, slices: list[Path], kind: int, threshold_model: Callable[..., str]
) -> None:
    """No member is written anywhere, whatever it is called; the volume is the folder's."""
    archive = pack(tmp_path / "scan.zip", slices, NAMES, kind)
    model, out = threshold_model(), tmp_path / "out"
    before = sorted(p for p in tmp_path.rglob("*") if "out" not in p.parts)
    assert run(str(archive), "-o", f"{out}/", "-m", model, "-q") == 0
    assert sorted(p for p in tmp_path.rglob("*") if "out" not in p.parts) == before
    assert sorted(p.name for p in out.iterdir()) == ["scan.nii.gz", "seg-manifest.jsonl"]
    assert not Path("/tmp/evil.dcm").exists()
    scan, folder = read(str(archive)), read(str(tmp_path / "series"))
    np.testing.assert_array_equal(scan.volume.voxels, folder.volume.voxels)
    np.testing.assert_array_equal(scan.volume.affine, folder.volume.affine)
    assert scan.series is not None
    assert len(scan.series.files) == 9
    assert all(file.startswith(f"{archive}/") for file in scan.series.files)


def test_what_else_a_zip_file_holds(tmp_path: Path, slices: list[Path]) -> None:
    names = [f"study/{k}" for k in range(9)]
    archive = pack(tmp_path / "scan.zip", slices, names)
    with zipfile.ZipFile(archive, "a") as more:
        more.mkdir("study/deep")
        more.writestr("__MACOSX/study/._0", b"\0" * 200)
        more.writestr("study/.DS_Store", b"\0\0\0\1Bud1")
        more.writestr("README.txt", "text")
        more.writestr("inner.zip", (tmp_path / "scan.zip").read_bytes()[:0] + b"PK\x05\x06" + bytes(18))
    scan = read(str(archive))
    np.testing.assert_array_equal(scan.volume.voxels[0], boxes())
    assert "set aside: 2 files that are not DICOM" in scan.header.notes


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("turned", [False, True])
def test_a_multiframe_member_is_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, turned: bool
) -> None:
    """Its frames in slice order, backward or shuffled: what is unpacked is its header and once the whole of it."""
    voxels = np.random.default_rng(0).integers(0, 3000, (64, 64, 64)).astype(np.int16)
    order = np.arange(64)[::-1].tolist() if turned else np.random.default_rng(1).permutation(64).tolist()
    plain = save(tmp_path / "e.dcm", enhanced_dataset(voxels, order=order))
    archive = pack(tmp_path / "scan.zip", [plain], ["e.dcm"], kind)
    unpacked = 0
    original = zipfile.ZipExtFile._read1  # type: ignore[attr-defined]

    def counted(stream: zipfile.ZipExtFile, count: int) -> bytes:
        nonlocal unpacked
        data: bytes = original(stream, count)
        unpacked += len(data)
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, "_read1", counted)
    scan = read(str(archive))
    np.testing.assert_array_equal(scan.volume.voxels[0], voxels)
    assert unpacked < 2 * plain.stat().st_size + (1 << 18)


def refused(path: Path, code: str, status: int, says: str = "") -> None:
    with pytest.raises(SegError) as caught:
        read(str(path))
    assert (caught.value.code, caught.value.exit) == (code, status), str(caught.value)
    assert says in str(caught.value)


def test_zeros_that_unpack_to_gigabytes(tmp_path: Path, slices: list[Path]) -> None:
    """A thousand times its packed size: not unpacked, for its first bytes are no DICOM."""
    archive = pack(tmp_path / "scan.zip", slices, [f"{k}" for k in range(9)])
    with (
        zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as more,
        more.open("bomb", "w", force_zip64=True) as stream,
    ):
        piece = bytes(1 << 24)
        for _ in range(16):
            stream.write(piece)
    import tracemalloc

    tracemalloc.start()
    scan = read(str(archive))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(scan.volume.voxels[0], boxes())
    assert peak < 20e6


def claim(archive: Path, name: str, size: int) -> None:
    """Change a member's unpacked size in the central directory."""
    data = bytearray(archive.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    while data[at + 46 : at + 46 + len(name)] != name.encode():
        at = data.rindex(b"PK\x01\x02", 0, at)
    struct.pack_into("<I", data, at + 24, size)
    archive.write_bytes(data)


def test_a_claim_that_deflate_cannot_keep(tmp_path: Path, slices: list[Path]) -> None:
    archive = pack(tmp_path / "scan.zip", slices, [f"{k}" for k in range(9)])
    claim(archive, "4", 0xF0000000)
    refused(archive, "E-ZIP-DAMAGED", 11, "claims 4,026,531,840 bytes")


def test_an_encrypted_member(tmp_path: Path, slices: list[Path]) -> None:
    archive = pack(tmp_path / "scan.zip", slices, [f"{k}" for k in range(9)])
    data = bytearray(archive.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    archive.write_bytes(data)
    refused(archive, "E-ZIP-REFUSED", 12, "is encrypted")


def test_a_member_without_a_name(tmp_path: Path, slices: list[Path]) -> None:
    """A name in the directory that begins with NUL is read as none."""
    archive = pack(tmp_path / "scan.zip", slices, [f"{k}" for k in range(9)])
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 46] = 0
    archive.write_bytes(data)
    refused(archive, "E-ZIP-DAMAGED", 11, "without a name")


def test_an_uncommon_compression(tmp_path: Path, slices: list[Path]) -> None:
    """LZMA and bzip2 have no bound on how much a byte may unpack to."""
    archive = pack(tmp_path / "scan.zip", slices, [f"{k}" for k in range(9)], zipfile.ZIP_LZMA)
    refused(archive, "E-ZIP-REFUSED", 12, "uncommon")


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_in_the_pixels(tmp_path: Path, kind: int) -> None:
    """The checksum is always compared, for the last member's pixels too."""
    voxels = np.random.default_rng(0).integers(0, 3000, (64, 50, 4)).astype(np.int16)
    paths = write_series(tmp_path / "series", voxels)
    archive = pack(tmp_path / "scan.zip", paths, [f"{k}" for k in range(4)], kind)
    read(str(archive))
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") - 1000] ^= 4
    archive.write_bytes(data)
    refused(archive, "E-ZIP-DAMAGED", 11, "scan.zip/3")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_cut_zip_file(tmp_path: Path, slices: list[Path], share: float) -> None:
    archive = pack(tmp_path / "scan.zip", slices, [f"{k}" for k in range(9)])
    data = archive.read_bytes()
    archive.write_bytes(data[: int(share * len(data))])
    refused(archive, "E-ZIP-DAMAGED", 11)


def test_too_many_members(tmp_path: Path, slices: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tmp_path / "scan.zip", slices, [f"{k}" for k in range(9)])
    monkeypatch.setattr(files, "MAX_FILES", 8)
    refused(archive, "E-LIMIT-FILES", 13, "9 members")


def test_an_empty_zip_file(tmp_path: Path) -> None:
    pack(tmp_path / "scan.zip", [], [])
    refused(tmp_path / "scan.zip", "E-DCM-EMPTY", 10)


def test_missing_slices_are_named_by_member(tmp_path: Path, slices: list[Path]) -> None:
    archive = pack(tmp_path / "scan.zip", slices[:4] + slices[5:], [f"in/{k}" for k in range(8)])
    refused(archive, "E-DCM-MISSING", 12, "between in/3 and in/4")
