"""The objects of one series -> the planes of one volume, or the reason why they are several.

A series may hold planes of several orientations or extents (refused), the same plane twice (one is kept if the copies
are equal), several images of one place: at several times (one is taken on request), or of several kinds such as echoes
(refused).
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import Exit, SegError
from .frames import Frame, MissingGeometry, frames_of
from .header import EXPORT_AGAIN, Header
from .study import SeriesHeaders, check_identity, named

_SAME_PLACE = 1e-3  # mm
_PARALLEL = 1e-3  # of direction cosines
_SAME_SPACING = 1e-4  # share

Pixels = Callable[[Header], bytes]  # the stored bytes of an object's pixels


@dataclass(frozen=True, eq=False)
class Planes:
    """The planes of one volume, in any order, no two at one place; notes: what was left out."""

    frames: tuple[Frame, ...]
    notes: tuple[str, ...]


def planes_of(path: str, series: SeriesHeaders, pixels: Pixels, time_point: int | None = None) -> Planes:
    """The planes of the one volume in a series.

    Parameters
    ----------
    path : as the user typed it, for messages.
    pixels : reads an object's pixel bytes; called for objects that seem to be copies.
    time_point : which of several times to take, from 1.

    Raises
    ------
    SegError
        Exit 11: E-DCM-TAG, E-DCM-PIXELS. Exit 12: E-DCM-UID, E-DCM-MIXED, E-DCM-GEOMETRY, E-DCM-COLOUR, E-DCM-STACKS,
        E-DCM-DUPLICATE, E-DCM-TIME.
    """
    check_identity(series)
    notes = []
    if series.localizers:
        notes.append(f"{len(series.localizers)} localizers in the series were set aside")
    headers = _without_copies(series.headers, pixels, notes)
    frames = _all_frames(path, headers)
    _refuse_stacks(path, frames)
    times = _by_place(frames)
    if max(map(len, times)) == 1 and time_point in (None, 1):
        return Planes(tuple(frames), tuple(notes))
    chosen = _one_time(path, times, time_point)
    notes.append(f"time point {time_point} of {max(map(len, times))}")
    return Planes(tuple(chosen), tuple(notes))


def _without_copies(headers: Sequence[Header], pixels: Pixels, notes: list[str]) -> list[Header]:
    """One of each SOPInstanceUID, if those that share it are equal in pixels and place."""
    by_uid: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        by_uid[str(header.dataset.get("SOPInstanceUID"))].append(header)
    kept = []
    for copies in by_uid.values():
        kept.append(copies[0])
        if len(copies) == 1:
            continue
        first = _content(copies[0], pixels)
        for other in copies[1:]:
            if _content(other, pixels) != first:
                found = f"has the SOPInstanceUID of {copies[0].label} but other content"
                fix = "find out which is right and move the other away"
                raise SegError("E-DCM-DUPLICATE", Exit.INPUT_REFUSED, other.name, found, fix)
    if len(kept) < len(headers):
        notes.append(f"{len(headers) - len(kept)} identical copies of slices were left out")
    return kept


def _content(header: Header, pixels: Pixels) -> bytes:
    """Digest of what matters of an object: pixels, place and scaling."""
    digest = hashlib.sha256(pixels(header))
    for frame in frames_of(header):
        digest.update(repr((frame.position, frame.along_row, frame.along_column, frame.spacing)).encode())
        digest.update(repr((frame.slope, frame.intercept, frame.rows, frame.columns)).encode())
    return digest.digest()


def _all_frames(path: str, headers: Sequence[Header]) -> list[Frame]:
    frames: list[Frame] = []
    lacking: dict[str, list[str]] = defaultdict(list)
    for header in headers:
        try:
            frames += frames_of(header)
        except MissingGeometry as missing:
            for keyword in missing.keywords:
                lacking[keyword].append(missing.name)
    if lacking:
        keyword, names = next(iter(lacking.items()))
        found = f"{len(names)} of {len(headers)} files have no {keyword}: {named(names)}"
        raise SegError("E-DCM-GEOMETRY", Exit.INPUT_REFUSED, path, found, EXPORT_AGAIN)
    return frames


def _refuse_stacks(path: str, frames: Sequence[Frame]) -> None:
    """All planes must be parallel and alike."""
    stacks: list[list[Frame]] = []
    for frame in frames:
        home = next((stack for stack in stacks if _alike(stack[0], frame)), None)
        if home is None:
            stacks.append([frame])
        else:
            home.append(frame)
    if len(stacks) == 1:
        return
    stacks.sort(key=len, reverse=True)
    parts = [f"{len(s)} of {s[0].columns} x {s[0].rows} voxels like {s[0].label}" for s in stacks]
    found = f"the series has {len(stacks)} stacks of slices that differ in extent, spacing or direction: {named(parts)}"
    raise SegError("E-DCM-STACKS", Exit.INPUT_REFUSED, path, found, "move what does not belong to the scan away")


def _alike(one: Frame, other: Frame) -> bool:
    turned = max(
        float(np.abs(one.along_row - other.along_row).max()),
        float(np.abs(one.along_column - other.along_column).max()),
    )
    stretched = max(abs(a / b - 1) for a, b in zip(one.spacing, other.spacing, strict=True))
    same_extent = (one.rows, one.columns) == (other.rows, other.columns)
    return same_extent and turned <= _PARALLEL and stretched <= _SAME_SPACING


def _by_place(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Planes of one place together, places in the order of their height."""
    normal = frames[0].normal
    ordered = sorted(frames, key=lambda frame: float(frame.position @ normal))
    places = [[ordered[0]]]
    for frame in ordered[1:]:
        if abs(float((frame.position - places[-1][0].position) @ normal)) <= _SAME_PLACE:
            places[-1].append(frame)
        else:
            places.append([frame])
    return places


