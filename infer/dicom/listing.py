"""What a folder holds, as a table for `seg-infer --list`, and what reports say of a series.

Of a header's free text nothing is shown but contrast words that are known beforehand (T1, FLAIR, ...). UIDs are shown
on standard output alone, when somebody asks for the list; reports and records have keyed hashes.
"""

import hashlib
import hmac
import os
from typing import Any

import numpy as np

from ..errors import SegError, printable
from ..volume import spacing_of
from .read import survey
from .select import Candidate
from .series import DicomSeries
from .study import MODALITIES

KEY_VARIABLE = "SEG_UID_KEY"
_TITLES = ("series", "modality", "contrast", "slices", "voxels", "spacing mm", "field of view mm", "UID", "state")


def pseudonym(uid: str) -> str:
    """A keyed hash of a UID, equal for equal UIDs.

    The key is the environment variable SEG_UID_KEY. Without it the hash hides a UID from readers, but somebody who has
    the UID can recognise it.
    """
    key = os.environ.get(KEY_VARIABLE, "seg-toolkit").encode()
    return hmac.new(key, uid.encode(), hashlib.sha256).hexdigest()[:32]


def facts(series: DicomSeries) -> dict[str, Any]:
    """What a report says of a series, ready for JSON."""
    first = series.datasets[0]
    number = first.get("SeriesNumber")
    try:
        shown = None if number is None else int(number)
    except (TypeError, ValueError):
        shown = None
    return {
        "modality": series.modality if series.modality in MODALITIES else "other",
        "number": shown,
        "slices": series.shape[2],
        "files": len(series.files),
        "series_hmac": pseudonym(str(first.get("SeriesInstanceUID", ""))),
    }


def table(path: str) -> str:
    """All series below a path, one line each, and what was set aside.

    Raises
    ------
    SegError : what makes the whole folder unreadable.
    """
    study, candidates = survey(path)
    rows = [_TITLES, *(_row(candidate) for candidate in candidates)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_TITLES))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *study.notes()])


def _row(candidate: Candidate) -> tuple[str, ...]:
    series, placement = candidate.series, candidate.placement
    number = "" if series.number is None else str(series.number)
    state = "volume" if candidate.error is None else _short(candidate.error)
    size = spacing = extent = ""
    if placement is not None:
        first = placement.frames[0]
        shape = (first.columns, first.rows, len(placement.frames))
        lengths = spacing_of(placement.affine)
        size, spacing = _times(shape, "d"), _times(lengths, ".3g")
        extent = _times(lengths * np.array(shape), ".0f")
        state = f"tilted {placement.tilt:.1f} degrees" if placement.tilt else state
    contrasts = " ".join(candidate.contrasts)
    cells = (number, series.shown_modality, contrasts, str(candidate.slices), size, spacing, extent, series.uid, state)
    return tuple(printable(cell) for cell in cells)


def _times(values: Any, form: str) -> str:
    return " x ".join(format(value, form) for value in values)


def _short(error: SegError) -> str:
    return f"{error.code}: {error.found}"
