"""Many scans in one call: bugs, signals, memory, terminals, environments, names."""

import gc
import json
import os
import pty
import signal
import subprocess
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import command, infer, run, voxels
from known import boxes

from seg.infer import pipeline
from seg.infer.backends import load_error
from seg.infer.console import guarded
from seg.infer.errors import lacks_memory
from seg.infer.manifest import NAME

Write = Callable[..., str]
Model = Callable[..., str]


@pytest.fixture
def batch(tmp_path: Path, write_scan: Write, threshold_model: Model) -> Callable[..., list[str]]:
    """Arguments of a call for the scans a, b, c, ... in a folder."""

    def make(count: int) -> list[str]:
        for name in "abcdefghij"[:count]:
            write_scan(f"scans/{name}.nii.gz", boxes())
        return [str(tmp_path / "scans"), "-o", str(tmp_path / "out"), "-m", threshold_model()]

    return make


def assert_whole(folder: Path, names: str) -> None:
    """Exactly these masks, all right, and no temporary file."""
    expected = {*(f"{name}.nii.gz" for name in names), *([NAME] if names else [])}
    assert {p.name for p in folder.iterdir()} == expected
    for name in names:
        np.testing.assert_array_equal(voxels(folder / f"{name}.nii.gz"), boxes() > 0)


RuntimeException = type("RuntimeException", (Exception,), {"__module__": "onnxruntime.capi.onnxruntime_pybind11_state"})
ORT = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
FAILURES: list[tuple[Exception, bool]] = [  # as the engines say it, and whether memory was short
    (MemoryError(), True),
    (RuntimeException(ORT + "bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 2097152"), True),
    (RuntimeError("Error in execution: bfc_arena.cc:360 Failed to allocate memory for requested buffer of 8"), True),
    (RuntimeException(ORT + "CUDNN failure 4000: out of memory ; GPU=0"), True),
    (RuntimeError("Exception from src/plugins/intel_cpu/src/cpu_memory.cpp:257:\nFailed to allocate 76 bytes"), True),
    (RuntimeError("Exception from core.cpp:109:\nstd::bad_alloc"), True),
    (RuntimeError("Invalid dimensions of DOE^JANE"), False),
    (ValueError("DOE^JANE is out of memory"), False),
]


@pytest.mark.parametrize("stage", ["read", "compute", "write_mask"])
def test_a_bug_in_one_scan(
    batch: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
) -> None:
    real, calls = getattr(pipeline, stage), []

    def broken(*arguments: Any, **options: Any) -> Any:
        calls.append(stage)
        if len(calls) == 2:
            raise ZeroDivisionError("DOE^JANE")
        return real(*arguments, **options)

    monkeypatch.setattr(pipeline, stage, broken)
    report = tmp_path / "r.json"
    words = [*batch(4), "--report", str(report)]
    assert run(*words) == 40
    assert_whole(tmp_path / "out", "acd")
    rows = json.loads(report.read_text())["scans"]
    assert [row["status"] for row in rows] == ["done", "failed", "done", "done"]
    assert (rows[1]["error"]["code"], rows[1]["error"]["exit"]) == ("E-INTERNAL", 70)
    assert rows[1]["error"]["found"].startswith("ZeroDivisionError at test_batch.py:")
    told = capsys.readouterr().err
    assert "error E-INTERNAL: " + str(tmp_path / "scans" / "b.nii.gz") in told
    assert "DOE" not in told + report.read_text()
    assert "Traceback" not in told
    calls.clear()
    assert run(*words, "--overwrite", "--debug") == 40
    assert "ZeroDivisionError: DOE^JANE" in capsys.readouterr().err


