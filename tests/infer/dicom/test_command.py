"""DICOM through the command line: outputs of every kind, batches, records, and nothing of the patient."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from commands import infer, run, voxels
from dicom_files import ENHANCED_CT, enhanced_dataset, on, ras_affine, save, setting, uid, write_series
from known import boxes
from pydicom import Dataset, dcmread

from seg.infer.manifest import NAME

Model = Callable[..., str]
Write = Callable[..., str]
OBLIQUE = (0.9848077530, 0.1736481777, 0.0, -0.1710100717, 0.9698463104, 0.1736481777)


@pytest.fixture
def scan(tmp_path: Path) -> str:
    write_series(tmp_path / "scan", boxes(), orientation=OBLIQUE)
    return str(tmp_path / "scan")


def rows(report: Path) -> Any:
    return json.loads(report.read_text())["scans"]


def test_a_nifti_mask_lies_on_the_slices(scan: str, tmp_path: Path, threshold_model: Model) -> None:
    out = tmp_path / "mask.nii.gz"
    done = infer(scan, "-o", str(out), "-m", threshold_model())
    assert done.returncode == 0, done.stderr
    mask = nib.load(out)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), boxes() > 0)
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_allclose(mask.affine, ras_affine(OBLIQUE), atol=1e-4)
    np.testing.assert_allclose(mask.get_qform(), ras_affine(OBLIQUE), atol=1e-4)
    assert [int(mask.header[f"{form}_code"]) for form in ("sform", "qform")] == [1, 1]
    assert mask.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("form", [(), ("--format", "seg"), ("--format", "rtstruct")])
def test_dicom_masks(scan: str, tmp_path: Path, threshold_model: Model, form: tuple[str, ...]) -> None:
    """By the suffix, or by the option into a folder."""
    model = threshold_model()
    assert run(scan, "-o", str(tmp_path / "mask.dcm"), "-m", model, "-q", *form) == 0
    assert run(scan, "-o", str(tmp_path / "masks"), "-m", model, "-q", *(form or ("--format", "seg"))) == 0
    assert sorted(p.name for p in (tmp_path / "masks").iterdir()) == ["scan.dcm", NAME]
    for path in (tmp_path / "mask.dcm", tmp_path / "masks" / "scan.dcm"):
        dataset = dcmread(path)
        assert dataset.Modality == ("RTSTRUCT" if "rtstruct" in form else "SEG")
        if dataset.Modality == "SEG":
            assert int(dataset.pixel_array.sum()) == int((boxes() > 0).sum())


def test_side_outputs(scan: str, tmp_path: Path, threshold_model: Model) -> None:
    """Statistics, a picture, probabilities (NIfTI beside any mask) and a report; the same for both forms of mask."""
    model, found = threshold_model(), []
    for name in ("a.nii.gz", "b.dcm"):
        words = [scan, "-o", str(tmp_path / name), "-m", model, "-q", "--save-probabilities"]
        for option, suffix in (("--statistics", "s.json"), ("--preview", "p.png"), ("--report", "r.json")):
            words += [option, str(tmp_path / f"{name[0]}_{suffix}")]
        assert run(*words) == 0
        maps = nib.load(tmp_path / f"{name[0]}_probabilities.nii.gz")
        np.testing.assert_array_equal(np.asarray(maps.dataobj).reshape(20, 15, 9) > 0.5, boxes() > 0)
        found.append(json.loads((tmp_path / f"{name[0]}_s.json").read_text())["scans"][0]["classes"])
        assert (tmp_path / f"{name[0]}_p.png").read_bytes().startswith(b"\x89PNG")
        row = rows(tmp_path / f"{name[0]}_r.json")[0]
        assert (row["shape"], row["status"]) == ([20, 15, 9], "done")
        assert row["series"].pop("series_hmac") != uid("series", 1)
        assert row["series"] == {"modality": "CT", "number": 1, "slices": 9, "files": 9}
        assert len(row["scan_sha256"]) == len(row["mask_sha256"]) == 64
    assert found[0] == found[1]
    assert found[0]["class 1"]["volume_mm3"] == pytest.approx((boxes() > 0).sum() * 0.8 * 1.1 * 2.5)


def test_a_dry_run_plans_from_headers(scan: str, threshold_model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(scan, "-o", "nowhere", "-m", threshold_model(), "--dry-run") == 0
    assert "scan 20 x 15 x 9" in capsys.readouterr().out
    assert not Path("nowhere").exists()
    for dry in (["--dry-run"], []):
        assert run(scan, "-o", "nowhere.nii", "-m", threshold_model(), "--max-voxels", "10", *dry) == 13
        assert "E-LIMIT-VOXELS" in capsys.readouterr().err


def test_a_list_may_name_dicom_masks(tmp_path: Path, threshold_model: Model) -> None:
    for name in ("one", "two"):
        write_series(tmp_path / name, boxes(), orientation=OBLIQUE)
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'one'}\tcase1.dcm\n{tmp_path / 'two'}\tcase2\n")
    words = ["--from", str(tmp_path / "list.txt"), "-o", str(tmp_path / "out"), "-m", threshold_model(), "-q"]
    assert run(*words, "--format", "seg") == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("case*")) == ["case1.dcm", "case2.dcm"]
    assert run(*words, "--format", "seg", "--series", "all") == 0
    assert (tmp_path / "out" / "case1_001.dcm").exists()


def test_a_batch_of_both_kinds(tmp_path: Path, write_scan: Write, threshold_model: Model) -> None:
    """Folders of series, a zip file, a multi-frame file, NIfTI, and one bad series that stops nobody."""
    for name in ("one", "two"):
        write_series(tmp_path / name, boxes(), orientation=OBLIQUE)
    write_series(tmp_path / "bad", boxes(), skip=[4])
    shutil.make_archive(str(tmp_path / "three"), "zip", tmp_path / "one")
    save(tmp_path / "four.dcm", enhanced_dataset(boxes(), orientation=OBLIQUE))
    five = write_scan("five.nii.gz", boxes())
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'two'}\trenamed\n{tmp_path / 'one'}\n")
    words = [str(tmp_path / name) for name in ("one", "three.zip", "bad", "four.dcm")]
    out, report = tmp_path / "out", tmp_path / "r.json"
    words += [five, "--from", str(tmp_path / "list.txt"), "-o", str(out), "--report", str(report)]
    assert run(*words, "-m", threshold_model()) == 40
    names = ["five", "four", "one", "renamed", "three"]
    assert {p.name for p in out.iterdir()} == {*(f"{name}.nii.gz" for name in names), NAME}
    for name in names:
        np.testing.assert_array_equal(voxels(out / f"{name}.nii.gz"), boxes() > 0)
    errors = [row["error"] and row["error"]["code"] for row in rows(report)]
    assert errors == [None, None, "E-DCM-MISSING", None, None, None]


def test_all_series_of_a_study(tmp_path: Path, threshold_model: Model) -> None:
    """Masks are named after the folder and numbered: no tag becomes a path."""
    study = tmp_path / "study"
    write_series(study / "x", boxes(), series=7)
    write_series(study / "y", boxes()[:, :, ::-1], series=3, edit=setting(SeriesDescription="../../evil"))
    write_series(study / "z", boxes(), series=5, skip=[4])
    out, report = tmp_path / "out", tmp_path / "r.json"
    words = [str(study), "--series", "all", "-o", str(out), "-m", threshold_model(), "-q", "--report", str(report)]
    assert run(*words) == 40
    assert sorted(p.name for p in out.iterdir()) == [NAME, "study_001.nii.gz", "study_003.nii.gz"]
    np.testing.assert_array_equal(voxels(out / "study_001.nii.gz"), boxes()[:, :, ::-1] > 0)
    np.testing.assert_array_equal(voxels(out / "study_003.nii.gz"), boxes() > 0)
    assert [row["series"] and row["series"]["number"] for row in rows(report)] == [3, None, 7]


def test_continue(scan: str, tmp_path: Path, threshold_model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    """A record holds for the files of the series: any change, and the mask is made again."""
    words = [scan, "-o", f"{tmp_path}/out/", "-m", threshold_model(), "--continue"]
    mask = tmp_path / "out" / "scan.nii.gz"
    assert run(*words) == 0
    first = mask.stat().st_mtime_ns
    assert run(*words) == 0
    assert mask.stat().st_mtime_ns == first
    assert "1 of 1 scans are finished" in capsys.readouterr().err
    shutil.copytree(scan, tmp_path / "copy")  # other times, the same bytes
    shutil.rmtree(scan)
    shutil.copytree(tmp_path / "copy", scan, copy_function=shutil.copy)
    assert run(*words) == 0
    assert mask.stat().st_mtime_ns == first
    dataset = dcmread(Path(scan) / "006.dcm")
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(Path(scan) / "006.dcm")
    assert run(*words) == 0
    assert "was made from a scan that has changed" in capsys.readouterr().err
    np.testing.assert_array_equal(voxels(mask)[..., 6], 0)
    (Path(scan) / "new.txt").write_text("a new file")
    assert run(*words) == 0
    assert "was made from a scan that has changed" in capsys.readouterr().err
    assert run(*words, "--time-point", "1") == 0
    assert "was made with other options" in capsys.readouterr().err
    assert run(*words, "--series", uid("series", 1)) == 0
    assert uid("series", 1) not in (tmp_path / "out" / NAME).read_text()


def test_continue_knows_the_forms_of_masks_apart(scan: str, tmp_path: Path, threshold_model: Model) -> None:
    """All are named scan.dcm."""
    words = [scan, "-o", f"{tmp_path}/out/", "-m", threshold_model(), "--continue", "-q", "--format"]
    for form, modality in (("seg", "SEG"), ("rtstruct", "RTSTRUCT")):
        for _ in range(2):
            assert run(*words, form) == 0
            assert dcmread(tmp_path / "out" / "scan.dcm").Modality == modality


def test_continue_after_a_stop_between_mask_and_record(scan: str, tmp_path: Path, threshold_model: Model) -> None:
    """A SEG without a record is known by its instance UID, which stands for its content; another one is kept."""
    words = [scan, "-o", f"{tmp_path}/out/", "-m", threshold_model(), "--continue", "-q", "--format", "seg"]
    assert run(*words) == 0
    (tmp_path / "out" / NAME).unlink()
    assert run(*words) == 0
    (tmp_path / "out" / NAME).unlink()
    dataset = dcmread(tmp_path / "out" / "scan.dcm")
    dataset.SOPInstanceUID = "1.2.3"
    dataset.save_as(tmp_path / "out" / "scan.dcm")
    before = (tmp_path / "out" / "scan.dcm").read_bytes()
    assert run(*words) == 30
    assert (tmp_path / "out" / "scan.dcm").read_bytes() == before


def test_outputs_that_are_refused(
    scan: str, tmp_path: Path, write_scan: Write, threshold_model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    model, nifti = threshold_model(), write_scan("n.nii.gz", boxes())
    (tmp_path / "there.dcm").write_bytes(b"old")
    (tmp_path / "link").symlink_to(scan)
    shutil.copy(Path(scan) / "000.dcm", tmp_path / "one.dcm")
    before = sorted(tmp_path.rglob("*"))
    for words, status, code in [
        ([scan, "-o", f"{scan}/mask.nii.gz"], 30, "E-OUT-SAME"),
        ([scan, "-o", f"{scan}/new/"], 30, "E-OUT-SAME"),
        ([scan, "-o", f"{tmp_path}/link/mask.dcm"], 30, "E-OUT-SAME"),
        ([scan, "-o", scan], 30, "E-OUT-SAME"),
        ([str(tmp_path / "one.dcm"), "-o", str(tmp_path / "one.dcm")], 30, "E-OUT-SAME"),
        ([scan, "-o", str(tmp_path / "there.dcm")], 30, "E-OUT-EXISTS"),
        ([scan, "-o", str(tmp_path / "m.nii"), "--format", "seg"], 2, "E-OUT-SUFFIX"),
        ([scan, "-o", str(tmp_path / "m.dcm"), "--format", "nifti"], 2, "E-OUT-SUFFIX"),
        ([nifti, "-o", str(tmp_path / "m.dcm")], 2, "E-FORMAT"),
        ([scan, nifti, "-o", str(tmp_path / "o"), "--format", "rtstruct"], 2, "E-FORMAT"),
    ]:
        overwrite = [] if code == "E-OUT-EXISTS" else ["--overwrite"]
        assert run(*words, "-m", model, "-q", *overwrite) == status
        assert code in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_names_of_masks(tmp_path: Path, threshold_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder's name, however it is typed."""
    write_series(tmp_path / "case.1", boxes())
    model = threshold_model()
    monkeypatch.chdir(tmp_path / "case.1")
    for number, word in enumerate((".", "../case.1/", str(tmp_path / "case.1"), "../case.1/.")):
        assert run(word, "-o", str(tmp_path / f"out{number}"), "-m", model, "-q") == 0
        assert (tmp_path / f"out{number}" / "case.1.nii.gz").exists()


