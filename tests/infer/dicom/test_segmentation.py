"""SEG: read back by highdicom's and pydicom's readers, never by ours."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from known import plain_spec
from source_series import AXIAL, FLAWS, NAMES, ORIENTATIONS, SHAPE, classic, enhanced, mask, with_name

from seg.infer.artifact import MODELS, load
from seg.infer.dicom.codes import PRIVATE_SCHEME
from seg.infer.dicom.derived import save
from seg.infer.dicom.segmentation import segmentation_dataset
from seg.infer.dicom.series import DicomSeries
from seg.infer.errors import Exit, SegError
from seg.infer.preview import PALETTE
from seg.infer.spec import Code, LabelCodes, ModelSpec

SPEC = plain_spec(name="heart", labels=("background", "left atrium", "myocardium"))
SHA256 = "ab" * 32
NOON = datetime(2026, 11, 21, 12, 0, 0)
KINDS = ("BINARY", "LABELMAP")
SOURCES: dict[str, Callable[[], DicomSeries]] = {
    **{name: lambda cosines=cosines: classic(cosines) for name, cosines in ORIENTATIONS.items()},  # type: ignore[misc]
    "tilted gantry": lambda: classic(AXIAL, tilt=13.5),
    "enhanced": enhanced,
    "enhanced, sagittal, shared groups": lambda: enhanced(ORIENTATIONS["sagittal"], shared=True),
}


def made(
    series: DicomSeries,
    labels: np.ndarray,
    path: Path,
    *,
    spec: ModelSpec = SPEC,
    overwrite: bool = False,
    **options: Any,
) -> highdicom.seg.Segmentation:
    """Written, and read again by highdicom."""
    dataset = segmentation_dataset(series, labels, spec, model_sha256=SHA256, **options)
    save(str(path), dataset, series, overwrite=overwrite)
    return highdicom.seg.segread(path)


def by_source(seg: highdicom.seg.Segmentation, series: DicomSeries) -> np.ndarray:
    """(columns, rows, slices) segment numbers, found through each frame's reference to the source."""
    options = {"combine_segments": True, "assert_missing_frames_are_empty": True}
    if "PerFrameFunctionalGroupsSequence" in series.datasets[0]:
        uid = series.datasets[0].SOPInstanceUID
        return seg.get_pixels_by_source_frame(uid, list(series.frames), **options).T
    return seg.get_pixels_by_source_instance([d.SOPInstanceUID for d in series.datasets], **options).T


def points(path: Path, segment: int) -> np.ndarray:
    """(n, 3) LPS mm of the voxels of a segment of a BINARY SEG, from its own geometry alone, by pydicom."""
    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    down, across = shared.PixelMeasuresSequence[0].PixelSpacing
    found = []
    for frame, groups in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment:
            j, i = np.nonzero(frame)
            origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
            found.append(origin + np.outer(i * across, row) + np.outer(j * down, column))
    return np.concatenate(found)


def expected_points(series: DicomSeries, labels: np.ndarray, value: int) -> np.ndarray:
    """The same from the affine of the series, in RAS, turned to LPS."""
    voxels = np.argwhere(labels == value)
    return (voxels @ series.affine[:3, :3].T + series.affine[:3, 3]) * (-1, -1, 1)


