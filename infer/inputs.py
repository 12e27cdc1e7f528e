"""From command-line words to pairs of input scan and output mask, checked before anything is computed."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import Exit, SegError
from .nifti import check_output

SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Job:
    """One scan to segment: paths as the user typed them (or below a folder as typed)."""

    scan: str
    mask: str

    @property
    def name(self) -> str:
        """File name without suffix."""
        return stem(self.scan)


def stem(path: str) -> str:
    """File name without .nii or .nii.gz."""
    name = os.path.basename(path)
    return next((name[: -len(s)] for s in SUFFIXES if name.lower().endswith(s)), name)


def expand(scans: Sequence[str]) -> list[str]:
    """Folders become the NIfTI files in them, sorted; files stay.

    Raises
    ------
    SegError : E-IN-EMPTY when a folder holds no NIfTI file.
    """
    found: list[str] = []
    for scan in scans:
        if not os.path.isdir(scan):
            found.append(scan)
            continue
        names = sorted(n for n in os.listdir(scan) if n.lower().endswith(SUFFIXES) and not n.startswith("."))
        if not names:
            raise SegError(
                "E-IN-EMPTY",
                Exit.INPUT_MISSING,
                scan,
                "the folder has no .nii or .nii.gz file",
                "give a folder of NIfTI scans, or name the files",
            )
        found += [os.path.join(scan, name) for name in names]
    return found


def plan_jobs(scans: Sequence[str], output: str, overwrite: bool) -> list[Job]:
    """Pair every scan with its mask path and check that it can be written.

    One scan and an output that ends in .nii or .nii.gz: that file. Otherwise `output` is a folder, made if needed, and
    each mask has its scan's name.

    Raises
    ------
    SegError : E-IN-EMPTY, E-OUT-* (exit 30), or E-OUT-SUFFIX (exit 2).
    """
    files = expand(scans)
    single = len(files) == 1 and not os.path.isdir(scans[0]) and not os.path.isdir(output)
    if single and not output.endswith(os.sep):
        check_output(output, files, overwrite)
        return [Job(files[0], output)]
    if output.lower().endswith(SUFFIXES) and not os.path.isdir(output):
        raise SegError(
            "E-OUT-SUFFIX", Exit.USAGE, output, f"one file cannot hold {len(files)} masks", "give a folder with -o"
        )
    _make_folder(output)
    jobs = [Job(file, os.path.join(output, stem(file) + ".nii.gz")) for file in files]
    masks = [job.mask for job in jobs]
    if twice := sorted({m for m in masks if masks.count(m) > 1}):
        raise SegError(
            "E-OUT-SAME", Exit.OUTPUT, twice[0], "two scans would write this mask", "give scans with distinct names"
        )
    for job in jobs:
        check_output(job.mask, files, overwrite)
    return jobs


def plan_previews(target: str | None, jobs: Sequence[Job]) -> dict[str, str]:
    """Where each scan's picture goes: scan path -> PNG path. Several scans need a folder, which is made.

    Raises
    ------
    SegError : E-OUT-* when it cannot be written.
    """
    if target is None:
        return {}
    if len(jobs) == 1 and not os.path.isdir(target):
        if not target.lower().endswith(".png"):
            raise SegError("E-OUT-SUFFIX", Exit.USAGE, target, "a preview is a PNG", "end the name in .png")
        refuse_unwritable(target)
        return {jobs[0].scan: target}
    _make_folder(target)
    return {job.scan: os.path.join(target, job.name + ".png") for job in jobs}


def refuse_unwritable(path: str | None) -> None:
    """Check before any work that a side output can be written. Raises SegError E-OUT-DIR."""
    if path is None:
        return
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK) or os.path.isdir(path):
        found = "is a folder" if os.path.isdir(path) else f"{folder} is not a folder that can be written"
        raise SegError("E-OUT-DIR", Exit.OUTPUT, path, found, "choose another place")


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise SegError(
            "E-OUT-DIR", Exit.OUTPUT, path, f"cannot be made ({error.strerror})", "choose another folder"
        ) from error
