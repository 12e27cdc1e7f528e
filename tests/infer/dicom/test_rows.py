"""Rows D01 to D42 of the reliability reference: each is named by a test, and those that end well do so for a user."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run, voxels
from dicom_files import enhanced_dataset, save, setting, uid, write_series
from known import boxes
from pydicom import Dataset, dcmread

Model = Callable[..., str]
Make = Callable[[Path], Any]
HERE = Path(__file__).parent


def test_every_row_has_a_test() -> None:
    beside = [*HERE.parent.glob("test_serve*.py"), *HERE.parent.glob("test_dicomweb*.py")]
    named = {row for file in (*HERE.glob("test_*.py"), *beside) for row in re.findall(r"\bD\d\d\b", file.read_text())}
    assert {f"D{number:02}" for number in range(1, 43)} - named == set()


def series(**options: Any) -> Make:
    return lambda folder: write_series(folder, boxes(), **options)


def plus(change: Make, **options: Any) -> Make:
    """A series, and something else in its folder."""

    def make(folder: Path) -> None:
        write_series(folder, boxes(), **options)
        change(folder)

    return make


def localizer(folder: Path) -> None:
    edit = setting(
        SOPInstanceUID=uid("l"),
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
    )
    write_series(folder / "l", boxes()[..., :1], edit=edit)


def dicomdir(folder: Path) -> None:
    dataset, record = Dataset(), Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.1.3.10", uid("dicomdir")
    record.ReferencedFileID = ["..", "..", "etc", "passwd"]
    dataset.DirectoryRecordSequence = [record]
    save(folder / "DICOMDIR", dataset)


def starting(start: bytes) -> Make:
    """Every file begins in this way, in place of the preamble and, where nothing is given, its mark."""

    def change(folder: Path) -> None:
        for path in folder.iterdir():
            data = path.read_bytes()
            path.write_bytes(start + data[len(start) :] if start else data[132:])

    return plus(change)


def japanese(k: int, dataset: Dataset) -> None:
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.PatientName = "Yamada^Tarou=山田^太郎"


def padded(k: int, dataset: Dataset) -> None:
    dataset.PixelData += bytes(2)


# Row; how the input is made; words of a note, "" where nothing is to be told. All give the mask of the plain series.
WELL: list[tuple[str, Make, str]] = [
    ("D02", plus(localizer), "1 localizers in the series were set aside"),
    ("D04", plus(lambda f: shutil.copy(f / "003.dcm", f / "copy.dcm")), "1 identical copies"),
    ("D05", series(heights=[2.5 * k + 1e-4 * (-1) ** k for k in range(9)]), ""),
    ("D07", series(name=lambda k: f"{k * 4 % 9}", edit=lambda k, d: setattr(d, "InstanceNumber", 9 - k)), ""),
    ("D08", lambda f: save(f / "m.dcm", enhanced_dataset(boxes(), order=[4, 2, 0, 1, 8, 7, 3, 6, 5])), ""),
    ("D14", series(edit=padded), ""),
    ("D19", series(edit=setting(SliceThickness=5, SpacingBetweenSlices=-2)), ""),
    ("D20", series(edit=setting(PhotometricInterpretation="MONOCHROME1")), ""),
    ("D21", series(edit=lambda k, d: setattr(d, "RescaleSlope", 1 + k % 2)), ""),
    ("D22", series(edit=setting(RescaleSlope=None, RescaleIntercept=None)), "taken as Hounsfield units"),
    ("D23", series(edit=setting(BitsStored=12, HighBit=11, PixelPaddingValue=-2000)), ""),
    ("D24", series(edit=setting(RescaleType="HU")), ""),
    ("D25", plus(lambda f: (f / "notes.txt").write_text("some notes")), "1 files that are not DICOM"),
    ("D26", plus(dicomdir), "1 DICOM objects that are no images"),
    ("D27", starting(b""), "9 files lack the DICOM preamble"),
    ("D28 PE", starting(b"MZ\x90\0"), "9 files start like a program"),
    ("D28 ELF", starting(b"\x7fELF\2"), "9 files start like a program"),
    ("D36", series(edit=japanese), ""),
    ("D41", series(edit=setting(ImageType=["DERIVED", "SECONDARY"], LossyImageCompression="01")), "with loss"),
]


@pytest.mark.parametrize(("row", "make", "note"), WELL, ids=[row[0] for row in WELL])
def test_accepted(row: str, make: Make, note: str, tmp_path: Path, threshold_model: Model) -> None:
    """Exit status 0, the plain series' mask on the plain series' grid, and what was odd in the report."""
    model, report = threshold_model(), tmp_path / "r.json"
    digests = []
    for name, write in (("plain", series()), ("odd", make)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
        out = tmp_path / f"{name}.nii.gz"
        assert run(str(tmp_path / name), "-o", str(out), "-m", model, "-q", "--report", str(report)) == 0
        np.testing.assert_array_equal(voxels(out), boxes() > 0)
        digests.append(hashlib.sha256(out.read_bytes()).hexdigest())
    if row != "D05":  # its affine differs by the jitter
        assert digests[0] == digests[1]
    (scan,) = json.loads(report.read_text())["scans"]
    told = " ".join(scan["notes"])
    assert note in told if note else not told


@pytest.mark.parametrize("form", ["seg", "labelmap"])
def test_an_empty_mask(form: str, tmp_path: Path, threshold_model: Model) -> None:
    """D37: a whole object, exit status 0, and a line in the report."""
    write_series(tmp_path / "s", boxes())
    out, report = tmp_path / "m.dcm", tmp_path / "r.json"
    words = [str(tmp_path / "s"), "-o", str(out), "-m", threshold_model(thresholds=(1000.0,)), "-q", "--format", form]
    assert run(*words, "--report", str(report)) == 0
    dataset = dcmread(out)
    assert dataset.NumberOfFrames == 1
    assert not dataset.pixel_array.any()
    (scan,) = json.loads(report.read_text())["scans"]
    assert any("the mask is empty" in note for note in scan["notes"])
