"""Preprocessing: scan -> network grid, and its exact inverse: network logits -> labels on the scan's own grid.

Both are streams of planes: `forward_planes` hands out the network grid layer by layer, `restore` takes the scores layer
by layer. Neither holds more than a few planes: an int16 scan is never copied to float32 as a whole, and no score volume
exists.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .arrays import to_host
from .classes import Head, classes_of, probabilities_of
from .errors import Exit, SegError
from .resample import linear_taps, resample_plane, resampled_extent
from .spec import ModelSpec, Normalisation
from .volume import Reorientation, Shape3, Volume, spacing_of

Plane = NDArray[np.float32]  # (K, B, C): K scores over one layer of the network grid


@dataclass(frozen=True)
class Grids:
    """The two lattices of one scan: its own and the network's. From the header alone.

    Attributes
    ----------
    turn : scan axis order -> the network's, RAS unless the spec says otherwise.
    scan : (X, Y, Z) of the scan after `turn`, voxels.
    network : (X, Y, Z) of the network grid, voxels, before padding.
    """

    turn: Reorientation
    scan: Shape3
    network: Shape3

    @classmethod
    def of(cls, shape: Shape3, affine: NDArray[np.float64], spec: ModelSpec) -> "Grids":
        """Grids for a scan of `shape` voxels at `affine` (voxel -> mm, RAS)."""
        spacing = spacing_of(affine)
        stored = spec.orientation == "slices"
        turn = Reorientation.of_slices(shape, spacing.tolist()) if stored else Reorientation.to_ras(affine)
        x, y, z = (shape[axis] for axis in turn.axes)
        i, j, k = (
            resampled_extent(shape[axis], float(spacing[axis]), target)
            for axis, target in zip(turn.axes, spec.spacing, strict=True)
        )
        return cls(turn, (x, y, z), (i, j, k))


def forward(volume: Volume, spec: ModelSpec) -> tuple[NDArray[np.float32], Grids]:
    """Reorient, resample and normalise a whole scan.

    Returns
    -------
    x : (C, X, Y, Z) float32 on the network grid, unpadded.
    grids : what `restore` needs.

    Raises
    ------
    ValueError : if the number of channels is not the model's.
    """
    grids = Grids.of(volume.shape, volume.affine, spec)
    axis = slow_axis(volume, grids)
    out = np.empty((len(volume.voxels), *grids.network), np.float32)
    target = np.moveaxis(out, axis + 1, 0)
    for row, plane in enumerate(forward_planes(volume, spec, grids, axis)):
        target[row] = plane
    return out, grids


def slow_axis(volume: Volume, grids: Grids) -> int:
    """The RAS axis along which the scan's planes lie together in memory: the cheapest to stream along."""
    return int(np.argmax(np.abs(grids.turn.apply(volume.voxels[0]).strides)))


def forward_planes(volume: Volume, spec: ModelSpec, grids: Grids, axis: int) -> Iterator[NDArray[np.float32]]:
    """The network grid's layers along `axis`, in order: (C, B, C') float32 each, normalised, unpadded.

    Holds two or three planes of float32; the stored voxels are never copied as a whole.

    Raises
    ------
    ValueError : if the number of channels is not the model's.
    """
    if len(volume.voxels) != len(spec.channels):
        raise ValueError(f"{len(volume.voxels)} channels, the model takes {len(spec.channels)}: {spec.channels}")
    sources = [np.moveaxis(grids.turn.apply(channel), axis, 0) for channel in volume.voxels]
    rules = [_Intensity.of(channel, volume.slope, volume.intercept, spec.normalisation) for channel in volume.voxels]
    plane_shape = tuple(n for a, n in enumerate(grids.network) if a != axis)

    def layer(number: int) -> Plane:
        planes = [rule.apply(source[number]) for source, rule in zip(sources, rules, strict=True)]
        return resample_plane(np.stack(planes), (plane_shape[0], plane_shape[1]))

    return _resampled(map(layer, range(grids.scan[axis])), grids.network[axis], grids.scan[axis])


