"""Each fault is put into a clean folder; the clean folder must have none."""

import gzip
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import (
    DATA,
    IDS,
    SHAPE,
    check,
    five_cases,
    image_of,
    label_of,
    mask,
    relabel,
    save,
    scan,
    shifted,
    split_of,
    values,
)

from seg.infer import nifti
from seg.infer.errors import Exit, SegError
from seg.train.cases import discover
from seg.train.check import check_dataset
from seg.train.split import choose_split


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return five_cases(tmp_path)


def test_a_clean_folder_has_no_findings(folder: Path) -> None:
    result = check(folder, {0: "background", 1: "core", 2: "rim"})
    assert result.findings == ()
    assert set(result.facts) == set(IDS)
    result.stop_on_errors()


# One fault each: what to do to the folder, the code, and the file to be named.
Fault = Callable[[Path], None]


def nan_at(value: float) -> Fault:
    def fault(folder: Path) -> None:
        array = scan(0)
        array[1, 2, 3] = value
        save(image_of(folder, "p1"), array)

    return fault


def cut(folder: Path) -> None:
    path = image_of(folder, "p1")
    path.write_bytes(path.read_bytes()[:-2000])


FAULTS: list[tuple[str, Fault, str, str]] = [
    ("label of another shape", lambda f: relabel(f, "p1", mask()[:-1]), "E-DATA-SHAPE", "labels/p1"),
    ("label shifted", lambda f: relabel(f, "p1", mask(), shifted(2, 1.0)), "E-DATA-AFFINE", "labels/p1"),
    ("label shifted a little", lambda f: relabel(f, "p2", mask(), shifted(0, 0.2)), "E-DATA-AFFINE", "labels/p2"),
    ("label flipped", lambda f: relabel(f, "p5", mask(), np.diag([-1.0, 1.5, 2, 1])), "E-DATA-AFFINE", "labels/p5"),
    ("label rescaled", lambda f: relabel(f, "p1", mask(), np.diag([1.0, 1.5, 2.1, 1])), "E-DATA-AFFINE", "labels/p1"),
    ("label nearly integral", values(1, 0.9999), "E-DATA-LABEL-FLOAT", "labels/p1"),
    ("label negative", values(1, -1, np.int16), "E-DATA-LABEL-NEGATIVE", "labels/p1"),
    ("label value unknown", values(2, 7, np.uint8), "E-DATA-LABEL-VALUES", "labels/p1"),
    ("label of val unknown", values(2, 255, np.uint8, "p5"), "E-DATA-LABEL-VALUES", "labels/p5"),
    ("NaN", nan_at(np.nan), "E-NII-NONFINITE", "images/p1"),
    ("infinite", nan_at(np.inf), "E-NII-NONFINITE", "images/p1"),
    ("constant", lambda f: save(image_of(f, "p3"), np.full(SHAPE, 7, np.int16)), "E-DATA-CONSTANT", "images/p3"),
    ("mark of nothing measured", nan_at(np.finfo(np.float32).min), "E-DATA-INTENSITY", "images/p1"),
    ("cut short", cut, "E-NII-TRUNC", "images/p1"),
    ("not NIfTI", lambda f: label_of(f, "p2").write_bytes(b"<html>" * 99) and None, "E-NII-NOTNIFTI", "labels/p2"),
    ("4D", lambda f: save(image_of(f, "p3"), np.stack([scan(2), scan(9)], -1)), "E-NII-4D", "images/p3"),
]


