"""The options of computing, through the command line: plan, memory bound, protocol, probabilities, components."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import infer, run
from known import boxes, plain_spec

from seg.infer import compute
from seg.infer.artifact import SPEC_KEY, load
from seg.infer.backends import open_backend
from seg.infer.backends.engine_file import EngineKey, write_engine
from seg.infer.backends.torch_ import seal_pt2
from seg.infer.components import keep_largest
from seg.infer.compute import ComputeOptions, plan_header
from seg.infer.errors import SegError
from seg.infer.nifti import inspect as inspect_nifti
from seg.infer.nifti import read as read_nifti
from seg.infer.predict import segment

Write = Callable[..., str]
Model = Callable[..., str]
Capture = pytest.CaptureFixture[str]


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_dry_run_prints_the_plan_and_writes_nothing(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    scan, out = write_scan("scan.nii.gz", boxes()), tmp_path / "m.nii.gz"
    done = infer(scan, "-o", str(out), "-m", threshold_model(), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "scan 20 x 15 x 9" in done.stdout
    assert "one pass" in done.stdout
    assert not out.exists()
    done = infer(scan, "-o", str(out), "-m", threshold_model(), "--dry-run", "--window", "8,8,8")
    assert "windows of 8 x 8 x 8" in done.stdout


def test_a_memory_bound_cuts_the_scan_or_refuses_it(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    """The same mask from one pass and from the tiles that a bound forces; too small a bound is an error before work."""
    voxels = np.random.default_rng(0).integers(0, 2, (200, 200, 120)).astype(np.uint8)
    scan, model = write_scan("scan.nii", voxels), threshold_model(stride=(4, 4, 4), window=(16, 16, 16))
    outs, windows = [tmp_path / "1.nii", tmp_path / "2.nii"], []
    for out, bound in zip(outs, ("8G", "700M"), strict=True):
        report = tmp_path / "r.json"
        assert run(scan, "-o", str(out), "-m", model, "-q", "--max-memory", bound, "--report", str(report)) == 0
        windows.append(json.loads(report.read_text())["scans"][0]["plan"]["windows"])
        np.testing.assert_array_equal(read(out), voxels)
    assert windows[0] == 1 < windows[1]
    done = infer(scan, "-o", str(tmp_path / "3.nii"), "-m", model, "--max-memory", "50M")
    assert done.returncode == 13
    assert f"E-LIMIT-MEMORY: {scan}" in done.stderr
    assert not (tmp_path / "3.nii").exists()


@pytest.mark.parametrize(("mirror", "fix"), [(None, "export the run again"), ((), "augmentation.mirror=[0]")])
def test_mirrorings_that_training_did_not_have_are_refused(
    write_scan: Write, threshold_model: Model, tmp_path: Path, mirror: tuple[int, ...] | None, fix: str
) -> None:
    """A network that never saw a mirrored scan may find nothing in it."""
    scan, out = write_scan("scan.nii.gz", boxes()), tmp_path / "m.nii.gz"
    done = infer(scan, "-o", str(out), "-m", threshold_model(mirror=mirror), "--tta")
    assert (done.returncode, done.stderr.count("\n"), out.exists()) == (2, 1, False)
    assert "E-TTA" in done.stderr
    assert fix in done.stderr


def test_protocol_and_step_size(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    scan, model = write_scan("scan.nii.gz", boxes()), threshold_model(mirror=(0, 1))
    for words in (["--protocol", "crossmatch"], ["--window", "8,8,8", "--step-size", "0.5"], ["--tta"]):
        out = tmp_path / "m.nii.gz"
        assert run(scan, "-o", str(out), "-m", model, "-q", "--overwrite", *words) == 0
        np.testing.assert_array_equal(read(out), boxes() > 0)
    for words in (["--protocol", "crossmatch", "--overlap", "0.5"], ["--overlap", "0.5", "--step-size", "0.5"]):
        assert run(scan, "-o", str(tmp_path / "n.nii.gz"), "-m", model, *words) == 2


@pytest.mark.parametrize("size", ["0", "-1G", "much", ""])
def test_wrong_memory_sizes_are_usage_errors(size: str) -> None:
    assert run("scan.nii.gz", "-o", "m.nii.gz", "--max-memory", size) == 2


def test_precision_is_the_artifacts_own(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    """fp32 and int8 are forms of the file: asking a file for the other one is refused."""
    scan, out = write_scan("scan.nii.gz", boxes()), str(tmp_path / "m.nii.gz")
    done = infer(scan, "-o", out, "-m", threshold_model(), "--precision", "int8")
    assert (done.returncode, "E-PRECISION" in done.stderr) == (20, True)
    done = infer(scan, "-o", out, "-m", threshold_model(card={"precision": "int8"}), "--precision", "fp32")
    assert (done.returncode, "E-PRECISION" in done.stderr) == (20, True)
    assert run(scan, "-o", out, "-m", threshold_model(), "--precision", "fp32", "-q") == 0


@pytest.mark.parametrize(("stored", "asked"), [("fp16", "fp32"), ("int8", "fp32"), ("fp32", "int8"), ("fp32", "fp32")])
def test_engines_and_programs_have_one_precision_too(
    write_scan: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, asked: str, capsys: Capture
) -> None:
    monkeypatch.setenv("SEG_CACHE", str(tmp_path / "cache"))
    card = {"precision": stored}
    plan, program = str(tmp_path / "model.engine"), str(tmp_path / "model.pt2")
    key = EngineKey("ab" * 32, "11.0", "13.0", "a GPU", "9.0", (1, 1, 16, 16, 16), stored)
    write_engine(plan, b"plan", key, plain_spec(card=card))
    with zipfile.ZipFile(program, "w") as archive:
        archive.writestr(f"model/extra/{SPEC_KEY}", plain_spec(card=card).to_json())
    seal_pt2(program)
    for model in (plan, program):
        words = [write_scan("scan.nii.gz", boxes()), "-o", str(tmp_path / "m.nii.gz"), "-m", model, "--dry-run"]
        assert run(*words, "--precision", asked) == (0 if stored == asked else 20)
        told = capsys.readouterr().err
        assert ("E-PRECISION" in told) == (stored != asked)
        assert run(*words) == 0


def test_a_precision_that_the_flag_has_not_is_not_advised(
    write_scan: Write, threshold_model: Model, tmp_path: Path, capsys: Capture
) -> None:
    scan, out = write_scan("scan.nii.gz", boxes()), str(tmp_path / "m.nii.gz")
    for stored, advice in (("fp16", "leave --precision out"), ("int8", "use --precision int8")):
        model = threshold_model(card={"precision": stored})
        assert run(scan, "-o", out, "-m", model, "--precision", "fp32") == 20
        assert f"Fix: {advice}, or the fp32 form of the model." in capsys.readouterr().err


def test_a_program_computes_without_tf32_where_fp32_is_asked_for(
    threshold_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(compute, "open_backend", lambda *_, precision, **__: opened.append(precision))
    artifact = replace(load(threshold_model()), path="model.pt2")
    for asked in ("auto", "fp32", "bf16"):
        compute.load_network(artifact, "auto", compute.ComputeOptions(precision=asked))  # type: ignore[arg-type]
    assert opened == ["auto", "fp32", "bf16"]


@pytest.mark.parametrize(
    ("stored", "asked", "advice"),
    [
        ("fp32", "bf16", "leave --precision bf16 out"),
        ("fp32", "fp32", "export the model again"),
        ("fp32", "auto", "export the model again"),
        ("fp16", "auto", "use the fp32 form of the model"),
        ("int8", "auto", "use the fp32 form of the model"),
        ("int8", "bf16", "leave --precision bf16 out"),
    ],
)
def test_what_is_advised_against_nan_can_be_followed(
    write_scan: Write, threshold_model: Model, stored: str, asked: str, advice: str
) -> None:
    class NotFinite:
        def run(self, x: np.ndarray) -> np.ndarray:
            return np.full((len(x), 2, *x.shape[2:]), np.nan, np.float32)

        def close(self) -> None:
            pass

    artifact = load(threshold_model(card={"precision": stored}))
    scan = read_nifti(write_scan("scan.nii.gz", boxes()))
    with pytest.raises(SegError, match="E-NONFINITE") as caught:
        compute.compute(scan, artifact, NotFinite(), compute.ComputeOptions(precision=asked))  # type: ignore[arg-type]
    assert caught.value.fix.startswith(advice)


def test_probabilities_lie_beside_the_mask(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    scan, out = write_scan("scan.nii.gz", boxes()), tmp_path / "m.nii.gz"
    assert run(scan, "-o", str(out), "-m", threshold_model((0.5, 1.5)), "-q", "--save-probabilities") == 0
    image = nib.load(tmp_path / "m_probabilities.nii.gz")
    assert image.shape == (20, 15, 9, 2)
    logits = np.stack([np.zeros(boxes().shape), boxes() - 0.5, 2 * boxes() - 2.0])
    expected = np.exp(logits) / np.exp(logits).sum(axis=0)
    np.testing.assert_allclose(image.get_fdata(), np.moveaxis(expected[1:], 0, 3), atol=0.5 / 255 + 1e-4)
    np.testing.assert_allclose(image.affine, nib.load(scan).affine)


def test_largest_component(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    """Of the three boxes of one class the largest stays; classes are judged apart."""
    scan, out = write_scan("scan.nii.gz", boxes()), tmp_path / "m.nii.gz"
    assert run(scan, "-o", str(out), "-m", threshold_model(), "-q", "--largest-component") == 0
    np.testing.assert_array_equal(read(out), boxes() == 4)
    labels = np.zeros((6, 6, 6), np.uint16)
    labels[0, 0, :3], labels[5, 5, :2], labels[3, 3, :2], labels[3, 0, 5] = 300, 300, 7, 7
    kept = keep_largest(labels)
    assert kept.dtype == np.uint16
    assert (kept == 300).sum() == 3
    assert (kept == 7).sum() == 2
    np.testing.assert_array_equal(keep_largest(np.zeros((3, 3, 3), np.uint8)), 0)


def test_a_model_that_keeps_the_largest_component(
    write_scan: Write, threshold_model: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a word from the user, who is told; --no-largest-component keeps all; records know the two apart."""
    write_scan("scans/a.nii.gz", boxes())
    model, out = threshold_model(largest_component=True), tmp_path / "out"
    words = [str(tmp_path / "scans"), "-o", str(out), "-m", model]
    assert run(*words) == 0
    np.testing.assert_array_equal(read(out / "a.nii.gz"), boxes() == 4)
    dropped = np.isin(boxes(), (2, 3)).sum()
    assert f"{dropped} voxels of others became background (--no-largest-component)" in capfd.readouterr().err
    assert run(*words, "--continue", "--largest-component") == 0
    assert "made again" not in capfd.readouterr().err
    assert run(*words, "--continue", "--no-largest-component") == 0
    assert "it is made again" in capfd.readouterr().err
    np.testing.assert_array_equal(read(out / "a.nii.gz"), boxes() > 0)
    volume, artifact = read_nifti(str(tmp_path / "scans" / "a.nii.gz")).volume, load(model)
    np.testing.assert_array_equal(segment(volume, artifact.spec, open_backend("openvino", model)), boxes() == 4)


