"""The cases of a training folder: which scans it has, and which of them have a label.

Looks at names, and of ACDC's cines at headers: no scan is read here (`facts` does that). Layouts understood, each with
`.nii` or `.nii.gz`:

* ``images/`` and ``labels/``, same file name in both; no label file = unlabelled;
* ``labeled/`` and ``unlabeled/``: ``labeled/`` holds ``images/`` + ``labels/``, or ``X.nii.gz`` beside
  ``X_label.nii.gz`` or ``X_seg.nii.gz``, and here an image without label is an error; ``unlabeled/`` holds scans or
  ``images/``;
* nnU-Net and Decathlon: ``imagesTr/``, ``labelsTr/``, ``imagesTs/`` (unlabelled), ``dataset.json`` of version 1 or 2.
  One file per channel, ``X_0000.nii.gz``, when a label is called ``X``; this also works in ``images/`` + ``labels/``;
* BraTS, LiTS and ACDC as they are distributed: see `layouts`.
"""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seg.infer.errors import Exit, SegError

from .layouts import Found, public_layout
from .patients import patient_of

SUFFIXES = (".nii.gz", ".nii")
LABEL_ENDINGS = ("_label", "_seg")
LAYOUTS = "images/ + labels/, labeled/ + unlabeled/, or imagesTr/ + labelsTr/"

_CHANNEL = re.compile(r"(.+)_(\d{4})")

Files = list[tuple[str, str]]  # (name without suffix, path), sorted
Pool = tuple[str, str | None, bool, bool]  # images folder, labels folder, is a label optional, is it nnU-Net's


@dataclass(frozen=True)
class Case:
    """One scan with or without its label.

    Attributes
    ----------
    id : file name without suffix (and without the channel number).
    images : one path per channel, or one file that holds all channels.
    label : path of the label, or None.
    patient : group key, `patient_of(id)`: cases of one patient never stand on both sides of a split.
    source : the folder it came from, as typed.
    frame : of a cine, the volume in the 4-D file, counted from 0; None where the case has files of its own.
    """

    id: str
    images: tuple[str, ...]
    label: str | None
    patient: str
    source: str
    frame: int | None = None


@dataclass(frozen=True)
class Dataset:
    """Everything found in the folders, before any choice.

    Attributes
    ----------
    cases : sorted by id; ids are unique.
    label_names : value -> name, from dataset.json, or None.
    channel_names : from dataset.json, or None.
    split_files : path of each folder's splits.json.
    notes : what was ignored, one line each.
    """

    cases: tuple[Case, ...]
    label_names: dict[int, str] | None
    channel_names: tuple[str, ...] | None
    split_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def refusal(
    code: str, path: str, found: str, fix: str, expected: str = "", *, exit: Exit = Exit.INPUT_REFUSED
) -> SegError:
    """The error for a folder or split that is readable but cannot be trained on."""
    return SegError(f"E-DATA-{code}", exit, path, found, fix, expected)


def discover(folders: Sequence[str], cine: bool = False) -> Dataset:
    """Unite the cases of one or more data folders.

    Parameters
    ----------
    cine : frames of ACDC's cines that are neither end diastole nor end systole are unlabelled cases.

    Raises
    ------
    SegError
        E-DATA-MISSING (no such folder), E-DATA-LAYOUT (no known layout, or no scan), E-DATA-CASES (label without image,
        image without label under ``labeled/``, an id met twice, missing channels: all listed), E-DATA-JSON,
        E-DATA-LABELS and E-DATA-CHANNELS (folders that contradict each other), E-DATA-CINE (asked for, and there is
        none), and what `layouts.public_layout` raises.
    """
    cases: list[Case] = []
    problems: list[str] = []
    notes: list[str] = []
    labels: dict[int, str] | None = None
    channels: tuple[str, ...] | None = None
    for folder in folders:
        public = None if any(_pools(folder)) else public_layout(folder, cine)
        cases += _read_folder(folder, problems, notes) if public is None else _cases_of(public, folder)
        here_labels, here_channels = _dataset_json(os.path.join(folder, "dataset.json"), notes)
        if public is not None:
            here_labels, here_channels = here_labels or public.labels, here_channels or public.channels
        if labels and here_labels and labels != here_labels:
            raise refusal("LABELS", folder, f"classes {here_labels}", "train on one of them", f"{labels} as before")
        if channels and here_channels and len(channels) != len(here_channels):
            raise refusal("CHANNELS", folder, f"channels {here_channels}", "train on one of them", f"{channels}")
        labels, channels = labels or here_labels, channels or here_channels
    if cine and all(case.frame is None for case in cases):
        fix = "leave cine out of the settings"
        raise refusal("CINE", folders[0], "no patient with a 4-D cine", fix, "patientNNN/patientNNN_4d.nii.gz")
    paths = defaultdict(list)
    for case in cases:
        paths[case.id].append(case.images[0])
    problems += [f"id {name} met twice ({', '.join(where)})" for name, where in sorted(paths.items()) if len(where) > 1]
    counts = Counter(len(case.images) for case in cases).most_common()
    problems += [f"{c.id} has {len(c.images)} channel files, most have {counts[0][0]}" for c in cases
                 if len(c.images) != counts[0][0]]  # fmt: skip
    if problems:
        fix = "give each case one name, the same for image and label"
        raise refusal("CASES", folders[0], f"{len(problems)} problems: " + "; ".join(problems), fix)
    splits = tuple(path for f in folders if os.path.isfile(path := os.path.join(f, "splits.json")))
    return Dataset(tuple(sorted(cases, key=lambda c: c.id)), labels, channels, splits, tuple(notes))


