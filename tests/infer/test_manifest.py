"""The record of finished masks, and `--continue`: what it skips, and what it makes again."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import infer, run, voxels
from known import boxes, plain_spec

from seg.infer.errors import SegError
from seg.infer.jobs import Job
from seg.infer.manifest import NAME, FileState, Finished, Manifest, Unfinished

Write = Callable[..., str]
Model = Callable[..., str]
OPTIONS = {"window": (16, 16, 16), "overlap": None}
VOLUMES = {"bright": {"voxels": 3}}


def job(folder: Path, name: str = "a") -> Job:
    """A scan and mask of a few bytes."""
    made = Job(str(folder / f"{name}.nii"), str(folder / f"{name}.nii.gz"))
    Path(made.scan).write_bytes(b"scan " + os.fsencode(name))
    Path(made.mask).write_bytes(b"mask " + os.fsencode(name))
    return made


def manifest(folder: Path, **options: object) -> Manifest:
    return Manifest(str(folder), plain_spec(graph_sha256="0" * 64), {**OPTIONS, **options})


def record(folder: Path, done: Job) -> None:
    manifest(folder).add(done, FileState.of([done.scan]), VOLUMES)


def test_a_recorded_mask_is_finished(tmp_path: Path) -> None:
    for name in ("a", "b c\n\udcff"):
        done = job(tmp_path, name)
        assert manifest(tmp_path).finished(done) == Unfinished("is not in the manifest", "unknown")
        record(tmp_path, done)
        entry = manifest(tmp_path).finished(done)
        assert isinstance(entry, Finished)
        assert (entry.path, entry.statistics) == (done.scan, VOLUMES)
        assert entry.mask == FileState.of([done.mask])


def test_what_makes_a_mask_unfinished(tmp_path: Path) -> None:
    done = job(tmp_path)
    record(tmp_path, done)
    assert manifest(tmp_path, overlap=0.5).finished(done) == Unfinished("was made with other options", "ours")
    other = Manifest(str(tmp_path), plain_spec(graph_sha256="1" * 64), OPTIONS)
    assert other.finished(done) == Unfinished("was made with another model", "ours")
    other = Manifest(str(tmp_path), plain_spec(graph_sha256="0" * 64, spacing=(1.0, 1.0, 1.0)), OPTIONS)
    assert other.finished(done) == Unfinished("was made with another model", "ours")
    state = os.stat(done.mask)
    Path(done.mask).write_bytes(b"MASK a")
    os.utime(done.mask, ns=(state.st_atime_ns, state.st_mtime_ns))  # size and time as before
    assert manifest(tmp_path).finished(done) == Unfinished("was changed after it was written", "changed")
    os.unlink(done.mask)
    assert manifest(tmp_path).finished(done) == Unfinished("is not there", "ours")


def test_a_scan_is_known_by_its_bytes(tmp_path: Path) -> None:
    done = job(tmp_path)
    record(tmp_path, done)
    os.utime(done.scan, ns=(1, 1))
    assert isinstance(manifest(tmp_path).finished(done), Finished)  # copied: another time, the same bytes
    moved = Job(str(tmp_path / "moved.nii"), done.mask)
    os.rename(done.scan, moved.scan)
    assert isinstance(manifest(tmp_path).finished(moved), Finished)
    Path(moved.scan).write_bytes(b"scan b")
    assert manifest(tmp_path).finished(moved) == Unfinished("was made from a scan that has changed", "ours")
    assert manifest(tmp_path).finished(done) == Unfinished(
        "was made from a scan that has changed", "ours"
    )  # it is not there


def test_both_files_of_a_pair_count(tmp_path: Path) -> None:
    image, header = tmp_path / "a.img", tmp_path / "a.hdr"
    image.write_bytes(b"voxels")
    header.write_bytes(b"header")
    done = Job(str(header), str(tmp_path / "a.nii.gz"))
    Path(done.mask).write_bytes(b"mask")
    manifest(tmp_path).add(done, FileState.of([str(header), str(image)]), VOLUMES)
    assert isinstance(manifest(tmp_path).finished(done), Finished)
    image.write_bytes(b"VOXELS")
    assert isinstance(manifest(tmp_path).finished(done), Unfinished)


def test_the_last_line_about_a_mask_counts(tmp_path: Path) -> None:
    done = job(tmp_path)
    record(tmp_path, done)
    Path(done.mask).write_bytes(b"newer mask")
    record(tmp_path, done)
    assert isinstance(manifest(tmp_path).finished(done), Finished)
    assert len((tmp_path / NAME).read_bytes().splitlines()) == 2


def test_a_torn_line_harms_no_other(tmp_path: Path) -> None:
    first, second = job(tmp_path, "a"), job(tmp_path, "b")
    record(tmp_path, first)
    whole = (tmp_path / NAME).read_bytes()
    record(tmp_path, second)
    both = (tmp_path / NAME).read_bytes()
    for end in range(len(whole) + 1, len(both) - 1, 7):
        (tmp_path / NAME).write_bytes(both[:end])
        found = manifest(tmp_path)
        assert isinstance(found.finished(first), Finished)
        assert isinstance(found.finished(second), Unfinished)
        record(tmp_path, second)
        found = manifest(tmp_path)
        assert isinstance(found.finished(first), Finished)
        assert isinstance(found.finished(second), Finished)


@pytest.mark.parametrize(
    "line", [b"[]", b"{}", b"null", b"\xff\xfe", b'{"format": 1, "scan": 3}', b"[" * 100_000, b'{"format": 2}']
)
def test_foreign_lines_are_passed_over(tmp_path: Path, line: bytes) -> None:
    done = job(tmp_path)
    (tmp_path / NAME).write_bytes(line + b"\n")
    record(tmp_path, done)
    assert isinstance(manifest(tmp_path).finished(done), Finished)


def test_a_manifest_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = job(tmp_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("seg.infer.manifest.os.write", full)
    with pytest.raises(SegError) as caught:
        record(tmp_path, done)
    monkeypatch.undo()
    assert caught.value.code == "E-OUT-FULL"
    os.unlink(tmp_path / NAME)
    victim = tmp_path / "victim"
    victim.write_text("")
    for make in (lambda: os.symlink(victim, tmp_path / NAME), lambda: os.mkdir(tmp_path / NAME)):
        make()
        with pytest.raises(SegError, match=NAME):
            manifest(tmp_path)
        os.unlink(tmp_path / NAME) if os.path.islink(tmp_path / NAME) else os.rmdir(tmp_path / NAME)
    assert victim.read_text() == ""


class Folder:
    """Scans a, b, c, and seg-infer on them with a report."""

    def __init__(self, place: Path, write_scan: Write, model: str) -> None:
        self.place, self.model = place, model
        self.scans = {name: write_scan(f"scans/{name}.nii.gz", boxes()) for name in "abc"}
        self.out = place / "out"

    def __call__(self, *options: str) -> dict[str, str]:
        """Scan name -> status."""
        report = str(self.place / "report.json")
        where = [str(self.place / "scans"), "-o", str(self.out), "-m", self.model, "-q", "--report", report]
        status = run(*where, *options)
        content = json.loads(Path(report).read_text())
        assert content["exit"] == status
        return {Path(row["scan"]).name[0]: row["status"] for row in content["scans"]} if status in (0, 40) else {}

    def files(self) -> dict[str, tuple[int, int]]:
        """Mask name -> inode and time: the same only for a file that was not made again."""
        return {p.name[0]: (p.stat().st_ino, p.stat().st_mtime_ns) for p in self.out.glob("*.nii.gz")}


@pytest.fixture
def folder(tmp_path: Path, write_scan: Write, threshold_model: Model) -> Folder:
    return Folder(tmp_path, write_scan, threshold_model())


def test_continue_makes_again_what_is_not_proved(folder: Folder, write_scan: Write, threshold_model: Model) -> None:
    all_done, all_skipped = dict.fromkeys("abc", "done"), dict.fromkeys("abc", "skipped")
    assert folder("--continue") == all_done  # an empty folder is a start like any other
    before = folder.files()
    assert folder() == {}  # refused: the masks exist
    assert folder("--continue") == all_skipped
    assert folder.files() == before
    (folder.out / "a.nii.gz").unlink()
    assert folder("--continue") == {"a": "done", "b": "skipped", "c": "skipped"}
    assert folder.files()["c"] == before["c"]
    write_scan("scans/c.nii.gz", boxes() * 2)
    assert folder("--continue") == {"a": "skipped", "b": "skipped", "c": "done"}
    assert folder("--continue", "--window", "8,8,8") == all_done
    assert folder("--continue", "--window", "8,8,8", "--threads", "1", "--max-voxels", "9999999") == all_skipped
    threshold_model(thresholds=(2.5,))
    assert folder("--continue", "--window", "8,8,8") == all_done
    np.testing.assert_array_equal(voxels(folder.out / "a.nii.gz"), boxes() > 2.5)
    assert folder("--overwrite", "--window", "8,8,8") == all_done


def test_continue_never_replaces_somebodys_work(folder: Folder) -> None:
    """Neither a mask made elsewhere nor one that was corrected by hand; --overwrite replaces both."""
    folder.out.mkdir()
    (folder.out / "a.nii.gz").write_bytes(b"made by something else")
    assert folder("--continue") == {"a": "failed", "b": "done", "c": "done"}
    (folder.out / "b.nii.gz").write_bytes(b"corrected by hand")
    assert folder("--continue") == {"a": "failed", "b": "failed", "c": "skipped"}
    codes = [row["error"]["code"] for row in json.loads((folder.place / "report.json").read_text())["scans"][:2]]
    assert codes == ["E-OUT-EXISTS", "E-OUT-CHANGED"]
    assert (folder.out / "a.nii.gz").read_bytes() == b"made by something else"
    assert (folder.out / "b.nii.gz").read_bytes() == b"corrected by hand"
    assert folder("--continue", "--overwrite") == {"a": "done", "b": "done", "c": "skipped"}
    np.testing.assert_array_equal(voxels(folder.out / "a.nii.gz"), boxes() > 0)


@pytest.mark.parametrize("names", ["a", "abc"])
def test_continue_tells_of_a_changed_mask(
    folder: Folder, capsys: pytest.CaptureFixture[str], names: str, tmp_path: Path
) -> None:
    """Also where it is the only scan, and when asked to be quiet; it does not count as skipped."""
    words = [*(folder.scans[name] for name in names), "-o", str(folder.out), "-m", folder.model]
    if len(names) == 1:
        (tmp_path / "list").write_text(folder.scans["a"])
        words[:1] = ["--from", str(tmp_path / "list")]
    assert run(*words, "-q") == 0
    (folder.out / "a.nii.gz").write_bytes(b"corrected by hand")
    capsys.readouterr()
    for quiet in ([], ["-q"]):
        assert run(*words, "--continue", *quiet) == (30 if len(names) == 1 else 40)
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("seg-infer: error ")]
        assert len(errors) == 1
        assert errors[0].startswith(f"seg-infer: error E-OUT-CHANGED: {folder.out}/a.nii.gz: was changed")
        assert "Fix: move it away" in errors[0]
        counts = [line for line in lines if line.endswith("are finished and skipped")]
        assert counts == ([] if quiet or len(names) == 1 else ["2 of 3 scans are finished and skipped"])


def test_continue_makes_no_side_outputs_of_somebodys_mask(folder: Folder, tmp_path: Path) -> None:
    """Nor does it replace a JSON file that is not ours, or stumble over a mask that cannot be read."""
    folder.out.mkdir()
    (folder.out / "a.nii.gz").write_bytes(b"made by something else")
    (folder.out / "a_probabilities.nii.gz").write_bytes(b"likewise")
    (folder.out / "b.nii.gz").symlink_to(tmp_path / "content that is not here")
    (tmp_path / "png").mkdir()
    (tmp_path / "png" / "a.png").write_bytes(b"a picture")
    sides = ["--preview", str(tmp_path / "png"), "--save-probabilities"]
    assert folder("--continue", *sides) == {"a": "failed", "b": "failed", "c": "done"}
    codes = [row["error"]["code"] for row in json.loads((folder.place / "report.json").read_text())["scans"][:2]]
    assert codes == ["E-OUT-EXISTS"] * 2
    assert (folder.out / "a_probabilities.nii.gz").read_bytes() == b"likewise"
    assert (tmp_path / "png" / "a.png").read_bytes() == b"a picture"
    (tmp_path / "theirs.json").write_text("{}")
    words = [str(tmp_path / "scans"), "-o", str(folder.out), "-m", folder.model, "-q", "--continue"]
    assert run(*words, "--statistics", str(tmp_path / "theirs.json")) == 30
    assert (tmp_path / "theirs.json").read_text() == "{}"


@pytest.mark.parametrize("side", ["picture", "probabilities"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_continue_never_replaces_somebodys_side_outputs(folder: Folder, tmp_path: Path, side: str, kind: str) -> None:
    """Where there is no mask, nor a record of one; --overwrite replaces them."""
    folder.out.mkdir()
    (tmp_path / "png").mkdir()
    theirs = folder.out / "a_probabilities.nii.gz" if side == "probabilities" else tmp_path / "png" / "a.png"
    theirs.write_bytes(b"mine") if kind == "file" else theirs.symlink_to(tmp_path / "content that is not here")
    sides = ["--preview", str(tmp_path / "png"), "--save-probabilities"]
    assert folder("--continue", *sides) == {"a": "failed", "b": "done", "c": "done"}
    error = json.loads((folder.place / "report.json").read_text())["scans"][0]["error"]
    assert (error["code"], error["path"]) == ("E-OUT-EXISTS", str(theirs))
    assert theirs.read_bytes() == b"mine" if kind == "file" else theirs.is_symlink()
    assert not (folder.out / "a.nii.gz").exists()
    assert folder("--continue", "--overwrite", *sides) == {"a": "done", "b": "skipped", "c": "skipped"}
    assert theirs.read_bytes()[:2] in (b"\x1f\x8b", b"\x89P")


def test_continue_knows_its_own_side_outputs(folder: Folder, tmp_path: Path) -> None:
    """By the record, where options changed or a mask was taken away; also after a run that made none."""
    sides = ["--preview", str(tmp_path / "png"), "--save-probabilities"]
    assert folder(*sides) == dict.fromkeys("abc", "done")
    (folder.out / "a.nii.gz").unlink()
    (folder.out / "b_probabilities.nii.gz").unlink()
    assert folder("--continue", *sides) == {"a": "done", "b": "done", "c": "skipped"}
    (tmp_path / "scans" / "c.nii.gz").unlink()
    folder.scans["c"] = str(shutil.copy(folder.scans["a"], tmp_path / "scans" / "c.nii.gz"))
    assert folder("--continue", "--window", "8,8,8") == dict.fromkeys("abc", "done")
    assert folder("--continue", "--window", "9,9,9", *sides) == dict.fromkeys("abc", "done")
    (folder.out / "c.nii.gz").unlink()
    (folder.out / "c_probabilities.nii.gz").write_bytes(b"mine")
    assert folder("--continue", "--window", "9,9,9", *sides) == {"a": "skipped", "b": "skipped", "c": "failed"}
    assert (folder.out / "c_probabilities.nii.gz").read_bytes() == b"mine"


def test_continue_with_side_outputs(folder: Folder, tmp_path: Path) -> None:
    """Statistics of skipped scans are those recorded; a missing picture makes its scan be done again."""
    assert folder() == dict.fromkeys("abc", "done")
    sides = ["--statistics", str(tmp_path / "s.json"), "--preview", str(tmp_path / "png")]
    assert folder("--continue", *sides) == dict.fromkeys("abc", "done")
    fresh = json.loads((tmp_path / "s.json").read_text())
    (tmp_path / "png" / "b.png").unlink()
    assert folder("--continue", *sides) == {"a": "skipped", "b": "done", "c": "skipped"}
    assert json.loads((tmp_path / "s.json").read_text()) == fresh


def test_continue_minds_the_windows_of_a_memory_bound(
    tmp_path: Path, write_scan: Write, threshold_model: Model
) -> None:
    """Another bound makes again what it cuts otherwise, one scan as three; without a bound windows are as they were."""
    for name in "abc":
        write_scan(f"scans/{name}.nii", np.random.default_rng(0).integers(0, 2, (120, 120, 120)).astype(np.uint8))
    folder = Folder(tmp_path, lambda name, _: name, threshold_model(stride=(4, 4, 4), window=(16, 16, 16)))

    def windows(*options: str) -> dict[str, tuple[str, int]]:
        assert folder("--continue", *options)
        rows = json.loads((tmp_path / "report.json").read_text())["scans"]
        return {Path(row["scan"]).name[0]: (row["status"], row["plan"]["windows"]) for row in rows}

    fresh = windows("--max-memory", "300M")
    many = fresh["a"][1]
    assert many > 1
    assert fresh == dict.fromkeys("abc", ("done", many))
    (folder.out / "b.nii.gz").unlink()
    assert windows("--max-memory", "300M") == {"a": ("skipped", many), "b": ("done", many), "c": ("skipped", many)}
    assert windows("--max-memory", "301M") == windows() == dict.fromkeys("abc", ("skipped", many))
    assert windows("--max-memory", "8G") == dict.fromkeys("abc", ("done", 1))
    assert windows() == dict.fromkeys("abc", ("skipped", 1))
    line = json.loads((folder.out / NAME).read_bytes().splitlines()[-1])
    assert line["tiling"] == {"network_voxels": [120, 120, 120], "window": [120, 120, 120], "windows": 1}


def test_continue_needs_a_folder(folder: Folder, tmp_path: Path) -> None:
    single = [folder.scans["a"], "-o", str(tmp_path / "one.nii.gz"), "-m", folder.model]
    assert run(*single, "--continue") == 2
    assert run(*single, "-q") == 0
    assert not (tmp_path / NAME).exists()


KILL = """
import os, signal, sys
moment, number = sys.argv.pop(1), 3
from seg.infer import manifest, nifti_write
def die(): os.kill(os.getpid(), signal.SIGKILL)
calls, pieces, append = [0], nifti_write._content, manifest.Manifest._append
def mask_bytes(*arguments):
    calls[0] += 1
    for piece in pieces(*arguments):
        yield piece
        if moment == "mask" and calls[0] == number: die()
