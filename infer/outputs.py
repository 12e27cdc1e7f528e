"""Where side outputs go, checked before anything is computed: pictures, statistics, reports."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .atomic import refuse_existing
from .errors import Exit, SegError

if TYPE_CHECKING:
    from .jobs import Job


def plan_previews(target: str | None, jobs: "Sequence[Job]", overwrite: bool = False) -> dict[str, str]:
    """Where each scan's picture goes: mask path -> PNG path. Several scans need a folder, which is made.

    Raises
    ------
    SegError : E-OUT-* when it cannot be written.
    """
    if target is None:
        return {}
    if len(jobs) == 1 and not os.path.isdir(target):
        if not target.lower().endswith(".png"):
            raise SegError("E-OUT-SUFFIX", Exit.USAGE, target, "a preview is a PNG", "end the name in .png")
        refuse_unwritable(target, overwrite)
        return {jobs[0].mask: target}
    if target.lower().endswith(".png") and not os.path.isdir(target):
        found, fix = f"one file cannot hold {len(jobs)} pictures", "give a folder with --preview"
        raise SegError("E-OUT-SUFFIX", Exit.USAGE, target, found, fix)
    make_folder(target)
    pictures = {job.mask: os.path.join(target, job.name + ".png") for job in jobs}
    for picture, times in Counter(pictures.values()).items():
        refuse_existing(picture, overwrite)
        if times > 1:  # m.nii and m.nii.gz
            raise SegError("E-OUT-SAME", Exit.OUTPUT, picture, "is the picture of two scans", "name the masks apart")
    return pictures


def plan_sides(*paths: str | None, overwrite: bool = False) -> None:
    """Check side outputs before any work: distinct, named .json, writable, and not somebody else's file.

    A report or statistics of an earlier call may be replaced.

    Raises
    ------
    SegError : E-OUT-SUFFIX (exit 2), E-OUT-SAME, E-OUT-EXISTS or E-OUT-DIR (exit 30).
    """
    given = [path for path in paths if path is not None]
    for path in given:
        if not path.lower().endswith(".json"):
            raise SegError("E-OUT-SUFFIX", Exit.USAGE, path, "is no name for a JSON file", "end the name in .json")
        refuse_unwritable(path, overwrite or _is_ours(path))
    if len({os.path.abspath(path) for path in given}) < len(given):
        raise SegError("E-OUT-SAME", Exit.OUTPUT, given[0], "is named for two outputs", "choose another name")


def _is_ours(path: str) -> bool:
    """Whether a JSON file was written by --report or --statistics."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and (content.get("command") == "seg-infer" or "graph_sha256" in content)


def refuse_unwritable(path: str, overwrite: bool) -> None:
    """Check before any work that a side output can be written. Raises SegError E-OUT-DIR or E-OUT-EXISTS."""
    refuse_parent(path)
    if os.path.isdir(path):
        raise SegError("E-OUT-DIR", Exit.OUTPUT, path, "is a folder", "choose another place")
    refuse_existing(path, overwrite)


def refuse_parent(path: str) -> None:
    """Raise SegError, E-OUT-DIR, where the folder around an output cannot be written."""
    folder = os.path.dirname(path.rstrip(os.sep)) or "."
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        found = f"{folder} is not a folder that can be written"
        raise SegError("E-OUT-DIR", Exit.OUTPUT, path, found, "choose another place")


def make_folder(path: str) -> None:
    """Make a folder of outputs, with its parents. Raises SegError E-OUT-DIR."""
    try:
        os.makedirs(path, exist_ok=True)
    except (OSError, ValueError) as error:
        found = f"cannot be made ({getattr(error, 'strerror', None) or error})"
        raise SegError("E-OUT-DIR", Exit.OUTPUT, path, found, "choose another folder") from error