def in_order(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(points.round(2).T)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", SOURCES)
def test_the_same_mask_comes_back(source: str, kind: Any, tmp_path: Path) -> None:
    series, labels = SOURCES[source](), mask()
    seg = made(series, labels, tmp_path / "mask.dcm", kind=kind)
    np.testing.assert_array_equal(by_source(seg, series), labels)
    assert (seg.SegmentationType, seg.segment_numbers) == (kind, [1, 2])
    assert len(seg.PerFrameFunctionalGroupsSequence) == seg.NumberOfFrames == 5 * (2 if kind == "BINARY" else 1)


@pytest.mark.parametrize("source", SOURCES)
def test_voxels_are_where_they_were(source: str, tmp_path: Path) -> None:
    series, labels = SOURCES[source](), mask()
    made(series, labels, tmp_path / "mask.dcm")
    for value in (1, 2):
        found, expected = points(tmp_path / "mask.dcm", value), expected_points(series, labels, value)
        np.testing.assert_allclose(in_order(found), in_order(expected), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", [name for name in SOURCES if name != "tilted gantry"])
def test_highdicom_builds_the_same_volume(source: str, kind: Any, tmp_path: Path) -> None:
    """Its volumes run along the source's frames; the affine that comes with them says how."""
    series, labels = SOURCES[source](), mask()
    volume = made(series, labels, tmp_path / "mask.dcm", kind=kind, omit_empty_frames=False).get_volume(
        combine_segments=True
    )
    to_volume = np.linalg.inv(volume.affine) @ np.diag([-1, -1, 1, 1]) @ series.affine  # both LPS now
    for value in (1, 2):
        voxels = np.argwhere(labels == value)
        there = (voxels @ to_volume[:3, :3].T + to_volume[:3, 3]).round(2)
        np.testing.assert_allclose(there, there.round(), atol=0.011)
        assert (volume.array[tuple(there.round().astype(int).T)] == value).all()
    assert (volume.array > 0).sum() == (labels > 0).sum()


def test_each_frame_refers_to_the_instance_that_it_lies_on(tmp_path: Path) -> None:
    """D38: whatever order the headers come in, positions decide."""
    series = classic()
    order = [3, 0, 5, 1, 4, 2]
    shuffled = replace(series, datasets=tuple(series.datasets[k] for k in order))
    labels = mask()
    seg = made(shuffled, labels[:, :, order], tmp_path / "mask.dcm", omit_empty_frames=False)
    np.testing.assert_array_equal(by_source(seg, series), labels)
    place = {d.SOPInstanceUID: list(d.ImagePositionPatient) for d in series.datasets}
    for groups in seg.PerFrameFunctionalGroupsSequence:
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        assert place[source.ReferencedSOPInstanceUID] == list(groups.PlanePositionSequence[0].ImagePositionPatient)
    (references,) = seg.ReferencedSeriesSequence
    assert references.SeriesInstanceUID == series.datasets[0].SeriesInstanceUID
    assert {r.ReferencedSOPInstanceUID for r in references.ReferencedInstanceSequence} == set(place)


def test_frame_numbers_of_an_enhanced_source(tmp_path: Path) -> None:
    series, labels = enhanced(), mask()
    seg = made(series, labels, tmp_path / "mask.dcm")
    found = set()
    for groups in seg.PerFrameFunctionalGroupsSequence:
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        frame = series.datasets[0].PerFrameFunctionalGroupsSequence[source.ReferencedFrameNumber - 1]
        place = [getattr(g.PlanePositionSequence[0], "ImagePositionPatient") for g in (frame, groups)]  # noqa: B009
        assert list(place[0]) == list(place[1])
        found.add(source.ReferencedFrameNumber)
    assert found == set(series.frames[1:])  # the first slice is empty


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_mask_is_a_whole_object(kind: Any, tmp_path: Path) -> None:
    """D37."""
    series = classic()
    seg = made(series, np.zeros(SHAPE, np.uint8), tmp_path / "mask.dcm", kind=kind)
    np.testing.assert_array_equal(by_source(seg, series), 0)
    assert [seg.get_segment_description(n).SegmentLabel for n in seg.segment_numbers] == list(SPEC.labels[1:])
    assert seg.NumberOfFrames == 1
    seg = made(series, np.zeros(SHAPE, np.uint8), tmp_path / "all.dcm", kind=kind, omit_empty_frames=False)
    np.testing.assert_array_equal(by_source(seg, series), 0)
    assert seg.NumberOfFrames == SHAPE[2] * (2 if kind == "BINARY" else 1)


def test_a_class_that_was_not_found_is_described(tmp_path: Path) -> None:
    labels = np.where(mask() == 2, 2, 0)
    seg = made(classic(), labels, tmp_path / "mask.dcm")
    assert seg.segment_numbers == [1, 2]
    np.testing.assert_array_equal(by_source(seg, classic()), labels)


def test_label_values_become_segment_numbers(tmp_path: Path) -> None:
    """BraTS has values 1, 2 and 4; another set has them in no order."""
    spec = plain_spec(labels=("background", "a", "b", "c"), label_values=(0, 4, 1, 200))
    series, classes = classic(), mask(classes=4)
    labels = np.array(spec.label_values, np.uint8)[classes]
    for kind in KINDS:
        seg = made(series, labels, tmp_path / f"{kind}.dcm", kind=kind, spec=spec)
        np.testing.assert_array_equal(by_source(seg, series), classes)


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray, lambda a: a[::-1][::-1].astype(np.int64)])
def test_any_memory_layout_gives_the_same_bytes(layout: Callable[[np.ndarray], np.ndarray], tmp_path: Path) -> None:
    for name, labels in (("a", mask()), ("b", layout(mask()))):
        made(classic(), labels, tmp_path / f"{name}.dcm", created=NOON)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((5, 7, 6), np.uint8), "shape"),
        (np.full(SHAPE, 3, np.uint8), "3 to 3"),
        (np.full(SHAPE, -1, np.int16), "-1"),
    ],
)
def test_a_mask_that_does_not_belong_is_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segmentation_dataset(classic(), labels, SPEC, model_sha256=SHA256)


