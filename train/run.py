"""The run folder: what it holds, its lock, and checkpoints that a kill cannot tear.

config.json       every setting used, the model spec and the split; compared on --resume
checkpoint.pt     newest checkpoint (checkpoint.previous.pt: the one before)
.volumes/         prepared cases that do not fit into memory, while a training runs
refinement/       pseudo-labels of methods that keep some, and a report of every round
metrics.jsonl     one line per logged step
validation.json   per-case metrics of the newest validation, and the number of steps finished before it
validation.csv    the same of the finished run as a table; worst-cases.png and curves.png are pictures of it
tensorboard/      the same curves
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from seg.infer.errors import Exit, SegError

CONFIG, PLAN, VOLUMES = "config.json", "plan.txt", ".volumes"
METRICS, VALIDATION, TENSORBOARD, REFINEMENT = "metrics.jsonl", "validation.json", "tensorboard", "refinement"
CHECKPOINT, PREVIOUS, DAMAGED = "checkpoint.pt", "checkpoint.previous.pt", "checkpoint.damaged.pt"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process; the kernel releases it whatever happens.

    Raises
    ------
    SegError : E-RUN-LOCKED when another training holds it, E-RUN-DIR when it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "a")  # noqa: SIM115 - open for the whole run
    except OSError as error:
        raise SegError(
            "E-RUN-DIR", Exit.OUTPUT, str(folder), f"cannot be written ({error.strerror})", "choose another folder"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SegError(
                "E-RUN-LOCKED",
                Exit.OUTPUT,
                str(folder),
                "another training is using this run folder",
                "wait for it, or choose another folder",
            ) from None
        except OSError as error:
            found, fix = f"its file system has no locks ({error.strerror})", "choose a folder on another one"
            raise SegError("E-RUN-DIR", Exit.OUTPUT, str(folder), found, fix) from error
        yield


def refuse_data_folder(folder: Path, data: Sequence[str]) -> None:
    """E-OUT-SAME for an output among the scans, or around them."""
    run = folder.resolve()
    for source in map(Path, data):
        scans = source.resolve()
        if run == scans or scans in run.parents or run in scans.parents:
            where = "is" if run == scans else "is inside" if scans in run.parents else "contains"
            found, fix = f"{where} the data folder {source}", "choose a folder beside it"
            raise SegError("E-OUT-SAME", Exit.OUTPUT, str(folder), found, fix)


def refuse_folder(folder: Path, data: Sequence[str], resume: bool) -> None:
    """Before anything is written: a run among the scans, over other files, or continued from nothing."""
    refuse_data_folder(folder, data)
    begun = (folder / CONFIG).exists()
    if not resume and begun:
        refuse_run(folder)
    elif not resume:
        with suppress(OSError):  # absent is fine, and `locked` tells the rest
            if any(not path.name.startswith(".") for path in folder.iterdir()):
                found, fix = "holds other files and no run", "choose an empty or a new folder"
                raise SegError("E-RUN-EXISTS", Exit.OUTPUT, str(folder), found, fix)
    elif not begun:
        raise SegError("E-RUN-NONE", Exit.MODEL, str(folder), "nothing to resume", "train without --resume")


def refuse_run(folder: Path) -> None:
    """Of a run that is there already, unless it ended before its first checkpoint: a new one begins where it did."""
    if any((folder / name).exists() for name in (CHECKPOINT, PREVIOUS, DAMAGED, VALIDATION)):
        fix = "continue it with --resume, or choose another folder"
        raise SegError("E-RUN-EXISTS", Exit.OUTPUT, str(folder), "a run is here already", fix)


def clear(folder: Path) -> None:
    """Remove what a run without a checkpoint has left."""
    for name in (METRICS, PLAN, CONFIG):
        (folder / name).unlink(missing_ok=True)
    for name in (TENSORBOARD, REFINEMENT):
        shutil.rmtree(folder / name, ignore_errors=True)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Raise SegError, E-OUT-FULL, where a file of the run cannot be written."""
    try:
        yield
    except OSError as error:
        found = f"cannot be written ({error.strerror or error})"
        fix = "free some space and run again with --resume"
        raise SegError("E-OUT-FULL", Exit.OUTPUT, str(path), found, fix) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. Raises SegError, E-OUT-FULL, when there is no room."""
    _replace(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def write_text(path: Path, text: str) -> None:
    """Write text atomically. Raises SegError, E-OUT-FULL, as `write_json` does."""
    _replace(path, text.encode())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        found, fix = f"could not be written ({error.strerror})", "free some space, or choose another folder"
        raise SegError("E-OUT-FULL", Exit.OUTPUT, str(path), found, fix) from error


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint whole or not at all, and keep the one before.

    Raises
    ------
    SegError : E-OUT-FULL when the disk is full; the last good checkpoint is intact.
    """
    newest, previous = folder / CHECKPOINT, folder / PREVIOUS
    temporary = folder / f".{CHECKPOINT}.tmp"  # the lock makes this process the only writer
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if newest.exists():
            os.replace(newest, previous)
        os.replace(temporary, newest)
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise SegError(
            "E-OUT-FULL",
            Exit.OUTPUT,
            str(newest),
            f"the checkpoint could not be written ({error})",
            "free some space and run again with --resume",
        ) from error


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The newest whole checkpoint, tensors on the CPU, and a note if it was not the newest file.

    Raises
    ------
    SegError : E-RUN-NONE when there is none to load.
    """
    note = None
    for name in (CHECKPOINT, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state, note
        except Exception as error:  # a torn or foreign file: any error of the unpickler means the same
            note = f"{name} is damaged ({type(error).__name__}); using {PREVIOUS}"
    raise SegError(
        "E-RUN-NONE",
        Exit.MODEL,
        str(folder),
        note or "no checkpoint here",
        "give the folder that seg-train wrote, or train without --resume",
    )


def set_aside(folder: Path) -> None:
    """Move a damaged newest checkpoint away, lest the next save makes it the previous one in place of the good one."""
    os.replace(folder / CHECKPOINT, folder / DAMAGED)


def read_config(folder: Path) -> dict[str, Any]:
    """The run's config.json.

    Raises
    ------
    SegError : E-RUN-NONE when the folder is not a run.
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise SegError(
            "E-RUN-NONE",
            Exit.MODEL,
            str(folder),
            "no readable config.json",
            "give the folder that seg-train wrote",
        ) from error
    return config


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None when the file is absent."""
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines of `metrics.jsonl` that are newer than the checkpoint at `step`."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] < step:
                kept.append(line)
        except (ValueError, KeyError):
            break  # a line that the kill cut off
    _replace(path, "".join(f"{line}\n" for line in kept).encode())
