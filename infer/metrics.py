"""How well a mask agrees with the truth: overlap and surface distances, with the values medpy gives.

Cases without a surface, where medpy raises, follow one rule. Both masks empty: perfect agreement (overlap 1, distances
0). One of them empty: complete failure (overlap 0, distances the length of the image's diagonal), so that a missed
structure can never improve an average.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import missing_extra

Mask = NDArray[np.bool_]


class Overlap(NamedTuple):
    """Overlap of two masks, each figure from 0 to 1."""

    dice: float
    jaccard: float
    accuracy: float
    precision: float
    recall: float


class SurfaceDistances(NamedTuple):
    """Distances between two surfaces in mm."""

    hd95: float
    asd: float
    assd: float


@dataclass(frozen=True)
class ClassMetrics:
    """Agreement of one class with the truth.

    Attributes
    ----------
    dice, jaccard, precision, recall : overlap, 0 to 1.
    accuracy : share of all voxels of the image on which both masks agree.
    hd95 : 95th percentile in mm of the surface distances of both directions taken together.
    asd : mean distance in mm from the prediction's surface to the truth's (medpy's one-directional asd).
    assd : mean of the distances of both directions taken together, in mm (medpy's assd since 0.5).
    """

    dice: float
    jaccard: float
    accuracy: float
    precision: float
    recall: float
    hd95: float
    asd: float
    assd: float


def overlap(pred: NDArray[np.generic], truth: NDArray[np.generic]) -> Overlap:
    """Overlap of two masks of any equal shape; non-zero is inside.

    Raises
    ------
    ValueError : if the shapes differ.
    """
    p, t = _pair(pred, truth)
    both, predicted, true = (int(np.count_nonzero(m)) for m in (p & t, p, t))
    either = predicted + true - both
    if either == 0:
        return Overlap(1.0, 1.0, 1.0, 1.0, 1.0)
    return Overlap(
        dice=2 * both / (predicted + true),
        jaccard=both / either,
        accuracy=1 - (either - both) / p.size,
        precision=both / predicted if predicted else 0.0,
        recall=both / true if true else 0.0,
    )


def surface_distances(
    pred: NDArray[np.generic], truth: NDArray[np.generic], spacing_mm: Sequence[float]
) -> SurfaceDistances:
    """Distances between the surfaces of two masks.

    A mask's surface is its voxels with a face neighbour outside the mask or the image (connectivity 1). Distances are
    between voxel centres.

    Parameters
    ----------
    pred, truth : masks of equal shape, non-zero is inside.
    spacing_mm : voxel edge length in mm for each array axis.

    Raises
    ------
    ValueError : if the shapes, or their dimension and the number of spacings, differ.
    SegError : ``E-EXTRA`` if scipy is not installed.
    """
    p, t = _pair(pred, truth)
    if len(spacing_mm) != p.ndim:
        raise ValueError(f"spacing must have one value per axis ({p.ndim}), found {len(spacing_mm)}")
    if not p.any() and not t.any():
        return SurfaceDistances(0.0, 0.0, 0.0)
    if not p.any() or not t.any():
        diagonal = float(np.linalg.norm(np.array(p.shape) * np.asarray(spacing_mm, np.float64)))
        return SurfaceDistances(diagonal, diagonal, diagonal)
    axes = [axis for axis, extent in enumerate(p.shape) if extent > 1]  # of one slice, the contour is the surface
    if 0 < len(axes) < p.ndim:
        p, t, spacing_mm = p.squeeze(), t.squeeze(), [spacing_mm[axis] for axis in axes]
    # The outside of an image counts as background, so cutting to the two masks changes neither surface nor distance.
    box = _bounding_box(p | t)
    forth, back = _directed(p[box], t[box], spacing_mm)
    either = np.concatenate([forth, back])
    return SurfaceDistances(float(np.percentile(either, 95)), float(forth.mean()), float(either.mean()))


def evaluate(
    pred: NDArray[np.generic], truth: NDArray[np.generic], label_values: Sequence[int], spacing: Sequence[float]
) -> dict[int, ClassMetrics]:
    """Metrics of each class of a label map.

    Parameters
    ----------
    pred, truth : label maps of equal shape.
    label_values : values to evaluate; 0, the background, is left out.
    spacing : voxel edge length in mm for each array axis.

    Raises
    ------
    ValueError, SegError : as for `surface_distances`.
    """
    if pred.shape != truth.shape:
        raise ValueError(f"prediction and truth differ in shape: {pred.shape} and {truth.shape}")
    result = {}
    for value in label_values:
        if value != 0:
            p, t = np.asarray(pred == value), np.asarray(truth == value)
            result[int(value)] = ClassMetrics(*overlap(p, t), *surface_distances(p, t, spacing))
    return result


def _pair(pred: NDArray[np.generic], truth: NDArray[np.generic]) -> tuple[Mask, Mask]:
    if pred.shape != truth.shape:
        raise ValueError(f"prediction and truth differ in shape: {pred.shape} and {truth.shape}")
    return pred.astype(np.bool_, copy=False), truth.astype(np.bool_, copy=False)


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box around a mask that is not empty."""
    box = []
    for axis in range(mask.ndim):
        planes = np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(planes[0]), int(planes[-1]) + 1))
    return tuple(box)


def _directed(pred: Mask, truth: Mask, spacing_mm: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances in mm of each surface voxel of `pred` to the surface of `truth`, and the other way round."""
    try:
        from scipy import ndimage
    except ImportError as error:
        raise missing_extra("scipy", "train") from error
    faces: Any = ndimage.generate_binary_structure(pred.ndim, 1)
    p, t = (m ^ ndimage.binary_erosion(m, faces) for m in (pred, truth))
    forth = ndimage.distance_transform_edt(~t, sampling=tuple(spacing_mm))[p]
    back = ndimage.distance_transform_edt(~p, sampling=tuple(spacing_mm))[t]
    return forth, back