def test_a_value_between_label_values_is_refused() -> None:
    spec = plain_spec(labels=("background", "a", "b"), label_values=(0, 1, 4))
    with pytest.raises(ValueError, match="none of"):
        segmentation_dataset(classic(), np.full(SHAPE, 2, np.uint8), spec, model_sha256=SHA256)


# What it says of itself


def test_what_each_segment_is(tmp_path: Path) -> None:
    seg = made(classic(), mask(), tmp_path / "mask.dcm")
    atrium, myocardium = (seg.get_segment_description(n) for n in (1, 2))
    assert atrium.segmented_property_category == pydicom.sr.codedict.codes.SCT.AnatomicalStructure
    assert atrium.segmented_property_type == pydicom.sr.codedict.codes.SCT.LeftAtrium
    assert myocardium.segmented_property_type.value == "49848007"
    for number, description in enumerate((atrium, myocardium)):
        assert description.SegmentLabel == SPEC.labels[number + 1]
        colour = highdicom.color.CIELabColor(*lab(description)).to_rgb()
        np.testing.assert_allclose(colour, PALETTE[number], atol=1)


def lab(description: pydicom.Dataset) -> list[float]:
    """L*, a*, b* of the 16-bit values that DICOM stores (PS3.3 C.10.7.1.1)."""
    lightness, a, b = (value / 65535 for value in description.RecommendedDisplayCIELabValue)
    return [lightness * 100, a * 255 - 128, b * 255 - 128]


def test_who_made_it(tmp_path: Path) -> None:
    seg = made(classic(), mask(), tmp_path / "mask.dcm")
    (algorithm,) = seg.get_segment_description(1).algorithm_identification
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("seg-toolkit heart", seg.SoftwareVersions)
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert algorithm.AlgorithmParameters == f"model=heart,sha256={SHA256}"
    assert seg.get_segment_description(1).SegmentAlgorithmType == "AUTOMATIC"
    assert (seg.Manufacturer, seg.ManufacturerModelName) == ("seg-toolkit", "seg-toolkit heart")
    assert seg.DeviceSerialNumber == SHA256
    assert seg.SeriesNumber == 9003


def test_codes_of_the_spec_are_used(tmp_path: Path) -> None:
    tumour = LabelCodes(
        Code("49755003", "SCT", "Morphologically Abnormal Structure"),
        Code("108369006", "SCT", "Neoplasm"),
        modifiers=(Code("7771000", "SCT", "Left"),),
        region=Code("64033007", "SCT", "Kidney"),
    )
    spec = plain_spec(labels=("background", "tumour", "left atrium"), codes=(None, tumour, None))
    seg = made(classic(), mask(), tmp_path / "mask.dcm", spec=spec)
    described = seg.get_segment_description(1)
    assert described.segmented_property_type.value == "108369006"
    assert described.segmented_property_type.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert described.anatomic_regions[0].value == "64033007"
    assert seg.get_segment_description(2).segmented_property_type.value == "82471001"


def test_a_label_without_a_code_says_so(tmp_path: Path) -> None:
    spec = plain_spec(labels=("background", "odd thing", "left atrium"))
    seg = made(classic(), mask(), tmp_path / "mask.dcm", spec=spec)
    described = seg.get_segment_description(1)
    code = described.segmented_property_type
    assert (code.scheme_designator, code.meaning) == (PRIVATE_SCHEME, "odd thing")
    assert "private code" in described.SegmentDescription
    assert seg.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == PRIVATE_SCHEME
    assert "SegmentDescription" not in seg.get_segment_description(2)


