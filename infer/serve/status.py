"""The queue as a table, for a person at the terminal."""

import time
from pathlib import Path

from ..errors import Exit, SegError
from .database import NAME, Database, counts, jobs

SHOWN = 50


def print_status(state: Path) -> None:
    """Print counts and the newest jobs. Raises SegError E-SERVE-STATE when no queue is there."""
    if not (state / NAME).is_file():
        fix = "give the node's --config, or its folder with --state"
        raise SegError("E-SERVE-STATE", Exit.INPUT_MISSING, str(state), "there is no queue here", fix)
    database = Database(state / NAME, read_only=True)
    print("  ".join(f"{name} {count}" for name, count in counts(database).items()))
    for job in jobs(database, SHOWN):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job["changed"]))
        words = [f"{job['id']:6}", when, f"{job['state']:11}", f"series {job['series']}", f"{job['count']} objects"]
        words += [f"from {job['sender']}", f"to {job['receiver']}", job["model"]]
        print("  ".join(words + [word for word in (job["code"], job["message"]) if word]))
