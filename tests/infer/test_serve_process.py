"""seg-serve as a process with a shipped model: what it tells of what it receives (D30), and how it ends."""

import json
import signal
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra serve")

from nodes import LOOPBACK, FakePacs, associate, free_port, get, mr_series, raw_store, store, wait_for
from pydicom import Dataset

PROGRAM = "from seg.infer.serve.cli import main; main()"
CANARIES = {
    "PatientName": "CANARY^ONE",
    "PatientID": "CANARY2",
    "PatientBirthDate": "19010203",
    "AccessionNumber": "CANARY4",
    "StudyDescription": "CANARY5",
    "SeriesDescription": "CANARY6",
    "InstitutionName": "CANARY7",
    "ReferringPhysicianName": "CANARY8",
    "ProtocolName": "CANARY9",
    "StudyID": "CANARY10",
    "OperatorsName": "CANARY11",
    "ImageComments": "CANARY12",
}


class Process:
    """`seg-serve` with options, as a user starts it."""

    def __init__(self, folder: Path, pacs: FakePacs) -> None:
        self.port, self.http, self.log, self.state = free_port(), free_port(), folder / "log", folder / "state"
        options = ["--model", "hippocampus", "--peer", f"PACS={LOOPBACK}:{pacs.port}", "--state", str(self.state)]
        options += ["--port", str(self.port), "--http-port", str(self.http)]
        with open(self.log, "wb") as log:
            command = [sys.executable, "-c", PROGRAM, *options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        wait_for(self.answers)

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return bool(get(f"{self.base}/healthz"))
        except OSError:
            return False

    @property
    def base(self) -> str:
        return f"http://{LOOPBACK}:{self.http}"

    def jobs(self) -> list[dict[str, Any]]:
        return list(get(f"{self.base}/queue")["jobs"])


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[Process, FakePacs]]:
    with FakePacs() as pacs:
        running = Process(tmp_path, pacs)
        yield running, pacs
        running.process.kill()
        running.process.wait()


def images(name: str, **tags: Any) -> list[Dataset]:
    """A series that suits the model."""
    return mr_series(name, 32, size=40, **{**CANARIES, **tags})


def test_nothing_received_is_in_a_log_a_page_a_table_or_a_name(node: tuple[Process, FakePacs], tmp_path: Path) -> None:
    running, pacs = node
    good, gap, odd, small = images("good"), images("gap"), images("odd"), mr_series("small", 3, **CANARIES)
    del gap[10]
    for one in odd:  # a value that the reader must refuse, and might quote
        one["PixelSpacing"]._value = "CANARY13"
    for series in (good, gap, odd, small):
        assert set(store(running.port, series)) == {0}
    cut = images("cut")[0]
    del cut.PixelData
    assert store(running.port, [cut]) == [0xA700]
    hostile = images("hostile")[0]
    hostile["SeriesInstanceUID"]._value = "CANARY14"
    assert raw_store(running.port, tmp_path, hostile) == 0xC000
    assert associate(running.port, aet="CANARY15").is_rejected
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{running.base}/CANARY16")
    wait_for(lambda: sorted(job["state"] for job in running.jobs()) == ["done", "failed", "failed", "failed"])
    codes = {job["code"] for job in running.jobs()}
    assert {"", "E-DCM-MISSING", "E-DCM-SERIES"} <= codes
    (result,) = pacs.objects
    assert (result.PatientID, result.Modality) == ("CANARY2", "SEG")
    assert len(result.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 32

    pages = [
        urllib.request.urlopen(f"{running.base}/{page}").read().decode() for page in ("queue", "metrics", "healthz")
    ]
    command = [sys.executable, "-c", PROGRAM, "--status", "--state", str(running.state)]
    status = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    with sqlite3.connect(running.state / "queue.sqlite") as database:
        table = "\n".join(database.iterdump())
    names = " ".join(str(path) for path in tmp_path.rglob("*"))
    log = running.log.read_text()
    assert "segmented" in log
    assert "segmentation-failed" in log
    assert "object-refused" in log
    uids = [str(one[word].value) for one in (good[0], gap[0]) for word in ("SeriesInstanceUID", "StudyInstanceUID")]
    uids += [str(one.SOPInstanceUID) for one in (*good, *gap)]
    for canary in ("CANARY", "19010203", *uids):
        for place in (log, *pages, status, table, names):
            assert canary not in place


def test_it_ends_soon_after_sigterm_and_goes_on_where_it_was(node: tuple[Process, FakePacs], tmp_path: Path) -> None:
    running, pacs = node
    store(running.port, images("a"))
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(5) == 143
    assert "Traceback" not in running.log.read_text()
    again = Process(tmp_path, pacs)
    try:
        wait_for(lambda: [job["state"] for job in again.jobs()] == ["done"])
        assert len(pacs.uids) == 1
    finally:
        again.process.kill()
        again.process.wait()


def test_what_is_kept_is_readable_by_nobody_else(node: tuple[Process, FakePacs]) -> None:
    running, _ = node
    store(running.port, mr_series("a", 2))
    paths = [running.state, *running.state.rglob("*")]
    assert len([path for path in paths if path.suffix == ".dcm"]) == 2
    assert not [path for path in paths if path.stat().st_mode & 0o077 and path.parent == running.state.parent]
    assert running.state.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"--model": "no-such-model"}, 20, "E-MODEL-MISSING"),
        ({"--state": "log/inside"}, 30, "E-SERVE-STATE"),
        ({"--port": "USED"}, 21, "E-SERVE-PORT"),
        ({"--peer": "PACS=no-such-host.invalid:1"}, 2, "is not found"),
    ],
)
def test_it_does_not_start_with_what_cannot_work(
    tmp_path: Path, changes: dict[str, str], status: int, words: str
) -> None:
    (tmp_path / "log").write_text("a file")
    options = {
        "--model": "hippocampus",
        "--peer": f"PACS={LOOPBACK}:1",
        "--state": "state",
        "--port": "0",
        "--http-port": "0",
    }
    with FakePacs() as used:
        line = [word for pair in {**options, **changes}.items() for word in pair]
        line = [str(used.port) if word == "USED" else word for word in line]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *line],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
        )
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_status_of_no_queue_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "--status", "--state", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 10
    assert json.dumps(done.stderr).count("\\n") == 1
