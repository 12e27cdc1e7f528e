"""seg-infer between a PACS and files: every way in and out, against Orthanc."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("dicomweb_client", reason="needs the extra dicomweb")

from commands import infer, run, voxels
from nodes import LOOPBACK, Orthanc, free_port, mr_series, orthanc_missing, write
from pydicom import dcmread

from seg.infer.dicomweb.fetched import fetched
from seg.infer.dicomweb.session import TOKEN, TOKEN_FILE
from seg.infer.errors import SegError


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials of whoever runs the tests; temporary files where they can be looked at."""
    for name in (TOKEN, TOKEN_FILE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def model(threshold_model: Callable[..., str]) -> str:
    """Labels what is brighter than the noise of `mr_series`."""
    return threshold_model((150.0,))


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if reason := orthanc_missing():
        pytest.skip(reason)
    with Orthanc(tmp_path_factory.mktemp("orthanc"), {}) as running:
        yield running


def put(orthanc: Orthanc, name: str, folder: Path, **tags: object) -> tuple[str, str]:
    """A study of one series that suits the model; addresses of the service and of the series."""
    series = mr_series(name, 8, **tags)
    orthanc.upload(write(series, folder))
    base = f"dicomweb://localhost:{orthanc.http}/dicom-web"
    return base, f"{base}/studies/{series[0].StudyInstanceUID}/series/{series[0].SeriesInstanceUID}"


def test_from_pacs_to_pacs_and_once(orthanc: Orthanc, tmp_path: Path, model: str) -> None:
    base, scan = put(orthanc, "both", tmp_path / "scan")
    for _ in range(2):
        assert run(scan, "-o", base, "-m", model, "-q") == 0
    assert len(orthanc.segmentations()["both"]) == 1
    assert list((tmp_path / "tmp").iterdir()) == []


def test_from_pacs_to_file_is_the_same_as_from_folder(orthanc: Orthanc, tmp_path: Path, model: str) -> None:
    _, scan = put(orthanc, "file", tmp_path / "scan")
    assert run(scan, "-o", str(tmp_path / "web.nii.gz"), "-m", model, "-q") == 0
    assert run(str(tmp_path / "scan"), "-o", str(tmp_path / "folder.nii.gz"), "-m", model, "-q") == 0
    assert (tmp_path / "web.nii.gz").read_bytes() == (tmp_path / "folder.nii.gz").read_bytes()
    assert voxels(tmp_path / "web.nii.gz").shape == (16, 16, 8)
    assert voxels(tmp_path / "web.nii.gz").any()


def test_from_folder_to_pacs(orthanc: Orthanc, tmp_path: Path, model: str) -> None:
    base, _ = put(orthanc, "folder", tmp_path / "scan")
    report = tmp_path / "report.json"
    assert run(str(tmp_path / "scan"), "-o", base, "-m", model, "-q", "--report", str(report)) == 0
    assert len(orthanc.segmentations()["folder"]) == 1
    (row,) = json.loads(report.read_text())["scans"]
    assert row["status"] == "done"


def test_study_of_one_series_to_a_folder_has_no_uid_in_names(orthanc: Orthanc, tmp_path: Path, model: str) -> None:
    _, scan = put(orthanc, "study", tmp_path / "scan")
    study = scan.partition("/series/")[0]
    assert run(study, "-o", str(tmp_path / "masks") + "/", "-m", model, "-q", "--format", "seg") == 0
    (mask,) = (tmp_path / "masks").glob("*.dcm")
    assert mask.name.startswith("series-")
    assert "1.2.826" not in mask.name
    assert dcmread(mask).Modality == "SEG"


def test_all_series_of_a_study_and_auto(orthanc: Orthanc, tmp_path: Path, model: str) -> None:
    base, scan = put(orthanc, "several", tmp_path / "scan")
    study = scan.rpartition("/series/")[0]
    other = mr_series("other", 8, StudyInstanceUID=study.rpartition("/")[2], SeriesNumber=2, PatientID="several")
    orthanc.upload(write(other, tmp_path / "other"))
    assert run(study, "-o", str(tmp_path / "one.nii.gz"), "-m", model, "-q") == 12  # which one?
    assert run(study, "-o", str(tmp_path / "one.nii.gz"), "-m", model, "-q", "--series", "2") == 0
    assert run(study, "-o", base, "-m", model, "-q", "--series", "all") == 0
    assert len(orthanc.segmentations()["several"]) == 2


def test_dry_run_stores_nothing(orthanc: Orthanc, tmp_path: Path, model: str) -> None:
    base, scan = put(orthanc, "dry", tmp_path / "scan")
    assert run(scan, "-o", base, "-m", model, "--dry-run") == 0
    assert "dry" not in orthanc.segmentations()


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("scan.nii.gz", "-o", "BASE"), 2, "E-FORMAT"),  # a SEG needs DICOM slices
        (("SCAN", "-o", "BASE", "--save-probabilities"), 2, "E-FORMAT"),
        (("SCAN", "-o", "BASE", "--format", "nifti"), 2, "E-OUT-SUFFIX"),
        (("SCAN", "-o", "BASE", "--continue"), 2, "E-OUT-DIR"),
        (("SCAN", "-o", "BASE/studies/1.2"), 2, "E-WEB-ADDRESS"),
        (("BASE", "-o", "mask.nii.gz"), 2, "E-WEB-ADDRESS"),
        (("dicomweb://me:SECRET@localhost/studies/1", "-o", "mask.nii.gz"), 2, "E-WEB-ADDRESS"),
        (("SCAN", "-o", "CLOSED"), 30, "E-WEB-CONNECT"),  # before anything is computed
        (("CLOSED/studies/1.2", "-o", "mask.nii.gz"), 10, "E-WEB-CONNECT"),
        (("BASE/studies/1.2.3", "-o", "mask.nii.gz"), 10, "E-WEB-EMPTY"),
    ],
)
def test_what_cannot_be_is_one_line(
    orthanc: Orthanc,
    tmp_path: Path,
    model: str,
    capfd: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    status: int,
    code: str,
) -> None:
    base, scan = put(orthanc, "wrong", tmp_path / "scan")
    places = {"SCAN": scan, "BASE": base, "CLOSED": f"dicomweb://{LOOPBACK}:{free_port()}"}
    line = []
    for word in words:
        first, slash, rest = word.partition("/")
        line.append(places.get(first, first) + slash + rest)
    line[line.index("-o") + 1] = line[line.index("-o") + 1].replace("mask", str(tmp_path / "mask"))
    assert run(*line, "-m", model, "-q") == status
    shown = capfd.readouterr().err
    assert code in shown
    assert "SECRET" not in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "mask.nii.gz").exists()


