"""The queue alone: what it says after each step, and after a process that died in between."""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra serve")

from seg.infer.errors import SegError
from seg.infer.serve.config import Waits
from seg.infer.serve.database import NAME, Database, counts, jobs
from seg.infer.serve.queue import Arrival, Complete, Queue, Verdict

WAITS = Waits(released=5, quiet=60, cut=300)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    made = Queue(tmp_path / "state")
    yield made
    made.close()


def bring(
    queue: Queue,
    instance: str,
    *,
    now: float = 0.0,
    digest: str = "",
    series: str = "s",
    sender: str = "PACS",
    **more: object,
) -> bool:
    """One object arrives."""
    temporary = queue.incoming / "tmp"
    temporary.write_bytes(instance.encode())
    return queue.accept(Arrival(series, instance, digest or f"d{instance}", 1, sender, **more), temporary, now)  # type: ignore[arg-type]


def ready(series: Complete, inputs: str = "i") -> Verdict:
    return Verdict("ready", inputs, "PACS", "m")


def settle(queue: Queue, now: float, inputs: str = "i") -> bool:
    (series,) = queue.complete(WAITS, now)
    return bool(queue.settle(series, [ready(series, inputs)], now))


def states(queue: Queue) -> list[str]:
    """Of the jobs, oldest first."""
    return [job["state"] for job in reversed(jobs(queue.database))]


def names(queue: Queue) -> set[str]:
    return {path.name for path in queue.files.iterdir()}


def test_series_is_complete_after_the_wait_of_its_state(queue: Queue) -> None:
    bring(queue, "1", now=100)
    assert queue.complete(WAITS, 159) == []
    assert [c.name for c in queue.complete(WAITS, 160)] == ["s"]  # the association is open and quiet
    queue.ended(["s"], "released", 110)
    assert queue.complete(WAITS, 114) == []
    assert len(queue.complete(WAITS, 115)) == 1
    bring(queue, "2", now=116)
    queue.ended(["s"], "cut", 120)
    assert queue.complete(WAITS, 419) == []
    (found,) = queue.complete(WAITS, 420)
    assert found.digests == ("d1", "d2")
    assert len(found.files) == 2


def test_expected_count_ends_the_waiting(queue: Queue) -> None:
    bring(queue, "1", expected=2)
    assert queue.complete(WAITS, 1) == []
    bring(queue, "2", expected=2)
    assert len(queue.complete(WAITS, 0)) == 1


def test_object_that_is_here_is_not_taken_again(queue: Queue) -> None:
    assert bring(queue, "1")
    assert not bring(queue, "1")
    assert len(names(queue)) == 1
    assert bring(queue, "1", digest="other")  # the same UID with other bytes replaces it
    (found,) = queue.complete(WAITS, 100)
    assert found.digests == ("other",)


def test_all_senders_of_a_series_are_known_until_it_is_settled(queue: Queue) -> None:
    for sender in ("PACS", "PAC", "PACS", "WS 1"):
        bring(queue, "1", sender=sender)
    (series,) = queue.complete(WAITS, 100)
    assert series.senders == ("PACS", "PAC", "WS 1")
    made = [Verdict("ready", "i", sender, "m") for sender in series.senders]
    assert queue.settle(series, made, 100) == made
    assert queue.settle(series, made, 100) == []
    assert states(queue) == ["ready"] * 3
    bring(queue, "1", sender="PAC", now=101)
    (series,) = queue.complete(WAITS, 200)
    assert series.senders == ("PAC",)


def test_job_runs_once_for_the_same_inputs(queue: Queue) -> None:
    bring(queue, "1")
    assert settle(queue, 100)
    bring(queue, "1", now=101)  # the whole series again
    assert not settle(queue, 200)
    job = queue.claim(200)
    assert job is not None
    assert queue.claim(200) is None
    result = queue.incoming / "result"
    result.write_bytes(b"seg")
    queue.finish(job, [result], 201)
    out = queue.outgoing(201)
    assert out is not None
    assert [queue.path(file).read_bytes() for file in out.files] == [b"seg"]
    queue.delivered(out, 202)
    bring(queue, "1", now=203)
    assert not settle(queue, 300)
    assert states(queue) == ["done"]
    assert queue.outgoing(1000) is None


def test_later_slice_makes_a_new_job_and_stops_one_that_waits(queue: Queue) -> None:
    bring(queue, "1")
    settle(queue, 100, "one")
    bring(queue, "2", now=101)
    assert states(queue) == ["superseded"]
    assert settle(queue, 200, "both")
    job = queue.claim(200)
    assert job is not None
    assert (job.inputs, len(job.files)) == ("both", 2)
    assert queue.claim(200) is None


def test_slice_that_comes_while_the_verdict_is_made_is_not_left_out(queue: Queue) -> None:
    bring(queue, "1")
    (series,) = queue.complete(WAITS, 100)
    bring(queue, "2", now=100)
    assert not queue.settle(series, [ready(series)], 100)
    (series,) = queue.complete(WAITS, 200)
    assert len(series.files) == 2


def test_failed_job_is_tried_again_when_the_series_is_sent_again(queue: Queue) -> None:
    bring(queue, "1")
    settle(queue, 100)
    job = queue.claim(100)
    assert job is not None
    queue.fail(job, "E-X", "why", 100)
    assert states(queue) == ["failed"]
    bring(queue, "1", now=101)
    assert settle(queue, 200)
    assert states(queue) == ["ready"]