def torn(self, line):
    if calls[0] == number:
        if moment == "line": append(self, line[:60])
        die()
    append(self, line)
nifti_write._content, manifest.Manifest._append = mask_bytes, torn
"""


def test_killed_after_the_side_outputs(tmp_path: Path, write_scan: Write, threshold_model: Model) -> None:
    """Picture and probabilities of a mask that was not written are this run's: --continue goes on."""
    for name in "abc":
        write_scan(f"scans/{name}.nii.gz", boxes())
    out, pictures = tmp_path / "out", tmp_path / "png"
    words = [str(tmp_path / "scans"), "-o", str(out), "-m", threshold_model(), "--save-probabilities"]
    words += ["--preview", str(pictures)]
    assert infer("mask", *words, program=KILL.replace(", 3\n", ", 4\n")).returncode == -signal.SIGKILL
    assert (out / "b_probabilities.nii.gz").exists()
    assert (pictures / "b.png").exists()
    assert not (out / "b.nii.gz").exists()
    done = infer(*words, "--continue")
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("?.nii.gz"))) == len(list(pictures.glob("*.png"))) == 3
    np.testing.assert_array_equal(voxels(out / "b.nii.gz"), boxes() > 0)


@pytest.mark.parametrize("moment", ["mask", "record", "line"])
def test_killed_in_the_middle(tmp_path: Path, write_scan: Write, threshold_model: Model, moment: str) -> None:
    """SIGKILL in the third mask, between mask and record, or in the record; then --continue does only the rest.

    A mask without its record is computed again and, being the same, stays as it is.
    """
    for name in "abcde":
        write_scan(f"scans/{name}.nii.gz", boxes())
    out, report = tmp_path / "out", tmp_path / "r.json"
    words = [str(tmp_path / "scans"), "-o", str(out), "-m", threshold_model()]
    assert infer(moment, *words, program=KILL).returncode == -signal.SIGKILL
    masks = {"a", "b"} | (set() if moment == "mask" else {"c"})
    before = {p.name[0]: (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.glob("*.nii.gz")}
    assert set(before) == masks
    done = infer(*words, "--continue", "--report", str(report))
    assert done.returncode == 0, done.stderr
    statuses = {Path(r["scan"]).name[0]: r["status"] for r in json.loads(report.read_text())["scans"]}
    assert statuses == {**dict.fromkeys("ab", "skipped"), **dict.fromkeys("cde", "done")}
    for name in "abcde":
        path = out / f"{name}.nii.gz"
        np.testing.assert_array_equal(voxels(path), boxes() > 0)
        assert ((path.stat().st_ino, path.stat().st_mtime_ns) == before.get(name)) == (name in masks)
    assert sorted(p.name for p in out.iterdir()) == [*(f"{n}.nii.gz" for n in "abcde"), NAME]
