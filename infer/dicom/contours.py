"""Outlines of a class in a slice, found by contourpy.

A line crosses halfway between the centres of a voxel of the class and of one outside, so that exactly the voxels of the
class have their centres inside. A hole becomes part of its outline through a keyhole, a line to it and back that
encloses nothing (PS3.3 C.8.8.6.3): readers who add contours up and readers who subtract them see the same.
"""

from collections import defaultdict
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import missing_extra

Points = NDArray[np.float64]


def outlines(area: NDArray[np.bool_]) -> list[Points]:
    """Closed polygons around an area, one for each connected part of it.

    Parameters
    ----------
    area : (rows, columns).

    Returns
    -------
    list of (points, 2) float64
        Column and row of each corner in voxels, centres of voxels being whole numbers. The first is not repeated.

    Raises
    ------
    SegError : E-EXTRA.
    """
    rows, columns = (np.flatnonzero(area.any(axis=1 - axis)) for axis in (0, 1))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    part = np.pad(area[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    found = []
    for points, borders in zip(*_generator(part).filled(0.5, 2.0), strict=True):
        rings = [points[first : last - 1] for first, last in pairwise(borders)]  # the first point is repeated
        found.append(_straight(_keyhole(rings, part)) + np.array([left - 1, top - 1]))
    return found


def require_contourpy() -> None:
    """Raise SegError E-EXTRA unless contours can be found here."""
    if find_spec("contourpy") is None:
        raise missing_extra("contourpy", "rtstruct")


def _generator(part: NDArray[np.bool_]) -> Any:
    require_contourpy()
    import contourpy

    return contourpy.contour_generator(z=part.astype(np.float64), name="serial", fill_type="OuterOffset")


def _keyhole(rings: list[Points], part: NDArray[np.bool_]) -> Points:
    """An outer ring and its holes as one polygon.

    From the leftmost corner of a hole, which lies between two voxels of a row, the row is followed to the left through
    the area up to the next ring, which has a corner there and begins further left. Holes are taken from the right, so
    that what is reached through a hole is known when it is its turn.
    """
    if len(rings) == 1:
        return rings[0]
    corners = {(x, y): (n, k) for n, ring in enumerate(rings) for k, (x, y) in enumerate(ring.tolist())}
    doors: defaultdict[int, dict[int, list[Points]]] = defaultdict(dict)  # of a ring: corner -> what is reached from it
    starts = [int(ring[:, 0].argmin()) for ring in rings]
    for number in sorted(range(1, len(rings)), key=lambda n: -rings[n][starts[n], 0]):
        x, y = rings[number][starts[number]]
        before = np.flatnonzero(~part[int(y), : int(x)])[-1]  # last voxel outside
        ring, corner = corners[(before + 0.5, float(y))]
        doors[ring][corner] = _walk(rings[number], starts[number], doors.pop(number, {}), closed=True)
    return np.concatenate(_walk(rings[0], 0, doors.pop(0, {}), closed=False))


def _walk(ring: Points, start: int, doors: dict[int, list[Points]], *, closed: bool) -> list[Points]:
    """Once around a ring, on the way through each door and back; `closed` ends where it began."""
    around = np.concatenate([ring[start:], ring[: start + closed]])
    pieces, done = [], 0
    for step in sorted((corner - start) % len(ring) for corner in doors):
        pieces += [around[done : step + 1], *doors[(step + start) % len(ring)]]
        done = step
    return [*pieces, around[done:]]


def _straight(ring: Points) -> Points:
    """Without the points where the line goes straight on."""
    came, goes = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turn = came[:, 0] * goes[:, 1] - came[:, 1] * goes[:, 0]
    kept: Points = ring[(turn != 0) | ((came * goes).sum(axis=1) <= 0)]
    return kept