def _cases_of(public: Found, folder: str) -> list[Case]:
    return [Case(e.id, e.images, e.label, e.patient, folder, e.frame) for e in public.cases]


def _read_folder(folder: str, problems: list[str], notes: list[str]) -> list[Case]:
    """The cases of one folder, whatever its layout."""
    if not os.path.isdir(folder):
        found = "is a file" if os.path.exists(folder) else "no such folder"
        fix = "give the folder that holds the scans"
        raise refusal("MISSING", folder, found, fix, LAYOUTS, exit=Exit.INPUT_MISSING)
    cases: list[Case] = []
    suffixed: bool | None = None  # imagesTs and unlabeled/ have no labels to tell: they follow imagesTr and labeled/
    for images, labels, optional, nnunet in _pools(folder):
        scans = _nifti_files(images, notes)
        masks = _nifti_files(labels, notes) if labels else []
        if not optional and not labels:  # labeled/ holding X and X_label side by side
            masks = [(n[: -len(e)], p) for n, p in scans for e in LABEL_ENDINGS if n.endswith(e)]
            scans = [(n, p) for n, p in scans if not n.endswith(LABEL_ENDINGS)]
        if suffixed is None or masks:
            suffixed = _is_suffixed(scans, masks, nnunet)
        by_id = case_images(scans, suffixed, problems)
        label_of = dict(masks)
        problems += [f"label without image: {path}" for name, path in masks if name not in by_id]
        problems += [f"two labels: {p}, {label_of[n]}" for n, p in masks if label_of[n] != p]
        if not optional:
            problems += [f"image without label: {by_id[name][0]}" for name in by_id if name not in label_of]
        cases += [Case(n, by_id[n], label_of.get(n), patient_of(n), folder) for n in by_id]
    if not cases and not problems:
        raise refusal("LAYOUT", folder, "no scan found", "arrange the scans so", LAYOUTS, exit=Exit.INPUT_MISSING)
    return cases


def _pools(folder: str) -> list[Pool]:
    """Where the layout of a folder keeps its scans."""

    def sub(*names: str) -> str | None:
        return next((p for n in names if os.path.isdir(p := os.path.join(folder, *n.split("/")))), None)

    pools: list[tuple[str | None, str | None, bool, bool]]
    if sub("imagesTr"):
        pools = [(sub("imagesTr"), sub("labelsTr"), True, True), (sub("imagesTs"), None, True, True)]
    elif sub("images"):
        pools = [(sub("images"), sub("labels"), True, False)]
    else:
        labeled = sub("labeled/images", "labelled/images", "labeled", "labelled")
        unlabeled = sub("unlabeled/images", "unlabelled/images", "unlabeled", "unlabelled")
        pools = [(labeled, sub("labeled/labels", "labelled/labels"), False, False), (unlabeled, None, True, False)]
    return [(images, labels, optional, nnunet) for images, labels, optional, nnunet in pools if images]


