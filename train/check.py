"""Before training starts every case is read, and each fault of the data is listed.

A fault found after a night of training, or never, costs more than this pass. It knows nothing of networks.
"""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np

from seg.infer.errors import Exit, SegError

from .cases import Case
from .facts import REPAIR, CaseFacts, read_facts, signature_of, tally
from .split import Split

# Correlation of thumbnails that means one scan. Measured: different patients at most 0.97, two phases of one heart
# 0.9995, a copy with noise of 5 % of its standard deviation 0.99997.
SAME_SCAN = 0.9998


@dataclass(frozen=True)
class Finding:
    """One fault: ``error`` forbids training, ``warning`` is told. `path` is the file as typed."""

    severity: Literal["error", "warning"]
    code: str
    path: str
    message: str
    exit: Exit = Exit.INPUT_REFUSED

    @classmethod
    def of(cls, error: SegError) -> "Finding":
        """The finding that stands for an error of one file."""
        text = error.found + (f", expected {error.expected}" if error.expected else "")
        return cls("error", error.code, error.path, text, error.exit)

    def __str__(self) -> str:
        return f"{self.severity}: {self.code} {self.path}: {self.message}"


@dataclass(frozen=True)
class Checked:
    """The result: every finding, and the facts of each case without an error of its own, by case id."""

    findings: tuple[Finding, ...]
    facts: dict[str, CaseFacts]

    def stop_on_errors(self) -> None:
        """Raise E-DATA-CHECK if there is an error: how many, and the first one. The findings tell the others."""
        errors = [finding for finding in self.findings if finding.severity == "error"]
        if errors:
            exits = {finding.exit for finding in errors}
            first, count = errors[0], f"{len(errors)} errors, the first is" if len(errors) > 1 else "1 error,"
            raise SegError(
                "E-DATA-CHECK",
                exits.pop() if len(exits) == 1 else Exit.INPUT_REFUSED,
                first.path,
                f"{count} {first.code}: {first.message}",
                REPAIR,
            )


def check_dataset(
    split: Split,
    label_names: Mapping[int, str] | None,
    *,
    channels: int = 1,
    declared: str = "declared in dataset.json",
    cached: Mapping[str, CaseFacts] | None = None,
    threads: int = 2,
) -> Checked:
    """Read every case of a split and list every fault.

    Parameters
    ----------
    label_names : declared classes, value -> name; without them the values in more than half of the labels count.
    channels : channels that a case's single file holds; cases of several files have one in each.
    declared : where `label_names` come from, for messages.
    cached : facts of an earlier pass by case id, used where the files have not changed.

    Raises
    ------
    Nothing of its own: a fault is a `Finding`. See `Checked.stop_on_errors`.
    """
    known = cached or {}

    def visit(case: Case) -> tuple[CaseFacts | None, list[Finding]]:
        if case.id in known and known[case.id].signature == signature_of(case):
            return known[case.id], []
        fact, faults = read_facts(case, channels)
        return fact, [Finding.of(fault) for fault in faults]

    cases = [*split.labeled, *split.unlabeled, *split.val]
    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(visit, cases))
    findings = [finding for _, found in results for finding in found]
    facts = {case.id: fact for case, (fact, _) in zip(cases, results, strict=True) if fact}
    for case in cases:
        if fact := facts.get(case.id):
            findings += _remarks(case, fact)
    findings += _channel_counts(cases, facts)
    findings += _label_values(split, facts, label_names, declared)
    findings += _sides(split)
    findings += _copies(split, facts)
    return Checked(tuple(findings), facts)


def _error(code: str, path: str, message: str) -> Finding:
    return Finding("error", f"E-DATA-{code}", path, message)


def _remarks(case: Case, fact: CaseFacts) -> list[Finding]:
    """What the facts alone tell about one case."""
    found: list[Finding] = []
    for number, channel in enumerate(fact.channels):
        path = case.images[min(number, len(case.images) - 1)]
        if not isfinite(channel.std):
            what = "a mark of what was not measured?"
            found.append(_error("INTENSITY", path, f"channel {number} has values from {channel.minimum:g} on: {what}"))
        elif channel.std <= 1e-8 * max(1.0, abs(channel.mean)):
            found.append(_error("CONSTANT", path, f"all voxels of channel {number} are {channel.mean:g}"))
    if case.label and not any(fact.class_voxels.get(value) for value in fact.class_voxels if value > 0):
        found.append(Finding("warning", "W-DATA-EMPTY", case.label, "the label holds background only"))
    return found


