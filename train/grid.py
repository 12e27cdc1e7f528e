"""The grid that a network sees: spacing in mm and orientation, from those of the scans. Arithmetic on `CaseFacts`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from seg.infer.resample import resampled_extent
from seg.infer.volume import Reorientation

from .facts import CaseFacts
from .window import Shape3

Vec3 = tuple[float, float, float]
Grid = tuple[float | None, float | None, float | None]

ANISOTROPIC = 3.0  # nnU-Net's threshold, for spacing and for shape


def slice_orientation(facts: Sequence[CaseFacts]) -> Literal["RAS", "slices"]:
    """RAS if every scan is known to be a stack of axial slices, else slices as they are stored."""
    axial = all(f.size_known and Reorientation.of_slices(f.shape, f.spacing).axes[2] == 2 for f in facts)
    return "RAS" if axial else "slices"


def across_last(fact: CaseFacts) -> CaseFacts:
    """The facts with the axis across the slices last."""
    i, j, k = Reorientation.of_slices(fact.shape, fact.spacing).axes
    shape, spacing = fact.shape, fact.spacing
    return replace(fact, shape=(shape[i], shape[j], shape[k]), spacing=(spacing[i], spacing[j], spacing[k]))


def network_grid(
    facts: Sequence[CaseFacts], chosen: Grid | None, orientation: str, dims: int
) -> tuple[Grid, list[str]]:
    """The network's grid in mm, and what the user should know of it."""
    notes = []
    if orientation == "slices":
        text = "slices are taken as stored, for they are not axial or nothing says so: [augmentation] mirror = [0, 1], "
        notes.append(text + "rot90 = true make the network independent of their directions")
    grid = chosen or target_spacing(facts)
    if dims == 2:
        grid = (grid[0], grid[1], None)
    if unknown := sum(not fact.size_known for fact in facts):
        own = dims == 2 and chosen is None
        grid = (None, None, None) if own else grid
        does = "the network's grid is each scan's own" if own else "they are taken as 1 mm"
        notes.append(f"the voxel sizes of {unknown} of {len(facts)} scans are not known (1, in no stated unit): {does}")
    return grid, notes


def target_spacing(facts: Sequence[CaseFacts]) -> Vec3:
    """Median mm along R, A, S; nnU-Net's rule for thick slices.

    If one axis is more than three times as coarse as both others, and has less than a third of their voxels, the 10th
    percentile of its spacing is taken, though never finer than the others: the median would throw away thin slices.
    """
    spacings = np.array([fact.spacing for fact in facts])
    shapes = np.median([fact.shape for fact in facts], axis=0)
    target = np.median(spacings, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    coarse = float(target[others].max())
    if target[worst] > ANISOTROPIC * coarse and shapes[worst] * ANISOTROPIC < shapes[others].min():
        target[worst] = max(float(np.percentile(spacings[:, worst], 10)), coarse)
    r, a, s = (float(f"{value:.6g}") for value in target)  # 0.6249999 from a float32 header is 0.625
    return r, a, s


def median_shape(facts: Sequence[CaseFacts], grid: Sequence[float | None]) -> Shape3:
    """Median extents in voxels after resampling to `grid` mm (None: not resampled)."""
    extents = [
        [resampled_extent(n, own, to) for n, own, to in zip(f.shape, f.spacing, grid, strict=True)] for f in facts
    ]
    x, y, z = (round(float(value)) for value in np.median(extents, axis=0))
    return x, y, z
