"""Planes at distinct places -> their order and the affine, or the reason why they are no regular grid.

Only positions count: SliceThickness and SpacingBetweenSlices say nothing certain about where planes are, file names
and instance numbers nothing about their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import Exit, SegError
from .frames import Frame, Vector
from .study import named

SPACING_SHARE = 0.01  # of the spacing: how far planes may lie from an even grid, or
SPACING_MM = 0.01  # this, if it is more
MAX_SHEAR = 0.1  # voxels in the plane between the first and the last plane; more is a tilt
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_COPY = "transfer the series again, or choose another one"


@dataclass(frozen=True, eq=False)
class Placement:
    """A regular grid.

    Attributes
    ----------
    frames : along the normal, increasing.
    affine : (4, 4) voxel (column, row, slice) -> mm, RAS+; sheared if the gantry was tilted.
    tilt : degrees between the slice axis and the normal where that matters, else 0.
    notes : things accepted but worth reporting.
    """

    frames: tuple[Frame, ...]
    affine: NDArray[np.float64]
    tilt: float
    notes: tuple[str, ...] = ()


def place(path: str, frames: Sequence[Frame]) -> Placement:
    """Order planes and find their affine.

    Parameters
    ----------
    path : of the series as the user typed it, for messages.
    frames : parallel planes of one extent and spacing, no two at one place.

    Raises
    ------
    SegError : E-DCM-MISSING or E-DCM-SPACING, exit 12.
    """
    normal = frames[0].normal
    heights = np.array([frame.position @ normal for frame in frames])
    order = np.argsort(heights, kind="stable")
    ordered, heights = [frames[int(k)] for k in order], heights[order]
    notes: list[str] = []
    if len(ordered) == 1:
        step, tilt = normal * _lone_thickness(ordered[0], notes), 0.0
    else:
        _refuse_uneven(path, ordered, heights)
        step = (ordered[-1].position - ordered[0].position) / (len(ordered) - 1)
        tilt = _tilt(path, ordered, step, normal)
    return Placement(tuple(ordered), _affine(ordered[0], step), tilt, tuple(notes))


def _affine(first: Frame, step: Vector) -> NDArray[np.float64]:
    """DICOM PS3.3 C.7.6.2.1.1, with the third axis from plane to plane, in RAS."""
    lps = np.eye(4)
    lps[:3, 0] = first.along_row * first.spacing[1]
    lps[:3, 1] = first.along_column * first.spacing[0]
    lps[:3, 2] = step
    lps[:3, 3] = first.position
    ras: NDArray[np.float64] = LPS_TO_RAS @ lps
    return ras


def _lone_thickness(frame: Frame, notes: list[str]) -> float:
    thickness = frame.thickness()
    if thickness is not None and thickness > 0:
        return thickness
    notes.append("one slice of unknown thickness: volumes in ml are for 1 mm")
    return 1.0


def _refuse_uneven(path: str, frames: Sequence[Frame], heights: Vector) -> None:
    """Planes must lie on an even grid: every gap near the median, and every plane near its place on the line."""
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    slack = max(SPACING_MM, SPACING_SHARE * usual)
    even = np.linspace(heights[0], heights[-1], len(heights))
    if np.abs(gaps - usual).max() <= slack and np.abs(heights - even).max() <= slack:
        return
    multiples = np.rint(gaps / usual)
    if np.abs(gaps - multiples * usual).max() <= slack and multiples.min() == 1 < multiples.max():
        _refuse_gaps(path, frames, heights, multiples)
    found = f"the spacing of slices goes from {gaps.min():.3f} to {gaps.max():.3f} mm, median {usual:.3f}"
    worst = int(np.argmax(np.abs(gaps - usual)))
    found += f", the oddest between {frames[worst].label} and {frames[worst + 1].label}"
    fix = "choose an evenly spaced series, or have it reconstructed again"
    raise SegError("E-DCM-SPACING", Exit.INPUT_REFUSED, path, found, fix, f"even within {slack:.3f} mm")


def _refuse_gaps(path: str, frames: Sequence[Frame], heights: Vector, multiples: Vector) -> None:
    gaps = np.flatnonzero(multiples > 1)
    lost = int(multiples.sum()) - len(multiples)
    places = [
        f"at {heights[k]:.2f} to {heights[k + 1]:.2f} mm between {frames[k].label} and {frames[k + 1].label}"
        for k in gaps.tolist()
    ]
    total = len(frames) + lost
    found = f"{lost} of {total} slices are missing: {named(places)}"
    raise SegError("E-DCM-MISSING", Exit.INPUT_REFUSED, path, found, _COPY, f"{total} slices")


def _tilt(path: str, frames: Sequence[Frame], step: Vector, normal: Vector) -> float:
    """Degrees between the line of the planes' corners and the normal; 0 if the planes stay above each other.

    A plane that lies off that line in its own plane is no tilt: nobody knows what it is.
    """
    first = frames[0]
    finest = min(first.spacing)
    line = first.position + np.arange(len(frames))[:, None] * step
    offsets = np.array([frame.position for frame in frames]) - line
    across = offsets - np.outer(offsets @ normal, normal)
    stray = np.linalg.norm(across, axis=1)
    if stray.max() > MAX_SHEAR * finest:
        found = f"{frames[int(np.argmax(stray))].label} is shifted {stray.max():.3f} mm within its plane"
        fix = "choose another series"
        raise SegError("E-DCM-SPACING", Exit.INPUT_REFUSED, path, found, fix, "slices above each other")
    sideways = step - (step @ normal) * normal
    shift = float(np.linalg.norm(sideways))
    if shift * (len(frames) - 1) <= MAX_SHEAR * finest:
        return 0.0
    return float(np.degrees(np.arctan2(shift, step @ normal)))
