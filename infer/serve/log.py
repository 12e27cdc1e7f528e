"""One line for each event. What may be in it is listed here; nothing received can come in by another way.

Names are keyed hashes (names.py), AE titles those of the configuration. An exception is told by its type and place: its
text may quote the data.
"""

import logging
import re
import threading
import time
import traceback
import warnings
from pathlib import Path

from ..console import say

FIELDS = {"aet", "code", "count", "job", "model", "peer", "port", "reason"}
FIELDS |= {"runs", "seconds", "series", "state", "status", "where"}
VALUE = re.compile(r"[A-Za-z0-9_.:+/ -]{0,80}")
QUIET = ("pynetdicom", "pydicom", "highdicom")


def event(name: str, **values: str | float) -> None:
    """Write `time name field=value ...` to stderr. A field or value that is not allowed is left out."""
    shown = [f"{key}={value}" for key, value in values.items() if key in FIELDS and VALUE.fullmatch(str(value))]
    say(" ".join([time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), name, *shown]))


def place(error: BaseException) -> str:
    """`ValueError at file.py:12`."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def silence_libraries() -> None:
    """The libraries' own messages quote tag values: none of them is shown, and no thread dies with a traceback."""
    for name in QUIET:
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
    warnings.simplefilter("ignore")
    threading.excepthook = _thread_died


def _thread_died(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None:
        event("thread-ended", where=place(arguments.exc_value))
