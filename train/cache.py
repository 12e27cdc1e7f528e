"""Prepared cases as 16-bit integers: half the memory of float32, and a file to map where even that is too much.

A case becomes integers times a step over its own range, so a value moves by at most half a step. Normalised values are
counted in standard deviations; where the step would be coarser than STEP of one, the case stays float32.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg.infer.resample import resampled_extent
from seg.infer.spec import ModelSpec

from .facts import CaseFacts
from .grid import across_last
from .run import room_for
from .sampling import Sample

STEP = 1e-3  # standard deviations; bf16 rounds values near 1 by 4e-3
_LOWEST, _LEVELS = -(1 << 15), (1 << 16) - 1  # int16
_ALIGNMENT = 64  # bytes


def packed(sample: Sample) -> Sample:
    """The sample with its float32 image as int16."""
    low, high = float(sample.image.min()), float(sample.image.max())
    slope = (high - low) / _LEVELS
    if not 0 < slope <= STEP:
        return sample
    offset = low - _LOWEST * slope  # the least value becomes the least integer
    image = np.empty(sample.image.shape, np.int16)
    for stored, values in zip(image, sample.image, strict=True):  # a channel at a time
        np.copyto(stored, np.clip(np.rint((values - offset) / slope), _LOWEST, _LOWEST + _LEVELS), casting="unsafe")
    return replace(sample, image=image, slope=slope, offset=offset)


class Store:
    """Packed samples in a memory-mapped file of one folder; the kernel keeps in memory what fits, for all processes.

    One file for all: a mapped file stays open, and there may be more cases than files that a process may open.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._values = folder, folder / "values"
        self._lock, self._end = Lock(), 0
        self._mapped: NDArray[np.uint8] | None = None

    def put(self, sample: Sample) -> None:
        """Write a sample; threads may do so at once. Raises SegError, E-OUT-FULL, when there is no room."""
        small = packed(sample)
        arrays = [np.ascontiguousarray(array) for array in (small.image, small.label) if array is not None]
        sizes = [-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays]
        with self._lock:
            starts = [self._end + sum(sizes[:number]) for number in range(len(sizes))]
            self._end += sum(sizes)
            self._mapped = None  # the file grows
        with room_for(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(os.open(self._values, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
                for start, array in zip(starts, arrays, strict=True):
                    file.seek(start)
                    file.write(array.data)
            places = [(start, array.dtype.str, array.shape) for start, array in zip(starts, arrays, strict=True)]
            self._record(sample.id).write_text(json.dumps([places, small.slope, small.offset]))

    def get(self, case: str) -> Sample:
        """A sample that was put, perhaps by another process, after the last one was."""
        places, slope, offset = json.loads(self._record(case).read_text())
        image, *label = (self._array(*place) for place in places)
        return Sample(case, image, label[0] if label else None, slope, offset)

    def _array(self, start: int, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
        if self._mapped is None:
            self._mapped = np.memmap(self._values, np.uint8, "r")
        return self._mapped[start : start + prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def _record(self, case: str) -> Path:
        return self._folder / f"{hashlib.sha256(case.encode(errors='surrogateescape')).hexdigest()[:16]}.json"


def packed_bytes(facts: Iterable[CaseFacts], spec: ModelSpec) -> int:
    """Memory that the prepared cases take: int16 images and uint8 labels on the network's grid."""

    def voxels(shape: Sequence[int], spacing: Sequence[float]) -> int:
        return prod(resampled_extent(n, own, to) for n, own, to in zip(shape, spacing, spec.spacing, strict=True))

    turned = facts if spec.orientation == "RAS" else map(across_last, facts)
    return sum(voxels(fact.shape, fact.spacing) * (2 * len(spec.channels) + 1) for fact in turned)
