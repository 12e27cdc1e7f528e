"""The durable queue: which objects are here, which series are to be segmented, which results are to be delivered.

A SQLite file and a folder of numbered files. When a method returns, what it did is on the disk: first the file's bytes,
then its name in the folder, then the row. So a row never names a file that is not whole, and after a kill a file
without a row is removed. States: see database.py. What this does not know: how long a series is, where the sender does
not say so.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import Exit, SegError
from .config import Waits
from .database import NAME, Database

UNDER_WAY = ("ready", "running", "sending")

ALL_SENDERS = (  # that sent the series since it was settled; between them a backslash, which no AE title has
    r"CASE WHEN state = 'settled' THEN excluded.sender WHEN instr('\' || sender || '\', '\' || excluded.sender || '\')"
    r" THEN sender ELSE sender || '\' || excluded.sender END"
)
UNKEPT_SECONDS = 10.0  # before a job is run again whose end could not be kept


@dataclass(frozen=True)
class Arrival:
    """One received object.

    Attributes
    ----------
    series, instance : keyed hashes.
    digest : of the data set's bytes.
    size : bytes of the file.
    sender : AE title of a peer.
    expected : objects the series has, if the sender says so.
    """

    series: str
    instance: str
    digest: str
    size: int
    sender: str
    expected: int | None = None


@dataclass(frozen=True)
class Complete:
    """A series that counts as complete. `senders`: peers that sent some of it since it was settled last. `missing`:
    objects that were deleted after an earlier job."""

    id: int
    name: str
    senders: tuple[str, ...]
    touched: float
    expected: int | None
    digests: tuple[str, ...]
    files: tuple[int, ...]
    missing: int


@dataclass(frozen=True)
class Verdict:
    """What is to become of a complete series: state "ready", "failed" or "ignored"."""

    state: str
    inputs: str
    receiver: str
    model: str = ""
    code: str = ""
    message: str = ""


@dataclass(frozen=True)
class Job:
    """One segmentation and its results.

    Attributes
    ----------
    inputs : digest of the objects and the model; the UIDs of the results are derived from it.
    runs : starts of the segmentation with this one, or failed deliveries so far.
    files : numbers of the inputs, or of the results to be delivered.
    """

    id: int
    series: str
    inputs: str
    receiver: str
    model: str
    runs: int
    files: tuple[int, ...]


class Queue:
    """See the module. All methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        """Open or make the queue of a folder, for this process alone; files without a row are removed.

        Raises
        ------
        SegError : E-SERVE-STATE when another process has it, or it cannot be opened.
        """
        self.files, self.incoming = folder / "files", folder / "incoming"
        try:
            for path in (folder, self.files, self.incoming):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._owner = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            busy = isinstance(error, BlockingIOError)
            found = "another seg-serve uses this folder" if busy else f"cannot be used ({error.strerror})"
            fix = "stop the other one, or give another folder"
            raise SegError("E-SERVE-STATE", Exit.OUTPUT, str(folder), found, fix) from error
        self.database = Database(folder / NAME)
        self._remove_orphans()

    def close(self) -> None:
        """Close the database and let the folder go."""
        self.database.close()
        os.close(self._owner)

    def path(self, file: int) -> Path:
        """Where a numbered file is."""
        return self.files / f"{file}.dcm"

    # Receiving

    def accept(self, arrival: Arrival, temporary: Path, now: float) -> bool:
        """Take a received file over: when this returns, it is here for good.

        Parameters
        ----------
        temporary : its bytes, on the disk, in the folder `incoming`. Taken away if they are new.

        Returns
        -------
        bool
            False if the same object is here already.
        """
        with self.database.transaction() as db:
            series = db.execute(
                "INSERT INTO series(name, sender, expected, touched, state) VALUES (?, ?, ?, ?, 'open')"
                f" ON CONFLICT(name) DO UPDATE SET sender = {ALL_SENDERS}, touched = excluded.touched, state = 'open',"
                " expected = coalesce(excluded.expected, expected) RETURNING id",
                (arrival.series, arrival.sender, arrival.expected, now),
            ).fetchone()["id"]
            known = db.execute(
                "SELECT digest, file FROM instance WHERE series = ? AND name = ?", (series, arrival.instance)
            ).fetchone()
            same = known is not None and known["digest"] == arrival.digest
            if same and known["file"] is not None and self.path(known["file"]).is_file():
                return False
            file = self._keep(db, temporary, arrival.size)
            db.execute(
                "INSERT INTO instance(series, name, digest, file) VALUES (?, ?, ?, ?)"
                " ON CONFLICT(series, name) DO UPDATE SET digest = excluded.digest, file = excluded.file",
                (series, arrival.instance, arrival.digest, file),
            )
            if not same:
                db.execute("UPDATE job SET state = 'superseded' WHERE series = ? AND state = 'ready'", (series,))
        return True

    def ended(self, series: Sequence[str], state: str, now: float) -> None:
        """No association brings these series any more: state "released" or "cut"."""
        with self.database.transaction() as db:
            db.executemany(
                "UPDATE series SET state = ?, touched = ? WHERE name = ? AND state = 'open'",
                [(state, now, name) for name in series],
            )

    def stored_bytes(self) -> int:
        """Of all files."""
        return int(self.database.one("SELECT bytes FROM stored")[0])

    # Settling

    def complete(self, waits: Waits, now: float) -> list[Complete]:
        """Series that have all they expect, or that have been quiet for long enough."""
        rows = self.database.all(
            "SELECT series.*, count(*) AS count FROM series JOIN instance ON instance.series = series.id"
            " WHERE state != 'settled' GROUP BY series.id ORDER BY series.id"
        )
        wait = {"released": waits.released, "open": waits.quiet, "cut": waits.cut}
        return [
            self._complete(row)
            for row in rows
            if now - row["touched"] >= wait[row["state"]] or (row["expected"] and row["count"] >= row["expected"])
        ]

    def _complete(self, row: sqlite3.Row) -> Complete:
        instances = self.database.all("SELECT digest, file FROM instance WHERE series = ?", row["id"])
        digests = tuple(sorted(instance["digest"] for instance in instances))
        files = tuple(sorted(instance["file"] for instance in instances if instance["file"] is not None))
        missing = len(instances) - len(files)
        senders = tuple(row["sender"].split("\\"))
        return Complete(row["id"], row["name"], senders, row["touched"], row["expected"], digests, files, missing)

    def finished(self, inputs: str, receiver: str) -> bool:
        """Whether these inputs were segmented, or will be, for this receiver."""
        row = self.database.one("SELECT state FROM job WHERE inputs = ? AND receiver = ?", inputs, receiver)
        return row is not None and row["state"] in (*UNDER_WAY, "done")

    def settle(self, series: Complete, verdicts: Sequence[Verdict], now: float) -> list[Verdict]:
        """Make the jobs of a complete series, one for each receiver, once for the same inputs and receiver.

        A job that failed, or was set aside, starts again: to send a series again is to ask again.

        Returns
        -------
        Those that there is something to do for now; none also because more of the series has come.
        """
        with self.database.transaction() as db:
            same = "UPDATE series SET state = 'settled' WHERE id = ? AND touched = ?"
            if not db.execute(same, (series.id, series.touched)).rowcount:
                return []
            return [verdict for verdict in verdicts if _make(db, series, verdict, now)]

    # Segmenting

    def recover(self, most: int, now: float) -> None:
        """After a start: what was under way when the process ended is to be done again, but no segmentation that was
        started `most` times. Senders get the whole time again to send what was cut off."""
        with self.database.transaction() as db:
            db.execute("UPDATE series SET state = 'cut', touched = ? WHERE state = 'open'", (now,))
            db.execute("UPDATE series SET touched = min(touched, ?)", (now,))  # the clock may have been set back
            db.execute(
                "UPDATE job SET state = 'failed', code = 'E-SERVE-CRASH', changed = ?, message = 'the process ended '"
                " || runs || ' times while it segmented this series' WHERE state = 'running' AND runs >= ?",
                (now, most),
            )
            db.execute("UPDATE job SET state = 'ready' WHERE state = 'running'")
            db.execute("UPDATE job SET state = 'sending', runs = 0 WHERE state = 'undelivered'")
            db.execute("UPDATE job SET due = min(due, ?)", (now,))

    def claim(self, now: float) -> Job | None:
        """The next job, now running. One that was started before waits behind those that were not.

        One thread runs jobs: what is still called running ended without an answer that could be kept.
        """
        with self.database.transaction() as db:
            db.execute("UPDATE job SET state = 'ready', due = ? WHERE state = 'running'", (now + UNKEPT_SECONDS,))
            row = db.execute(
                "UPDATE job SET state = 'running', runs = runs + 1, changed = ? WHERE id = ("
                " SELECT id FROM job WHERE state = 'ready' AND due <= ? ORDER BY runs, id LIMIT 1) RETURNING *",
                (now, now),
            ).fetchone()
        return self._job(row, "job_file") if row else None

    def finish(self, job: Job, results: Sequence[Path], now: float) -> None:
        """Keep what a job made, to be sent. The files, on the disk, are taken from the folder `incoming`."""
        with self.database.transaction() as db:
            for path in results:
                file = self._keep(db, path, path.stat().st_size)
                db.execute("INSERT INTO result VALUES (?, ?)", (job.id, file))
            change = "UPDATE job SET state = ?, runs = 0, code = '', message = '', due = ?, changed = ? WHERE id = ?"
            db.execute(change, ("sending" if results else "done", now, now, job.id))

    def fail(self, job: Job, code: str, message: str, now: float) -> None:
        """There will be no result."""
        self._update(job, "state = 'failed', code = ?, message = ?, changed = ?", code, message, now)

    def again(self, job: Job, code: str, message: str, due: float) -> None:
        """Run a job once more, from `due` on."""
        self._update(job, "state = 'ready', code = ?, message = ?, due = ?", code, message, due)

    # Sending

    def outgoing(self, now: float) -> Job | None:
        """The next job whose results are to be sent."""
        row = self.database.one("SELECT * FROM job WHERE state = 'sending' AND due <= ? ORDER BY due, id LIMIT 1", now)
        return self._job(row, "result") if row else None

    def delivered(self, job: Job, now: float) -> None:
        """All results are at the receiver; they are not kept here."""
        with self.database.transaction() as db:
            done = "UPDATE job SET state = 'done', runs = 0, code = '', message = '', changed = ? WHERE id = ?"
            db.execute(done, (now, job.id))
            db.execute("DELETE FROM result WHERE job = ?", (job.id,))

    def postpone(self, job: Job, message: str, due: float, most: int, now: float) -> None:
        """A delivery failed; after `most` failures the results are set aside until the next start."""
        state = "undelivered" if job.runs + 1 >= most else "sending"
        change = "state = ?, runs = runs + 1, due = ?, code = 'E-SERVE-SEND', message = ?, changed = ?"
        self._update(job, change, state, due, message, now)

    # Retention

    def forget(self, kept_since: float, known_since: float) -> int:
        """Delete the inputs of series that nothing happened to since `kept_since`, the records of those that nothing
        happened to since `known_since`, and every file that nothing refers to. Returns the number of files deleted."""
        idle = (
            "SELECT id FROM series WHERE state = 'settled' AND touched < ? AND NOT EXISTS (SELECT 1 FROM job"
            " WHERE job.series = series.id"
            " AND (state IN ('ready', 'running', 'sending', 'undelivered') OR changed >= ?))"
        )
        with self.database.transaction() as db:
            db.execute(f"UPDATE instance SET file = NULL WHERE series IN ({idle})", (kept_since, kept_since))
            db.execute(f"DELETE FROM series WHERE id IN ({idle})", (known_since, known_since))
            db.execute("DELETE FROM job_file WHERE job IN (SELECT id FROM job WHERE state NOT IN ('ready', 'running'))")
            unused = db.execute(
                "DELETE FROM file WHERE NOT EXISTS (SELECT 1 FROM instance WHERE file = file.id)"
                " AND NOT EXISTS (SELECT 1 FROM job_file WHERE file = file.id)"
                " AND NOT EXISTS (SELECT 1 FROM result WHERE file = file.id) RETURNING id"
            ).fetchall()
        for row in unused:  # after the commit: a kill leaves a file without a row, which the next start removes
            with suppress(FileNotFoundError):
                self.path(row["id"]).unlink()
        return len(unused)

    def drop_cut(self, seconds: float) -> None:
        """Remove what came of objects whose transfer was cut: written to last so many seconds ago, and by nobody."""
        for path in self.incoming.iterdir():
            if not path.name.startswith("result-"):
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > seconds:
                        path.unlink()

    # Inside

    def _update(self, job: Job, change: str, *values: object) -> None:
        with self.database.transaction() as db:
            db.execute(f"UPDATE job SET {change} WHERE id = ?", (*values, job.id))

    def _keep(self, db: sqlite3.Connection, temporary: Path, size: int) -> int:
        """Give a temporary file its number. If the transaction fails, the next start removes the file."""
        file = db.execute("INSERT INTO file(bytes) VALUES (?)", (size,)).lastrowid
        assert file is not None
        os.replace(temporary, self.path(file))
        _sync(self.files)
        return file

    def _job(self, row: sqlite3.Row, table: str) -> Job:
        files = self.database.all(f"SELECT file FROM {table} WHERE job = ? ORDER BY file", row["id"])
        series = self.database.one("SELECT name FROM series WHERE id = ?", row["series"])["name"]
        numbers = tuple(found["file"] for found in files)
        return Job(row["id"], series, row["inputs"], row["receiver"], row["model"], row["runs"], numbers)

    def _remove_orphans(self) -> None:
        known = {f"{row['id']}.dcm" for row in self.database.all("SELECT id FROM file")}
        for path in (*self.files.iterdir(), *self.incoming.iterdir()):
            if path.parent != self.files or path.name not in known:
                path.unlink()


def _make(db: sqlite3.Connection, series: Complete, verdict: Verdict, now: float) -> bool:
    """The job of a verdict. False: there is one already."""
    made = (verdict.inputs, verdict.receiver)
    old = db.execute("SELECT id, state FROM job WHERE inputs = ? AND receiver = ?", made).fetchone()
    if old and old["state"] in (*UNDER_WAY, "done"):
        return False
    if old and old["state"] == "undelivered":
        db.execute("UPDATE job SET state = 'sending', runs = 0, due = ? WHERE id = ?", (now, old["id"]))
        return True
    if old:
        db.execute("DELETE FROM job WHERE id = ?", (old["id"],))
    why = (verdict.model, len(series.digests), verdict.state, now, now, verdict.code, verdict.message)
    job = db.execute(
        "INSERT INTO job(series, inputs, receiver, model, count, state, due, changed, code, message)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (series.id, *made, *why),
    ).lastrowid
    db.executemany("INSERT INTO job_file VALUES (?, ?)", [(job, file) for file in series.files])
    return True


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
