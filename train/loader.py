"""Batches, one step ahead of the training: drawn in a thread, augmented on the device.

On a GPU the thread also copies and augments, on a stream of its own, so that the step finds its batch ready. On a CPU
the augmentation would compete with the step for the same cores, so it runs between two steps.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seg.infer.volume import Shape3

from .augment import WeakAugmentation, weak_augment_with
from .methods import Batch
from .processes import Processes
from .sampling import LABELED, UNLABELED, Crops, Sample, draw


@dataclass(frozen=True)
class Data:
    """Prepared cases; `unlabeled` may be empty for methods that do not use it.

    Attributes
    ----------
    edges : of a voxel, mm along each axis; their ratios count.
    """

    labeled: Sequence[Sample]
    unlabeled: Sequence[Sample]
    edges: tuple[float, ...] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Loaded:
    """A step's batch and the names of the cases it is made of."""

    batch: Batch
    ids: tuple[str, ...]
    ready: torch.cuda.Event | None = None  # until then the batch must not be read


class Loader:
    """Makes this process's part of each step's batch from (seed, step) alone.

    Parameters
    ----------
    labeled, unlabeled : windows of each kind in this process's batch.
    foreground : probability that a labelled window is placed on a foreground voxel.
    """

    def __init__(
        self,
        data: Data,
        labeled: int,
        unlabeled: int,
        window: Shape3,
        foreground: float,
        overhang: float,
        augmentation: WeakAugmentation,
        seed: int,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self.data, self.labeled, self.unlabeled, self.window = data, labeled, unlabeled, window
        self.foreground, self.overhang, self.augmentation, self.seed = foreground, overhang, augmentation, seed
        self.device, self.processes = device, processes
        self._stream = cast(Any, torch.cuda.Stream)(device) if device.type == "cuda" else None
        self._ahead: tuple[int, Future[Any]] | None = None
        self._reader = ThreadPoolExecutor(1)
        self._bank: Mapping[str, NDArray[np.uint8]] = {}

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._reader.shutdown(cancel_futures=True)

    def use(self, bank: Mapping[str, NDArray[np.uint8]]) -> None:
        """From the next step on, unlabelled windows come with these pseudo-labels (K + 1, X, Y, Z) by case."""
        self._bank = bank
        self._ahead = None  # drawn with the ones before

    def seed_of(self, step: int, use: int = 0) -> int:
        """The seed of a step: 0 of augmentation and perturbations in all processes, 1 + rank of a process's dropout."""
        sequence = np.random.SeedSequence((self.seed, step, use))
        return int(sequence.generate_state(1, np.uint64)[0] >> 1)

    def load(self, step: int) -> Loaded:
        """The batch of a step; the next one is begun."""
        if self._ahead is None or self._ahead[0] != step:
            self._ahead = step, self._begin(step)
        future = self._ahead[1]
        self._ahead = step + 1, self._begin(step + 1)
        if self._stream is None:
            return self.batch(step, *future.result())
        loaded: Loaded = future.result()
        current = torch.cuda.current_stream(self.device)
        if loaded.ready is not None:
            current.wait_event(loaded.ready)
        for tensor in (loaded.batch.x, loaded.batch.y, loaded.batch.u, loaded.batch.bank):
            if tensor is not None:
                tensor.record_stream(current)
        return loaded

    def _begin(self, step: int) -> "Future[Any]":
        return self._reader.submit(self.draw if self._stream is None else self._ready, step)

    def _ready(self, step: int) -> Loaded:
        """The batch on the GPU, in flight on this loader's stream."""
        assert self._stream is not None
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            loaded = self.batch(step, *self.draw(step))
            return Loaded(loaded.batch, loaded.ids, self._stream.record_event())

    def draw(self, step: int) -> tuple[Crops, Crops | None]:
        """The step's crops, with the margin that rotation and scaling need."""
        aug, rank = self.augmentation, self.processes.rank
        common: dict[str, Any] = dict(seed=self.seed, step=step, flips=aug.mirror, rotate=aug.rot90)
        common |= {"window": aug.margin(self.window), "inner": self.window, "overhang": self.overhang}
        labeled = draw(
            self.data.labeled,
            self.labeled,
            stream=LABELED,
            foreground=self.foreground,
            first=rank * self.labeled,
            **common,
        )
        if not self.unlabeled:
            return labeled, None
        return labeled, draw(
            self.data.unlabeled,
            self.unlabeled,
            stream=UNLABELED,
            first=rank * self.unlabeled,
            bank=self._bank,
            **common,
        )

    def batch(self, step: int, labeled: Crops, unlabeled: Crops | None) -> Loaded:
        """Crops -> augmented batch on the device."""
        generator = torch.Generator(self.device).manual_seed(self.seed_of(step))

        extents = self.window if self.window[2] > 1 else self.window[:2]  # slices have two

        def weak(crops: Crops) -> tuple[Tensor, Tensor | None, Tensor | None]:
            label = None if crops.label is None else self._moved(crops.label)
            bank = None if crops.bank is None else self._moved(crops.bank).float() / 255
            image = self._moved(crops.image)
            edges = self.data.edges[: len(extents)]
            return weak_augment_with(image, label, bank, extents, self.augmentation, generator, edges)

        x, y, _ = weak(labeled)
        assert y is not None
        u, _, bank = weak(unlabeled) if unlabeled is not None else (x[:0], None, None)
        ids = (*labeled.ids, *(unlabeled.ids if unlabeled is not None else ()))
        return Loaded(Batch(x, y, u, generator, bank), ids)

    def _moved(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.window[2] == 1:
            tensor = tensor.squeeze(-1)
        return tensor if self._stream is None else tensor.pin_memory().to(self.device, non_blocking=True)
