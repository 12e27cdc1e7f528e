"""The record of a folder of masks: which scan, model and options each finished mask was made from.

`seg-manifest.jsonl` gets one line per finished scan, after its mask is on disk, and is only ever appended to: the last
line about a mask counts, a line that is no whole JSON object (the computer stopped in the middle) counts for nothing.
That a mask exists proves nothing; that its bytes are those recorded for these inputs does.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from . import __version__
from .atomic import output_error
from .errors import Exit, SegError
from .jobs import Job
from .plan import Plan
from .reading import parts
from .spec import ModelSpec

NAME = "seg-manifest.jsonl"
FORMAT = 1
_CHUNK = 1 << 20


@dataclass(frozen=True)
class FileState:
    """What a file is. A scan of several files (header and image, a DICOM folder) counts as one after the other.

    Attributes
    ----------
    size : bytes.
    mtime_ns : time of the last change; of several files the sum, which any other set of files is unlikely to have.
    sha256 : of the bytes as stored, compressed or not.
    """

    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, paths: Sequence[str]) -> "FileState":
        """Hash whole files. Raises OSError."""
        digest = hashlib.sha256()
        for path in paths:
            with open(path, "rb", buffering=0) as file:
                while piece := file.read(_CHUNK):
                    digest.update(piece)  # lets other threads run
        return cls(*stamp(paths), digest.hexdigest())


@dataclass(frozen=True)
class Unfinished:
    """Why a mask is to be made, and what may be done to a file that has its name.

    Attributes
    ----------
    reason : in words that follow the mask's name.
    file : "ours" may be replaced; "unknown" only if the new mask has the same bytes; "changed" not at all.
    """

    reason: str
    file: Literal["ours", "unknown", "changed"]


@dataclass(frozen=True)
class Finished:
    """One line: a mask that was written.

    Attributes
    ----------
    path : the scan as the user typed it then.
    scan, mask : states of the two files.
    making : model and options, ready for JSON.
    statistics : of the mask.
    sides : digests of its pictures and files of probabilities, those of earlier lines as well.
    tiling : the windows, as `tiling_of` a plan.
    """

    path: str
    scan: FileState
    mask: FileState
    making: dict[str, Any]
    statistics: dict[str, Any]
    sides: frozenset[str] = frozenset()
    tiling: dict[str, Any] | None = None


def portable(path: str) -> str:
    """A path as it goes into JSON: the same text in every locale. Bytes that are no UTF-8 stay surrogates."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def stamp(paths: Sequence[str]) -> tuple[int, int]:
    """Size and time of change, without reading; of several files their sums. Raises OSError."""
    states = [os.stat(path) for path in paths]
    return sum(s.st_size for s in states), sum(s.st_mtime_ns for s in states)


def scan_state(job: Job, before: tuple[int, int]) -> FileState:
    """Hash a scan that was just read, while it is still in the page cache.

    Parameters
    ----------
    job : names the scan.
    before : its `stamp` from before it was read.

    Raises
    ------
    SegError : E-IN-CHANGED or E-IN-READ, exit 10.
    """
    try:
        state = FileState.of(parts(job))
    except OSError as error:
        found, fix = f"cannot be read again ({error.strerror})", "check the disk"
        raise SegError("E-IN-READ", Exit.INPUT_MISSING, job.scan, found, fix) from error
    if (state.size, state.mtime_ns) != before:
        fix = "wait until the file is complete and run again"
        raise SegError("E-IN-CHANGED", Exit.INPUT_MISSING, job.scan, "changed while it was read", fix)
    return state


def model_identity(spec: ModelSpec) -> dict[str, str]:
    """Name and digests of a model: the weights, and everything else about it."""
    digest = hashlib.sha256(spec.to_json().encode()).hexdigest()
    return {"name": spec.name, "graph_sha256": spec.graph_sha256, "spec_sha256": digest}


def tiling_of(plan: Plan) -> dict[str, Any]:
    """What of a plan decides a mask, besides the options: memory cuts a scan into more windows or fewer."""
    return {key: value for key, value in plan.as_dict().items() if key in ("network_voxels", "window", "windows")}