def _channel_counts(cases: Sequence[Case], facts: Mapping[str, CaseFacts]) -> list[Finding]:
    """Cases with other numbers of channels than most."""
    counts = {case: len(facts[case.id].channels) for case in cases if case.id in facts}
    usual = max(Counter(counts.values()).items(), key=lambda item: (item[1], item[0]), default=(0, 0))[0]
    return [
        _error("CHANNELS", case.images[0], f"{count} channel{'s' * (count > 1)}, most scans have {usual}")
        for case, count in counts.items()
        if count != usual
    ]


def _label_values(
    split: Split, facts: Mapping[str, CaseFacts], names: Mapping[int, str] | None, declared: str
) -> list[Finding]:
    """Values outside the classes, and classes that no training label has."""
    labelled = [(case, set(facts[case.id].class_voxels)) for case in (*split.labeled, *split.val) if case.id in facts]
    usual = _usual_values([values for _, values in labelled])
    allowed = set(names) | {0} if names else usual | {0}
    rule = declared if names else "in most labels"
    if not names and len(allowed) == 2 and max(allowed) > 1:
        allowed, rule = {0, 1}, "in a mask of one class"
    found: list[Finding] = []
    for case, values in labelled:
        if odd := values - allowed:
            counts = facts[case.id].class_voxels
            text = f"values {tally({v: counts[v] for v in odd})}; {rule} are {sorted(allowed)}"
            if len(values - {0}) == 1 and len(allowed) == 2:
                text += f"; write {max(odd)} as {max(allowed)}, or declare it as a class in dataset.json"
            elif not names:
                text += (
                    "; if they are classes, declare all in dataset.json, or name them with labels in a --config file"
                )
            found.append(_error("LABEL-VALUES", case.label or "", text))
    trained = set[int]().union(*(facts[c.id].class_voxels for c in split.labeled if c.id in facts))
    faulted = {finding.path for finding in found}  # a class they lack may only have a wrong value there
    if split.labeled and all(case.id in facts and case.label not in faulted for case in split.labeled):
        for value in sorted(allowed - trained - {0}):
            name = f" ({names[value]})" if names and value in names else ""
            found.append(_error("ABSENT", split.labeled[0].source, f"class {value}{name} is in no training label"))
    return found


def _usual_values(labels: Sequence[set[int]]) -> set[int]:
    """Values in more than half of the labels that are not empty."""
    filled = [values for values in labels if values - {0}]
    counts = Counter(value for values in filled for value in values)
    return {value for value, count in counts.items() if 2 * count > len(filled)}


def _sides(split: Split) -> list[Finding]:
    """Cases and patients that both train and validate, and cases in two roles."""
    held = {case.patient for case in split.val}
    found = [
        _error("PATIENT", case.images[0], f"patient {case.patient} of case {case.id} is in training and in val")
        for case in (*split.labeled, *split.unlabeled)
        if case.patient in held
    ]
    twice = {case.id for case in split.labeled} & {case.id for case in split.unlabeled}
    found += [_error("ROLES", c.images[0], f"case {c.id} is labelled and unlabelled") for c in split.unlabeled
              if c.id in twice]  # fmt: skip
    return found


def _copies(split: Split, facts: Mapping[str, CaseFacts]) -> list[Finding]:
    """The same scan under two names: an error when the two have different roles, else a warning.

    Frames of a cine are alike, and of one patient: they are no copies.
    """
    role = {case.id: name for name in ("labeled", "unlabeled", "val") for case in getattr(split, name)}
    by_id = {case.id: case for name in (split.labeled, split.unlabeled, split.val) for case in name}
    ids = sorted(facts)
    if not ids:
        return []
    thumbs = np.array([np.frombuffer(base64.b64decode(facts[i].thumbnail), "<i2") for i in ids], np.float32)
    thumbs = thumbs.reshape(len(ids), -1)
    thumbs /= np.maximum(np.linalg.norm(thumbs, axis=1, keepdims=True), 1e-30)
    found: list[Finding] = []
    for row, one in enumerate(ids):
        alike = row + 1 + np.flatnonzero(thumbs[row + 1 :] @ thumbs[row] > SAME_SCAN)
        for other in (ids[int(i)] for i in alike):
            a, b = by_id[one], by_id[other]
            if a.patient == b.patient and (a.frame, b.frame) != (None, None):
                continue
            same = facts[one].sha256 == facts[other].sha256
            text = f"{'the same voxels' if same else 'nearly the same image'} as {a.images[0]}"
            if role[one] == role[other]:
                found.append(Finding("warning", "W-DATA-COPY", b.images[0], f"{text}, both {role[one]}"))
            else:
                found.append(_error("COPY", b.images[0], f"{text}, which is {role[one]}, this is {role[other]}"))
    return found
