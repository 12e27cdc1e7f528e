"""Contract 1, the volume: voxels, where they are in space, and the way back to the grid they came from.

World coordinates are RAS+ in mm everywhere (x to the patient's right, y to anterior, z to superior). A volume knows
nothing of files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Shape3 = tuple[int, int, int]

THICK = 1.5  # voxels so much longer along one axis than along both others lie across thick slices


@dataclass(frozen=True)
class Volume:
    """A scan: stored values and the affine that places them.

    Attributes
    ----------
    voxels : (C, X, Y, Z) real array of stored values, any real dtype, so that an int16 scan stays int16 in memory.
    affine : (4, 4) float64, voxel index -> mm, RAS+.
    slope, intercept : intensity = slope * stored + intercept.
    """

    voxels: NDArray[np.generic]
    affine: NDArray[np.float64]
    slope: float = 1.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        if self.voxels.ndim != 4:
            raise ValueError(f"voxels must be (C, X, Y, Z), found shape {self.voxels.shape}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"affine must be (4, 4), found shape {self.affine.shape}")

    @property
    def shape(self) -> Shape3:
        """Spatial shape (X, Y, Z) in voxels."""
        x, y, z = self.voxels.shape[1:]
        return x, y, z

    @property
    def spacing(self) -> NDArray[np.float64]:
        """(3,) voxel edge lengths in mm, along the array axes."""
        return spacing_of(self.affine)

    def intensities(self) -> NDArray[np.float32]:
        """(C, X, Y, Z) float32 intensities, scaling applied."""
        values = self.voxels.astype(np.float32)
        if (self.slope, self.intercept) != (1.0, 0.0):
            values *= np.float32(self.slope)
            values += np.float32(self.intercept)
        return values

    def to_canonical(self) -> "Volume":
        """The same scan with axes permuted and flipped to the nearest RAS+ order; voxels are a view."""
        turn = Reorientation.to_ras(self.affine)
        return replace(
            self,
            voxels=np.stack([turn.apply(channel) for channel in self.voxels])
            if len(self.voxels) > 1
            else turn.apply(self.voxels[0])[np.newaxis],
            affine=turn.affine(self.affine, self.shape),
        )


@dataclass(frozen=True)
class Reorientation:
    """An axis permutation with flips, and its exact inverse. Oblique angles are kept: no voxel value changes.

    Attributes
    ----------
    axes : axis of the source array for each axis of the result.
    flips : whether each axis of the *result* runs against the source.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def to_ras(cls, affine: NDArray[np.float64]) -> "Reorientation":
        """The reorientation whose result has its axes nearest to +R, +A, +S.

        Among the six permutations the one with the largest summed |direction cosine| wins, so the answer is unique for
        any rotation short of an exact 45 degree tie.
        """
        cosines = affine[:3, :3] / spacing_of(affine)  # world axis x voxel axis
        strength = np.abs(cosines)
        orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
        axes = max(orders, key=lambda order: sum(strength[world, axis] for world, axis in enumerate(order)))
        i, j, k = (bool(cosines[world, axis] < 0) for world, axis in enumerate(axes))
        return cls(axes, (i, j, k))

    @classmethod
    def of_slices(cls, shape: Shape3, spacing: Sequence[float]) -> "Reorientation":
        """The stored axes in their order, the one across the slices moved to the end, whatever direction it has.

        That is an axis of one voxel, or else the one with by far the largest voxels (mm); where there is none, the one
        with the fewest, and the last of equals.
        """
        _, middle, coarsest = sorted(range(3), key=lambda axis: spacing[axis])
        across = min(range(3), key=lambda axis: (shape[axis], -axis))
        if shape[across] > 1 and spacing[coarsest] > THICK * spacing[middle]:
            across = coarsest
        i, j = (axis for axis in range(3) if axis != across)
        return cls((i, j, across), (False, False, False))

    def apply(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """(X, Y, Z) source array -> the reoriented view."""
        return array.transpose(self.axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def invert(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """A reoriented (X, Y, Z) array -> a view in the source's axis order."""
        unflipped = array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        return unflipped.transpose(tuple(int(axis) for axis in np.argsort(self.axes)))

    def affine(self, affine: NDArray[np.float64], shape: Shape3) -> NDArray[np.float64]:
        """The affine of the reoriented array, given the source's affine and shape."""
        step = np.zeros((4, 4))
        step[3, 3] = 1.0
        for result, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            step[axis, result] = -1.0 if flip else 1.0
            step[axis, 3] = shape[axis] - 1 if flip else 0.0
        return affine @ step


def spacing_of(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) voxel edge lengths in mm: the column norms of the affine."""
    spacing: NDArray[np.float64] = np.linalg.norm(affine[:3, :3], axis=0)
    return spacing