def _nifti_files(folder: str, notes: list[str]) -> Files:
    """The NIfTI files of a folder; everything else is noted, hidden files (AppleDouble ``._*``) are only counted."""
    found: Files = []
    hidden = 0
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        fix = "check the permissions"
        raise refusal("MISSING", folder, f"cannot be read ({error.strerror})", fix, exit=Exit.INPUT_MISSING) from error
    for name in names:
        suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), None)
        if name.startswith("."):
            hidden += 1
        elif suffix and os.path.isfile(path := os.path.join(folder, name)):
            found.append((name[: -len(suffix)], path))
        elif suffix and os.path.islink(path := os.path.join(folder, name)) and not os.path.exists(path):
            fix = "get the file it stands for (git annex get, datalad get), or remove the link"
            raise refusal("MISSING", path, f"is a link to nothing ({os.readlink(path)})", fix, exit=Exit.INPUT_MISSING)
        else:
            notes.append(f"ignored {os.path.join(folder, name)}: not a .nii or .nii.gz file")
    if hidden:
        notes.append(f"ignored {hidden} hidden files in {folder}")
    return found


def _is_suffixed(scans: Files, masks: Files, nnunet: bool) -> bool:
    """Whether scans are named ``X_0000``: a label tells; without labels only nnU-Net folders may be."""
    names = {name for name, _ in scans}
    if masks:
        return any(f"{name}_0000" in names and name not in names for name, _ in masks)
    return nnunet and bool(names) and all(_CHANNEL.fullmatch(name) for name in names)


def case_images(scans: Files, suffixed: bool, problems: list[str]) -> dict[str, tuple[str, ...]]:
    """Group the scans of one folder into cases: case id -> one path per channel.

    This is the one place that decides what a case's images are.
    """
    grouped: dict[str, dict[int, str]] = defaultdict(dict)
    for name, path in scans:
        match = _CHANNEL.fullmatch(name) if suffixed else None
        case, channel = (match[1], int(match[2])) if match else (name, 0)
        if channel in grouped[case]:
            problems.append(f"id {name} met twice ({grouped[case][channel]}, {path})")
        grouped[case][channel] = path
    problems += [f"{case} has channels {sorted(files)}, the numbers must run from 0000 without gaps"
                 for case, files in grouped.items() if sorted(files) != list(range(len(files)))]  # fmt: skip
    return {case: tuple(files[c] for c in sorted(files)) for case, files in grouped.items()}


def load_json(path: str) -> dict[str, Any]:
    """A file that holds one JSON object. Raises E-DATA-JSON."""
    try:
        with open(path, encoding="utf-8") as file:
            raw = json.load(file)
    except OSError as error:
        raise refusal("JSON", path, str(error.strerror), "check the path", exit=Exit.INPUT_MISSING) from error
    except ValueError as error:
        raise refusal("JSON", path, f"not JSON ({error})", "repair the file", exit=Exit.INPUT_CORRUPT) from error
    if not isinstance(raw, dict):
        fix = "write one object; of an nnU-Net splits_final.json take one fold"
        raise refusal("JSON", path, f"a JSON {type(raw).__name__}", fix, "an object")
    return raw


def _dataset_json(path: str, notes: list[str]) -> tuple[dict[int, str] | None, tuple[str, ...] | None]:
    """Class and channel names of a dataset.json: version 1 maps "0" -> name, version 2 maps name -> value."""
    if not os.path.isfile(path):
        return None, None
    raw = load_json(path)
    try:
        channels = {int(k): str(v) for k, v in (raw.get("channel_names") or raw.get("modality") or {}).items()}
        names: dict[int, str] = {}
        for key, value in (raw.get("labels") or {}).items():
            if isinstance(value, list):
                notes.append(f"{path}: regions are not supported, class names are not used")
                return None, tuple(channels[c] for c in sorted(channels)) or None
            number, name = (int(key), str(value)) if key.lstrip("-").isdigit() else (int(value), key)
            if names.setdefault(number, name) != name:
                raise refusal("LABELS", path, f"value {number} named twice", "give each class a value of its own")
    except (AttributeError, TypeError, ValueError) as error:
        fix = 'write "labels": {"background": 0, ...} and "channel_names": {"0": ...}'
        raise refusal("JSON", path, f"unreadable labels or channels ({error})", fix) from error
    if "ignore" in names.values():
        raise refusal("LABELS", path, 'a class "ignore"', "remove that label; partly labelled scans are not supported")
    return names or None, tuple(channels[c] for c in sorted(channels)) or None
