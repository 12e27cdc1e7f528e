"""One scan through one network: preprocess, tile, run, stitch, restore. No files, no command line."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .backends import Backend
from .errors import Exit, SegError
from .preprocess import Grids, forward, restore
from .spec import ModelSpec
from .stitch import Array, Tiling, stream, window_starts
from .volume import Shape3, Volume

TILE_VOXELS = 6_000_000  # network-grid voxels of the largest single pass


@dataclass(frozen=True)
class TilingOptions:
    """What the user may ask of the tiling; None leaves it to the plan.

    Attributes
    ----------
    window : tile extent in voxels of the network grid (RAS), rounded up to the network's stride.
    overlap : share of the window that neighbouring tiles have in common, 0 <= overlap < 1.
    """

    window: Shape3 | None = None
    overlap: float | None = None
    weighting: Literal["uniform", "gaussian"] = "gaussian"
    blend: Literal["logit", "probability"] = "logit"


def choose_tiling(shape: Shape3, spec: ModelSpec, options: TilingOptions = TilingOptions()) -> Tiling:
    """The tiling for a network grid of `shape` voxels, from its extent alone.

    The whole grid in one pass when it fits and the spec allows it; else equal tiles, as large as fit, along the longest
    axes first, overlapping where they meet. A given window is used as it is.
    """
    strides = spec.stride
    if options.window is not None:
        window = _multiple(options.window, strides)
        overlap = 0.5 if options.overlap is None else options.overlap
    elif spec.tiling == "window":
        window, overlap = spec.window, 0.5 if options.overlap is None else options.overlap
    else:
        overlap = 0.25 if options.overlap is None else options.overlap
        window = _largest_tile(_multiple(shape, strides), strides, overlap)
    padded = _multiple(tuple_max(shape, window), strides)
    window = tuple_min(window, padded)
    steps = [max(1, round(w * (1.0 - overlap))) for w in window]
    x, y, z = (window_starts(n, w, s) for n, w, s in zip(padded, window, steps, strict=True))
    return Tiling(padded, window, (x, y, z), options.weighting, options.blend)


def _largest_tile(padded: Shape3, strides: Shape3, overlap: float) -> Shape3:
    """Cut the longest axis into one tile more until a tile fits."""
    tile, cuts = padded, [1, 1, 1]
    while np.prod(tile) > TILE_VOXELS:
        axis = int(np.argmax(tile))
        cuts[axis] += 1
        extent = padded[axis] / (cuts[axis] - (cuts[axis] - 1) * overlap)
        smaller = list(tile)
        smaller[axis] = min(tile[axis] - strides[axis], -(-int(np.ceil(extent)) // strides[axis]) * strides[axis])
        if smaller[axis] < strides[axis]:
            break
        tile = (smaller[0], smaller[1], smaller[2])
    return tile


def _multiple(shape: Shape3, strides: Shape3) -> Shape3:
    x, y, z = (-(-n // s) * s for n, s in zip(shape, strides, strict=True))
    return x, y, z


def tuple_max(a: Shape3, b: Shape3) -> Shape3:
    """Element-wise maximum."""
    return max(a[0], b[0]), max(a[1], b[1]), max(a[2], b[2])


def tuple_min(a: Shape3, b: Shape3) -> Shape3:
    """Element-wise minimum."""
    return min(a[0], b[0]), min(a[1], b[1]), min(a[2], b[2])


def segment(
    volume: Volume, spec: ModelSpec, backend: Backend, options: TilingOptions = TilingOptions()
) -> NDArray[np.unsignedinteger]:
    """Segment one scan.

    Parameters
    ----------
    volume : the scan, any orientation and spacing.

    Returns
    -------
    labels : (X, Y, Z) uint8 or uint16 on the scan's own grid and axis order, values from `spec.label_values`.

    Raises
    ------
    SegError : E-NONFINITE when the network returns NaN or inf.
    """
    x, grids = forward(volume, spec)
    tiling = choose_tiling(grids.network, spec, options)
    return restore(_layers(x, grids, tiling, backend), tiling.axis, grids, spec.label_values)


def _layers(x: Array, grids: Grids, tiling: Tiling, backend: Backend) -> Iterator[Array]:
    """Score layers of the unpadded network grid, checked for NaN and inf."""
    before = [(p - n) // 2 for p, n in zip(tiling.shape, grids.network, strict=True)]
    padding = [(0, 0)] + [(b, p - n - b) for b, p, n in zip(before, tiling.shape, grids.network, strict=True)]
    padded = np.pad(x, padding) if any(p != (0, 0) for p in padding) else x
    axis = tiling.axis
    crop = [slice(b, b + n) for b, n in zip(before, grids.network, strict=True)]
    first, last = crop[axis].start, crop[axis].stop
    rows, columns = (crop[a] for a in range(3) if a != axis)
    for number, layer in enumerate(stream(padded, tiling, backend.run)):
        if first <= number < last:
            inside = layer[:, rows, columns]
            if not np.isfinite(inside.sum(dtype=np.float64)):
                raise SegError(
                    "E-NONFINITE",
                    Exit.RUNTIME,
                    "",
                    "the network returned NaN or inf",
                    "run in fp32 (--precision fp32), or export the model again",
                )
            yield inside
