"""Cases -> samples on the network's grid, through the preprocessing that ships. Read and prepared in threads."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from seg.infer.errors import Exit, SegError
from seg.infer.nifti import read
from seg.infer.preprocess import Grids, forward
from seg.infer.resample import resample_plane
from seg.infer.spec import ModelSpec
from seg.infer.volume import Volume

from .cases import Case
from .sampling import Sample

T = TypeVar("T")


def load_volume(case: Case, channels: int = 1) -> Volume:
    """The case's channels as one volume, on the first channel's grid (the data check has compared the grids).

    Parameters
    ----------
    channels : that a case has. A single file holds all of them, one after another in 4-D.
    """
    if len(case.images) == 1:
        return read(case.images[0], channels=channels, volume=case.frame).volume
    volumes = [read(path, channels=1).volume for path in case.images]
    return Volume(np.concatenate([v.intensities() for v in volumes]), volumes[0].affine)


def load_label(path: str, label_values: Sequence[int]) -> NDArray[np.uint8]:
    """(X, Y, Z) uint8 class indices in the file's axis order. Raises SegError for values beyond the classes."""
    volume = read(path).volume
    values = np.rint(volume.intensities()[0]).astype(np.int64)
    if values.min() < 0 or values.max() > max(label_values):
        found, fix = f"values from {values.min()} to {values.max()}", "give labels with the model's values"
        expected = ", ".join(map(str, label_values))
        raise SegError("E-DATA-LABEL-VALUES", Exit.INPUT_REFUSED, path, found, fix, expected)
    table = np.zeros(max(label_values) + 1, np.uint8)
    table[list(label_values)] = np.arange(len(label_values))
    indices: NDArray[np.uint8] = table[values]
    return indices


def label_on_network_grid(label: NDArray[np.uint8], grids: Grids, classes: int) -> NDArray[np.uint8]:
    """(X, Y, Z) class indices in scan order -> network grid: linear weights of each class, the largest wins."""
    turned = grids.turn.apply(label)
    if turned.shape == grids.network:
        return np.ascontiguousarray(turned)
    best = np.zeros(grids.network, np.float32)
    out = np.zeros(grids.network, np.uint8)
    for k in range(classes):
        plane = resample_plane((turned == k).astype(np.float32), grids.network[1:])
        flat = plane.reshape(1, len(plane), -1)
        weight = resample_plane(flat, (grids.network[0], flat.shape[2])).reshape(grids.network)
        wins = weight > best
        out[wins] = k
        np.maximum(best, weight, out=best)
    return out


def prepare(case: Case, spec: ModelSpec) -> Sample:
    """Read, preprocess and label one case."""
    image, grids = forward(load_volume(case, len(spec.channels)), spec)
    label = None
    if case.label is not None:
        label = label_on_network_grid(load_label(case.label, spec.label_values), grids, len(spec.labels))
    return Sample(case.id, image, label)


def prepare_all(cases: Sequence[Case], spec: ModelSpec, keep: Callable[[Sample], T]) -> list[T]:
    """All cases in order, each as `keep` returns it (see `cache`)."""

    def one(case: Case) -> T:
        return keep(prepare(case, spec))

    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(one, cases))
