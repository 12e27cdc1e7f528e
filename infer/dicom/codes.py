"""What a label is, in the codes that DICOM objects carry.

A model's spec may say it itself. For labels of the shipped models, and of models trained on the same data sets, the
table here does. A label that nobody has coded gets a private code made of its name: readable, the same every time, and
recognisable as private.
"""

import hashlib
import re

from ..spec import Code, LabelCodes, ModelSpec

PRIVATE_SCHEME = "99SEGTK"  # designators of private schemes begin with 99 (PS3.16 section 8.2)

ANATOMY = Code("91723000", "SCT", "Anatomical Structure")  # CID 7150
_UNKNOWN_CATEGORY = Code("309825002", "SCT", "Spatial and Relational Concept")  # CID 7150; claims least of what it is
_HIPPOCAMPUS = Code("5366008", "SCT", "Hippocampus")
_ANTERIOR, _POSTERIOR = Code("255549009", "SCT", "Anterior"), Code("255551008", "SCT", "Posterior")

# Codes and meanings as in DICOM PS3.16; a test compares them with pydicom's copy.
TABLE = {
    "left atrium": LabelCodes(ANATOMY, Code("82471001", "SCT", "Left atrium")),
    "right atrium": LabelCodes(ANATOMY, Code("73829009", "SCT", "Right atrium")),
    "left ventricle": LabelCodes(ANATOMY, Code("87878005", "SCT", "Left ventricle")),
    "right ventricle": LabelCodes(ANATOMY, Code("53085002", "SCT", "Right ventricle")),
    "myocardium": LabelCodes(
        ANATOMY, Code("49848007", "SCT", "Left Ventricle Myocardium")
    ),  # as short-axis sets mean it
    "hippocampus": LabelCodes(ANATOMY, _HIPPOCAMPUS),
    "anterior hippocampus": LabelCodes(ANATOMY, _HIPPOCAMPUS, (_ANTERIOR,)),
    "posterior hippocampus": LabelCodes(ANATOMY, _HIPPOCAMPUS, (_POSTERIOR,)),
}


def codes_of(spec: ModelSpec) -> tuple[LabelCodes, ...]:
    """Codes of each class but the background: the spec's own, else the table's, else private ones.

    The table is asked for the label, and for the label followed by the model's name: "anterior" of "hippocampus".
    """
    return tuple(_codes(spec, number) for number in range(1, len(spec.labels)))


def uncoded(spec: ModelSpec) -> tuple[str, ...]:
    """The labels that get a private code, for which somebody should be told."""
    pairs = zip(spec.labels[1:], codes_of(spec), strict=True)
    return tuple(label for label, codes in pairs if codes.type.scheme == PRIVATE_SCHEME)


def _codes(spec: ModelSpec, number: int) -> LabelCodes:
    if spec.codes and (own := spec.codes[number]) is not None:
        return own
    label = _plain(spec.labels[number])
    known = TABLE.get(label) or TABLE.get(f"{label} {_plain(spec.name)}")
    return known or LabelCodes(_UNKNOWN_CATEGORY, _private(spec.labels[number]))


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.strip().lower()))


def _private(label: str) -> Code:
    """A code of 16 characters at most that belongs to this name alone."""
    digest = hashlib.sha256(label.encode("utf-8", "surrogatepass")).hexdigest()
    return Code(digest[:16], PRIVATE_SCHEME, long_string(label) or "unnamed")


def long_string(text: str) -> str:
    """A text as DICOM's LO has it: one line of 64 characters at most, without the backslash that separates values."""
    return "".join(c if c.isprintable() and c != "\\" else " " for c in text)[:64].strip()