class Manifest:
    """The manifest of one output folder.

    Parameters
    ----------
    folder : where masks and manifest are.
    model : the model's spec.
    options : those that change voxels of a mask.

    Raises
    ------
    SegError : E-OUT-*, exit 30, if the manifest is there but is no file that can be read.
    """

    def __init__(self, folder: str, spec: ModelSpec, options: Mapping[str, Any]) -> None:
        self.path = os.path.join(folder, NAME)
        self._making: dict[str, Any] = json.loads(json.dumps({"model": model_identity(spec), "options": dict(options)}))
        self._entries = self._read()

    def finished(self, job: Job) -> Finished | Unfinished:
        """The entry that proves a job done, or the reason why it is not.

        The mask's bytes are always hashed. The scan's are not when its path, size and time of change are those
        recorded; a file changed with all three kept, which takes intent, is not noticed.
        """
        entry = self._entries.get(portable(os.path.basename(job.mask)))
        if not os.path.lexists(job.mask):
            return Unfinished("is not there", "ours")
        if entry is None:
            return Unfinished("is not in the manifest", "unknown")
        if not self._same(entry.mask, [job.mask], trust_stamp=False):
            return Unfinished("was changed after it was written", "changed")
        for part in ("model", "options"):
            if entry.making.get(part) != self._making[part]:
                made = "another model" if part == "model" else "other options"
                return Unfinished(f"was made with {made}", "ours")
        if not self._same_scan(entry, job):
            return Unfinished("was made from a scan that has changed", "ours")
        return entry

    def wrote(self, job: Job, side: str) -> bool:
        """Whether a picture or file of probabilities is one that was recorded with the mask, now or earlier."""
        entry = self._entries.get(portable(os.path.basename(job.mask)))
        if entry is None or not entry.sides:
            return False
        try:
            return FileState.of([side]).sha256 in entry.sides
        except (OSError, ValueError):
            return False

    def _same_scan(self, entry: Finished, job: Job) -> bool:
        try:
            return self._same(entry.scan, parts(job), trust_stamp=entry.path == portable(job.scan))
        except OSError:  # a folder that cannot be listed
            return False

    @staticmethod
    def _same(state: FileState, paths: Sequence[str], *, trust_stamp: bool) -> bool:
        try:
            size, mtime_ns = stamp(paths)
            if size != state.size:
                return False
            return (trust_stamp and mtime_ns == state.mtime_ns) or FileState.of(paths).sha256 == state.sha256
        except (OSError, ValueError):
            return False

    def add(
        self,
        job: Job,
        scan: FileState,
        statistics: Mapping[str, Any],
        *,
        sides: Sequence[str] = (),
        tiling: Mapping[str, Any] | None = None,
    ) -> FileState:
        """Record a mask that was just written, and the files made with it; returns the mask's state.

        Raises
        ------
        SegError : E-OUT-*, exit 30.
        """
        try:
            mask = FileState.of([job.mask])
            line = {
                "format": FORMAT,
                "version": __version__,
                "scan": {"path": portable(job.scan), **vars(scan)},
                "mask": {"name": portable(os.path.basename(job.mask)), **vars(mask)},
                **self._making,
                "statistics": dict(statistics),
                "sides": [FileState.of([side]).sha256 for side in sides],
                "tiling": dict(tiling) if tiling is not None else None,
            }
            self._append(json.dumps(line).encode() + b"\n")  # pure ASCII: any file name is escaped
        except OSError as error:
            raise output_error(self.path, error) from error
        return mask

    def _append(self, line: bytes) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self.path, flags, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            if size:
                os.lseek(descriptor, size - 1, os.SEEK_SET)
                line = line if os.read(descriptor, 1) == b"\n" else b"\n" + line  # a torn line ends here
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self) -> dict[str, Finished]:
        try:
            if not stat.S_ISREG(os.lstat(self.path).st_mode):
                raise OSError("is no regular file")
            with open(self.path, "rb") as file:
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise output_error(self.path, error) from error
        entries: dict[str, Finished] = {}
        for line in lines:
            if (parsed := _parse(line)) is not None:
                name, entry = parsed
                earlier = entries[name].sides if name in entries else frozenset()
                entries[name] = replace(entry, sides=entry.sides | earlier)
        return entries


def _parse(line: bytes) -> tuple[str, Finished] | None:
    """Mask name and entry, or None for anything that is not a whole line of ours."""
    try:
        raw = json.loads(line)
        if raw["format"] != FORMAT:
            return None
        scan, mask = dict(raw["scan"]), dict(raw["mask"])
        path, name = str(scan.pop("path")), str(mask.pop("name"))
        making = {"model": dict(raw["model"]), "options": dict(raw["options"])}
        sides = frozenset(map(str, raw.get("sides", ())))
        tiling = dict(raw["tiling"]) if raw.get("tiling") is not None else None
        states = FileState(**scan), FileState(**mask)
        return name, Finished(path, *states, making, dict(raw["statistics"]), sides, tiling)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