def test_error_of_a_series_names_the_address_and_leaves_nothing(
    orthanc: Orthanc, tmp_path: Path, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    series = mr_series("gap", 8)
    del series[3]
    orthanc.upload(write(series, tmp_path / "scan"))
    uids = f"studies/{series[0].StudyInstanceUID}/series/{series[0].SeriesInstanceUID}"
    scan = f"dicomweb://localhost:{orthanc.http}/dicom-web/{uids}"
    assert run(scan, "-o", str(tmp_path / "mask.nii.gz"), "-m", model, "-q") == 12
    shown = capfd.readouterr().err
    assert "E-DCM-MISSING" in shown
    assert scan in shown
    assert "seg-web-" not in shown
    assert list((tmp_path / "tmp").iterdir()) == []


def test_one_token_does_not_go_to_two_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "abc")
    scan, base = "dicomwebs://192.0.2.1/studies/1.2", "dicomwebs://192.0.2.2"
    done = infer(scan, "-o", base, env={"PATH": "", TOKEN: "abc", **_python_path()})
    assert done.returncode == 2
    assert "one token would go to two hosts" in done.stderr
    assert "abc" not in done.stderr


def _python_path() -> dict[str, str]:
    import os

    return {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}


def test_folder_that_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    gone = tmp_path / "tmp" / "seg-web-999999999-x"
    gone.mkdir()
    (gone / "0.dcm").write_bytes(b"left")
    with pytest.raises(SegError), fetched(f"dicomweb://{LOOPBACK}:{free_port()}/studies/1.2"):
        pass
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "address",
    ["dicomweb://anna:s3c/ret@pacs/studies/1.2", "HTTPS://anna:s3cret@pacs:80a/x", "http://pacs/x?token=s3cret"],
)
def test_no_password_is_repeated_on_stderr_or_in_the_report(tmp_path: Path, model: str, address: str) -> None:
    report, lines = tmp_path / "report.json", tmp_path / "list.txt"
    lines.write_text(f"{address}\n")
    for words in (
        (address, "-o", "x.nii.gz"),
        ("scan.nii.gz", "-o", address),
        ("a", "b", "-o", address),
        ("scan.nii.gz", "-o", "x", "--triton", address),
        ("--from", str(lines), "-o", "out"),
        ("--list", address),
    ):
        done = infer(*words, "-m", model, "--report", str(report), cwd=tmp_path)
        text = done.stdout + done.stderr + (report.read_text() if report.exists() else "")
        assert done.returncode == 2, text
        assert not [secret for secret in ("anna", "s3c") if secret in text], text
        report.unlink(missing_ok=True)