@pytest.mark.parametrize("name", sorted(path.stem for path in MODELS.glob("*.onnx")))
def test_labels_of_the_shipped_models_have_codes(name: str, tmp_path: Path) -> None:
    spec = load(str(MODELS / f"{name}.onnx")).spec
    seg = made(classic(), mask(classes=len(spec.labels)), tmp_path / "mask.dcm", spec=spec)
    for number in seg.segment_numbers:
        assert seg.get_segment_description(number).segmented_property_type.scheme_designator == "SCT"


# Whose it is


def test_patient_and_study_are_kept(tmp_path: Path) -> None:
    series = classic(PatientWeight="70.5", ClinicalTrialSubjectID="T7", ClinicalTrialSeriesID="X", ProtocolName="Heart")
    seg, source = made(series, mask(), tmp_path / "mask.dcm"), series.datasets[0]
    for element in source:
        if element.tag.group == 0x0010 or element.keyword.startswith(("Study", "Accession", "Referring")):
            assert seg[element.tag].value == element.value, element.keyword
    assert seg.ClinicalTrialSubjectID == "T7"
    assert "ClinicalTrialSeriesID" not in seg
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert seg.Modality == "SEG"


def test_uids_are_of_the_content(tmp_path: Path) -> None:
    def uids(labels: np.ndarray = mask(), series: DicomSeries = classic(), **options: Any) -> tuple[str, str]:  # noqa: B008
        spec, sha256 = options.pop("spec", SPEC), options.pop("sha256", SHA256)
        dataset = segmentation_dataset(series, labels, spec, model_sha256=sha256, **options)
        return dataset.SeriesInstanceUID, dataset.SOPInstanceUID

    other = mask()
    other[3, 3, 3] = 2 - other[3, 3, 3]
    different = [
        uids(),
        uids(other),
        uids(kind="LABELMAP"),
        uids(omit_empty_frames=False),
        uids(sha256="cd" * 32),
        uids(spec=replace(SPEC, name="other")),
        uids(series=classic(SeriesInstanceUID="1.2.3")),
        uids(series=enhanced()),
    ]
    assert uids() == different[0] == uids(created=NOON)
    assert len({uid for pair in different[:6] + different[7:] for uid in pair}) == 14
    for uid in different[0]:
        assert uid.startswith("2.25.")
        assert len(uid) <= 64


def test_the_same_time_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        made(classic(), mask(), tmp_path / f"{name}.dcm", created=NOON)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    for what in ("Content", "InstanceCreation", "Series"):
        assert (dataset.get(f"{what}Date"), dataset.get(f"{what}Time")) == ("20261121", "120000"), what


@pytest.mark.parametrize("which", NAMES)
def test_names_are_copied_byte_by_byte(which: str, tmp_path: Path) -> None:
    character_set, name = NAMES[which]
    series = with_name(character_set, name, tmp_path)
    made(series, mask(), tmp_path / "mask.dcm")
    seg = pydicom.dcmread(tmp_path / "mask.dcm")
    raw = seg.get_item("PatientName").value
    assert raw.rstrip(b" ") == name
    assert seg.get("SpecificCharacterSet") == series.datasets[0].get("SpecificCharacterSet")


@pytest.mark.parametrize("which", NAMES)
def test_a_label_in_another_script_makes_it_utf8(which: str, tmp_path: Path) -> None:
    series = with_name(*NAMES[which], tmp_path)
    spec = plain_spec(name="心臓", labels=("background", "左心房", "Vorhof, rechter Öhrchen"))
    seg = made(series, mask(), tmp_path / "mask.dcm", spec=spec)
    assert seg.SpecificCharacterSet == "ISO_IR 192"
    assert seg.PatientName == series.datasets[0].PatientName
    assert [seg.get_segment_description(n).SegmentLabel for n in (1, 2)] == list(spec.labels[1:])


