"""`--report`: what it says of good and bad scans and of calls that fail, and what it must not say."""

import hashlib
import json
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from commands import infer, run
from known import boxes, oblique_affine

from seg.infer import __version__
from seg.infer.artifact import load
from seg.infer.console import Terminated
from seg.infer.report import Report

Write = Callable[..., str]
Model = Callable[..., str]
CANARY = "DOE^JANE"


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def canary_scan(path: Path) -> str:
    """A scan with a name in every text field of its header, and odd enough to get notes."""
    image = nib.Nifti1Image(boxes(), oblique_affine())
    for field in ("descrip", "intent_name", "aux_file", "db_name"):
        image.header[field] = f"{CANARY} {field}"[: image.header[field].dtype.itemsize]
    image.header["scl_slope"], image.header["scl_inter"] = 1, 0
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", CANARY.encode()))
    path.parent.mkdir(exist_ok=True)
    nib.save(image, path)
    return str(path)


def report_of(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_a_batch_with_a_bad_scan(tmp_path: Path, threshold_model: Model) -> None:
    good = canary_scan(tmp_path / "scans" / "a.nii.gz")
    bad = tmp_path / "scans" / "b.nii.gz"
    bad.write_bytes(Path(good).read_bytes()[:-20])
    out, path, model = tmp_path / "out", tmp_path / "r.json", threshold_model()
    words = [str(tmp_path / "scans"), "-o", str(out), "-m", model, "--window", "8,8,8"]
    done = infer(*words, "--report", str(path), "--statistics", str(tmp_path / "s.json"))
    assert done.returncode == 40
    report = report_of(path)
    assert report["exit"] == 40
    assert report["error"] is None
    assert report["scans"][0]["plan"]["windows"] >= 1
    assert report["versions"]["seg-toolkit"] == __version__
    assert report["versions"]["python"] == platform.python_version()
    for library in ("openvino", "numpy"):
        assert report["versions"][library] == metadata.version(library)
    spec = load(model).spec
    assert report["model"] == {
        "name": "threshold",
        "graph_sha256": spec.graph_sha256,
        "spec_sha256": hashlib.sha256(spec.to_json().encode()).hexdigest(),
    }
    assert report["options"]["computing"]["tiling"]["window"] == [8, 8, 8]
    assert report["scans_given"] == 2
    first, second = report["scans"]
    assert (first["scan"], first["mask"], first["status"]) == (good, str(out / "a.nii.gz"), "done")
    assert set(first["seconds"]) == {"read", "load", "segment", "write"}
    assert first["shape"] == list(boxes().shape)
    assert first["spacing_mm"] == pytest.approx([0.8, 1.1, 2.5], abs=1e-5)
    assert (first["scan_sha256"], first["mask_sha256"]) == (sha256(good), sha256(out / "a.nii.gz"))
    assert first["statistics"]["class 1"]["voxels"] == int((boxes() > 0).sum())
    assert (second["scan"], second["mask"], second["status"]) == (str(bad), None, "failed")
    assert (second["error"]["code"], second["error"]["exit"]) == ("E-NII-TRUNC", 11)
    assert 20e6 < report["peak_rss_bytes"] < 20e9
    assert 0 < report["wall_seconds"] < 100
    told = done.stderr + done.stdout
    for written in (path, tmp_path / "s.json", out / "seg-manifest.jsonl"):
        told += written.read_text()
    assert "DOE" not in told
    assert platform.node() not in path.read_text()


def test_one_scan_has_hashes_too(tmp_path: Path, write_scan: Write, threshold_model: Model) -> None:
    scan, out, path = write_scan("a.nii", boxes()), tmp_path / "m.nii.gz", tmp_path / "r.json"
    assert run(scan, "-o", str(out), "-m", threshold_model(), "-q", "--report", str(path)) == 0
    (row,) = report_of(path)["scans"]
    assert (row["scan_sha256"], row["mask_sha256"]) == (sha256(scan), sha256(out))


def test_what_stops_the_call_is_reported(tmp_path: Path, write_scan: Write, threshold_model: Model) -> None:
    scan, path, model = write_scan("a.nii", boxes()), tmp_path / "r.json", threshold_model()
    folder = str(tmp_path / "out")
    for words, status, code in (
        ([str(tmp_path / "no*.nii"), "-o", folder, "-m", model], 10, "E-IN-EMPTY"),
        ([scan, "-o", str(tmp_path / "m.nii"), "-m", "nobody"], 20, "E-MODEL-MISSING"),
        ([scan, "-o", str(tmp_path / "m.nii"), "-m", model, "-d", "cuda:7"], 21, "E-DEVICE"),
    ):
        assert run(*words, "--report", str(path)) == status
        report = report_of(path)
        assert (report["exit"], report["error"]["code"]) == (status, code)
        assert report["scans"] == []
    assert not (tmp_path / "m.nii").exists()


def test_a_report_never_replaces_a_scan(tmp_path: Path, write_scan: Write, threshold_model: Model) -> None:
    scan, model = write_scan("a.nii", boxes()), threshold_model()
    before = sha256(scan)
    for option in ("--report", "--statistics"):
        assert run(scan, "-o", str(tmp_path / "m.nii"), "-m", model, option, scan, "--overwrite") == 2
    assert sha256(scan) == before
    assert not (tmp_path / "m.nii").exists()


def test_signals_and_bugs_are_told_without_their_text() -> None:
    for error, status in ((KeyboardInterrupt(), 130), (Terminated(), 143)):
        report = Report({})
        report.stop(error)
        assert (report.exit, report.as_dict()["error"]) == (status, None)
    report = Report({})
    try:
        np.zeros(3)[CANARY]  # type: ignore[call-overload]
    except IndexError as error:
        report.stop(error)
    assert report.exit == 70
    assert "IndexError at test_report.py" in report.as_dict()["error"]["found"]
    try:
        {}[CANARY]
    except KeyError as error:
        report.stop(error)
    assert CANARY not in json.dumps(report.as_dict())
