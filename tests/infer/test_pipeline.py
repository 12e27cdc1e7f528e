"""Scans in, masks out, through the command line: geometry, batches, errors, exit statuses."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import infer, run
from known import boxes, oblique_affine

from seg.infer.volume import Reorientation

Write = Callable[..., str]
Model = Callable[..., str]


def test_mask_lies_on_the_scans_grid(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    scan, out = write_scan("scan.nii.gz", boxes()), str(tmp_path / "mask.nii.gz")
    done = infer(scan, "-o", out, "-m", threshold_model())
    assert done.returncode == 0, done.stderr
    mask, source = nib.load(out), nib.load(scan)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), boxes() > 0)
    assert mask.get_data_dtype() == np.uint8
    for field in ("pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "xyzt_units"):
        np.testing.assert_array_equal(mask.header[field], source.header[field])


def test_all_48_orientations_give_the_same_world_mask(
    write_scan: Write, threshold_model: Model, tmp_path: Path
) -> None:
    """With resampling: what is labelled is the same set of world points, whatever the storage order."""
    scans = tmp_path / "scans"
    for number, (axes, flips) in enumerate(product(permutations(range(3)), product((False, True), repeat=3))):
        turn = Reorientation(axes, flips)
        write_scan(f"scans/s{number:02d}.nii", np.ascontiguousarray(turn.apply(boxes())), turn.affine(
            oblique_affine(), boxes().shape))  # fmt: skip
    assert run(str(scans), "-o", str(tmp_path / "masks"), "-m", threshold_model(spacing=(1.0, 1.0, 1.5)), "-q") == 0
    masks = sorted((tmp_path / "masks").glob("*.nii.gz"))
    assert len(masks) == 48
    reference = None
    for path in masks:
        image = nib.load(path)
        turn = Reorientation.to_ras(image.affine)
        canonical = np.asarray(turn.apply(np.asarray(image.dataobj)))
        np.testing.assert_allclose(turn.affine(image.affine, image.shape), oblique_affine(), atol=1e-5)
        reference = canonical if reference is None else reference
        np.testing.assert_array_equal(canonical, reference)
    assert reference is not None
    assert 0 < reference.sum() < reference.size


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 3, 5), (5, 7, 2), (17, 16, 15), (33, 2, 2)])
def test_any_shape(write_scan: Write, threshold_model: Model, tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Smaller than the stride and window on any axis: padded, and cropped back."""
    voxels = np.random.default_rng(0).integers(0, 2, shape).astype(np.int16)
    scan, out = write_scan("scan.nii", voxels), str(tmp_path / "mask.nii")
    assert run(scan, "-o", out, "-m", threshold_model(stride=(16, 16, 16)), "-q") == 0
    np.testing.assert_array_equal(np.asarray(nib.load(out).dataobj).reshape(shape), voxels)


