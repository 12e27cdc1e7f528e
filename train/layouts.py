"""Public data sets in the folders that their users get, as cases.

* BraTS 2018 to 2021: ``X/X_flair.nii.gz``, ``_t1``, ``_t1ce``, ``_t2`` and ``X/X_seg.nii.gz``, also in HGG/ and LGG/;
  four channels in this order; the mask values 0, 1, 2, 4 stay as they are in masks (see `ModelSpec.label_values`).
* LiTS: ``volume-N.nii`` and ``segmentation-N.nii``, in one folder or several (batches); liver and tumour. CT is clipped
  to a window and scaled by fixed numbers, which the plan takes from the labelled voxels.
* ACDC: ``patientNNN/Info.cfg`` names the frames of end diastole and end systole; ``patientNNN_frameFF.nii.gz`` are
  cases, with ``_gt`` for those that have a label. The 4-D cine itself is not read: its other phases have no label and,
  as one file, no single grid of voxels.

Folders that hold none of these are not looked at further.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from seg.infer.errors import Exit, SegError

MODALITIES = ("flair", "t1", "t1ce", "t2")
BRATS_LABELS = {0: "background", 1: "necrotic core", 2: "oedema", 4: "enhancing tumour"}
LITS_LABELS = {0: "background", 1: "liver", 2: "tumour"}
ACDC_LABELS = {0: "background", 1: "right ventricle", 2: "myocardium", 3: "left ventricle"}

_NIFTI = re.compile(r"(.+?)\.nii(\.gz)?")
_LITS = re.compile(r"(volume|segmentation)-(\d+)")


Entry = tuple[str, tuple[str, ...], str | None, str]  # id, images, label, patient


@dataclass(frozen=True)
class Found:
    """A public data set: its cases, and what its values and channels are."""

    cases: tuple[Entry, ...]
    labels: dict[int, str]
    channels: tuple[str, ...]


def public_layout(folder: str) -> Found | None:
    """The data set that a folder holds, or None.

    Raises
    ------
    SegError : E-DATA-CASES when it is one of them and files are missing; E-DATA-INFO for an unreadable Info.cfg.
    """
    for read in (_brats, _lits, _acdc):
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
        cases.append((name, images, files.get(f"{name}_seg"), name))
    return _found(folder, cases, problems, BRATS_LABELS, MODALITIES)


def _lits(folder: str) -> Found | None:
    images, labels = dict[int, str](), dict[int, str]()
    for _, files in _folders(folder, depth=1):
        for name, path in files.items():
            if match := _LITS.fullmatch(name):
                (images if match[1] == "volume" else labels)[int(match[2])] = path
    problems = [f"segmentation-{n} has no volume" for n in sorted(labels.keys() - images.keys())]
    cases: list[Entry] = [(f"volume-{n}", (images[n],), labels.get(n), f"volume-{n}") for n in sorted(images)]
    return _found(folder, cases, problems, LITS_LABELS, ("CT",))


def _acdc(folder: str) -> Found | None:
    cases, problems = list[Entry](), list[str]()
    for place, files in _folders(folder, depth=2):
        info = os.path.join(place, "Info.cfg")
        if not os.path.isfile(info):
            continue
        patient = os.path.basename(place)
        for number in sorted(_phases(info)):
            name = f"{patient}_frame{number:02d}"
            if name not in files:
                problems.append(f"{name}, which Info.cfg names, is not there")
            else:
                cases.append((name, (files[name],), files.get(f"{name}_gt"), patient))
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
