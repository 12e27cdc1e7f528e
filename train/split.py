"""Which cases train with their label, which lend only their image, and which validate."""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from seg.infer.errors import Exit

from .cases import Case, Dataset, load_json, refusal
from .patients import names_subject


@dataclass(frozen=True)
class Split:
    """The three roles. No case and no patient stands both in training (labeled, unlabeled) and in val.

    Attributes
    ----------
    labeled, val : cases with a label, sorted by id.
    unlabeled : training cases of which only the image may be used; `label` is None even where a label file exists.
    notes : what was left out, one line each.
    """

    labeled: tuple[Case, ...]
    unlabeled: tuple[Case, ...]
    val: tuple[Case, ...]
    notes: tuple[str, ...] = ()


def choose_split(dataset: Dataset, labeled: int | None, split_file: str | None, seed: int) -> Split:
    """Give every case its role.

    With a split (`split_file`, else the folder's splits.json) ids are case ids or patient ids. ``labeledN`` or, without
    `labeled`, every labelled training case is labelled; the other training cases are unlabelled. Training cases are
    ``train``, every ``labeledN`` and ``unlabeled``; folders that the split is not about add theirs. Without a split
    a fifth of the labelled patients validates, and `labeled` counts patients; both follow from `seed` and the names.

    Raises
    ------
    SegError
        E-DATA-SPLIT (the split is wrong, contradicts itself, or has no such ``labeledN``), E-DATA-OVERLAP (a case or
        patient on both sides), E-DATA-FEW (too few labelled patients), E-DATA-NOLABEL.
    """
    # The folder's own split is read even where `split_file` replaces it: a malformed one is never passed over.
    own = load_split(dataset.split_files[0]) if len(dataset.split_files) == 1 else None
    if labeled is not None and labeled < 1:
        raise refusal("SPLIT", "", f"--labeled {labeled}", "ask for at least one labelled patient", exit=Exit.USAGE)
    if split_file is None and len(dataset.split_files) > 1:
        found = f"{len(dataset.split_files)} splits.json: {', '.join(dataset.split_files)}"
        raise refusal("SPLIT", dataset.split_files[0], found, "name one with --split", "one")
    if split_file is not None:
        return _from_split(_believed(dataset), load_split(split_file), split_file, labeled, seed)
    if own is not None:
        return _from_split(_believed(dataset), own, dataset.split_files[0], labeled, seed)
    return _hold_out(dataset, labeled, seed)


def _believed(dataset: Dataset) -> Dataset:
    """Where names alone make all scans one patient's, a split that somebody wrote knows better: each is its own."""
    guessed = all(case.frame is None and not names_subject(case.id) for case in dataset.cases)
    if len({case.patient for case in dataset.cases}) > 1 or not guessed:
        return dataset
    return replace(dataset, cases=tuple(replace(case, patient=case.id) for case in dataset.cases))


def load_split(path: str) -> dict[str, list[str]]:
    """Read a split: ``labeledN``, ``train``, ``unlabeled``, ``val`` and ``test``, each a list of ids."""
    raw = load_json(path)
    wrong = [k for k in raw if not re.fullmatch(r"labeled[1-9]\d*|train|unlabeled|val|test", k)]
    wrong += [k for k, v in raw.items() if not isinstance(v, list) or not all(isinstance(i, str) for i in v)]
    if wrong:
        expected = "lists of ids called labeledN, train, unlabeled, val or test"
        raise refusal("SPLIT", path, f"unknown or malformed {', '.join(wrong)}", "correct these keys", expected)
    return raw


def _from_split(dataset: Dataset, split: Mapping[str, list[str]], path: str, labeled: int | None, seed: int) -> Split:
    by_key: dict[str, set[Case]] = defaultdict(set)
    for case in dataset.cases:
        by_key[case.id].add(case)
        by_key[case.patient].add(case)
    if unknown := sorted({i for ids in split.values() for i in ids} - by_key.keys()):
        raise refusal("SPLIT", path, f"{len(unknown)} unknown ids: {', '.join(unknown)}", "remove or correct them")
    roles = {key: set[Case]().union(*(_named(by_key[i], i, key) for i in ids)) for key, ids in split.items()}
    val, aside, unlabeled = (roles.get(key, set()) for key in ("val", "test", "unlabeled"))
    train = set[Case]().union(*(cases for key, cases in roles.items() if key not in ("val", "test")))
    _refuse_overlap(train, val | aside, path)
    _refuse_overlap(val, aside, path)

    sizes = sorted(int(key[len("labeled") :]) for key in roles if key.startswith("labeled"))
    wanted = train - unlabeled
    if labeled in sizes:
        wanted = roles[f"labeled{labeled}"]
        if both := wanted & unlabeled:
            found = f"both labeled{labeled} and unlabeled: {_ids(both)}"
            raise refusal("SPLIT", path, found, "give each case one role")
    elif labeled is not None and sizes:
        raise refusal("SPLIT", path, f"no labeled{labeled}", "choose one of the sizes", f"one of {sizes}")
    elif labeled is not None:
        wanted = _first_patients({c for c in wanted if c.label}, labeled, seed)
    listed = wanted if labeled in sizes else set[Case]().union(*(roles[f"labeled{n}"] for n in sizes))
    if bare := {c for c in listed | val if c.label is None}:
        raise refusal("SPLIT", path, f"cases without a label file: {_ids(bare)}", "add the labels or change the split")

    own = {c.source for c in dataset.cases if os.path.join(c.source, "splits.json") == path}
    own = own or {c.source for c in train | val | aside}  # a --split FILE speaks for every folder it names a case of
    named = {case.patient for case in train | val | aside}
    passed = {case.patient for case in dataset.cases if case.label and case.source in own} - named
    spare: set[Case] = set()
    for case in set(dataset.cases) - train - val - aside:
        if case.frame is not None and case.patient in passed:
            spare.add(case)  # a cine is passed over with its patient's labels
        elif case.source not in own and case.label:
            wanted = wanted | {case}
        elif case.source not in own or (case.label is None and "unlabeled" not in split):
            unlabeled = unlabeled | {case}
        else:
            spare.add(case)
    notes = [f"the split does not name {len(spare)} cases: {_few(spare)}"] if spare else []
    return _assemble({c for c in wanted if c.label}, train | wanted | unlabeled, val, aside, notes=notes, path=path)


