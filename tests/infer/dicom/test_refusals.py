"""DICOM that is refused: one line with code, files and fix, the right exit status, and nothing left behind."""

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from dicom_files import dataset_of, enhanced_dataset, on, save, setting, uid, write_series
from known import boxes
from pydicom import Dataset, dcmread

from seg.infer.dicom import files, study
from seg.infer.dicom.read import DicomOptions, read
from seg.infer.errors import SegError

Model = Callable[..., str]
Make = Callable[[Path], Any]


def series(**options: Any) -> Make:
    """A folder with one series."""
    return lambda folder: write_series(folder / "s", boxes(), **options)


def two_series(folder: Path) -> None:
    write_series(folder / "s" / "a", boxes(), series=1)
    write_series(folder / "s" / "b", boxes(), series=2)


def localizer_of_other_name(folder: Path) -> None:
    """A sagittal slice under the same series UID that does not say what it is (D02)."""
    write_series(folder / "s", boxes())
    write_series(folder / "s" / "x", boxes()[..., :1], orientation=(0, 1, 0, 0, 0, -1), edit=setting(
        SOPInstanceUID=uid("x")))  # fmt: skip


def duplicate(**elements: Any) -> Make:
    """A second object at the place of slice 3 (D04)."""

    def make(folder: Path) -> None:
        path = write_series(folder / "s", boxes())[3]
        dataset = dcmread(path)
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        save(folder / "s" / "twice.dcm", dataset)

    return make


def other_pixels(folder: Path) -> None:
    duplicate(PixelData=bytes(2 * 20 * 15))(folder)


def times(*, drop: int | None = None, **kind: Any) -> Make:
    """Three images at each place: times, or kinds that differ in an element (D09, D10, D11)."""

    def make(folder: Path) -> None:
        for t in range(3):
            values = {keyword: choices[t] for keyword, choices in kind.items()}
            write_series(folder / "s" / str(t), boxes(), skip=(drop,) if t == 2 and drop is not None else (), edit=(
                lambda k, d, t=t, v=values: on(None, SOPInstanceUID=uid(t, k), TemporalPositionIdentifier=t, **v)(k, d)
            ))  # fmt: skip

    return make


def two_stacks(folder: Path) -> None:
    """D09: a multi-frame image with axial and sagittal frames."""
    dataset = enhanced_dataset(boxes())
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        plane = Dataset()
        turned = groups.FrameContentSequence[0].InStackPositionNumber > 5
        plane.ImageOrientationPatient = [0, 1, 0, 0, 0, -1] if turned else [1, 0, 0, 0, 1, 0]
        groups.PlaneOrientationSequence = [plane]
    save(folder / "s" / "m.dcm", dataset)


def enhanced_times(folder: Path) -> None:
    """Two multi-frame objects, each half of a volume."""
    for part in range(2):
        dataset = enhanced_dataset(boxes(), order=range(part, 9, 2))
        dataset.SOPInstanceUID = uid("part", part)
        save(folder / "s" / f"{part}.dcm", dataset)


def cut(share: float) -> Make:
    """D14: the last file ends early."""

    def make(folder: Path) -> None:
        path = write_series(folder / "s", boxes())[-1]
        data = path.read_bytes()
        path.write_bytes(data[: len(data) - max(1, int(600 * share))])

    return make


def bytes_of_last(change: Callable[[bytes], bytes]) -> Make:
    def make(folder: Path) -> None:
        path = write_series(folder / "s", boxes())[-1]
        path.write_bytes(change(path.read_bytes()))

    return make


def raw(keyword: str, vr: str, value: bytes) -> Make:
    """An element of the last slice with a value that pydicom would not write (D31)."""
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    assert tag is not None

    def make(folder: Path) -> None:
        path = write_series(folder / "s", boxes())[-1]
        dataset = dcmread(path)
        dataset[keyword].value = None
        dataset[keyword].VR = vr
        dataset.save_as(path)
        head = struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), 0)
        padded = value + b" " * (len(value) % 2)
        data = path.read_bytes()
        assert data.count(head) == 1
        path.write_bytes(data.replace(head, head[:6] + struct.pack("<H", len(padded)) + padded))

    return make