def _one_time(path: str, places: Sequence[Sequence[Frame]], time_point: int | None) -> list[Frame]:
    """The planes of one time point.

    Raises
    ------
    SegError : E-DCM-STACKS, E-DCM-DUPLICATE, E-DCM-TIME.
    """
    counts = Counter(map(len, places))
    most = max(counts)
    kinds = _differing_kinds(places)
    if kinds:
        found = f"the series has {most} images at each place, which differ in {', '.join(kinds)}"
        fix = "export each kind as a series of its own"
        raise SegError("E-DCM-STACKS", Exit.INPUT_REFUSED, path, found, fix, "one volume")
    repeated = sum(count for size, count in counts.items() if size > 1)
    if most > 1 and 2 * repeated <= len(places):
        names = [" and ".join(f.label for f in place) for place in places if len(place) > 1]
        found = f"{repeated} of {len(places)} slices are there more than once, as different instances: {named(names)}"
        fix = "find out which are right and move the others away"
        raise SegError("E-DCM-DUPLICATE", Exit.INPUT_REFUSED, path, found, fix)
    if len(counts) > 1:
        short = next(place for place in places if len(place) < most)
        found = f"{sum(map(len, places))} of {most * len(places)} slices of {most} time points"
        found += f", lacking at the place of {short[0].label}"
        fix = "transfer the series again"
        raise SegError("E-DCM-TIME", Exit.INPUT_REFUSED, path, found, fix, "the same times at every place")
    if time_point is None or not 1 <= time_point <= most:
        number = "" if time_point is None else f", and none has number {time_point}"
        found = f"is a time series of {most} time points of {len(places)} slices{number}"
        raise SegError("E-DCM-TIME", Exit.INPUT_REFUSED, path, found, f"choose one with --time-point, 1 to {most}")
    clock = _clock(path, places)
    return [sorted(place, key=lambda frame: frame.clocks()[clock])[time_point - 1] for place in places]


def _differing_kinds(places: Sequence[Sequence[Frame]]) -> list[str]:
    """Names of the kinds that differ between images of one place."""
    found: dict[str, None] = {}
    for place in places:
        if len(place) == 1:
            continue
        rows = [frame.kinds() for frame in place]
        for name in {name for row in rows for name in row}:
            if len({row.get(name) for row in rows}) > 1:
                found[name] = None
    return sorted(found)


def _clock(path: str, places: Sequence[Sequence[Frame]]) -> str:
    """The best element that puts the images of every place into an order."""
    usable: list[str] | None = None
    for place in places:
        rows = [frame.clocks() for frame in place]
        here = [name for name in rows[0] if len({row.get(name) for row in rows}) == len(rows) and None not in {
            row.get(name) for row in rows}]  # fmt: skip
        usable = here if usable is None else [name for name in usable if name in here]
    if not usable:
        found = "is a time series without anything that tells the order of its times"
        raise SegError("E-DCM-TIME", Exit.INPUT_REFUSED, path, found, EXPORT_AGAIN)
    return usable[0]
