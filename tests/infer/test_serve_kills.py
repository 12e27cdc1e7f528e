"""S07: a node that is killed loses no study and stores none twice, at exact points and at random moments."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra serve")

from killed_node import POINTS
from nodes import LOOPBACK, FakePacs, free_port, get, mr_series, orthanc_missing, store, wait_for

HERE = Path(__file__).parent
BENCHMARK = HERE.parents[1] / "benchmarks" / "serve_kills.py"


class Child:
    """A node in a process of its own."""

    def __init__(self, folder: Path, port: int, http: int, pacs: FakePacs, point: str) -> None:
        command = [sys.executable, str(HERE / "killed_node.py"), str(folder / "state"), str(port), str(http)]
        self._process = subprocess.Popen([*command, str(pacs.port), point])
        self._http = http

    def died(self) -> bool:
        return self._process.poll() is not None

    def counts(self) -> dict[str, int]:
        assert not self.died()
        try:
            return dict(get(f"http://{LOOPBACK}:{self._http}/queue")["counts"])
        except OSError:
            return {}

    def end(self) -> int:
        self._process.kill()
        return self._process.wait()


def send(port: int, study: list[Any]) -> None:
    """Send until it was taken, as a PACS does; nothing if the node dies meanwhile."""
    with suppress(AssertionError, AttributeError, RuntimeError, ValueError):  # no association, or it broke
        store(port, study)


def test_node_killed_at_every_point_delivers_every_study_once(tmp_path: Path) -> None:
    port, http, armed, points = free_port(), free_port(), tmp_path / "armed", list(POINTS)
    with FakePacs() as pacs:
        child = Child(tmp_path, port, http, pacs, points[0])
        for number, (point, following) in enumerate(zip(points, [*points[1:], ""], strict=True), 1):
            wait_for(child.counts)
            if point == "inputs deleted":  # those of the study before must be gone, or the node dies of them
                wait_for(lambda: not list((tmp_path / "state" / "files").glob("*")))
            armed.touch()
            study = mr_series(point, 3)
            send(port, study)
            wait_for(child.died)
            armed.unlink()
            child = Child(tmp_path, port, http, pacs, following)
            wait_for(child.counts)
            if number <= points.index("object accepted") + 1:  # the sender was not told that all was taken
                assert store(port, study) == [0, 0, 0]
            wait_for(lambda c=child, n=number: c.counts() == {"arriving": 0, "done": n}, 30)
        wait_for(lambda: not os.listdir(tmp_path / "state" / "files"))
        child.end()
    assert os.listdir(tmp_path / "state" / "incoming") == []
    uids = {str(one.PatientID): str(one.SOPInstanceUID) for one in pacs.objects}
    assert set(uids) == set(points)
    assert len(set(uids.values())) == len(points)
    assert all(one.NumberOfFrames == 3 for one in pacs.objects)
    # A result that was sent, but not noted, is sent again: the same object, which a PACS has once.
    came = [str(one.PatientID) for one in pacs.objects]
    assert [name for name in points if came.count(name) > 1] == ["result sent"]
    assert len({one.SOPInstanceUID for one in pacs.objects}) == len(points)


def benchmark(*arguments: str, seconds: int) -> dict[str, Any]:
    """The benchmark's result; it exits with 1 if a study was lost or doubled."""
    if reason := orthanc_missing():
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *arguments], capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cells = done.stdout.splitlines()[2].strip("| ").split(" | ")
    return dict(zip(("studies", "kills", "repeated", "lost", "doubled", "partial"), map(int, cells[:6]), strict=True))


@pytest.mark.slow
def test_studies_through_orthanc_with_kills() -> None:
    found = benchmark("--smoke", seconds=280)
    assert (found["studies"], found["kills"]) == (6, 2)
    assert found["lost"] == found["doubled"] == found["partial"] == 0


@pytest.mark.slow
def test_two_hundred_studies_with_twenty_kills(tmp_path: Path) -> None:
    found = benchmark("--results", str(tmp_path), seconds=3000)
    assert (found["studies"], found["kills"]) == (200, 20)
    result = json.loads((tmp_path / "serve-kills.json").read_text())["serve_kills"]
    assert result["lost"] == result["doubled"] == result["partial"] == 0
    assert len(result["interrupted"]) >= 3  # kills hit different states
