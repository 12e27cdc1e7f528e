"""Prepared cases as 16-bit integers: half the memory of float32, and files to map where even that is too much.

A case becomes integers times a step over its own range, so a value moves by at most half a step. Normalised values are
counted in standard deviations; where the step would be coarser than STEP of one, the case stays float32.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg.infer.resample import resampled_extent
from seg.infer.spec import ModelSpec

from .facts import CaseFacts
from .run import room_for
from .sampling import Sample

STEP = 1e-3  # standard deviations; bf16 rounds values near 1 by 4e-3
_LOWEST, _LEVELS = -(1 << 15), (1 << 16) - 1  # int16


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
    """Packed samples as memory-mapped files of one folder; the kernel keeps in memory what fits, for all processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, sample: Sample) -> Sample:
        """Write a sample; the one returned reads the files. Raises SegError, E-OUT-FULL, when there is no room."""
        small, path = packed(sample), self._path(sample.id)
        with room_for(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            np.save(f"{path}.image.npy", small.image)
            if small.label is not None:
                np.save(f"{path}.label.npy", small.label)
            Path(f"{path}.json").write_text(json.dumps([small.slope, small.offset]))
        return self.get(sample.id)

    def get(self, case: str) -> Sample:
        """A sample that was put, perhaps by another process."""
        path = self._path(case)
        slope, offset = json.loads(Path(f"{path}.json").read_text())
        label = Path(f"{path}.label.npy")
        return Sample(case, _mapped(f"{path}.image.npy"), _mapped(label) if label.exists() else None, slope, offset)

    def _path(self, case: str) -> Path:
        return self._folder / hashlib.sha256(case.encode(errors="surrogateescape")).hexdigest()[:16]


def _mapped(path: str | Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array


def packed_bytes(facts: Iterable[CaseFacts], spec: ModelSpec) -> int:
    """Memory that the prepared cases take: int16 images and uint8 labels on the network's grid."""

    def voxels(shape: Sequence[int], spacing: Sequence[float]) -> int:
        return prod(resampled_extent(n, own, to) for n, own, to in zip(shape, spacing, spec.spacing, strict=True))

    return sum(voxels(fact.shape, fact.spacing) * (2 * len(spec.channels) + 1) for fact in facts)