def test_text_inside_sequences_becomes_utf8_with_the_rest(tmp_path: Path) -> None:
    series = with_name("ISO_IR 100", b"M\xfcller", tmp_path)
    headers = []
    for dataset in series.datasets:
        code = pydicom.Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99X", "Schädel"
        dataset.ProcedureCodeSequence = [code]
        pydicom.dcmwrite(tmp_path / "header.dcm", dataset, enforce_file_format=True)
        headers.append(pydicom.dcmread(tmp_path / "header.dcm"))
    spec = plain_spec(name="Vorhöfe", labels=("background", "a", "b"))
    made(replace(series, datasets=tuple(headers)), mask(), tmp_path / "mask.dcm", spec=spec)
    seg = pydicom.dcmread(tmp_path / "mask.dcm")
    assert seg.SpecificCharacterSet == "ISO_IR 192"
    assert seg.ProcedureCodeSequence[0].CodeMeaning == "Schädel"


# Headers as they come


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("make", [classic, enhanced])
def test_flaws_of_a_header_do_not_stop_it(flaw: str, make: Callable[..., DicomSeries], tmp_path: Path) -> None:
    series, labels = make(**FLAWS[flaw]), mask()
    seg = made(series, labels, tmp_path / "mask.dcm")
    np.testing.assert_array_equal(by_source(seg, series), labels)
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == pytest.approx(2.5)
    assert measures.SliceThickness > 0


def test_values_that_no_standard_allows(tmp_path: Path) -> None:
    """As files hold them: texts are kept, though nobody can say what they mean; half a number is left out."""
    series = classic(PatientSex="?", StudyDate="2021.02.03", StudyTime="noon", PatientWeight="7", PatientSize="1.8")
    for dataset in series.datasets:
        for keyword, kind, value in (("PatientWeight", "DS", b"70,5"), ("PregnancyStatus", "US", b"abc")):
            tag = pydicom.tag.Tag(keyword)
            dataset.add(pydicom.dataelem.RawDataElement(tag, kind, len(value), value, 0, False, True))
    seg = made(series, mask(), tmp_path / "mask.dcm")
    np.testing.assert_array_equal(by_source(seg, series), mask())
    assert (seg.PatientSex, seg.StudyTime, seg.PatientSize) == ("?", "noon", 1.8)
    assert seg.PatientWeight == "70,5"
    assert "PregnancyStatus" not in seg


def test_orientations_that_differ_in_the_last_digit(tmp_path: Path) -> None:
    series, labels = classic(), mask()
    series.datasets[2].ImageOrientationPatient = [1, 1e-7, 0, 0, 1, 0]
    series.datasets[4].ImageOrientationPatient = ["0.9999999999999", "0", "0", "0", "1", "0"]
    np.testing.assert_array_equal(by_source(made(series, labels, tmp_path / "mask.dcm"), series), labels)


def test_numbers_of_too_many_digits(tmp_path: Path) -> None:
    text = b"-31.2500000000000001\\12.500000000000000001\\77.0000000000000000 "
    series, labels = classic(), mask()
    series.datasets[0].add(
        pydicom.dataelem.RawDataElement(pydicom.tag.Tag("ImagePositionPatient"), "DS", len(text), text, 0, False, True)
    )
    seg = made(series, labels, tmp_path / "mask.dcm", omit_empty_frames=False)
    np.testing.assert_array_equal(by_source(seg, series), labels)


# Files


def test_the_preamble_is_zero(tmp_path: Path) -> None:
    """Whatever the source's was: an executable in it must not travel (CVE-2019-11687)."""
    series = classic()
    for dataset in series.datasets:
        dataset.preamble = b"MZ" + b"\x90" * 126
    made(series, mask(), tmp_path / "mask.dcm")
    assert (tmp_path / "mask.dcm").read_bytes()[:132] == bytes(128) + b"DICM"


HOSTILE = (
    "../../evil",
    "/tmp/evil",
    "a\\..\\b",
    "con",
    "a\0b",
    "$(touch evil)",
    "x" * 300,
    ".",
    "..",
    "%2e%2e/",
    "é",
    "\r\n",
)


