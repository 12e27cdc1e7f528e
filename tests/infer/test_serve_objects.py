"""What is read of one received object, and which ones are not whole (S04)."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra serve")

from nodes import mr_series, write
from pydicom import Dataset, dcmwrite
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from seg.infer.serve.names import Key, is_uid
from seg.infer.serve.objects import Truncated, read_facts

Change = Callable[[bytes], bytes]


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write(mr_series("a", 1, SeriesDescription="T1\\x", NumberOfSeriesRelatedInstances=30), tmp_path)[0]


def test_facts_of_a_whole_object(plain: Path) -> None:
    facts = read_facts(plain)
    assert facts.uids_are_valid()
    assert (facts.modality, facts.description, facts.series_length()) == ("MR", "T1", 30)
    assert read_facts(plain) == facts


def test_implicit_and_compressed_objects_are_whole(tmp_path: Path) -> None:
    one = mr_series("a", 1)[0]
    one.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dcmwrite(tmp_path / "implicit", one, implicit_vr=True, little_endian=True, enforce_file_format=True)
    two = mr_series("a", 1)[0]
    two.compress(RLELossless)
    two.save_as(tmp_path / "rle", enforce_file_format=True)
    for name in ("implicit", "rle"):
        assert read_facts(tmp_path / name).uids_are_valid()


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    for syntax in ("plain", "rle"):
        one = mr_series("a", 1)[0]
        if syntax == "rle":
            one.compress(RLELossless)
        path = tmp_path / syntax
        one.save_as(path, enforce_file_format=True)
        whole = path.read_bytes()
        for length in (*range(len(whole) - 20, len(whole)), *range(400, len(whole) - 20, 37)):
            path.write_bytes(whole[:length])
            with pytest.raises(Truncated):
                read_facts(path)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: data[: data.index(b"\xe0\x7f\x10\x00")], id="no pixels"),
        pytest.param(lambda data: data + b"\xe0\x7f\x11", id="header of a further element cut"),
        pytest.param(
            lambda data: data[: data.index(b"\xe0\x7f\x10\x00") + 8] + struct.pack("<L", 0xFFFFFFF0) + b"12",
            id="claims 4 GB",
        ),
    ],
)
def test_object_that_ends_wrongly_is_refused(plain: Path, change: Change) -> None:
    plain.write_bytes(change(plain.read_bytes()))
    with pytest.raises(Truncated):
        read_facts(plain)


def test_deep_nesting_is_refused_and_not_followed(plain: Path) -> None:
    data = plain.read_bytes()
    at = data.index(b"\xe0\x7f\x10\x00")
    item = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    plain.write_bytes(data[:at] + item * 3000 + data[at:])
    with pytest.raises(Truncated):
        read_facts(plain)


def test_padding_after_the_pixels_is_no_fault(plain: Path) -> None:
    plain.write_bytes(plain.read_bytes() + b"\0\0")
    assert read_facts(plain).uids_are_valid()


@pytest.mark.parametrize("text", ["", "1..2", "1.2.", "../../etc/passwd", "1.2\n", "1" * 65, "1.2.x", "\uff11.2"])
def test_hostile_uids_are_none(text: str) -> None:
    assert not is_uid(text)


@pytest.mark.parametrize("text", ["0", "-3", "3.5", "10000000", "many", ""])
def test_senseless_counts_are_none(tmp_path: Path, text: str) -> None:
    one: Dataset = mr_series("a", 1)[0]
    one.add_new(0x00201209, "LO", text)
    assert read_facts(write([one], tmp_path)[0]).series_length() is None


def test_names_depend_on_uid_and_installation(tmp_path: Path) -> None:
    key, other = Key(tmp_path / "key"), Key(tmp_path / "other")
    assert key.name("1.2") == Key(tmp_path / "key").name("1.2") != key.name("1.3")
    assert key.name("1.2") != other.name("1.2")
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
