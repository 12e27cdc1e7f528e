"""Which series of a study: the only one, one that the user names, all, or the one that suits the model.

``auto`` takes a series if it is the only one of the study that suits the model, that is, if

* it is a volume: one image at each place, evenly spaced. A damaged series (a slice missing, say) that may be the right
  one counts as suiting, so that no other one is taken in its place;
* its modality is the model's, where the model's channel name tells one (CT, MR, MRI, T1, FLAIR, PET, ...);
* its voxels are at most 3 times larger or smaller than the network's, on every axis on which the network has a spacing;
* its field of view is at least half of the training window on every axis, and between half and twice that of the scans
  the model was trained on, where the model tells it;
* its contrast is not another one than the model's, where both tell (T1, T2, FLAIR, PD, DWI, ...), the series by its
  description, protocol or sequence name.

All series must be of one patient and one study. Nothing is ranked: two that suit are refused, with the table.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import Exit, SegError
from ..spec import ModelSpec
from ..volume import Reorientation, spacing_of
from .frames import MissingGeometry, frames_of
from .geometry import Placement
from .header import text
from .study import SeriesHeaders, Study

ALL, AUTO = "all", "auto"
MAX_RATIO = 3.0  # of voxel sizes
LEAST_WINDOW = 0.5  # share of the training window
EXTENT_RATIO = 2.0  # of fields of view
_MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "PET": "PT", "PT": "PT"}
_CONTRASTS = re.compile(r"(?<![A-Z0-9])(T1|T2|FLAIR|PD|DWI|ADC|SWI|TOF|CINE|LGE)", re.IGNORECASE)
_DESCRIPTIONS = ("SeriesDescription", "ProtocolName", "SequenceName")
_NOT_VOLUMES = ("E-DCM-TIME", "E-DCM-STACKS", "E-DCM-COLOUR", "E-DCM-UNITS")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A series, and its geometry or the reason why it has none; notes: what was left out of it."""

    series: SeriesHeaders
    placement: Placement | None
    error: SegError | None
    notes: tuple[str, ...] = ()

    @property
    def slices(self) -> int:
        """Slices of the volume, or objects in the series."""
        return len(self.placement.frames) if self.placement else len(self.series.headers)

    @property
    def contrasts(self) -> list[str]:
        """Contrast words in the series' descriptions; of its text nothing else is ever shown."""
        found = {word for name in _DESCRIPTIONS for word in contrast_words(_safe(self.series, name))}
        return sorted(found)


def contrast_words(name: str) -> set[str]:
    """Contrasts that a text names; T2 FLAIR is FLAIR."""
    found = {match.upper() for match in _CONTRASTS.findall(name)}
    return found - {"T2"} if "FLAIR" in found else found


def model_modality(spec: ModelSpec) -> str | None:
    """The DICOM modality that the model's channels tell, or None."""
    for name in spec.channels:
        for word in re.findall(r"[A-Za-z0-9]+", name.upper()):
            if word in _MODALITIES:
                return _MODALITIES[word]
        if contrast_words(name):
            return "MR"
    return None


def choose(study: Study, wanted: str | None) -> SeriesHeaders | None:
    """The series that `wanted` names (UID or number), or the only one; None if it is to be chosen by the model.

    Raises
    ------
    SegError : E-DCM-SERIES, exit 12.
    """
    if wanted is None and len(study.series) == 1:
        return study.series[0]
    if wanted == AUTO:
        return None
    if wanted is None:
        found = f"holds {len(study.series)} series: {summary(study.series)}"
        fix = f"choose with --series NUMBER, UID, {AUTO} or {ALL}; seg-infer --list shows them"
        raise SegError("E-DCM-SERIES", Exit.INPUT_REFUSED, study.path, found, fix, "one")
    matches = [one for one in study.series if one.uid == wanted]
    if not matches and wanted.isascii() and wanted.isdigit():
        matches = [one for one in study.series if one.number == int(wanted)]
    if len(matches) == 1:
        return matches[0]
    count = "several series have" if matches else "no series has"
    found = f"{count} the number or UID given with --series: {summary(study.series)}"
    raise SegError("E-DCM-SERIES", Exit.INPUT_REFUSED, study.path, found, "choose from seg-infer --list")