@pytest.mark.parametrize("value", HOSTILE)
def test_no_path_is_made_of_a_value(value: str, tmp_path: Path) -> None:
    folder = tmp_path / "only here"
    folder.mkdir()
    series = classic(PatientID=value, StudyID=value, SeriesDescription=value, PatientName=value, AccessionNumber=value)
    made(series, mask(), folder / "mask.dcm")
    assert [p.relative_to(tmp_path) for p in sorted(tmp_path.rglob("*"))] == [
        Path("only here"),
        Path("only here/mask.dcm"),
    ]


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "mask.dcm"
    path.write_text("mine")
    with pytest.raises(SegError) as caught:
        made(classic(), mask(), path)
    assert (caught.value.code, caught.value.exit) == ("E-OUT-EXISTS", Exit.OUTPUT)
    assert path.read_text() == "mine"
    made(classic(), mask(), path, overwrite=True)


def test_a_file_of_the_series_is_never_replaced(tmp_path: Path) -> None:
    path, link = tmp_path / "slice.dcm", tmp_path / "link.dcm"
    path.write_text("a slice")
    os.link(path, link)
    series = replace(classic(), files=(str(path), *["/nowhere"] * 5))
    for target in (path, link):
        with pytest.raises(SegError) as caught:
            made(series, mask(), target, overwrite=True)
        assert (caught.value.code, caught.value.exit) == ("E-OUT-SAME", Exit.OUTPUT)
    assert path.read_text() == "a slice"


@pytest.mark.parametrize(("where", "code"), [("missing/mask.dcm", "E-OUT-DIR"), ("", "E-OUT-DIR")])
def test_what_cannot_be_written(where: str, code: str, tmp_path: Path) -> None:
    with pytest.raises(SegError) as caught:
        made(classic(), mask(), tmp_path / where)
    assert (caught.value.code, caught.value.exit) == (code, Exit.OUTPUT)
    assert not list(tmp_path.iterdir())


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pydicom, "dcmwrite", full)
    with pytest.raises(SegError) as caught:
        made(classic(), mask(), tmp_path / "mask.dcm")
    assert (caught.value.code, caught.value.exit) == ("E-OUT-FULL", Exit.OUTPUT)
    assert not list(tmp_path.iterdir())


PROGRAM = """
import logging, sys, warnings
logging.basicConfig(level=logging.DEBUG)
from known import plain_spec
from source_series import classic, mask
from seg.infer.dicom.derived import save
from seg.infer.dicom.rtstruct import rtstruct_dataset
from seg.infer.dicom.segmentation import segmentation_dataset
from seg.infer.errors import SegError
spec = plain_spec(name="heart", labels=("background", "left atrium", "odd"))
names = {k: "CANARY" + k for k in "PatientName PatientID StudyID AccessionNumber StudyDescription Manufacturer".split()}
names |= dict(StudyTime="CANARY", PatientSex="CANARY", ReferringPhysicianName="CANARY" * 20)
names |= dict(InstitutionName="CANARY" * 20)
logging.disable()  # what making the input says is no matter here
with warnings.catch_warnings(action="ignore"):
    series = classic(**names)
logging.disable(logging.NOTSET)
for make, name in ((segmentation_dataset, "seg"), (rtstruct_dataset, "rt")):
    for folder in sys.argv[1:]:
        try:
            dataset = make(series, mask(), spec, model_sha256="ab" * 32)
            save(f"{folder}/{name}.dcm", dataset, series, overwrite=False)
        except SegError as error:
            print(error, error.as_dict())
"""


def test_no_name_is_printed_or_logged(tmp_path: Path) -> None:
    """With logging at its most talkative; values are what pydicom warns of and highdicom logs."""
    (tmp_path / "out").mkdir()
    search = [str(Path(__file__).parents[1])]
    result = subprocess.run(
        [sys.executable, "-W", "default", "-c", PROGRAM, str(tmp_path / "out"), str(tmp_path / "missing")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), *search])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "CANARY" not in result.stdout + result.stderr
    assert result.stdout.count("E-OUT-DIR") == 4
    assert {p.name for p in tmp_path.rglob("*")} == {"out", "seg.dcm", "rt.dcm"}
    assert b"CANARY" in (tmp_path / "out" / "seg.dcm").read_bytes()


def test_dicom_packages_are_loaded_when_used() -> None:
    program = "import sys, seg.infer.dicom.segmentation, seg.infer.dicom.rtstruct; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydicom", "highdicom", "contourpy"} & set(loaded)