def native_as(uid_text: str) -> Make:
    """D12: a transfer syntax that nobody knows, over pixels that are not in fragments."""

    def make(folder: Path) -> None:
        for path in write_series(folder / "s", boxes()):
            dataset = dcmread(path)
            dataset.file_meta.TransferSyntaxUID = uid_text
            dataset.save_as(path, enforce_file_format=False)

    return make


def lost(change: Callable[[Path], Any]) -> Make:
    """The last of files without suffix did not arrive whole."""

    def make(folder: Path) -> None:
        change(write_series(folder / "s" / "deep", boxes(), name="I{}0".format)[-1])

    return make


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def unknown_syntax(uid_text: str) -> Make:
    """D12: another transfer syntax over the same bytes."""

    def make(folder: Path) -> None:
        for path in write_series(folder / "s", boxes()):
            dataset = dcmread(path)
            dataset.file_meta.TransferSyntaxUID = uid_text
            dataset["PixelData"].is_undefined_length = True
            from pydicom.encaps import encapsulate

            dataset.PixelData = encapsulate([bytes(64)])
            dataset.save_as(path)

    return make


def flat_image(kind: str, modality: str) -> Make:
    """D40, D41: an image class that is no volume."""

    def make(folder: Path) -> None:
        dataset = dataset_of(boxes()[..., :1])
        dataset.SOPClassUID, dataset.Modality, dataset.SOPInstanceUID = kind, modality, uid("flat")
        save(folder / "s" / "image.dcm", dataset)

    return make


