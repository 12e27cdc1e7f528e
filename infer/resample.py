"""Separable linear resampling of one axis, as a small matrix.

Positions are centre-aligned, so the field of view is kept exactly: with n samples resampled to m, output i lies at
input coordinate (i + 0.5) * n / m - 0.5. When m < n the triangle is widened to n / m samples, which keeps fine
structure from aliasing. Rows sum to 1; samples beyond the edge repeat the edge.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import module_of


def resampled_extent(extent: int, spacing: float, target: float | None) -> int:
    """Voxels along an axis after resampling `extent` voxels of `spacing` mm to `target` mm (None keeps them)."""
    return extent if target is None else max(1, round(extent * spacing / target))


@lru_cache(maxsize=64)
def linear_taps(n: int, m: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Neighbours and weights that turn n samples into m.

    Returns
    -------
    index : (m, T) input sample of each tap.
    weight : (m, T) float32, rows sum to 1.
    """
    scale = n / m
    radius = max(1.0, scale)
    centre = (np.arange(m) + 0.5) * scale - 0.5
    taps = 2 * int(np.ceil(radius)) if m != n else 1
    first = np.floor(centre - radius).astype(np.intp) + 1 if m != n else np.arange(m)
    index = first[:, None] + np.arange(taps)
    weight = np.maximum(0.0, 1.0 - np.abs(index - centre[:, None]) / radius)
    weight /= weight.sum(axis=1, keepdims=True)
    index, weight = np.clip(index, 0, n - 1), weight.astype(np.float32)
    index.setflags(write=False)
    weight.setflags(write=False)
    return index, weight


@lru_cache(maxsize=64)
def _matrix_in(xp: Any, n: int, m: int) -> Any:
    """`linear_matrix` as an array of the module `xp`."""
    return xp.asarray(linear_matrix(n, m))


@lru_cache(maxsize=64)
def linear_matrix(n: int, m: int) -> NDArray[np.float32]:
    """The same weights as a dense (m, n) float32 matrix: one BLAS product resamples an axis."""
    index, weight = linear_taps(n, m)
    matrix = np.zeros((m, n), np.float32)
    np.add.at(matrix, (np.arange(m)[:, None], index), weight)
    matrix.setflags(write=False)
    return matrix


def resample_plane(plane: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """(..., A, B) float32 planes -> (..., *shape) by two matrix products; equal extents are left alone."""
    (a, b), (m, n) = plane.shape[-2:], shape
    xp = module_of(plane)
    if n < b:  # shrink first, then grow: the fewest products
        plane = plane @ _matrix_in(xp, b, n).T
    if m != a:
        plane = _matrix_in(xp, a, m) @ plane
    if n > b:
        plane = plane @ _matrix_in(xp, b, n).T
    return plane