@pytest.mark.parametrize(("fault", "code", "path"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
@pytest.mark.parametrize("names", [None, {0: "background", 1: "core", 2: "rim"}], ids=["undeclared", "declared"])
def test_one_fault_one_finding(folder: Path, fault: Fault, code: str, path: str, names: dict[int, str] | None) -> None:
    fault(folder)
    result = check(folder, names)
    assert [(f.severity, f.code, f.path) for f in result.findings] == [("error", code, str(folder / f"{path}.nii.gz"))]
    with pytest.raises(SegError) as caught:
        result.stop_on_errors()
    assert (caught.value.code, caught.value.exit) == ("E-DATA-CHECK", result.findings[0].exit)
    assert caught.value.path == str(folder / f"{path}.nii.gz")
    assert caught.value.found == f"1 error, {code}: {result.findings[0].message}"


def test_every_fault_is_listed_at_once(folder: Path) -> None:
    nan_at(np.nan)(folder)
    relabel(folder, "p1", mask().astype(np.float32) * np.float32(np.nan))
    save(image_of(folder, "p2"), np.zeros(SHAPE, np.int16))
    values(2, 9, np.uint8, "p5")(folder)
    result = check(folder, {0: "background", 1: "core", 2: "rim"})
    assert [(f.code, f.path) for f in result.findings] == [
        ("E-NII-NONFINITE", str(image_of(folder, "p1"))),
        ("E-NII-NONFINITE", str(label_of(folder, "p1"))),
        ("E-DATA-CONSTANT", str(image_of(folder, "p2"))),
        ("E-DATA-LABEL-VALUES", str(label_of(folder, "p5"))),
    ]
    with pytest.raises(SegError, match="4 errors") as caught:
        result.stop_on_errors()
    assert caught.value.exit == Exit.INPUT_REFUSED
    assert caught.value.path == str(image_of(folder, "p1"))
    assert caught.value.found == f"4 errors, the first is E-NII-NONFINITE: {result.findings[0].message}"


def test_faults_in_every_case_are_listed(folder: Path) -> None:
    for case in IDS:
        save(image_of(folder, case), np.zeros((*SHAPE, 2), np.int16))
    result = check(folder)
    assert {f.path for f in result.findings} == {str(image_of(folder, case)) for case in IDS}
    assert not result.facts


def test_a_damaged_file_alone_exits_as_corrupt(folder: Path) -> None:
    cut(folder)
    with pytest.raises(SegError) as caught:
        check(folder).stop_on_errors()
    assert caught.value.exit == Exit.INPUT_CORRUPT


def test_a_shift_within_tolerance_passes(folder: Path) -> None:
    relabel(folder, "p1", mask(), shifted(0, 0.05))
    assert check(folder).findings == ()


@pytest.mark.parametrize("names", [None, {0: "background", 1: "core"}])
def test_a_mask_of_255_suggests_the_mapping(folder: Path, names: dict[int, str] | None) -> None:
    for case in IDS:
        relabel(folder, case, (mask() > 0).astype(np.uint8) * 255)
    findings = check(folder, names).findings
    assert [f.code for f in findings] == ["E-DATA-LABEL-VALUES"] * 3  # two labelled and one of val
    assert all("write 255 as 1" in f.message and "255: 96 voxels" in f.message for f in findings)


def test_a_mask_of_255_passes_when_declared(folder: Path) -> None:
    for case in IDS:
        relabel(folder, case, (mask() > 0).astype(np.uint8) * 255)
    assert check(folder, {0: "background", 255: "atrium"}).findings == ()


def test_the_majority_defines_undeclared_classes(folder: Path) -> None:
    for case in ("p1", "p5"):
        relabel(folder, case, mask() * 2)  # 0, 2, 4: gaps are the data set's own business
    values(1, 3, np.uint8, "p2")(folder)
    findings = check(folder).findings
    assert [(f.code, f.path) for f in findings] == [("E-DATA-LABEL-VALUES", str(label_of(folder, "p2")))]
    assert "3: 64 voxels" in findings[0].message
    assert "[0, 2, 4]" in findings[0].message


def test_empty_label_warns(folder: Path) -> None:
    relabel(folder, "p1", np.zeros(SHAPE, np.uint8))
    result = check(folder)
    assert [(f.severity, f.code, f.path) for f in result.findings] == [
        ("warning", "W-DATA-EMPTY", str(label_of(folder, "p1")))
    ]
    result.stop_on_errors()


def test_class_in_no_training_label(folder: Path) -> None:
    for case in ("p1", "p2"):
        relabel(folder, case, (mask() == 1).astype(np.uint8))
    findings = check(folder, {0: "background", 1: "core", 2: "rim"}).findings
    assert [(f.severity, f.code) for f in findings] == [("error", "E-DATA-ABSENT")]
    assert "class 2 (rim)" in findings[0].message


def test_labels_of_unlabelled_cases_are_never_read(folder: Path) -> None:
    label_of(folder, "p3").write_bytes(b"garbage")
    result = check(folder)
    assert result.findings == ()
    assert result.facts["p3"].class_voxels == {}


# Copies


def recompress(folder: Path, source: str, target: str) -> None:
    raw = gzip.decompress(image_of(folder, source).read_bytes())
    image_of(folder, target).write_bytes(gzip.compress(raw, compresslevel=1))


def noisy(folder: Path, source: str, target: str) -> None:
    array = np.asarray(nib.load(image_of(folder, source)).dataobj)
    noise = np.random.default_rng(0).normal(0, 0.02 * array.std(), SHAPE)
    save(image_of(folder, target), (array + noise).astype(np.float32))


def rescaled(folder: Path, source: str, target: str) -> None:
    array = np.asarray(nib.load(image_of(folder, source)).dataobj)
    save(image_of(folder, target), ((array - array.mean()) / array.std()).astype(np.float32))


@pytest.mark.parametrize("copy", [recompress, noisy, rescaled])
@pytest.mark.parametrize(
    ("source", "target", "severity"),
    [("p1", "p5", "error"), ("p1", "p3", "error"), ("p3", "p5", "error"), ("p3", "p4", "warning")],
)
def test_copies_under_another_name(
    folder: Path, copy: Callable[[Path, str, str], None], source: str, target: str, severity: str
) -> None:
    copy(folder, source, target)
    findings = check(folder).findings
    assert [(f.severity, f.code[1:], f.path) for f in findings] == [
        (severity, "-DATA-COPY", str(image_of(folder, target)))
    ]
    assert str(image_of(folder, source)) in findings[0].message
    assert ("the same voxels" in findings[0].message) == (copy is recompress)


def test_patient_on_both_sides_and_case_in_two_roles(folder: Path) -> None:
    split = split_of(folder)
    stray = replace(split.unlabeled[0], patient="p5")
    findings = check_dataset(replace(split, unlabeled=(stray, *split.unlabeled[1:])), None).findings
    assert [(f.code, f.path) for f in findings] == [("E-DATA-PATIENT", stray.images[0])]
    twice = replace(split, unlabeled=(*split.unlabeled, replace(split.labeled[0], label=None)))
    assert "E-DATA-ROLES" in [f.code for f in check_dataset(twice, None).findings]


# Channels


def test_channels_with_different_grids(tmp_path: Path) -> None:
    for seed, case in enumerate(("p1", "p2", "p3")):
        save(tmp_path / "imagesTr" / f"{case}_0000.nii.gz", scan(seed))
        save(tmp_path / "imagesTr" / f"{case}_0001.nii.gz", scan(seed + 10))
        save(tmp_path / "labelsTr" / f"{case}.nii.gz", mask())
    save(tmp_path / "imagesTr" / "p1_0001.nii.gz", scan(10), shifted(1, 0.5))
    save(tmp_path / "imagesTr" / "p2_0001.nii.gz", scan(11)[:, :-1])
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["p1", "p2"], "val": ["p3"]}))
    result = check_dataset(choose_split(discover([str(tmp_path)]), None, None, 0), None)
    where = tmp_path / "imagesTr"
    assert [(f.code, f.path) for f in result.findings] == [
        ("E-DATA-AFFINE", str(where / "p1_0001.nii.gz")),
        ("E-DATA-SHAPE", str(where / "p2_0001.nii.gz")),
    ]
    assert len(result.facts["p3"].channels) == 2