def _named(cases: set[Case], key: str, role: str) -> set[Case]:
    """The cases of a case id or patient id. Where a role needs labels, a patient's name leaves out a cine's others."""
    if role in ("train", "unlabeled"):
        return cases
    return {case for case in cases if case.label or case.frame is None or case.id == key} or cases


def _hold_out(dataset: Dataset, labeled: int | None, seed: int) -> Split:
    """A fifth of the labelled patients validates; the first `labeled` of the rest stay labelled."""
    with_label = {case for case in dataset.cases if case.label}
    order = _shuffled({case.patient for case in with_label}, seed, "val")
    if not order:
        fix = "put each label into labels/ under its image's name, or give an nnU-Net folder"
        raise refusal("NOLABEL", "", f"none of the {len(dataset.cases)} scans has a label", fix)
    if len(order) < 4:
        whose = f"{len(with_label)} scans, by their names of {', '.join(order)}"
        found = f"{len(order)} labelled patients ({whose}) and no split"
        raise refusal("FEW", "", found, "say with --split FILE which ones validate", "at least 4 to hold one out")
    held = set(order[: max(1, round(len(order) / 5))])
    val = {case for case in with_label if case.patient in held}
    wanted = with_label - val
    if labeled is not None:
        wanted = _first_patients(wanted, labeled, seed)
    patients = len({case.patient for case in dataset.cases})
    notes = [f"{len(dataset.cases)} scans of {patients} patients, as their names say; {len(held)} of those validate"]
    return _assemble(wanted, set(dataset.cases) - val, val, set(), notes=notes, path="")


def _assemble(
    wanted: set[Case], train: set[Case], val: set[Case], aside: set[Case], *, notes: list[str], path: str
) -> Split:
    """Leave out training cases whose patient is held out, hide labels, sort."""
    held = {case.patient for case in val | aside}
    if dropped := {case for case in train if case.patient in held}:
        notes = [*notes, f"left out, their patients are held out: {_few(dropped)}"]
    wanted = wanted - dropped
    if not wanted or not val:
        found = "no labelled training case" if not wanted else "no validation case"
        raise refusal("NOLABEL", path, found, "add labels, or name the cases in the split", "at least one")
    hidden = {replace(case, label=None) for case in train - wanted - dropped}
    labeled, unlabeled, validation = (tuple(sorted(cases, key=lambda c: c.id)) for cases in (wanted, hidden, val))
    return Split(labeled, unlabeled, validation, tuple(notes))


def _refuse_overlap(train: set[Case], held: set[Case], path: str) -> None:
    both = sorted({c.patient for c in train} & {c.patient for c in held})
    if both:
        cases = _ids(case for case in train | held if case.patient in both)
        found = f"{len(both)} patients on both sides of the split: {', '.join(both)} (cases {cases})"
        raise refusal("OVERLAP", path, found, "move all cases of a patient to one side")


def _first_patients(cases: set[Case], count: int, seed: int) -> set[Case]:
    order = _shuffled({case.patient for case in cases}, seed, "labeled")
    if count > len(order):
        found = f"--labeled {count}, but {len(order)} labelled patients are left to train on"
        raise refusal("FEW", "", found, f"ask for at most {len(order)}")
    chosen = set(order[:count])
    return {case for case in cases if case.patient in chosen}


def _shuffled(patients: Iterable[str], seed: int, use: str) -> list[str]:
    """Sorted by a hash, so that a new patient does not reorder the others and smaller choices nest in larger ones."""
    return sorted(patients, key=lambda p: hashlib.sha256(f"{use}:{seed}:{p}".encode(errors="surrogateescape")).digest())


def _few(cases: set[Case]) -> str:
    """The first of many ids: cines have tens of frames each."""
    ids = sorted(case.id for case in cases)
    return ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")


def _ids(cases: Iterable[Case]) -> str:
    return ", ".join(sorted(case.id for case in cases))
