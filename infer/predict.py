"""One scan through one network: preprocess, tile, run, stitch, restore. No files, no command line."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations, repeat

import numpy as np
from numpy.typing import NDArray

from .arrays import module_of
from .backends import Backend, current_device, on_device
from .classes import Head
from .components import keep_largest
from .errors import Exit, SegError
from .plan import TilingOptions, choose_tiling
from .preprocess import Grids, forward_planes, restore, slow_axis
from .spec import ModelSpec
from .stitch import Array, Tiling, stream
from .volume import Volume

__all__ = ["TilingOptions", "segment"]

DEFAULT = TilingOptions()


def segment(
    volume: Volume,
    spec: ModelSpec,
    backend: Backend,
    options: TilingOptions = DEFAULT,
    *,
    tiling: Tiling | None = None,
    head: Head | None = None,
    mirror: tuple[int, ...] = (),
    batch: int = 1,
    probabilities: NDArray[np.uint8] | None = None,
) -> NDArray[np.unsignedinteger]:
    """Segment one scan.

    Parameters
    ----------
    volume : the scan, any orientation and spacing.
    tiling : from a plan; by default the whole scan in one pass, or as `options` say.
    head : the linear head, when `backend` returns features.
    mirror : average over all mirrorings along these axes of the network's grid (test-time augmentation).
    batch : windows per call of the backend.
    probabilities : (X, Y, Z, K - 1) uint8 in the scan's axis order, filled with 255 * probability of each class but the
        background.

    Returns
    -------
    labels : (X, Y, Z) uint8 or uint16 on the scan's own grid and axis order, values from `spec.label_values`; the
        largest part of each class alone if `spec` says so, which changes no probability.

    Raises
    ------
    SegError : E-NONFINITE when the network returns NaN or inf.
    """
    grids = Grids.of(volume.shape, volume.affine, spec)
    tiling = tiling or choose_tiling(grids.network, spec, options)
    if tiling.windows == 1:  # any axis will do: take the one that reads the scan in order
        tiling = replace(tiling, stream_axis=slow_axis(volume, grids))
    xp, run = on_device(backend)
    run = _mirrored(run, mirror) if mirror else run
    padded = map(xp.asarray, _padded(forward_planes(volume, spec, grids, tiling.axis), grids, tiling))
    scores = _cropped(stream(padded, tiling, run, batch, two_class=head is None), grids, tiling)
    with current_device(backend):
        labels = restore(
            scores,
            tiling.axis,
            grids,
            spec.label_values,
            head=head,
            probabilities=probabilities,
            blended=tiling.blend == "probability",
        )
    return keep_largest(labels) if spec.largest_component else labels


def _margins(grids: Grids, tiling: Tiling) -> list[tuple[int, int]]:
    """Voxels added before and after each axis: the scan stands in the middle, as in the papers' evaluation."""
    total = [padded - n for padded, n in zip(tiling.shape, grids.network, strict=True)]
    return [(t // 2, t - t // 2) for t in total]


def _padded(planes: Iterator[Array], grids: Grids, tiling: Tiling) -> Iterator[Array]:
    """Layers of the padded grid: 0, the mean after normalisation, around the scan."""
    margins = _margins(grids, tiling)
    before, after = margins.pop(tiling.axis)
    channels = 1
    if before:
        first = next(planes)
        channels, planes = len(first), chain([first], planes)
    rows, columns = (n for axis, n in enumerate(tiling.shape) if axis != tiling.axis)
    empty = np.zeros((channels, rows, columns), np.float32)
    yield from repeat(empty, before)
    plane = empty
    for plane in planes:
        yield np.pad(plane, [(0, 0), *margins]) if any(map(any, margins)) else plane
    yield from repeat(np.zeros((len(plane), rows, columns), np.float32), after)


def _cropped(layers: Iterator[Array], grids: Grids, tiling: Tiling) -> Iterator[Array]:
    """Score layers of the unpadded grid, checked for NaN and inf."""
    margins = _margins(grids, tiling)
    first = margins[tiling.axis][0]
    last = first + grids.network[tiling.axis]
    rows, columns = (slice(m[0], m[0] + grids.network[a]) for a, m in enumerate(margins) if a != tiling.axis)
    for number, layer in enumerate(layers):
        if not first <= number < last:
            continue
        inside = layer[:, rows, columns]
        if not np.isfinite(inside.sum(dtype=np.float64)):
            raise SegError(
                "E-NONFINITE",
                Exit.RUNTIME,
                "",
                "the network returned NaN or inf",
                "export the model again",
            )
        yield inside


def _mirrored(run: Callable[[Array], Array], along: Sequence[int]) -> Callable[[Array], Array]:
    """The mean over all mirrorings along these axes of the grid: eight along three."""
    last = [axis - 3 for axis in along]
    mirrorings = [axes for count in range(len(last) + 1) for axes in combinations(last, count)]

    def averaged(x: Array) -> Array:
        xp = module_of(x)
        total: Array = xp.array(run(x), np.float32)
        for axes in mirrorings[1:]:
            total += xp.flip(run(xp.ascontiguousarray(xp.flip(x, axes))), axes)
        total /= len(mirrorings)
        return total

    return averaged
