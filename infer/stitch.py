"""The streaming stitch: overlapping windows in, finished layers out, memory bounded by one window's depth.

Windows are visited with the streaming axis outermost. Weighted scores are summed in a ring buffer as deep as a window;
once no later window touches a layer it is normalised, handed on, and its row reused. Window positions form a product
grid and the weight is a product of three 1-D profiles, so the sum of weights is a product of three vectors as well: no
weight volume exists. Two classes need one channel (score of class 1 against 0). Sums are float32.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .arrays import module_of
from .volume import Shape3

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Tiling:
    """Where windows stand and how they are weighted. All extents in voxels of the padded network grid.

    Attributes
    ----------
    shape : padded grid.
    window : window extent.
    starts : first voxel of the windows along each axis, increasing, the last one flush with the border.
    weighting : "uniform", or "gaussian" (sigma = window / 8, floored at 1e-3 of its peak).
    stream_axis : axis along which layers come and go; None chooses it.
    blend : average "logit"s, or "probability" (softmax first), as the papers' evaluation does.
    """

    shape: Shape3
    window: Shape3
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    weighting: Literal["uniform", "gaussian"] = "gaussian"
    blend: Literal["logit", "probability"] = "logit"
    stream_axis: int | None = None

    @property
    def axis(self) -> int:
        """The streaming axis: where one window covers the least of the extent, so that the ring buffer is smallest."""
        if self.stream_axis is not None:
            return self.stream_axis
        return min(range(3), key=lambda a: (self.window[a] / self.shape[a], -self.shape[a]))

    @property
    def windows(self) -> int:
        """Number of windows."""
        return int(np.prod([len(s) for s in self.starts]))


def window_starts(extent: int, window: int, step: int) -> tuple[int, ...]:
    """Positions 0, step, 2 step, ... and a last one flush with the border. `extent` >= `window`."""
    if not 1 <= step <= window <= extent:
        raise ValueError(f"need 1 <= step <= window <= extent, found {step}, {window}, {extent}")
    last = extent - window
    return (*range(0, last, step), last)


def profile(window: int, weighting: str) -> Array:
    """(window,) float32 weights along one axis."""
    if weighting == "uniform":
        return np.ones(window, np.float32)
    at = np.arange(window) - (window - 1) / 2
    weights: Array = np.maximum(np.exp(-0.5 * (at / (window / 8)) ** 2), 1e-3).astype(np.float32)
    return weights


@dataclass(frozen=True)
class _Axis:
    """One axis in streaming order: extent, window, window starts, 1-D weights and their sum over all windows."""

    extent: int
    window: int
    starts: tuple[int, ...]
    weights: Array
    coverage: Array

    @classmethod
    def of(cls, tiling: Tiling, axis: int) -> "_Axis":
        weights = profile(tiling.window[axis], tiling.weighting)
        coverage = np.zeros(tiling.shape[axis], np.float32)
        for start in tiling.starts[axis]:
            coverage[start : start + len(weights)] += weights
        return cls(tiling.shape[axis], tiling.window[axis], tiling.starts[axis], weights, coverage)


def stream(
    layers: Iterator[Array], tiling: Tiling, run: Callable[[Array], Array], batch: int = 1, *, two_class: bool = True
) -> Iterator[Array]:
    """Yield the finished score layers along `tiling.axis`, in order.

    Parameters
    ----------
    layers : the padded grid's layers along `tiling.axis`, in order, (C, B, C') float32. They are taken as windows need
        them; one window's depth is held.
    run : (N, C, *window) -> (N, K, *window) logits.
    batch : windows per call of `run`.
    two_class : reduce two channels to their difference; False when the channels are features, not logits.

    Yields
    ------
    (K, B, C') float32 mean scores of one layer; (1, B, C') for two classes. Valid until the next step.
    """
    order = (tiling.axis, *(axis for axis in range(3) if axis != tiling.axis))
    a, b, c = (_Axis.of(tiling, axis) for axis in order)
    slab = _Slab(layers, a.window)
    ring: Array | None = None
    places = list(product(b.starts, c.starts))
    for start, following in zip(a.starts, (*a.starts[1:], a.extent), strict=True):
        source = slab.advance(start)
        xp = module_of(source)  # windows, sums and scores stay where the layers are
        if ring is None:
            weight = xp.asarray(a.weights[:, None, None] * b.weights[:, None] * c.weights)
            scale = xp.asarray(1.0 / (b.coverage[:, None] * c.coverage))
        for some in (places[i : i + batch] for i in range(0, len(places), batch)):
            cuts = [source[:, :, j : j + b.window, k : k + c.window] for j, k in some]
            tiles = _run_in_ras(run, cuts, order)
            tiles = _scores(tiles, tiling.blend) if two_class or tiles.shape[1] != 2 else tiles
            if tiling.windows == 1:
                yield from xp.moveaxis(tiles[0], 1, 0)
                return
            if ring is None:
                ring = xp.zeros((tiles.shape[1], a.window, b.extent, c.extent), np.float32)
            for (j, k), tile in zip(some, tiles, strict=True):
                _add(ring[:, :, j : j + b.window, k : k + c.window], tile, weight, start)
        assert ring is not None
        for layer in range(start, following):
            row = ring[:, layer % a.window]
            yield row * (scale / a.coverage[layer])
            row[...] = 0.0


class _Slab:
    """One window's depth of incoming layers, moved forward as windows advance."""

    def __init__(self, layers: Iterator[Array], depth: int) -> None:
        self._layers, self._depth = layers, depth
        self._start = 0
        self._buffer: Array | None = None

    def advance(self, start: int) -> Array:
        """(C, depth, B, C') layers `start` to `start + depth`."""
        if self._buffer is None:
            first = next(self._layers)
            self._buffer = module_of(first).empty((len(first), self._depth, *first.shape[1:]), np.float32)
            self._buffer[:, 0] = first
            fresh = range(1, self._depth)
        else:
            moved = start - self._start
            self._buffer[:, : self._depth - moved] = self._buffer[:, moved:].copy()
            fresh = range(self._depth - moved, self._depth)
        for row in fresh:
            self._buffer[:, row] = next(self._layers)
        self._start = start
        return self._buffer


def _run_in_ras(run: Callable[[Array], Array], tiles: list[Array], order: tuple[int, ...]) -> Array:
    """Run (C, ...) tiles whose axes are in streaming order; (N, K, ...) logits come back in that order."""
    back = [int(i) + 1 for i in np.argsort(order)]
    xp = module_of(tiles[0])
    ready = [xp.ascontiguousarray(tile.transpose(0, *back)) for tile in tiles]
    logits = run(ready[0][np.newaxis] if len(ready) == 1 else xp.stack(ready))
    return logits.transpose(0, 1, *(axis + 2 for axis in order))


def _scores(logits: Array, blend: str) -> Array:
    """(N, K, ...) logits -> what is averaged: (N, K, ...), or (N, 1, ...) for two classes."""
    if logits.shape[1] == 2:
        margin: Array = logits[:, 1:] - logits[:, :1]
        if blend == "probability":
            margin = (0.5 * np.tanh(0.5 * margin)).astype(np.float32)
        return margin
    if blend == "logit":
        return logits
    scores: Array = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    return scores


def _add(ring: Array, tile: Array, weight: Array, start: int) -> None:
    """Add a weighted tile whose first layer is `start`; layer l lives in row l % depth."""
    row = start % ring.shape[1]
    split = ring.shape[1] - row
    ring[:, row:] += tile[:, :split] * weight[:split]
    if row:
        ring[:, :row] += tile[:, split:] * weight[split:]
