"""Gantry tilt: slices that are parallel but not above each other, brought onto a straight grid and back.

Only planes are shifted within themselves, by linear interpolation, and labels are shifted back to the nearest voxel: no
slice is mixed with another, so a mask belongs to the same slices before and after.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..volume import Shape3
from .geometry import Placement


@dataclass(frozen=True, eq=False)
class Tilt:
    """The straight grid of a tilted series.

    Attributes
    ----------
    degrees : between the slice axis and the normal of the slices.
    shape : (X, Y, slices) of the straight grid, which holds every source voxel.
    affine : (4, 4) of the straight grid, voxel -> mm, RAS+.
    source : (columns, rows, slices) of the series.
    shifts : (slices, 2) by how many voxels the source's columns and rows lie further on in the straight grid.
    """

    degrees: float
    shape: Shape3
    affine: NDArray[np.float64]
    source: Shape3
    shifts: NDArray[np.float64]

    @classmethod
    def of(cls, placement: Placement) -> "Tilt":
        """The straight grid of a tilted placement."""
        frames, affine = placement.frames, placement.affine
        axes = affine[:3, :3]
        unit = axes[:, :2] / np.linalg.norm(axes[:, :2], axis=0)
        normal = np.cross(unit[:, 0], unit[:, 1])
        height = float(axes[:, 2] @ normal)
        sideways = axes[:, 2] - height * normal
        step = np.linalg.lstsq(axes[:, :2], sideways, rcond=None)[0]  # voxels from slice to slice
        drift = np.round(np.arange(len(frames))[:, None] * step, 4)  # positions have few digits
        first = np.floor(drift.min(axis=0))
        extra = np.ceil(drift.max(axis=0)) - first
        straight = affine.copy()
        straight[:3, 2] = height * normal
        straight[:3, 3] += axes[:, :2] @ first
        columns, rows = frames[0].columns, frames[0].rows
        shape = (columns + int(extra[0]), rows + int(extra[1]), len(frames))
        return cls(placement.tilt, shape, straight, (columns, rows, len(frames)), drift - first)

    def straighten(self, voxels: NDArray[np.generic], fill: float) -> NDArray[np.float32]:
        """(columns, rows, slices) stored values -> (X, Y, slices) float32; `fill` where there was no slice."""
        out = np.full(self.shape[::-1], fill, np.float32).transpose(2, 1, 0)
        for k, shift in enumerate(self.shifts):
            plane = voxels[:, :, k].astype(np.float32)
            for axis in (0, 1):
                plane = _shifted(plane, float(shift[axis]), self.shape[axis], axis, fill)
            out[:, :, k] = plane
        return out

    def restore(self, labels: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        """(X, Y, slices) labels of the straight grid -> (columns, rows, slices) of the series."""
        out = np.empty(self.source, labels.dtype, order="F")
        for k, shift in enumerate(self.shifts):
            i, j = (np.rint(np.arange(n) + s).astype(int) for n, s in zip(self.source[:2], shift, strict=True))
            out[:, :, k] = labels[np.ix_(i, j, [k])][:, :, 0]
        return out


def _shifted(plane: NDArray[np.float32], shift: float, extent: int, axis: int, fill: float) -> NDArray[np.float32]:
    """A plane moved on by `shift` >= 0 voxels along one axis of what becomes `extent` voxels."""
    at = np.arange(extent) - shift
    low = np.floor(at).astype(int)
    weight = (at - low).astype(np.float32)
    count = plane.shape[axis]
    weight = weight.reshape((-1, 1) if axis == 0 else (1, -1))

    def take(index: NDArray[np.int_]) -> NDArray[np.float32]:
        return np.take(plane, np.clip(index, 0, count - 1), axis=axis)

    moved: NDArray[np.float32] = take(low) * (1 - weight) + take(low + 1) * weight
    outside = (at < -0.5) | (at > count - 0.5)  # a voxel reaches half its width beyond its centre
    if axis == 0:
        moved[outside] = fill
    else:
        moved[:, outside] = fill
    return moved
