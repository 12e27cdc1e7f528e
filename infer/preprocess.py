"""Preprocessing: scan -> network grid, and its exact inverse: network logits -> labels on the scan's own grid.

`forward` reads the stored voxels once, plane by plane along their slowest axis, so an int16 scan is never copied to
float32 as a whole. `restore` takes the network's output as a stream of planes and keeps two of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .resample import linear_taps, resample_plane, resampled_extent
from .spec import ModelSpec
from .volume import Reorientation, Shape3, Volume, spacing_of

Plane = NDArray[np.float32]  # (K, B, C): K scores over one layer of the network grid


@dataclass(frozen=True)
class Grids:
    """The two lattices of one scan: its own and the network's. From the header alone.

    Attributes
    ----------
    turn : scan axis order -> RAS.
    scan : (X, Y, Z) of the scan after `turn`, voxels.
    network : (X, Y, Z) of the network grid, voxels, before padding.
    """

    turn: Reorientation
    scan: Shape3
    network: Shape3

    @classmethod
    def of(cls, shape: Shape3, affine: NDArray[np.float64], spec: ModelSpec) -> "Grids":
        """Grids for a scan of `shape` voxels at `affine` (voxel -> mm, RAS)."""
        turn = Reorientation.to_ras(affine)
        spacing = spacing_of(affine)
        x, y, z = (shape[axis] for axis in turn.axes)
        i, j, k = (
            resampled_extent(shape[axis], float(spacing[axis]), target)
            for axis, target in zip(turn.axes, spec.spacing, strict=True)
        )
        return cls(turn, (x, y, z), (i, j, k))


def forward(volume: Volume, spec: ModelSpec) -> tuple[NDArray[np.float32], Grids]:
    """Reorient, resample and normalise.

    Returns
    -------
    x : (C, X, Y, Z) float32 on the network grid, C-contiguous, unpadded.
    grids : what `restore` needs.

    Raises
    ------
    ValueError : if the number of channels is not the model's.
    """
    if len(volume.voxels) != len(spec.channels):
        raise ValueError(f"{len(volume.voxels)} channels, the model takes {len(spec.channels)}: {spec.channels}")
    grids = Grids.of(volume.shape, volume.affine, spec)
    out = np.empty((len(volume.voxels), *grids.network), np.float32)
    for channel, target in zip(volume.voxels, out, strict=True):
        _forward_channel(grids.turn.apply(channel), volume.slope, volume.intercept, spec, target)
    return out, grids


def _forward_channel(
    stored: NDArray[np.generic], slope: float, intercept: float, spec: ModelSpec, out: NDArray[np.float32]
) -> None:
    """One channel, RAS order: stream planes along the slowest axis of memory into `out` (X, Y, Z)."""
    norm = spec.normalisation
    slow = int(np.argmax(np.abs(stored.strides)))
    source, target = np.moveaxis(stored, slow, 0), np.moveaxis(out, slow, 0)
    index, weight = linear_taps(len(source), len(target))
    uses: list[list[tuple[int, np.float32]]] = [[] for _ in range(len(source))]
    for row, (taps, factors) in enumerate(zip(index, weight, strict=True)):
        for tap, factor in zip(taps, factors, strict=True):
            uses[tap].append((row, factor))
    target[...] = 0.0
    mean, std = norm.mean, norm.std
    if norm.kind == "zscore":  # a value near the mean is subtracted first: float32 then keeps small contrasts
        mean = float(np.float32(source[len(source) // 2].mean(dtype=np.float64) * slope + intercept))
    total = square = 0.0
    for layer, rows in zip(source, uses, strict=True):
        plane = layer.astype(np.float32)
        if (slope, intercept) != (1.0, 0.0):
            plane *= np.float32(slope)
            plane += np.float32(intercept)
        if norm.lower is not None or norm.upper is not None:
            np.clip(plane, norm.lower, norm.upper, out=plane)
        plane -= np.float32(mean)
        if norm.kind == "zscore":
            flat = plane.ravel()
            total += float(flat.sum(dtype=np.float64))
            square += float(np.dot(flat, flat))
        plane = resample_plane(plane, target.shape[1:])
        for row, factor in rows:
            target[row] += plane if factor == 1 else plane * factor
    if norm.kind == "zscore":
        rest = total / stored.size
        std = float(np.sqrt(max(square / stored.size - rest * rest, 0.0)))
        target -= np.float32(rest)
    # A constant scan becomes zeros: its deviation is rounding alone.
    target *= np.float32(1.0 / std if std > 1e-7 * max(1.0, abs(mean)) else 0.0)


def restore(
    planes: Iterable[Plane],
    axis: int,
    grids: Grids,
    label_values: tuple[int, ...],
) -> NDArray[np.unsignedinteger]:
    """Network scores -> labels on the scan's own grid and axis order, one plane at a time.

    Parameters
    ----------
    planes : the network grid's layers along `axis`, in order; (K, B, C) scores with K > 1 classes, or (1, B, C) with
        the score of class 1 against class 0. Scores are interpolated linearly, then reduced to labels.
    axis : the axis of the network grid (RAS order) along which the planes come.
    label_values : value written for each class.

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
    for row, plane in enumerate(_resampled(iter(planes), len(view), grids.network[axis])):
        scores = resample_plane(plane, view.shape[1:])
        classes = (scores[0] > 0).view(np.uint8) if len(scores) == 1 else scores.argmax(axis=0)
        view[row] = classes if plain else table[classes]
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