def test_the_plan_counts_the_memory_of_components(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    scan, peaks = write_scan("scan.nii.gz", boxes()), []
    for flag in ("--largest-component", "--no-largest-component"):
        report = tmp_path / f"{flag}.json"
        words = ("-o", str(tmp_path / f"{flag}.nii.gz"), "-m", threshold_model(), "-q", flag)
        assert run(scan, *words, "--report", str(report)) == 0
        peaks.append(json.loads(report.read_text())["scans"][0]["plan"]["estimated_peak_bytes"])
    assert peaks[0] - peaks[1] == 9 * boxes().size


def test_the_plan_counts_the_maps_that_are_still_being_written(write_scan: Write, threshold_model: Model) -> None:
    header, artifact = inspect_nifti(write_scan("a.nii.gz", boxes())), load(threshold_model((0.5, 1.5)))
    options, voxels = ComputeOptions(probabilities=True), boxes().size
    peaks = [plan_header(header, artifact, options, at_a_time=n).peak_bytes for n in (1, 2, 3)]
    scans = voxels * header.dtype.itemsize
    assert peaks[1] - peaks[0] == pytest.approx(scans + 2 * voxels, abs=1)  # three classes: two maps
    assert peaks[2] - peaks[1] == pytest.approx(scans, abs=1)


def test_probabilities_never_replace_a_scan(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    """What lies beside the mask is an output as the mask is: no input, no second output, no file of others."""
    scan, model = write_scan("e_probabilities.nii.gz", boxes()), threshold_model()
    before = Path(scan).read_bytes()
    words = ["-m", model, "-q", "--save-probabilities", "--overwrite"]
    assert run(scan, "-o", str(tmp_path / "e.nii.gz"), *words) == 30
    assert Path(scan).read_bytes() == before
    for name in ("a", "a_probabilities"):
        write_scan(f"scans/{name}.nii.gz", boxes())
    assert run(str(tmp_path / "scans"), "-o", str(tmp_path / "out"), *words) == 30


def test_continue_misses_probabilities(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    write_scan("scans/a.nii.gz", boxes())
    out = tmp_path / "out"
    words = [str(tmp_path / "scans"), "-o", str(out), "-m", threshold_model(), "-q", "--save-probabilities"]
    assert run(*words) == 0
    (out / "a_probabilities.nii.gz").unlink()
    assert run(*words, "--continue") == 0
    assert (out / "a_probabilities.nii.gz").is_file()


def test_side_outputs_of_others_stay(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    """A JSON file that is no report of ours, and any picture, are refused; a report is replaced by the next one."""
    scan, model = write_scan("a.nii.gz", boxes()), threshold_model()
    splits, picture, report = tmp_path / "splits.json", tmp_path / "p.png", tmp_path / "r.json"
    splits.write_text('{"val": []}')
    picture.write_bytes(b"a picture")
    out = str(tmp_path / "m.nii.gz")
    for words in (["--statistics", str(splits)], ["--report", str(splits)], ["--preview", str(picture)]):
        done = infer(scan, "-o", out, "-m", model, *words)
        assert (done.returncode, "E-OUT-EXISTS" in done.stderr) == (30, True)
    assert splits.read_text() == '{"val": []}'
    assert picture.read_bytes() == b"a picture"
    for number in range(2):
        assert run(scan, "-o", str(tmp_path / f"{number}.nii.gz"), "-m", model, "-q", "--report", str(report)) == 0


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (1, 9, 8)])
def test_one_slice_is_no_volume(
    write_scan: Write, threshold_model: Model, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    scan = write_scan("a.nii.gz", np.ones(shape, np.int16))
    done = infer(scan, "-o", str(tmp_path / "m.nii.gz"), "-m", threshold_model())
    assert (done.returncode, f"E-GEO-2D: {scan}" in done.stderr) == (12, True)
    two = threshold_model(dims=2, window=(16, 16, 1))
    assert run(scan, "-o", str(tmp_path / "m.nii.gz"), "-m", two, "-q") == 0


def test_voxels_far_coarser_than_the_models_are_refused(
    write_scan: Write, threshold_model: Model, tmp_path: Path
) -> None:
    model, out = threshold_model(spacing=(1.0, 1.0, 1.0)), str(tmp_path / "m.nii.gz")
    coarse = write_scan("coarse.nii.gz", boxes(), np.diag([1.0, 1.0, 17.0, 1.0]))
    for words in ([], ["--dry-run"]):
        done = infer(coarse, "-o", out, "-m", model, *words)
        assert (done.returncode, f"E-GEO-COARSE: {coarse}" in done.stderr) == (12, True)
        assert "17 times" in done.stderr
    assert not Path(out).exists()
    thick = write_scan("thick.nii.gz", boxes(), np.diag([1.0, 1.0, 16.0, 1.0]))
    assert run(thick, "-o", out, "-m", model, "-q") == 0


def test_voxels_far_finer_than_the_models_are_refused(
    write_scan: Write, threshold_model: Model, tmp_path: Path
) -> None:
    """A scan in metres taken for mm; one axis alone may be fine."""
    model, out = threshold_model(spacing=(1.0, 1.0, 1.0)), str(tmp_path / "m.nii.gz")
    tiny = write_scan("tiny.nii.gz", np.ones((80, 80, 80), np.int16), np.diag([0.02, 0.02, 0.02, 1.0]))
    done = infer(tiny, "-o", out, "-m", model)
    assert (done.returncode, f"E-GEO-FINE: {tiny}" in done.stderr) == (12, True), done.stderr
    assert not Path(out).exists()
    flat = write_scan("flat.nii.gz", np.ones((80, 80, 80), np.int16), np.diag([0.02, 0.02, 1.0, 1.0]))
    assert run(flat, "-o", out, "-m", model, "-q") == 0


def test_an_empty_mask_is_noted(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    scan = write_scan("a.nii.gz", np.full((5, 6, 7), -1024, np.int16))
    done = infer(scan, "-o", str(tmp_path / "m.nii.gz"), "-m", threshold_model())
    assert done.returncode == 0
    assert "the mask is empty" in done.stderr


@pytest.mark.parametrize("words", [["--max-memory", "inf"], ["--window", "\u00b2,16,16"]])
def test_odd_numbers_are_usage_errors(words: list[str]) -> None:
    assert run("scan.nii.gz", "-o", "m.nii.gz", *words) == 2


def test_dry_run_reports_every_scan(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    write_scan("scans/a.nii.gz", boxes())
    (tmp_path / "scans" / "b.nii.gz").write_bytes(b"")
    write_scan("scans/c.nii.gz", boxes()[:9])
    report = tmp_path / "r.json"
    words = [str(tmp_path / "scans"), "-o", str(tmp_path / "out"), "-m", threshold_model(), "--dry-run"]
    assert run(*words, "--report", str(report)) == 40
    rows = json.loads(report.read_text())["scans"]
    assert [row["status"] for row in rows] == ["planned", "failed", "planned"]
    assert [row["mask"] for row in rows] == [None] * 3
    assert [row["plan"] and row["plan"]["scan_voxels"] for row in rows] == [[20, 15, 9], None, [9, 15, 9]]
    assert rows[0]["shape"] == [20, 15, 9]
    assert rows[0]["spacing_mm"] == pytest.approx([0.8, 1.1, 2.5])
    assert rows[1]["error"]["code"] == "E-NII-NOTNIFTI"


@pytest.mark.parametrize(
    ("words", "code", "status"),
    [
        (["--volume", "7"], "E-NII-4D", 12),
        ([], "E-NII-4D", 12),
        (["--volume", "1", "--max-voxels", "10"], "E-LIMIT-VOXELS", 13),
        (["--volume", "1"], "", 0),
    ],
)
def test_dry_run_agrees_with_the_run(
    write_scan: Write,
    threshold_model: Model,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: str,
    status: int,
) -> None:
    scan = write_scan("scan.nii.gz", np.stack([boxes()] * 3, axis=3))
    for dry in (["--dry-run"], []):
        assert run(scan, "-o", str(tmp_path / "m.nii.gz"), "-m", threshold_model(), "-q", *words, *dry) == status
        assert code in capsys.readouterr().err


def test_dry_run_of_a_folder_makes_none(write_scan: Write, threshold_model: Model, tmp_path: Path) -> None:
    write_scan("scans/a.nii.gz", boxes())
    words = [str(tmp_path / "scans"), "-o", str(tmp_path / "out"), "-m", threshold_model(), "--dry-run"]
    plain = infer(*words, "--preview", str(tmp_path / "pictures"))
    assert plain.returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scans", "threshold.onnx"]