def only_others(folder: Path) -> None:
    """D25, D26: nothing is left."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.1.3.10", uid("dicomdir")
    record = Dataset()
    record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", ["..", "..", "..", "etc", "passwd"]
    dataset.DirectoryRecordSequence = [record]
    save(folder / "s" / "DICOMDIR", dataset)
    (folder / "s" / "text").write_text("x" * 200)


def nested(depth: int) -> bytes:
    """D32: sequences in sequences, of undefined length, as bytes."""
    head = struct.pack("<HH2sHI", 0x0008, 0x1115, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    tail = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return head * depth + tail * depth


def with_nested(data: bytes, depth: int = 2000) -> bytes:
    at = data.index(struct.pack("<HH", 0x0010, 0x0010))
    return data[:at] + nested(depth) + data[at:]


def with_huge_length(data: bytes) -> bytes:
    """D32: 4 GB claimed in a file of a few kB."""
    at = data.index(struct.pack("<HH", 0x0010, 0x0010))
    return data[:at] + struct.pack("<HH2sHI", 0x0008, 0x2111, b"UT", 0, 0xFFFFFFF0) + data[at:]


def cut_header(data: bytes) -> bytes:
    return data[: data.index(struct.pack("<HH", 0x0020, 0x0037)) + 20]


SMALL = {"Rows": 1, "Columns": 1}
# Row of the reliability reference; how the input is made; options; exit status; code; words of the message.
ROWS: list[tuple[str, Make, list[str], int, str, list[str]]] = [
    ("D01", two_series, [], 12, "E-DCM-SERIES", ["2 series", "number 1 (CT, 9 files, 20 x 15", "--series"]),
    ("D01 no such", two_series, ["--series", "7"], 12, "E-DCM-SERIES", ["no series has", "number 2"]),
    ("D02", localizer_of_other_name, [], 12, "E-DCM-STACKS", ["2 stacks", "9 of 20 x 15", "1 of 20 x 15", "x/000.dcm"]),
    ("D03 one", series(skip=[4]), [], 12, "E-DCM-MISSING", ["1 of 9", "at 84.50 to 89.50 mm", "003.dcm and 005.dcm"]),
    ("D03 two", series(skip=[2, 3]), [], 12, "E-DCM-MISSING", ["2 of 9", "between 001.dcm and 004.dcm"]),
    ("D03 apart", series(skip=[2, 6]), [], 12, "E-DCM-MISSING", ["2 of 9", "001.dcm and 003.dcm", "005.dcm and"]),
    ("D04 place", other_pixels, [], 12, "E-DCM-DUPLICATE", ["twice.dcm", "SOPInstanceUID of 003.dcm"]),
    ("D04 UID", duplicate(SOPInstanceUID="1.2.3"), [], 12, "E-DCM-DUPLICATE", ["1 of 9", "003.dcm and twice.dcm"]),
    ("D05 alternating", series(heights=[k + 0.1 * (k % 2) for k in range(9)]), [], 12, "E-DCM-SPACING",
     ["0.900 to 1.100 mm", "median", "even within 0.01"]),
    ("D05 growing", series(heights=[2.5 * k + 0.004 * k * k for k in range(9)]), [], 12, "E-DCM-SPACING", ["median"]),
    ("D05 creeping", series(heights=[2.5 * k + 0.0035 * k * k for k in range(9)]), [], 12, "E-DCM-SPACING", ["mm"]),
    ("D06", series(sideways=0.6), [], 12, "E-DCM-TILT", ["13.5 degrees", "--resample-tilt"]),
    ("D06 stray", series(edit=on([4], ImagePositionPatient=[-30, 12.5, 87])), [], 12, "E-DCM-SPACING",
     ["004.dcm is shifted"]),
    ("D09 stacks", two_stacks, [], 12, "E-DCM-STACKS", ["2 stacks", "m.dcm frame 1", "m.dcm frame 6"]),
    ("D09 echoes", times(EchoTime=[2.3, 4.6, 6.9]), [], 12, "E-DCM-STACKS", ["3 images at each place", "echo time"]),
    ("D09 kinds", times(ImageType=[["ORIGINAL", "PRIMARY", c] for c in "MPR"]), ["--time-point", "1"], 12,
     "E-DCM-STACKS", ["image type"]),
    ("D09 spread", enhanced_times, [], 12, "E-DCM-STACKS", ["spread over 2 files", "0.dcm, 1.dcm"]),
    ("D10", times(), [], 12, "E-DCM-TIME", ["3 time points of 9 slices", "--time-point, 1 to 3"]),
    ("D10 none", times(), ["--time-point", "4"], 12, "E-DCM-TIME", ["none has number 4"]),
    ("D11", times(drop=5), ["--time-point", "1"], 12, "E-DCM-TIME", ["26 of 27 slices", "005.dcm"]),
    ("D12", unknown_syntax("1.2.840.10008.1.2.4.201"), [], 12, "E-DCM-CODEC", ["High-Throughput JPEG 2000", "convert"]),
    ("D12 private", native_as("1.2.840.113619.5.2"), [], 12, "E-DCM-CODEC", ["private or unknown", "convert"]),
    ("D12 text", native_as("Doe^Jane"), [], 12, "E-DCM-CODEC", ["private or unknown"]),
    ("D14 1 %", cut(0.01), [], 11, "E-DCM-TRUNC", ["008.dcm", "end after 594 of 600 bytes"]),
    ("D14 50 %", cut(0.5), [], 11, "E-DCM-TRUNC", ["end after 300 of 600 bytes"]),
    ("D14 all", cut(1.0), [], 11, "E-DCM-TRUNC", ["008.dcm"]),
    ("D15", series(edit=on([8], PixelData=None)), [], 11, "E-DCM-TRUNC", ["008.dcm", "no pixel data"]),
    ("D15 frames", series(edit=on([8], NumberOfFrames=3)), [], 11, "E-DCM-PIXELS", ["NumberOfFrames 3"]),
    ("D16 rows", series(edit=on(None, Rows=1500)), [], 11, "E-DCM-TRUNC", ["end after 600 of 60,000 bytes"]),
    ("D16 huge", series(edit=on(None, Rows=65535, Columns=65535)), [], 11, "E-DCM-TRUNC", ["of 8,589,672,450 bytes"]),
    ("D16 UL", bytes_of_last(lambda b: b.replace(
        struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, 15), struct.pack("<HH2sHI", 0x28, 0x10, b"UL", 4, 0xFFFFFFFF))),
     [], 12, "E-DCM-STACKS", ["4294967295"]),
    ("D16 bits", series(edit=on(None, BitsAllocated=12)), [], 11, "E-DCM-PIXELS", ["BitsAllocated 12"]),
    ("D16 stored", series(edit=on(None, BitsStored=17, HighBit=16)), [], 11, "E-DCM-PIXELS", ["BitsStored 17"]),
    ("D16 missing", series(edit=on(None, BitsStored=None, PixelRepresentation=0)), [], 11, "E-DCM-PIXELS",
     ["BitsStored missing or wrong"]),
    ("D16 high bit", series(edit=on(None, BitsStored=12, HighBit=15)), [], 11, "E-DCM-PIXELS", ["HighBit 15 for 12"]),
    ("D17 one", series(edit=on([2], ImagePositionPatient=None)), [], 12, "E-DCM-GEOMETRY",
     ["1 of 9 files have no ImagePositionPatient: 002.dcm"]),
    ("D17 all", series(edit=on(None, ImageOrientationPatient=None)), [], 12, "E-DCM-GEOMETRY",
     ["9 of 9 files have no ImageOrientationPatient: 000.dcm, 001.dcm, 002.dcm and 6 more"]),
    ("D17 far", series(edit=on([8], ImagePositionPatient=["1e300", 0, 0])), [], 12, "E-DCM-GEOMETRY",
     ["008.dcm", "ImagePositionPatient", "at most 100,000 mm"]),
    ("D17 bad", series(edit=on(None, ImageOrientationPatient=[1, 0, 0, 1, 0, 0])), [], 12, "E-DCM-GEOMETRY",
     ["perpendicular"]),
    ("D18 missing", series(edit=on(None, PixelSpacing=None)), [], 12, "E-DCM-GEOMETRY", ["PixelSpacing"]),
    ("D18 imager", series(edit=on(None, PixelSpacing=None, ImagerPixelSpacing=[1, 1])), [], 12, "E-DCM-GEOMETRY",
     ["PixelSpacing"]),
    ("D18 zero", series(edit=on(None, PixelSpacing=[0, 1])), [], 12, "E-DCM-GEOMETRY", ["PixelSpacing is 0, 1"]),
    ("D18 tiny", series(edit=on(None, PixelSpacing=["1e-300", "1e-300"])), [], 12, "E-DCM-GEOMETRY", ["1e-300"]),
    ("D18 huge", series(edit=on(None, PixelSpacing=["1e300", "1e300"])), [], 12, "E-DCM-GEOMETRY", ["1e+300"]),
    ("D18 differs", series(edit=on([3], PixelSpacing=[1.1, 0.8])), [], 12, "E-DCM-STACKS", ["spacing", "003.dcm"]),
    ("D22", series(edit=on(range(4), RescaleSlope=None, RescaleIntercept=None)), [], 12, "E-DCM-RESCALE",
     ["4 of 9 slices lack", "000.dcm, 001.dcm, 002.dcm and 1 more"]),
    ("D22 half", series(edit=on(None, RescaleIntercept=None)), [], 12, "E-DCM-RESCALE", ["9 of 9"]),
    ("D22 zero", series(edit=on(None, RescaleSlope=0)), [], 11, "E-DCM-TAG", ["RescaleSlope is 0"]),
    ("D22 range", series(edit=on(None, RescaleSlope="1e38")), [], 12, "E-DCM-RESCALE", ["4e+38"]),
    ("D24", series(edit=on(None, RescaleType="Z_EFF")), [], 12, "E-DCM-UNITS", ["not Hounsfield's"]),
    ("D25", only_others, [], 10, "E-DCM-EMPTY", ["1 DICOM objects that are no images", "1 files that are not DICOM"]),
    ("D25 empty slice", lambda p: (series()(p), (p / "s" / "009.dcm").write_bytes(b"")), [], 11, "E-DCM-HEADER",
     ["009.dcm", "is an empty file"]),
    ("D25 cut slice", lost(lambda p: p.write_bytes(p.read_bytes()[:100])), [], 11, "E-DCM-HEADER",
     ["deep/I80", "is no DICOM object and is called like the slice deep/I70"]),
    ("D25 emptied slice", lost(lambda p: p.write_bytes(b"")), [], 11, "E-DCM-HEADER", ["deep/I80: is an empty file"]),
    ("D25 zeroed slice", lost(lambda p: p.write_bytes(bytes(1000))), [], 11, "E-DCM-HEADER", ["is called like"]),
    ("D25 link", lost(link_to_nothing), [], 10, "E-IN-READ", ["deep/I80: is a link to nothing"]),
    ("D25 packed slice", lambda p: (series()(p), (p / "s" / "9.dcm.gz").write_bytes(b"\x1f\x8b" + bytes(99))), [], 11,
     "E-DCM-HEADER", ["9.dcm.gz", "is no DICOM object"]),
    ("D29", series(edit=on([1], SOPInstanceUID="../../evil")), [], 12, "E-DCM-UID", ["SOPInstanceUID", "001.dcm"]),
    ("D29 series", series(edit=on(None, SeriesInstanceUID="/etc/passwd")), [], 12, "E-DCM-UID", ["SeriesInstanceUID"]),
    ("D29 study", series(edit=on(None, StudyInstanceUID="1.2\n3")), [], 12, "E-DCM-UID", ["StudyInstanceUID"]),
    ("D32 deep", bytes_of_last(with_nested), [], 11, "E-DCM-HEADER", ["RecursionError", "008.dcm"]),
    ("D32 length", bytes_of_last(with_huge_length), [], 11, "E-DCM-", ["008.dcm"]),
    ("D32 cut", bytes_of_last(cut_header), [], 11, "E-DCM-", ["008.dcm"]),
    ("D34 rows", series(edit=on([8], **SMALL)), [], 12, "E-DCM-STACKS", ["8 of 20 x 15", "1 of 1 x 1", "008.dcm"]),
    ("D34 turned", series(edit=on([8], ImageOrientationPatient=[
        0.9999619, 0.0087265, 0, -0.0087265, 0.9999619, 0])), [], 12, "E-DCM-STACKS", ["direction", "008.dcm"]),
    ("D35 patient", series(edit=on([5], PatientID="0815")), [], 12, "E-DCM-MIXED", ["005.dcm", "another PatientID"]),
    ("D35 study", series(edit=on([5], StudyInstanceUID="1.2.9")), [], 12, "E-DCM-MIXED", ["StudyInstanceUID"]),
    ("D35 frame", series(edit=on([5], FrameOfReferenceUID="1.2.9")), [], 12, "E-DCM-MIXED", ["FrameOfReferenceUID"]),
    ("D40 CR", flat_image("1.2.840.10008.5.1.4.1.1.1", "CR"), [], 12, "E-DCM-KIND", ["projection radiographs"]),
    ("D40 MG", flat_image("1.2.840.10008.5.1.4.1.1.1.2", "MG"), [], 12, "E-DCM-KIND", ["projection radiographs"]),
    ("D40 US", flat_image("1.2.840.10008.5.1.4.1.1.6.1", "US"), [], 12, "E-DCM-KIND", ["ultrasound"]),
    ("D41", flat_image("1.2.840.10008.5.1.4.1.1.7", "OT"), [], 12, "E-DCM-KIND", ["secondary captures"]),
    ("D42 samples", series(edit=on(None, SamplesPerPixel=3)), [], 12, "E-DCM-COLOUR", ["colours"]),
    ("D42 palette", series(edit=on(None, PhotometricInterpretation="PALETTE COLOR")), [], 12, "E-DCM-COLOUR",
     ["PALETTE COLOR"]),
    ("D42 YBR", series(edit=on(None, PhotometricInterpretation="YBR_FULL", SamplesPerPixel=3)), [], 12, "E-DCM-COLOUR",
     ["YBR_FULL"]),
    ("one slice", lambda p: write_series(p / "s", boxes()[..., :1]), [], 12, "E-GEO-2D", ["one slice"]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "make", "options", "status", "code", "says"), ROWS, ids=[row[0] for row in ROWS])
def test_refused(
    row: str,
    make: Make,
    options: list[str],
    status: int,
    code: str,
    says: list[str],
    tmp_path: Path,
    threshold_model: Model,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    scan = str(tmp_path / "s")
    assert run(scan, "-o", str(out / "mask.nii.gz"), "-m", threshold_model(), *options) == status, row
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith(f"seg-infer: error {code}")
    assert f": {scan}" in lines[0]
    assert " Fix: " in lines[0]
    for words in says:
        assert words in lines[0]
    assert list(out.iterdir()) == []


# D31: values that are no numbers, of the wrong count or the wrong kind. None of them is quoted in the message.
MALFORMED: list[tuple[str, str, bytes]] = [
    ("PixelSpacing", "DS", b"1,5\\1,5"),
    ("PixelSpacing", "DS", b"0.8\\1.1\\1.1"),
    ("PixelSpacing", "DS", b"0.8"),
    ("PixelSpacing", "DS", b"NaN\\1.1"),
    ("PixelSpacing", "DS", b"inf\\1.1"),
    ("PixelSpacing", "DS", b"0.8mm\\1.1mm"),
    ("PixelSpacing", "DS", b"\\"),
    ("ImagePositionPatient", "DS", b"1\\2"),
    ("ImagePositionPatient", "DS", b"1\\2\\x"),
    ("ImagePositionPatient", "DS", b"1\\2\\"),
    ("ImagePositionPatient", "DS", b"1e400\\2\\3"),
    ("ImagePositionPatient", "LO", b"left\\2\\3"),
    ("ImageOrientationPatient", "DS", b"1\\0\\0"),
    ("ImageOrientationPatient", "DS", b"1\\0\\0\\0\\1\\zero"),
    ("RescaleSlope", "DS", b"one"),
    ("RescaleSlope", "DS", b"1\\2"),
    ("RescaleIntercept", "DS", b"-1,024"),
    ("RescaleIntercept", "DS", b"0x400"),
    ("Rows", "LO", b"fifteen"),
    ("Rows", "DS", b"15.5"),
    ("Columns", "IS", b"-20"),
    ("BitsStored", "LO", b"sixteen"),
]  # fmt: skip


@pytest.mark.parametrize(("keyword", "vr", "value"), MALFORMED)
def test_malformed_values(tmp_path: Path, keyword: str, vr: str, value: bytes) -> None:
    raw(keyword, vr, value)(tmp_path)
    with pytest.raises(SegError) as caught:
        read(str(tmp_path / "s"))
    assert (caught.value.code, caught.value.exit) == ("E-DCM-TAG", 11)
    assert caught.value.path.endswith("008.dcm")
    assert caught.value.found.startswith(keyword)
    assert "fifteen" not in str(caught.value)


def test_a_number_that_is_longer_than_allowed_is_still_that_number(tmp_path: Path) -> None:
    """D31: 17 characters, as some writers have it."""
    raw("ImagePositionPatient", "DS", b"-31.25000000000000\\12.500000000000000\\97.000000000000000")(tmp_path)
    np.testing.assert_array_equal(read(str(tmp_path / "s")).volume.voxels[0], boxes())


def test_a_hundred_thousand_items(tmp_path: Path) -> None:
    """D32: they are nobody's business here, and take no time."""
    path = write_series(tmp_path / "s", boxes())[-1]
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 100_000
    sequence = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, len(items)) + items
    data = path.read_bytes()
    at = data.index(struct.pack("<HH", 0x0010, 0x0010))
    path.write_bytes(data[:at] + sequence + data[at:])
    np.testing.assert_array_equal(read(str(tmp_path / "s")).volume.voxels[0], boxes())