@pytest.mark.parametrize("window", [None, "16,16,16", "7,5,3"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_tiling_does_not_change_a_pointwise_network(
    write_scan: Write, threshold_model: Model, tmp_path: Path, window: str | None, classes: int
) -> None:
    scan, out = write_scan("scan.nii.gz", boxes()), str(tmp_path / "mask.nii.gz")
    thresholds = tuple(k + 0.5 for k in range(classes - 1))
    tile = ["--window", window] if window else []
    assert run(scan, "-o", out, "-m", threshold_model(thresholds=thresholds), "-q", *tile) == 0
    np.testing.assert_array_equal(np.asarray(nib.load(out).dataobj), np.minimum(boxes(), classes - 1))


def test_two_dimensional_network(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    scan, out = write_scan("scan.nii.gz", boxes()), str(tmp_path / "mask.nii.gz")
    model = threshold_model(dims=2, window=(16, 16, 1))
    assert run(scan, "-o", out, "-m", model, "-q") == 0
    np.testing.assert_array_equal(np.asarray(nib.load(out).dataobj), boxes() > 0)


def test_side_outputs(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    scan = write_scan("scan.nii.gz", boxes())
    out, stats, picture = (str(tmp_path / name) for name in ("m.nii.gz", "s.json", "p.png"))
    model = threshold_model()
    assert run(scan, "-o", out, "-m", model, "--statistics", stats, "--preview", picture, "-q") == 0
    found = json.loads(Path(stats).read_text())["scans"][0]["classes"]["class 1"]
    assert found["voxels"] == int((boxes() > 0).sum())
    assert found["volume_mm3"] == pytest.approx(found["voxels"] * 0.8 * 1.1 * 2.5)
    assert Path(picture).read_bytes().startswith(b"\x89PNG")


def test_a_bad_scan_does_not_stop_the_rest(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    for name in "abde":
        write_scan(f"scans/{name}.nii.gz", boxes())
    (tmp_path / "scans" / "c.nii.gz").write_bytes((tmp_path / "scans" / "a.nii.gz").read_bytes()[:-40])
    stats = str(tmp_path / "s.json")
    done = infer(str(tmp_path / "scans"), "-o", str(tmp_path / "out"), "-m", threshold_model(), "--statistics", stats)
    assert done.returncode == 40
    masks = [f"{name}.nii.gz" for name in "abde"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [*masks, "seg-manifest.jsonl"]
    assert "c.nii.gz" in done.stderr
    assert "1 of 5 scans failed" in done.stderr
    rows = json.loads(Path(stats).read_text())["scans"]
    assert [("error" in row) for row in rows] == [False, False, True, False, False]
    assert rows[2]["error"]["exit"] == 11


def damaged(tmp_path: Path, write_scan: Write, kind: str) -> str:
    """A bad input by name; returns its path."""
    path = tmp_path / "bad.nii.gz"
    good = write_scan("good.nii.gz", boxes())
    if kind == "text":
        path.write_text("no scan " * 60)
    elif kind == "truncated":
        path.write_bytes(Path(good).read_bytes()[:-30])
    elif kind == "four":
        return write_scan("four.nii.gz", np.zeros((4, 4, 4, 3), np.int16))
    elif kind == "nan":
        voxels = boxes().astype(np.float32)
        voxels[1, 2, 3] = np.nan
        return write_scan("nan.nii.gz", voxels)
    elif kind == "empty":
        (tmp_path / "folder").mkdir()
        return str(tmp_path / "folder")
    return str(path)


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("missing", 10, "E-IN-MISSING"),
        ("text", 11, "E-NII-NOTNIFTI"),
        ("truncated", 11, "E-NII-TRUNC"),
        ("four", 12, "E-NII-4D"),
        ("nan", 12, "E-NII-NONFINITE"),
        ("empty", 10, "E-IN-EMPTY"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, write_scan: Write, threshold_model: Model, kind: str, status: int, code: str
) -> None:
    scan, folder = damaged(tmp_path, write_scan, kind), tmp_path / "out"
    folder.mkdir()
    done = infer(scan, "-o", str(folder / "mask.nii.gz"), "-m", threshold_model())
    assert done.returncode == status
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"seg-infer: error {code}: {scan}: ")
    assert " Fix: " in lines[0]
    assert list(folder.iterdir()) == []


def test_too_large_a_scan_is_refused_before_its_voxels_are_read(
    tmp_path: Path, write_scan: Write, threshold_model: Model
) -> None:
    path = write_scan("scan.nii", np.zeros((300, 300, 300), np.int16))
    os.truncate(path, 1000)  # reading would find that
    done = infer(path, "-o", str(tmp_path / "m.nii.gz"), "-m", threshold_model(), "--max-memory", "200M")
    assert (done.returncode, "E-LIMIT-MEMORY" in done.stderr) == (13, True), done.stderr


def test_bad_outputs(tmp_path: Path, write_scan: Write, threshold_model: Model) -> None:
    scan, model = write_scan("scan.nii.gz", boxes()), threshold_model()
    before = Path(scan).read_bytes()
    (tmp_path / "there.nii.gz").write_bytes(b"old")
    os.link(scan, tmp_path / "link.nii.gz")
    (tmp_path / "file").write_text("")
    expected = {
        scan: (30, "E-OUT-SAME"),
        str(tmp_path / "link.nii.gz"): (30, "E-OUT-SAME"),
        str(tmp_path / "there.nii.gz"): (30, "E-OUT-EXISTS"),
        str(tmp_path / "absent" / "mask.nii.gz"): (30, "E-OUT-DIR"),
        str(tmp_path / "file" / "mask.nii.gz"): (30, "E-OUT-DIR"),
        str(tmp_path / "mask.png"): (2, "E-OUT-SUFFIX"),
    }
    for out, (status, code) in expected.items():
        done = infer(scan, "-o", out, "-m", model)
        assert (done.returncode, code in done.stderr) == (status, True), (out, done.stderr)
        assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "there.nii.gz").read_bytes() == b"old"
    assert Path(scan).read_bytes() == before
    assert run(scan, "-o", str(tmp_path / "there.nii.gz"), "-m", model, "--overwrite", "-q") == 0


def test_an_empty_model_name_is_no_default(
    tmp_path: Path, write_scan: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a script gives it whose variable is not set."""
    assert run(write_scan("scan.nii.gz", boxes()), "-o", str(tmp_path / "m.nii.gz"), "-m", "") == 20
    assert "E-MODEL-MISSING: the model's name is empty" in capsys.readouterr().err


def test_wrong_models(tmp_path: Path, write_scan: Write, threshold_model: Model) -> None:
    scan = write_scan("scan.nii.gz", boxes())
    (tmp_path / "text.onnx").write_text("not a model at all, just text")
    for model, code in ((str(tmp_path / "text.onnx"), "E-MODEL-FORMAT"), ("nobody", "E-MODEL-MISSING")):
        done = infer(scan, "-o", str(tmp_path / "m.nii.gz"), "-m", model)
        assert done.returncode == 20
        assert code in done.stderr
    two = threshold_model(channels=("t1", "t2"))
    done = infer(scan, "-o", str(tmp_path / "m.nii.gz"), "-m", two)
    assert done.returncode == 12
    assert "E-CHANNELS" in done.stderr
    assert not (tmp_path / "m.nii.gz").exists()


def test_files_of_one_channel_are_to_be_joined(tmp_path: Path, write_scan: Write, threshold_model: Model) -> None:
    """What the message proposes is taken."""
    scan, joined = write_scan("a.nii.gz", boxes()), tmp_path / "joined.nii.gz"
    plan = ("-o", str(tmp_path / "m.nii.gz"), "-m", threshold_model(channels=("A", "B")), "--dry-run")
    proposed = "1 channels, expected 2: A, B. Fix: give them in this order as the volumes of one 4D NIfTI file"
    assert proposed in infer(scan, *plan).stderr
    nib.save(nib.concat_images([scan, scan]), joined)
    assert infer(str(joined), *plan).returncode == 0


def test_non_finite_logits_leave_no_mask(tmp_path: Path, write_scan: Write, threshold_model: Model) -> None:
    scan, out = write_scan("scan.nii.gz", boxes()), tmp_path / "m.nii.gz"
    done = infer(scan, "-o", str(out), "-m", threshold_model(thresholds=(float("inf"),)))
    assert done.returncode == 21
    assert f"E-NONFINITE: {scan}" in done.stderr
    assert not out.exists()


@pytest.mark.parametrize("arguments", [["--window", "1,2"], ["--window", "a,b,c"], ["--overlap", "1.5"], ["--no"], []])
def test_usage_errors(arguments: list[str]) -> None:
    assert infer("scan.nii.gz", *(["-o", "x.nii.gz"] if arguments else []), *arguments).returncode == 2


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, write_scan: Write, threshold_model: Model) -> None:
    scan, model = write_scan("scan.nii.gz", boxes()), threshold_model()
    outs = [tmp_path / "1.nii.gz", tmp_path / "2.nii.gz"]
    assert [run(scan, "-o", str(out), "-m", model, "-q") for out in outs] == [0, 0]
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_no_torch_no_network_and_a_light_help(tmp_path: Path, write_scan: Write, threshold_model: Model) -> None:
    """In a fresh process: a whole segmentation imports no framework and opens no connection."""
    scan = write_scan("scan.nii.gz", boxes())
    program = """
import socket, sys
def refuse(*_, **__): raise AssertionError("a connection was opened")
socket.socket.connect = refuse
from seg.infer.cli import app
try: app(sys.argv[1:])
except SystemExit as stop: assert not stop.code, stop.code
print(",".join(sorted(sys.modules)))
"""
    whole = [scan, "-o", str(tmp_path / "m.nii.gz"), "-m", threshold_model()]
    for arguments, forbidden in ((whole, {"onnx"}), (["--help"], {"openvino", "nibabel", "numpy", "scipy"})):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, timeout=120
        )
        loaded = set(done.stdout.splitlines()[-1].split(","))
        assert not loaded & (forbidden | {"torch"})
    assert (tmp_path / "m.nii.gz").exists()