@dataclass(frozen=True)
class _Intensity:
    """Stored value -> network input, in this order: slope, intercept, clip, minus mean, times scale."""

    slope: np.float32
    intercept: np.float32
    lower: float | None
    upper: float | None
    mean: np.float32
    scale: np.float32

    @classmethod
    def of(cls, stored: NDArray[np.generic], slope: float, intercept: float, norm: Normalisation) -> "_Intensity":
        """For "zscore", mean and deviation of one channel's voxels; one pass, plane by plane.

        Raises
        ------
        SegError : E-INTENSITY, exit 12, when float32 cannot hold a square.
        """
        rule = cls(np.float32(slope), np.float32(intercept), norm.lower, norm.upper, np.float32(0), np.float32(1))
        if norm.kind == "fixed":
            return replace(rule, mean=np.float32(norm.mean), scale=np.float32(1.0 / norm.std))
        planes = np.moveaxis(stored, int(np.argmax(np.abs(stored.strides))), 0)
        # A value near the mean is subtracted first: float32 then keeps small contrasts on a large offset.
        near = rule.apply(planes[len(planes) // 2]).mean(dtype=np.float64)
        shifted = replace(rule, mean=np.float32(near))
        total = square = 0.0
        for plane in planes:
            flat = shifted.apply(plane).ravel()
            total += float(flat.sum(dtype=np.float64))
            with np.errstate(over="ignore"):
                square += float(np.dot(flat, flat))
        if not np.isfinite(square):
            found = "has values so large that all others become one, such as a mark where nothing was measured"
            fix = "set those voxels to the value of the background"
            raise SegError("E-INTENSITY", Exit.INPUT_REFUSED, "", found, fix)
        rest = total / stored.size
        std = float(np.sqrt(max(square / stored.size - rest * rest, 0.0)))
        mean = float(shifted.mean) + rest
        constant = std <= 1e-7 * max(1.0, abs(mean))  # rounding alone: such a scan becomes zeros
        return replace(rule, mean=np.float32(mean), scale=np.float32(0.0 if constant else 1 / std))

    def apply(self, stored: NDArray[np.generic]) -> NDArray[np.float32]:
        """(A, B) stored values -> (A, B) float32 network input."""
        plane = stored.astype(np.float32)
        if self.slope != 1 or self.intercept != 0:
            plane *= self.slope
            plane += self.intercept
        if self.lower is not None or self.upper is not None:
            np.clip(plane, self.lower, self.upper, out=plane)
        plane -= self.mean
        plane *= self.scale
        return plane


def restore(
    planes: Iterable[Plane],
    axis: int,
    grids: Grids,
    label_values: tuple[int, ...],
    *,
    head: Head | None = None,
    probabilities: NDArray[np.uint8] | None = None,
    blended: bool = False,
) -> NDArray[np.unsignedinteger]:
    """Network scores -> labels on the scan's own grid and axis order, one plane at a time.

    Parameters
    ----------
    planes : the network grid's layers along `axis`, in order; (K, B, C) scores with K > 1 classes, or (1, B, C) with
        the score of class 1 against class 0. Scores are interpolated linearly, then reduced to labels.
    axis : the axis of the network grid (RAS order) along which the planes come.
    label_values : value written for each class.
    head : the network's last layer, when the planes are features.
    probabilities : (X, Y, Z, K - 1) uint8, scan axis order; filled with 255 * p of classes 1 to K - 1.
    blended : the scores are probabilities (see `Tiling.blend`), not logits.

    Returns
    -------
    labels : (X, Y, Z) in the scan's stored axis order, uint8, or uint16 if a value needs it.
    """
    dtype = np.uint8 if max(label_values) < 256 else np.uint16
    # Fortran order is how NIfTI stores voxels: writing such a mask copies nothing.
    labels = np.zeros(_inverse_shape(grids), dtype, order="F")
    view = np.moveaxis(grids.turn.apply(labels), axis, 0)
    table = np.asarray(label_values, dtype)
    plain = label_values == tuple(range(len(label_values)))
    channels = [] if probabilities is None else [probabilities[..., k] for k in range(probabilities.shape[3])]
    maps = [np.moveaxis(grids.turn.apply(channel), axis, 0) for channel in channels]
    for row, plane in enumerate(_resampled(iter(planes), len(view), grids.network[axis])):
        scores = resample_plane(plane, view.shape[1:])
        classes = to_host(classes_of(scores, head))
        view[row] = classes if plain else table[classes]
        if maps:
            found = to_host(probabilities_of(scores, head, blended=blended))
            for target, p in zip(maps, found[1:], strict=True):
                target[row] = np.rint(p * 255)
    return labels


def _inverse_shape(grids: Grids) -> Shape3:
    order = np.argsort(grids.turn.axes)
    x, y, z = (grids.scan[int(axis)] for axis in order)
    return x, y, z


def _resampled(planes: Iterator[Plane], rows: int, layers: int) -> Iterator[Plane]:
    """Linear interpolation along the stream: yields `rows` planes from `layers` incoming ones, holding a few."""
    index, weight = linear_taps(layers, rows)
    held: dict[int, Plane] = {}
    arrived = 0
    for taps, factors in zip(index, weight, strict=True):
        while arrived <= taps.max():
            held[arrived] = next(planes)
            arrived += 1
        for old in [k for k in held if k < taps.min()]:
            del held[old]
        used = [(held[t], f) for t, f in zip(taps.tolist(), factors, strict=True) if f > 0]
        plane = used[0][0] * used[0][1] if len(used) > 1 else used[0][0]
        for other, factor in used[1:]:
            plane += other * factor
        yield plane
    for _ in planes:  # let the producer finish its last steps
        pass