def test_a_claim_of_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    """D16, D32: refused within 300 MB of address space more than pydicom itself takes."""
    import resource
    import subprocess
    import sys

    series(edit=on(None, Rows=65535, Columns=65535))(tmp_path)
    bytes_of_last(with_huge_length)(tmp_path / "t")
    program = """
import resource, sys, pydicom, pydicom.pixels, nibabel.nifti1, seg.infer.dicom.read as r
from seg.infer.errors import SegError
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 300_000_000,) * 2)
for path in sys.argv[1:]:
    try: r.read(path)
    except SegError as error: print(error.code, int(error.exit))
"""
    words = [sys.executable, "-c", program, str(tmp_path / "s"), str(tmp_path / "t" / "s")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    codes = [line.split() for line in done.stdout.splitlines()]
    assert len(codes) == 2
    assert all(code.startswith("E-DCM") and status == "11" for code, status in codes), codes
    assert resource.RLIMIT_AS


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D33: limits on files, folders and images, told before anything is read."""
    write_series(tmp_path / "s" / "1" / "2" / "3" / "4" / "5", boxes())
    for number in range(30):
        (tmp_path / "s" / str(number)).mkdir(exist_ok=True)
        (tmp_path / "s" / str(number) / "empty").write_bytes(b"")
    for limit, value, says in (("MAX_FILES", 40, "over 40 files"), ("MAX_DEPTH", 4, "folders over 4 deep")):
        with monkeypatch.context() as patch:
            patch.setattr(files, limit, value)
            with pytest.raises(SegError, match=says) as caught:
                read(str(tmp_path / "s"))
            assert (caught.value.code, caught.value.exit) == ("E-LIMIT-FILES", 13)
    monkeypatch.setattr(study, "MAX_IMAGES", 5)
    with pytest.raises(SegError, match="over 5 images"):
        read(str(tmp_path / "s"))


def test_paths_that_are_no_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    for path, code in (("absent", "E-IN-MISSING"), ("empty", "E-DCM-EMPTY")):
        with pytest.raises(SegError) as caught:
            read(str(tmp_path / path))
        assert (caught.value.code, caught.value.exit) == (code, 10)
    write_series(tmp_path, boxes())  # a pipe beside the slices is not opened
    np.testing.assert_array_equal(read(str(tmp_path)).volume.voxels[0], boxes())


def test_two_patients_in_one_folder(tmp_path: Path, threshold_model: Model) -> None:
    """D35: each series alone is fine by its UID or number; nothing is chosen between patients."""
    from seg.infer.artifact import load

    write_series(tmp_path / "s", boxes(), series=1)
    write_series(tmp_path / "s" / "b", boxes(), series=2, edit=setting(PatientID="0815"))
    spec = load(threshold_model()).spec
    with pytest.raises(SegError) as caught:
        read(str(tmp_path / "s"), DicomOptions(series="auto"), spec=spec)
    assert (caught.value.code, caught.value.exit) == ("E-DCM-MIXED", 12)
    assert "0815" not in str(caught.value)
    np.testing.assert_array_equal(read(str(tmp_path / "s"), DicomOptions(series="2")).volume.voxels[0], boxes())
    shutil.rmtree(tmp_path / "s" / "b")
    np.testing.assert_array_equal(read(str(tmp_path / "s")).volume.voxels[0], boxes())


def with_vr(path: Path, tag: bytes, vr: bytes) -> Path:
    """The first element with the tag, as it stands in the file, gets another value representation."""
    data = bytearray(path.read_bytes())
    at = data.index(tag)
    data[at + 4 : at + 6] = vr
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("vr", [b"ZZ", b"US", b"LO"])
@pytest.mark.parametrize("tag", [b"\x28\x00\x03\x01", b"\x00\x52\x30\x92", b"\x00\x52\x29\x92"])
def test_damaged_elements_of_an_enhanced_object(tmp_path: Path, tag: bytes, vr: bytes) -> None:
    """PixelRepresentation, for which pydicom looks with every sequence, and the functional groups themselves."""
    path = with_vr(save(tmp_path / "e.dcm", enhanced_dataset(boxes())), tag, vr)
    if (tag, vr) == (b"\x28\x00\x03\x01", b"US"):
        assert read(str(path)).volume.voxels.any()
        return
    with pytest.raises(SegError) as caught:
        read(str(path))
    assert caught.value.exit == 11, str(caught.value)


@pytest.mark.parametrize("enhanced", [False, True])
def test_a_damaged_thickness_stops_no_output(tmp_path: Path, threshold_model: Model, enhanced: bool) -> None:
    """The SEG says the distance between slices instead, as where there is none."""
    if enhanced:
        source = save(tmp_path / "e.dcm", enhanced_dataset(boxes()))
        with_vr(source, b"\x18\x00\x50\x00", b"ZZ")
    else:
        source = tmp_path / "s"
        for path in write_series(source, boxes()):
            with_vr(path, b"\x18\x00\x50\x00", b"ZZ")
    out = tmp_path / "out.dcm"
    assert run(str(source), "-o", str(out), "-m", threshold_model(), "-q") == 0
    (shared,) = dcmread(out).SharedFunctionalGroupsSequence
    assert shared.PixelMeasuresSequence[0].SliceThickness == pytest.approx(2.5)