CANARIES = [f"CANARY{number:02}" for number in range(50)]


def with_canaries(_: int, dataset: Dataset) -> None:
    """Fifty strings in elements of every kind that may hold text about a patient."""
    from pydicom.datadict import dictionary_VR, keyword_dict

    texts = [k for k, tag in keyword_dict.items() if dictionary_VR(tag) in ("LO", "PN", "SH", "LT", "ST", "UT", "AE")]
    named = ["PatientName", "PatientID", "PatientAddress", "OtherPatientNames", "InstitutionName", "StudyID"]
    named += ["SeriesDescription", "StudyDescription", "ProtocolName", "ReferringPhysicianName", "AccessionNumber"]
    named += ["OperatorsName", "StationName", "ImageComments", "PatientComments", "RequestedProcedureDescription"]
    group_of_file = [k for k in texts if keyword_dict[k] >> 16 not in (0, 2, 4) and k not in named]
    for canary, keyword in zip(CANARIES, [*named, *group_of_file[:: len(group_of_file) // 34]], strict=False):
        setattr(dataset, keyword, canary)
    assert sum("CANARY" in str(element.value) for element in dataset) >= 45


FAILING: dict[str, Callable[[int, Dataset], None]] = {
    "fine": lambda k, d: None,
    "gap": lambda k, d: None,
    "tag": on([8], PixelSpacing=None),
    "mixed": on([8], PatientID="CANARY-OTHER"),
    "uid": on([8], SOPInstanceUID="CANARY"),
    "colour": on([8], PhotometricInterpretation="CANARY"),
    "modality": on(None, Modality="CANARY"),
    "unit": on(None, RescaleType="CANARY"),
    "kind": on([8], SOPClassUID=ENHANCED_CT),
    "syntax": on([8], BitsAllocated=12),
}


@pytest.mark.parametrize("row", FAILING)
def test_nothing_of_the_patient_is_told(
    row: str, tmp_path: Path, threshold_model: Model, capfd: pytest.CaptureFixture[str]
) -> None:
    """D30: at every level of talk, on both streams, in the report, the record and the NIfTI mask's header."""

    def edit(k: int, dataset: Dataset) -> None:
        with_canaries(k, dataset)
        FAILING[row](k, dataset)

    write_series(tmp_path / "scan", boxes(), edit=edit, skip=[3] if row == "gap" else [])
    report, model = tmp_path / "r.json", threshold_model()
    for level in ([], ["-q"], ["--debug"]):
        words = [str(tmp_path / "scan"), "-o", f"{tmp_path}/out/", "-m", model, "--report", str(report), "--overwrite"]
        assert run(*words, *level) == run("--list", str(tmp_path / "scan")) or row != "fine"
        said = capfd.readouterr()
        assert "CANARY" not in said.err + said.out + report.read_text()
    for path in (tmp_path / "out").glob("*"):
        content = path.read_bytes()
        assert b"CANARY" not in content
        assert uid("series", 1).encode() not in content
        if path.suffix == ".gz":
            import gzip

            assert b"CANARY" not in gzip.decompress(content)


def test_uids_are_in_no_report(scan: str, tmp_path: Path, threshold_model: Model) -> None:
    report = tmp_path / "r.json"
    words = [scan, "-o", f"{tmp_path}/out/", "-m", threshold_model(), "-q", "--report", str(report)]
    assert run(*words, "--series", uid("series", 1)) == 0
    text = report.read_text() + (tmp_path / "out" / NAME).read_text()
    for identifier in (uid("series", 1), uid("study"), uid("instance", 1, 0), uid("frame of reference")):
        assert identifier not in text


def test_nifti_runs_do_not_pay(tmp_path: Path, write_scan: Write, threshold_model: Model) -> None:
    """Neither package is imported without a DICOM input; highdicom only for DICOM outputs."""
    import subprocess
    import sys

    program = """
import sys
from seg.infer.cli import app
try: app(sys.argv[1:])
except SystemExit as stop: assert not stop.code, stop.code
print(",".join(name for name in ("pydicom", "highdicom") if name in sys.modules))
"""
    write_series(tmp_path / "s", boxes())
    model = threshold_model()
    for number, (path, loaded) in enumerate(((write_scan("n.nii.gz", boxes()), ""), (str(tmp_path / "s"), "pydicom"))):
        words = [path, "-o", str(tmp_path / f"{number}.nii.gz"), "-m", model, "-q"]
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == loaded