@pytest.mark.parametrize("error", [error for error, short in FAILURES if short])
def test_out_of_memory_in_one_scan(
    batch: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def greedy(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(pipeline, "compute", greedy)
    assert run(*batch(1)) == 13
    told = capsys.readouterr().err
    assert "E-LIMIT-MEMORY" in told
    assert "smaller --window" in told
    assert "DOE" not in told


@pytest.mark.parametrize(("error", "short"), FAILURES)
def test_what_is_a_lack_of_memory(error: Exception, short: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Outside a scan too, as in --selftest."""
    assert lacks_memory(error) == short
    with pytest.raises(SystemExit) as caught, guarded("seg-infer"):
        raise error
    assert caught.value.code == (13 if short else 70)
    assert ("E-LIMIT-MEMORY" in capsys.readouterr().err) == short
    assert load_error("m.onnx", "OpenVINO", error).exit == (13 if short else 20)


@pytest.mark.parametrize("model", ["gone/typo.onnx", ""])
def test_a_file_that_is_not_there_is_no_wrong_address(
    batch: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], model: str
) -> None:
    words = [word if not word.endswith(".onnx") else model for word in batch(1)]
    assert run(*words, "--triton", "localhost:8001") == 20
    told = capsys.readouterr().err
    assert f"E-MODEL-MISSING: {model or '-m'}: " in told
    assert "the name it is served under" in told
    assert "HOST:PORT" not in told


def test_a_network_that_does_not_load_ends_the_call(
    batch: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*batch(3), "-d", "cuda:9") == 21
    assert capsys.readouterr().err.count("E-DEVICE") == 1
    assert_whole(tmp_path / "out", "")


@pytest.mark.parametrize("failing", [False, True])
def test_at_most_three_scans_are_in_memory(
    batch: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    """With slow writing and fast reading, and when every scan fails with frames full of voxels."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    seen: list[int] = []
    read, compute, write = pipeline.read, pipeline.compute, pipeline.write_mask

    def reading(*arguments: Any, **options: Any) -> Any:
        scan = read(*arguments, **options)
        alive.add(scan)
        seen.append(len(alive))
        return scan

    def computing(scan: Any, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.01)
        if failing:
            raise ValueError(scan.volume)
        return compute(scan, *arguments, **options)

    def writing(*arguments: Any, **options: Any) -> None:
        time.sleep(0.05)
        seen.append(len(alive))
        write(*arguments, **options)

    for name, slow in (("read", reading), ("compute", computing), ("write_mask", writing)):
        monkeypatch.setattr(pipeline, name, slow)
    gc.disable()  # a scan must go when it is done, not when cycles are looked for
    try:
        assert run(*batch(10), "-q") == (40 if failing else 0)
    finally:
        gc.enable()
    assert max(seen) == (2 if failing else 3)


HANG = """
import sys, time
from seg.infer import backends, batch, pipeline
stage = sys.argv.pop(1)
where = batch if stage == "load_network" else pipeline
real, calls = getattr(where, stage), []
def hanging(*arguments, **options):
    calls.append(stage)
    if len(calls) == (1 if stage == "load_network" else 3):
        print("HANGS", file=sys.stderr, flush=True)
        time.sleep(1 if stage == "write_mask" else 60)
    return real(*arguments, **options)
setattr(where, stage, hanging)
"""


@pytest.mark.parametrize(
    ("stage", "number", "masks"),
    [
        ("read", signal.SIGINT, "ab"),
        ("compute", signal.SIGTERM, "ab"),
        ("write_mask", signal.SIGINT, "abc"),  # what is being written is finished, and recorded
        ("load_network", signal.SIGTERM, ""),
    ],
)
def test_a_signal_stops_within_seconds(
    batch: Callable[..., list[str]], tmp_path: Path, stage: str, number: signal.Signals, masks: str
) -> None:
    words = [*batch(5), "--report", str(tmp_path / "r.json")]
    process = subprocess.Popen(command(stage, *words, program=HANG), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "HANGS" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.3)  # until earlier masks are written
    began = time.monotonic()
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert time.monotonic() - began < 4
    assert process.returncode == 128 + number
    assert told.splitlines()[-1] == f"seg-infer: stopped by {number.name}; nothing partial is left"
    assert "Traceback" not in told
    assert_whole(tmp_path / "out", masks)
    assert json.loads((tmp_path / "r.json").read_text())["exit"] == 128 + number
    if masks == "abc":
        report = tmp_path / "again.json"
        assert run(*batch(5), "--continue", "-q", "--report", str(report)) == 0
        assert [row["status"] for row in json.loads(report.read_text())["scans"]] == ["skipped"] * 3 + ["done"] * 2


def test_a_second_signal_does_not_wait(batch: Callable[..., list[str]], tmp_path: Path) -> None:
    """The mask that hangs is not finished, but what is there is whole."""
    program = HANG.replace("time.sleep(1 if", "time.sleep(60 if")
    process = subprocess.Popen(command("write_mask", *batch(5), program=program), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "HANGS" not in process.stderr.readline():
        assert process.poll() is None
    began = time.monotonic()
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    _, told = process.communicate(timeout=30)
    assert time.monotonic() - began < 4
    assert process.returncode == 130
    assert "Traceback" not in told
    assert_whole(tmp_path / "out", "ab")


NOISY = """
import os
from seg.infer import nifti_write
pieces = nifti_write._content
def noisy(*arguments):
    for piece in pieces(*arguments):
        yield piece
        os.write(2, b"a native library says something")
nifti_write._content = noisy
"""


def test_closed_standard_streams(batch: Callable[..., list[str]], tmp_path: Path) -> None:
    """What anything prints must not land in a mask that got the number of a closed stream."""
    for streams in ("<&- >&- 2>&-", "2>&-", "2>/dev/full >/dev/full"):
        program = "" if "full" in streams else NOISY
        words = ["sh", "-c", f'exec "$@" {streams}', "sh", *command(*batch(2), "--overwrite", program=program)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (0, "")
        assert_whole(tmp_path / "out", "ab")


def test_nobody_reads_what_is_said(batch: Callable[..., list[str]], tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    assert infer(*batch(3), capture_output=False, stderr=write).returncode == 0
    os.close(write)
    assert_whole(tmp_path / "out", "abc")


def test_a_terminal_gets_a_bar_and_a_table(batch: Callable[..., list[str]], tmp_path: Path) -> None:
    words = batch(3)
    (tmp_path / "scans" / "b.nii.gz").write_bytes(b"")
    master, slave = pty.openpty()
    process = subprocess.Popen(command(*words), stderr=slave, env={**os.environ, "TERM": "xterm", "COLUMNS": "200"})
    os.close(slave)
    told = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        told += piece
    os.close(master)
    assert process.wait(60) == 40
    text = told.decode()
    assert "ETA" in text
    assert "\x1b[" in text
    assert "seg-infer: error E-NII-NOTNIFTI: " in text
    rows = [line for line in text.splitlines() if "scans/" in line and line.split()[1] in ("done", "E-NII-NOTNIFTI")]
    assert len(rows) == 3
    assert f"{(boxes() > 0).sum() * 0.8 * 1.1 * 2.5 / 1000:.2f}" in rows[0]


def test_quiet_says_only_errors(batch: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    words = batch(3)
    assert run(*words, "-q") == 0
    assert capsys.readouterr().err == ""
    assert run(*words, "--overwrite") == 0
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert "[3/3] " in told
    assert "class 1 ml" in told


NAMES = [
    b"with space.nii",
    b"new\nline.nii",
    b"tab\t\"quote' .nii",
    "emoji \U0001f9e0.nii".encode(),
    "nfc \u00e9.nii".encode(),
    "nfd e\u0301.nii".encode(),
    b"-dash.nii",
    b"--output.nii",
    b"; `touch pwned` $(touch pwned).nii",
    b"not utf-8 \xff.nii",
    b"a" * 248 + b".nii.gz",
    b"[1]*?.nii",
    b"[red]markup[!red] %s.nii",
    b"@list.nii",
]


def nasty(folder: Path, source: str) -> list[bytes]:
    """Copies of a scan under all nasty names; returns the names of their masks."""
    folder.mkdir()
    for name in NAMES:
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(Path(source).read_bytes())
    return [name.removesuffix(b".gz").removesuffix(b".nii") + b".nii.gz" for name in NAMES]


@pytest.mark.parametrize("way", ["folder", "words", "list"])
def test_nasty_names(tmp_path: Path, write_scan: Write, threshold_model: Model, way: str) -> None:
    """Also without a locale, a home, a folder for temporary files, and with a strict umask."""
    source = write_scan("source.nii", boxes())
    masks = nasty(tmp_path / "scans", source)
    out, report = tmp_path / "out", tmp_path / "r.json"
    tail: list[Any] = ["--", *NAMES[1:]]
    if way == "folder":
        tail = [str(tmp_path / "scans")]
    elif way == "list":
        masks = [mask for mask in masks if b"\n" not in mask and b"\t" not in mask]
        listed = [n for n in NAMES if b"\n" not in n and b"\t" not in n]
        (tmp_path / "l.txt").write_bytes(b"\n".join(listed))
        tail = ["--from", str(tmp_path / "l.txt")]
    first = ["-i", NAMES[0]] if way == "words" else []
    bare = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "TMPDIR": "/nonexistent"}
    bare |= {key: os.environ[key] for key in ("PATH", "OMP_NUM_THREADS", "LD_LIBRARY_PATH") if key in os.environ}
    options = ["-o", str(out), "-m", threshold_model(), "--report", str(report), *first, *tail]
    done = infer(*options, env=bare, cwd=tmp_path / "scans", umask=0o077)
    assert done.returncode == 0, done.stderr
    assert {os.fsencode(p.name) for p in out.iterdir()} == {*masks, NAME.encode()}
    for path in out.glob("*.nii.gz"):
        np.testing.assert_array_equal(voxels(path), boxes() > 0)
        assert path.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "scans" / "pwned").exists()
    assert len(json.loads(report.read_text())["scans"]) == len(masks)
    assert run(*[os.fsdecode(word) for word in ("-o", str(out), "-m", threshold_model(), "-q", "--continue")],
               str(tmp_path / "scans")) == 0  # fmt: skip
    lines = (out / NAME).read_bytes().splitlines()
    assert len(lines) == len(NAMES)  # only names that the list could not hold are new


@pytest.mark.parametrize("arguments", [["--models"], ["--version"]])
def test_a_full_disk_behind_stdout_is_an_error(arguments: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = infer(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE, env=environment)
    assert done.returncode == 30
    assert "Traceback" not in done.stderr