def choose_for(study: Study, candidates: Sequence[Candidate], spec: ModelSpec) -> Candidate:
    """The one candidate that suits a model.

    Raises
    ------
    SegError : E-DCM-SERIES or E-DCM-MIXED, exit 12; the error of a damaged series if it is the one.
    """
    if len({candidate.series.study for candidate in candidates}) > 1:
        found, fix = "holds more than one patient or study", "give the folder of one study, or choose by UID"
        raise SegError("E-DCM-MIXED", Exit.INPUT_REFUSED, study.path, found, fix)
    reasons = [unsuited(candidate, spec) for candidate in candidates]
    suited = [candidate for candidate, reason in zip(candidates, reasons, strict=True) if not reason]
    if len(suited) == 1:
        if suited[0].error is not None:
            raise suited[0].error
        return suited[0]
    rows = "; ".join(
        f"{describe(candidate)}: {reason or 'suits'}" for candidate, reason in zip(candidates, reasons, strict=True)
    )
    found = f"{len(suited) or 'none'} of {len(candidates)} series suit the model {spec.name}: {rows}"
    fix = "choose with --series NUMBER or UID; seg-infer --list shows them"
    raise SegError("E-DCM-SERIES", Exit.INPUT_REFUSED, study.path, found, fix, "exactly one")


def unsuited(candidate: Candidate, spec: ModelSpec) -> str:
    """Why a series is not the model's, "" if it may be."""
    modality = model_modality(spec)
    if modality is not None and candidate.series.modality != modality:
        return f"is {candidate.series.shown_modality}, not {modality}"
    wanted = {word for name in spec.channels for word in contrast_words(name)}
    if wanted and candidate.contrasts and not wanted & set(candidate.contrasts):
        return f"is {' '.join(candidate.contrasts)}"
    if candidate.placement is not None:
        return _unsuited_grid(candidate.placement, spec)
    assert candidate.error is not None
    if candidate.error.code in _NOT_VOLUMES:
        return f"is no volume ({candidate.error.code})"
    return ""


def _unsuited_grid(placement: Placement, spec: ModelSpec) -> str:
    first = placement.frames[0]
    shape = (first.columns, first.rows, len(placement.frames))
    if spec.dims == 3 and shape[2] == 1:
        return "is one slice"
    turn = Reorientation.to_ras(placement.affine)
    sizes = spacing_of(placement.affine)[list(turn.axes)]
    extents = sizes * np.array(shape)[list(turn.axes)]
    for axis, (size, target) in enumerate(zip(sizes, spec.spacing, strict=True)):
        if target is None:
            continue
        if max(size / target, target / size) > MAX_RATIO:
            return f"has voxels of {size:.2f} mm where the model takes {target:g}"
        if extents[axis] < LEAST_WINDOW * spec.window[axis] * target:
            return f"is {extents[axis]:.0f} mm wide, the model's window {spec.window[axis] * target:.0f}"
    if spec.extent is not None:
        for extent, usual in zip(extents, spec.extent, strict=True):
            if max(extent / usual, usual / extent) > EXTENT_RATIO:
                return f"is {extent:.0f} mm wide, the model saw {usual:.0f}"
    return ""


def describe(candidate: Candidate) -> str:
    """A series in a few words, none of them from free text."""
    number = candidate.series.number
    name = "series without number" if number is None else f"series {number}"
    return f"{name} ({candidate.series.shown_modality}, {candidate.slices} slices)"


def summary(series: Sequence[SeriesHeaders]) -> str:
    """The same for several, from their headers alone, at most eight."""
    rows = []
    for one in series[:8]:
        name = "without number" if one.number is None else f"number {one.number}"
        rows.append(f"{name} ({one.shown_modality}, {len(one.headers)} files{_extent(one)})")
    return "; ".join(rows) + (f"; and {len(series) - 8} more" if len(series) > 8 else "")


def _extent(series: SeriesHeaders) -> str:
    try:
        frame = frames_of(series.headers[0])[0]
    except (SegError, MissingGeometry):
        return ""
    return f", {frame.columns} x {frame.rows} voxels of {frame.spacing[1]:.3g} x {frame.spacing[0]:.3g} mm"


def _safe(series: SeriesHeaders, name: str) -> str:
    try:
        return text(series.headers[0], name)
    except SegError:
        return ""
