"""The node's SQLite file: its tables, and transactions that are on the disk when they return.

No identifier of a patient, study, series or object is in it: series and instances are keyed hashes, files are numbers.
Times are seconds since 1970.

States of a series: "open" (an association that brings it goes on), "released", "cut" (all ended in order, or not),
"settled" (a job stands for all of it). States of a job: "ready", "running", "sending", and then "done", "failed",
"ignored" (no rule), "superseded" (more of the series came before it began), "undelivered" (set aside).
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import Exit, SegError

NAME = "queue.sqlite"
SCHEMA = 1
TABLES = """
CREATE TABLE file(id INTEGER PRIMARY KEY AUTOINCREMENT, bytes INTEGER NOT NULL);
CREATE TABLE stored(bytes INTEGER NOT NULL);
INSERT INTO stored VALUES (0);
CREATE TRIGGER file_added AFTER INSERT ON file BEGIN UPDATE stored SET bytes = bytes + new.bytes; END;
CREATE TRIGGER file_removed AFTER DELETE ON file BEGIN UPDATE stored SET bytes = bytes - old.bytes; END;
CREATE TABLE series(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, sender TEXT NOT NULL, expected INTEGER, touched REAL NOT NULL,
  state TEXT NOT NULL);
CREATE TABLE instance(
  series INTEGER NOT NULL REFERENCES series(id) ON DELETE CASCADE, name TEXT NOT NULL, digest TEXT NOT NULL,
  file INTEGER REFERENCES file(id), PRIMARY KEY(series, name)) WITHOUT ROWID;
CREATE INDEX instance_file ON instance(file);
CREATE TABLE job(
  id INTEGER PRIMARY KEY AUTOINCREMENT, series INTEGER NOT NULL REFERENCES series(id) ON DELETE CASCADE,
  inputs TEXT NOT NULL, receiver TEXT NOT NULL, model TEXT NOT NULL, count INTEGER NOT NULL, state TEXT NOT NULL,
  runs INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL, changed REAL NOT NULL, code TEXT NOT NULL,
  message TEXT NOT NULL, UNIQUE(inputs, receiver));
CREATE INDEX job_state ON job(state, due);
CREATE TABLE job_file(
  job INTEGER NOT NULL REFERENCES job(id) ON DELETE CASCADE, file INTEGER NOT NULL REFERENCES file(id),
  PRIMARY KEY(job, file)) WITHOUT ROWID;
CREATE INDEX job_file_file ON job_file(file);
CREATE TABLE result(
  job INTEGER NOT NULL REFERENCES job(id) ON DELETE CASCADE, file INTEGER NOT NULL REFERENCES file(id),
  PRIMARY KEY(job, file)) WITHOUT ROWID;
CREATE INDEX result_file ON result(file);
"""


class Database:
    """One connection for all threads of the process, one at a time."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open the file; unless `read_only`, make it and its tables.

        Raises
        ------
        SegError : E-SERVE-STATE when it is not one of ours, or cannot be opened.
        """
        self._lock = threading.RLock()
        try:
            self._connection = _open(path, read_only)
        except (sqlite3.Error, OSError) as error:
            fix = "free its disk, stop what uses it, or give another state folder"
            found = f"the queue cannot be opened ({error})"
            raise SegError("E-SERVE-STATE", Exit.OUTPUT, str(path), found, fix) from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; on the disk when the block has ended without an exception."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def all(self, query: str, *values: object) -> list[sqlite3.Row]:
        """The rows of a query."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def one(self, query: str, *values: object) -> Any:
        """The first row, or None."""
        return next(iter(self.all(query, *values)), None)


def _open(path: Path, read_only: bool) -> sqlite3.Connection:
    name = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    connection = sqlite3.connect(name, uri=True, isolation_level=None, check_same_thread=False, timeout=30)
    connection.row_factory = sqlite3.Row
    if not read_only:
        path.chmod(0o600)
        for line in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {line}")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0 and not read_only:
        connection.executescript(f"BEGIN IMMEDIATE;{TABLES}PRAGMA user_version = {SCHEMA};COMMIT;")
    elif version != SCHEMA:
        raise sqlite3.DatabaseError(f"its tables have version {version}, this program knows {SCHEMA}")
    return connection


def counts(database: Database) -> dict[str, int]:
    """Jobs by state; "arriving" are series that are not settled."""
    found = {row[0]: row[1] for row in database.all("SELECT state, count(*) FROM job GROUP BY state")}
    return {"arriving": database.one("SELECT count(*) FROM series WHERE state != 'settled'")[0], **found}


def jobs(database: Database, most: int = 1000) -> list[dict[str, Any]]:
    """The newest jobs, as shown to people. `count`: objects of the series; `changed`: seconds since 1970."""
    rows = database.all(
        r"SELECT job.id, series.name AS series, replace(series.sender, '\', ', ') AS sender, receiver, model, count,"
        " job.state, runs, code, message, changed"
        " FROM job JOIN series ON series.id = job.series ORDER BY job.id DESC LIMIT ?",
        most,
    )
    return [dict(row) for row in rows]
