"""Figures about a mask: how much of each class there is, and where. It knows nothing of intensities.

Everything follows from one thing, the number of voxels of each class in each plane across each axis: their sum is the
volume, their first and last non-zero planes are the bounding box, their mean is the centroid.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SLAB_VOXELS = 1 << 19  # voxels looked at together; where all are foreground each takes about 70 bytes

Counts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def mask_statistics(
    mask: NDArray[np.generic],
    affine: NDArray[np.float64],
    labels: Sequence[str],
    label_values: Sequence[int],
) -> dict[str, dict[str, Any]]:
    """Volume, extent and position of each class.

    Parameters
    ----------
    mask : (X, Y, Z) integer or boolean label values, in the scan's axis order and any memory order.
    affine : (4, 4) voxel index -> mm, RAS.
    labels : class names.
    label_values : mask value of each name. The class of value 0, the background, is left out of the result.

    Returns
    -------
    dict
        Per class name, ready for JSON: ``label`` (mask value), ``voxels``, ``volume_mm3``, ``volume_ml``, ``empty``,
        ``touches_border`` (a voxel lies on the border of the array, so the structure may go on outside the scan),
        ``bounding_box`` ([first, last] voxel index per axis, last included) and ``centroid_ras_mm``. The last two are
        None for an empty class.

    Raises
    ------
    ValueError : mask not 3-D or not of integers, or it holds a value that is not in `label_values`.
    """
    voxel_mm3 = float(abs(np.linalg.det(np.asarray(affine, np.float64)[:3, :3])))
    foreground = [(name, value) for name, value in zip(labels, label_values, strict=True) if value != 0]
    counts = plane_counts(mask, [value for _, value in foreground])
    result: dict[str, dict[str, Any]] = {}
    for row, (name, value) in enumerate(foreground):
        planes = [axis[row] for axis in counts]
        voxels = int(planes[0].sum())
        extents = [np.flatnonzero(p) for p in planes]
        result[name] = {
            "label": int(value),
            "voxels": voxels,
            "volume_mm3": voxels * voxel_mm3,
            "volume_ml": voxels * voxel_mm3 / 1000.0,
            "empty": voxels == 0,
            "touches_border": any(bool(p[0] or p[-1]) for p in planes if len(p)),
            "bounding_box": [[int(e[0]), int(e[-1])] for e in extents] if voxels else None,
            "centroid_ras_mm": _centroid(planes, affine) if voxels else None,
        }
    return result


def plane_counts(mask: NDArray[np.generic], label_values: Sequence[int]) -> Counts:
    """Voxels of each class in each plane across each axis, in one pass that needs a few slabs of memory.

    Parameters
    ----------
    mask : (X, Y, Z) integer or boolean label values, any memory order.
    label_values : the K non-zero values the mask may hold besides 0, distinct.

    Returns
    -------
    counts : three int64 arrays of shape (K, X), (K, Y) and (K, Z).

    Raises
    ------
    ValueError : as for `mask_statistics`.
    """
    if mask.ndim != 3 or mask.dtype.kind not in "biu":
        raise ValueError(f"mask must be (X, Y, Z) integers, found {mask.dtype} of shape {mask.shape}")
    values = np.sort(np.asarray(label_values, np.int64))
    rows = np.argsort(np.asarray(label_values, np.int64))
    counts = [np.zeros((len(values), n), np.int64) for n in mask.shape]
    # Walked in memory order, so that a Fortran-ordered mask, as NIfTI stores it, is read as fast as a C-ordered one.
    order = sorted(range(3), key=lambda axis: -abs(mask.strides[axis]))
    walked = mask.transpose(order)
    _, wide, deep = walked.shape
    step = max(1, SLAB_VOXELS // max(1, wide * deep))
    for start in range(0, len(walked), step):
        slab = walked[start : start + step].reshape(-1)
        where = np.flatnonzero(slab)  # most of a mask is background: only the rest is worth more than a look
        if not len(where):
            continue
        found = slab[where].astype(np.int64)
        known = np.isin(found, values)
        if not known.all():
            raise ValueError(f"mask holds the value {found[~known][0]}, expected 0 or one of {values.tolist()}")
        row = rows[np.searchsorted(values, found)]
        line, k = np.divmod(where, deep)
        i, j = np.divmod(line, wide)
        for axis, index in zip(order, (start + i, j, k), strict=True):
            n = mask.shape[axis]
            counts[axis] += np.bincount(row * n + index, minlength=len(values) * n).reshape(-1, n)
    return counts[0], counts[1], counts[2]


def _centroid(planes: Sequence[NDArray[np.int64]], affine: NDArray[np.float64]) -> list[float]:
    """Centre of mass in mm, RAS."""
    index = [float(np.arange(len(p)) @ p / p.sum()) for p in planes]
    return [float(v) for v in (affine @ np.array([*index, 1.0]))[:3]]
