"""Crops from preprocessed volumes, with stateless randomness.

Every sample's random numbers come from (seed, step, stream, index) alone. What a step sees therefore does not depend on
how many steps ran before, on prefetching, or on an interruption.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from seg.infer.volume import Shape3

LABELED, UNLABELED = 0, 1
FOREGROUND_VOXELS = 1 << 16  # of a case, evenly taken, are candidates for the place of a crop

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Sample:
    """A case ready for cropping.

    Attributes
    ----------
    id : case name, for messages.
    image : (C, X, Y, Z) on the network grid; `image * slope + offset` is float32 and normalised.
    label : (X, Y, Z) uint8 class indices on the same grid, or None.
    """

    id: str
    image: NDArray[np.float32] | NDArray[np.int16]
    label: NDArray[np.uint8] | None
    slope: float = 1.0
    offset: float = 0.0

    @cached_property
    def foreground(self) -> NDArray[np.int64]:
        """Flat indices of labelled voxels, searched once."""
        voxels = np.flatnonzero(self.label) if self.label is not None else np.zeros(0, np.int64)
        return voxels[:: -(-len(voxels) // FOREGROUND_VOXELS) or 1]


@dataclass(frozen=True)
class Crops:
    """A batch of crops before augmentation: image (B, C, X, Y, Z), label (B, X, Y, Z) or None, and the cases' names.

    `bank` is (B, K + 1, X, Y, Z) of 255 * `Batch.bank`, or None.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8] | None
    ids: tuple[str, ...]
    bank: NDArray[np.uint8] | None = None


def random_numbers(seed: int, step: int, stream: int, index: int) -> np.random.Generator:
    """The generator of one sample."""
    return np.random.default_rng((seed, step, stream, index))


def draw(
    samples: Sequence[Sample],
    count: int,
    window: Shape3,
    *,
    inner: Shape3 | None = None,
    seed: int,
    step: int,
    stream: int,
    first: int = 0,
    foreground: float = 0.0,
    overhang: float = 0.0,
    flips: Sequence[int] = (),
    rotate: bool = False,
    bank: Mapping[str, NDArray[np.uint8]] | None = None,
) -> Crops:
    """Draw `count` crops for one step.

    Parameters
    ----------
    window : crop extent in voxels. Beyond an end of the volume are 0, the mean after normalisation.
    inner : extent of the part in the middle that trains, which is what is placed; `window` by default.
    first : index of the first crop in the step's whole batch, of which other processes draw the rest.
    foreground : probability that a labelled crop contains a random foreground voxel at a random place.
    overhang : share of the part that trains that may lie beyond an end of the volume; more where the volume is smaller.
    flips : axes that are mirrored with probability 1/2 each.
    rotate : rotate by a multiple of 90 degrees in the x-y plane (window x and y must be equal), as the papers do.
    bank : pseudo-labels (K + 1, X, Y, Z) of cases, cropped alike.
    """
    images, labels, ids, priors = [], [], [], []
    depth = len(next(iter(bank.values()))) if bank else 0
    for index in range(first, first + count):
        rng = random_numbers(seed, step, stream, index)
        sample = samples[int(rng.integers(len(samples)))]
        placed = _place(sample, inner or window, rng, foreground, overhang)
        start = [s - (w - i) // 2 for s, w, i in zip(placed, window, inner or window, strict=True)]
        image, label = _crop(sample, window, start)
        axes = [axis for axis in flips if rng.random() < 0.5]
        turns = int(rng.integers(4)) if rotate else 0
        images.append(_turned(image, axes, turns))
        if label is not None:
            labels.append(_turned(label, axes, turns))
        if bank:
            stored = bank.get(sample.id)
            prior = np.zeros((depth, *window), np.uint8)
            if stored is not None:
                inside, source = _overlap(window, start, stored.shape[1:])
                prior[(slice(None), *inside)] = stored[(slice(None), *source)]
            priors.append(_turned(prior, axes, turns))
        ids.append(sample.id)
    stacked = [np.stack(parts) if parts else None for parts in (labels, priors)]
    return Crops(np.stack(images), stacked[0], tuple(ids), stacked[1])


def _turned(array: NDArray[T], axes: list[int], turns: int) -> NDArray[T]:
    """Rotate and mirror the last three axes; a view."""
    array = np.rot90(array, turns, axes=(-3, -2)) if turns else array
    return np.flip(array, tuple(axis - 3 for axis in axes)) if axes else array


def _place(sample: Sample, window: Shape3, rng: np.random.Generator, foreground: float, overhang: float) -> list[int]:
    """First voxel of a random window, which may overhang the volume.

    Inference computes scans whole, among zeros up to the network's stride. Where windows of about a scan's size lie
    within it, the network hardly knows those, and one pass is 0.6 points of Dice below tiles of the window's size
    (hippocampus, CrossMatch, mean of four runs; none with overhang: benchmarks/results/tiles-overhang.json).
    """
    shape = sample.image.shape[1:]
    lowest = [min(0, n - w) - int(w * overhang) for n, w in zip(shape, window, strict=True)]
    highest = [max(0, n - w) + int(w * overhang) for n, w in zip(shape, window, strict=True)]
    start = [int(rng.integers(low, high + 1)) for low, high in zip(lowest, highest, strict=True)]
    if sample.label is not None and rng.random() < foreground and len(voxels := sample.foreground):
        at = np.unravel_index(int(voxels[rng.integers(len(voxels))]), shape)
        for axis, (place, w) in enumerate(zip(at, window, strict=True)):
            offset = int(rng.integers(w))
            start[axis] = int(np.clip(int(place) - offset, lowest[axis], highest[axis]))
    return start


def _overlap(window: Shape3, start: Sequence[int], shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where the volume lies in the window, and which part of it."""
    inside = tuple(slice(max(0, -s), max(0, min(w, n - s))) for s, w, n in zip(start, window, shape, strict=True))
    return inside, tuple(slice(max(0, s), s + w) for s, w in zip(start, window, strict=True))


def _crop(sample: Sample, window: Shape3, start: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    image = np.zeros((len(sample.image), *window), np.float32)
    inside, source = _overlap(window, start, sample.image.shape[1:])
    part = np.multiply(sample.image[(slice(None), *source)], np.float32(sample.slope), dtype=np.float32)
    image[(slice(None), *inside)] = part + np.float32(sample.offset)
    if sample.label is None:
        return image, None
    label = np.zeros(window, np.uint8)
    label[inside] = sample.label[source]
    return image, label
