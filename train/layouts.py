"""Public data sets in the folders that their users get, as cases.

* BraTS 2018 to 2021: ``X/X_flair.nii.gz``, ``_t1``, ``_t1ce``, ``_t2`` and ``X/X_seg.nii.gz``, also in HGG/ and LGG/;
  four channels in this order; the mask values 0, 1, 2, 4 stay as they are in masks (see `ModelSpec.label_values`).
* LiTS: ``volume-N.nii`` and ``segmentation-N.nii``, in one folder or several (batches); liver and tumour. CT is clipped
  to a window and scaled by fixed numbers, which the plan takes from the labelled voxels.
* ACDC: ``patientNNN/Info.cfg`` names the frames of end diastole and end systole, counted from 1;
  ``patientNNN_frameFF.nii.gz`` are cases, with ``_gt`` for those that have a label. A frame without a file of its own
  is taken from the cine ``patientNNN_4d.nii.gz``; on request the cine's other frames are cases too, without a label.

Folders that hold none of these are not looked at further.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from seg.infer.errors import Exit, SegError
from seg.infer.nifti import inspect

MODALITIES = ("flair", "t1", "t1ce", "t2")
BRATS_LABELS = {0: "background", 1: "necrotic core", 2: "oedema", 4: "enhancing tumour"}
LITS_LABELS = {0: "background", 1: "liver", 2: "tumour"}
ACDC_LABELS = {0: "background", 1: "right ventricle", 2: "myocardium", 3: "left ventricle"}

_NIFTI = re.compile(r"(.+?)\.nii(\.gz)?")
_LITS = re.compile(r"(volume|segmentation)-(\d+)")


class Entry(NamedTuple):
    """What a `cases.Case` has, but for its source."""

    id: str
    images: tuple[str, ...]
    label: str | None
    patient: str
    frame: int | None = None


@dataclass(frozen=True)
class Found:
    """A public data set: its cases, and what its values and channels are."""

    cases: tuple[Entry, ...]
    labels: dict[int, str]
    channels: tuple[str, ...]


def public_layout(folder: str, cine: bool = False) -> Found | None:
    """The data set that a folder holds, or None.

    Parameters
    ----------
    cine : of ACDC, the frames that no phase is named for are cases too.

    Raises
    ------
    SegError : E-DATA-CASES when it is one of them and files or frames are missing; E-DATA-INFO for an unreadable
        Info.cfg; and what `nifti.inspect` raises for a cine.
    """
    for read in (_brats, _lits, partial(_acdc, cine=cine)):
        if (found := read(folder)) is not None:
            return found
    return None


def _brats(folder: str) -> Found | None:
    cases, problems = list[Entry](), list[str]()
    for place, files in _folders(folder, depth=2):
        name = os.path.basename(place)
        if f"{name}_t1ce" not in files and f"{name}_flair" not in files:
            continue
        missing = [m for m in MODALITIES if f"{name}_{m}" not in files]
        problems += [f"{name} has no {m}" for m in missing]
        images = tuple(files[f"{name}_{m}"] for m in MODALITIES if m not in missing)
        cases.append(Entry(name, images, files.get(f"{name}_seg"), name))
    return _found(folder, cases, problems, BRATS_LABELS, MODALITIES)


def _lits(folder: str) -> Found | None:
    images, labels = dict[int, str](), dict[int, str]()
    for _, files in _folders(folder, depth=1):
        for name, path in files.items():
            if match := _LITS.fullmatch(name):
                (images if match[1] == "volume" else labels)[int(match[2])] = path
    problems = [f"segmentation-{n} has no volume" for n in sorted(labels.keys() - images.keys())]
    cases = [Entry(f"volume-{n}", (images[n],), labels.get(n), f"volume-{n}") for n in sorted(images)]
    return _found(folder, cases, problems, LITS_LABELS, ("CT",))


def _acdc(folder: str, cine: bool) -> Found | None:
    cases, problems = list[Entry](), list[str]()
    for place, files in _folders(folder, depth=2):
        info = os.path.join(place, "Info.cfg")
        if not os.path.isfile(info):
            continue
        patient = os.path.basename(place)
        names = {number: f"{patient}_frame{number:02d}" for number in sorted(_phases(info))}
        missing = {number: name for number, name in names.items() if name not in files}
        cases += [Entry(n, (files[n],), files.get(f"{n}_gt"), patient) for n in names.values() if n in files]
        if (film := files.get(f"{patient}_4d")) is None:
            problems += [f"{name}, which Info.cfg names, is not there" for name in missing.values()]
        elif missing or cine:
            frames = inspect(film).channels
            if frames == 1:
                problems.append(f"{os.path.basename(film)} is no cine: it has one frame")
                continue
            problems += [f"{name} is not there, and {os.path.basename(film)} has the frames 1 to {frames}"
                         for number, name in missing.items() if not 1 <= number <= frames]  # fmt: skip
            others = {n: f"{patient}_frame{n:02d}" for n in range(1, frames + 1) if n not in names} if cine else {}
            cases += [Entry(name, (film,), files.get(f"{name}_gt") if number in names else None, patient, number - 1)
                      for number, name in (missing | others).items()]  # fmt: skip
    return _found(folder, cases, problems, ACDC_LABELS, ("MR",))


def _phases(path: str) -> set[int]:
    """Frame numbers of end diastole and end systole."""
    try:
        with open(path, encoding="utf-8") as file:
            entries = dict(line.split(":", 1) for line in file if ":" in line)
        return {int(entries[phase]) for phase in ("ED", "ES")}
    except (OSError, ValueError, KeyError) as error:
        found = f"no frames of ED and ES can be read ({type(error).__name__}: {error})"
        fix = "give the Info.cfg of the data set"
        raise SegError("E-DATA-INFO", Exit.INPUT_CORRUPT, path, found, fix, "lines ED: N and ES: N") from error


def _folders(folder: str, depth: int) -> Iterator[tuple[str, dict[str, str]]]:
    """The folder and those below it, each with its NIfTI files: name without suffix -> path."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return  # whoever reads the folder next says so
    files = {}
    for name in names:
        if (match := _NIFTI.fullmatch(name)) and not name.startswith("."):
            files[match[1]] = os.path.join(folder, name)
    yield folder, files
    for name in names if depth else ():
        if not name.startswith(".") and os.path.isdir(place := os.path.join(folder, name)):
            yield from _folders(place, depth - 1)


def _found(
    folder: str,
    cases: list[Entry],
    problems: list[str],
    labels: dict[int, str],
    channels: tuple[str, ...],
) -> Found | None:
    if problems:
        text = f"{len(problems)} problems: " + "; ".join(problems[:8])
        raise SegError("E-DATA-CASES", Exit.INPUT_REFUSED, folder, text, "complete the download, or leave them out")
    return Found(tuple(cases), labels, channels) if cases else None