def test_poisoned_job_waits_behind_the_others_and_is_given_up(tmp_path: Path) -> None:
    for attempt in range(3):
        queue = Queue(tmp_path / "state")
        queue.recover(3, 1000)
        if attempt == 0:
            for series in ("bad", "good"):
                bring(queue, series, series=series)
                (found,) = queue.complete(WAITS, 100)
                queue.settle(found, [ready(found, series)], 100)
        job = queue.claim(1000)
        assert job is not None
        assert job.inputs == ("bad" if attempt != 1 else "good")
        if job.inputs == "good":
            queue.finish(job, [], 1000)
            job = queue.claim(1000)
            assert job is not None
        queue.close()  # the process dies
    queue = Queue(tmp_path / "state")
    queue.recover(3, 1000)
    assert {job["model"] and job["state"]: job["code"] for job in jobs(queue.database)} == {
        "done": "",
        "failed": "E-SERVE-CRASH",
    }
    assert queue.claim(2000) is None
    queue.close()


def test_job_whose_end_could_not_be_kept_is_run_again(queue: Queue) -> None:
    bring(queue, "1")
    settle(queue, 1000)
    assert queue.claim(1000) is not None
    assert queue.claim(1001) is None  # the database was full, say; not at once
    again = queue.claim(1012)
    assert again is not None
    assert again.runs == 2


def test_what_is_left_of_a_cut_transfer_goes(queue: Queue) -> None:
    for name, age in (("old", 100), ("young", 0), ("result-1-0", 100)):
        path = queue.incoming / name
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    queue.drop_cut(60)
    assert {path.name for path in queue.incoming.iterdir()} == {"young", "result-1-0"}


def test_delivery_is_postponed_then_set_aside_then_tried_after_a_start(queue: Queue) -> None:
    bring(queue, "1")
    settle(queue, 100)
    job = queue.claim(100)
    assert job is not None
    result = queue.incoming / "result"
    result.write_bytes(b"seg")
    queue.finish(job, [result], 100)
    for failure in range(3):
        out = queue.outgoing(10_000)
        assert out is not None
        assert out.runs == failure
        queue.postpone(out, "no connection", 100 + failure, 3, 100)
    assert states(queue) == ["undelivered"]
    assert queue.outgoing(10_000) is None
    queue.forget(1e9, 1e9)
    queue.recover(3, 100)
    out = queue.outgoing(10_000)
    assert out is not None
    assert queue.path(out.files[0]).read_bytes() == b"seg"


def test_forget_deletes_inputs_of_ended_jobs_only(queue: Queue) -> None:
    for series in ("done", "waits"):
        bring(queue, series, series=series)
        (found,) = queue.complete(WAITS, 100)
        queue.settle(found, [ready(found, series)], 100)
    job = queue.claim(100)
    assert job is not None
    queue.finish(job, [], 150)
    assert queue.forget(150, 0) == 0  # changed just then
    assert queue.forget(151, 0) == 1
    assert names(queue) == {"2.dcm"}
    assert queue.stored_bytes() == 1
    assert counts(queue.database)["done"] == 1
    assert queue.forget(151, 151) == 0  # now the record too
    assert "done" not in counts(queue.database)


def test_deleted_inputs_are_known_and_missing(queue: Queue) -> None:
    bring(queue, "1")
    settle(queue, 100)
    job = queue.claim(100)
    assert job is not None
    queue.finish(job, [], 100)
    queue.forget(1000, 0)
    bring(queue, "2", now=2000)
    (found,) = queue.complete(WAITS, 3000)
    assert (len(found.digests), len(found.files), found.missing) == (2, 1, 1)
    bring(queue, "1", now=3001)
    (found,) = queue.complete(WAITS, 4000)
    assert (len(found.files), found.missing) == (2, 0)


def test_start_removes_files_without_a_row_and_continues(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "state")
    bring(queue, "1", now=50)
    (queue.files / "99.dcm").write_bytes(b"orphan")
    (queue.incoming / "half").write_bytes(b"cut")
    queue.close()
    queue = Queue(tmp_path / "state")
    queue.recover(3, 1000)
    assert names(queue) == {"1.dcm"}
    assert list(queue.incoming.iterdir()) == []
    assert queue.complete(WAITS, 1299) == []  # its association is gone: the sender gets the time to try again
    assert len(queue.complete(WAITS, 1300)) == 1
    queue.close()


def test_second_process_is_refused(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "state")
    program = "import sys; from pathlib import Path; from seg.infer.serve.queue import Queue; Queue(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "state")], capture_output=True, text=True, check=False
    )
    assert "another seg-serve uses this folder" in done.stderr
    queue.close()


def test_what_is_there_is_private_and_has_no_foreign_names(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "state")
    bring(queue, "../../evil")
    for path in (tmp_path / "state", queue.files, queue.incoming):
        assert os.stat(path).st_mode & 0o077 == 0
    assert os.stat(tmp_path / "state" / NAME).st_mode & 0o077 == 0
    assert names(queue) == {"1.dcm"}
    queue.close()


def test_strange_database_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / NAME) as db:
        db.execute("PRAGMA user_version = 7")
    with pytest.raises(SegError, match="E-SERVE-STATE"):
        Database(tmp_path / NAME)
    (tmp_path / "text").write_text("no database" * 100)
    with pytest.raises(SegError, match="E-SERVE-STATE"):
        Database(tmp_path / "text")


def test_commits_reach_the_disk(queue: Queue) -> None:
    assert queue.database.one("PRAGMA journal_mode")[0] == "wal"
    assert queue.database.one("PRAGMA synchronous")[0] == 2  # FULL


def test_failed_transaction_leaves_nothing(queue: Queue) -> None:
    with pytest.raises(FileNotFoundError):
        queue.accept(Arrival("s", "1", "d", 1, "PACS"), queue.incoming / "absent", 0.0)
    assert queue.stored_bytes() == 0
    assert queue.complete(WAITS, 1e9) == []