def test_one_file_with_all_channels(folder: Path) -> None:
    for seed, case in enumerate(IDS):
        save(image_of(folder, case), np.stack([scan(seed), np.full(SHAPE, 3, np.float32)], -1))
    result = check_dataset(split_of(folder), None, channels=2)
    assert [f.code for f in result.findings] == ["E-DATA-CONSTANT"] * 5
    assert [c.mean for c in result.facts["p1"].channels] == [pytest.approx(scan(0).mean(), rel=1e-5), 3]


# Facts of an earlier pass


def test_facts_spare_the_second_reading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = check(folder).facts
    values(2, 9, np.uint8, "p2")(folder)
    opened: list[str] = []
    real = nifti.read

    def counting(path: str, **options: int) -> nifti.Scan:
        opened.append(path)
        return real(path, channels=options["channels"])

    monkeypatch.setattr(nifti, "read", counting)
    again = check_dataset(split_of(folder), None, cached=cached)
    assert sorted(opened) == [str(image_of(folder, "p2")), str(label_of(folder, "p2"))]
    assert [f.code for f in again.findings] == ["E-DATA-LABEL-VALUES"]


def test_cached_facts_of_a_labelled_case_do_not_leak_into_its_unlabelled_role(folder: Path) -> None:
    split = split_of(folder)
    cached = check_dataset(split, None).facts
    hidden = replace(split, labeled=split.labeled[1:], unlabeled=(replace(split.labeled[0], label=None),))
    facts = check_dataset(hidden, None, cached=cached).facts["p1"]
    assert (facts.class_voxels, facts.channels[0].foreground, facts.label_sha256) == ({}, (), "")


@pytest.mark.parametrize(
    ("name", "labeled"), [pytest.param("LA", 8, marks=pytest.mark.slow), ("hippocampus", 10), ("ACDC", 3)]
)
def test_public_data_is_clean_and_quick(name: str, labeled: int) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} under {DATA}: set SEG_DATA")
    dataset = discover([str(DATA / name)])
    start = time.perf_counter()
    result = check_dataset(choose_split(dataset, labeled, None, 0), dataset.label_names)
    assert result.findings == ()
    assert len(result.facts) == len(dataset.cases)
    assert time.perf_counter() - start < 30


def test_no_framework_is_imported() -> None:
    code = "import sys, seg.train.check, seg.train.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
