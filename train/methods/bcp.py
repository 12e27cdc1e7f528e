"""BCP (Bai et al., CVPR 2023): labelled crops are pasted into unlabelled ones and the other way round.

First a share of the run trains on labelled pairs pasted into each other. Then a mean teacher labels unlabelled crops,
of each class the largest component is kept, and the network learns both mixtures. Source: code/LA_BCP_train.py,
utils/BCP_utils.py and utils/losses.py (BCP 7879f98). Departures: self-training goes on from the weights as they are,
where the official script takes the pre-training checkpoint with the best *test* Dice; components are found on the
device; both mixtures go through one forward pass, so batch norm sees four crops and not two at a time; the steps of the
learning rate count from the start of the run, not of self-training. Not copied: its slow tensor from a list of arrays,
and projection heads that no loss reaches.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seg.infer.errors import Exit, SegError

from ..components import largest_component
from ..ema import Ema
from ..losses import one_hot
from .base import Batch, Method, MethodConfig, Optimizer, Schedule, in_training_mode

NO_WARM_UP = 1 << 30  # a step at which the average's rate is its final one


@dataclass(frozen=True)
class BcpConfig(MethodConfig):
    """Defaults of the official script."""

    labeled_batch: int = 4
    unlabeled_batch: int = 4
    cost: ClassVar[float] = 0.7
    optimizer: Optimizer = "sgd"
    lr: float = 0.01
    schedule: Schedule = "step"
    pretraining: float = 2000 / 17000  # share of the run
    ema: float = 0.99
    kept: float = 2 / 3  # side of the pasted block in units of the window's
    pseudo: float = 0.5  # --u_weight

    def check(self, processes: int = 1) -> None:
        """See the base class."""
        super().check(processes)
        pairs = 2 * processes
        if self.labeled_batch != self.unlabeled_batch or self.labeled_batch % pairs or self.labeled_batch < pairs:
            found = f"labeled_batch {self.labeled_batch} and unlabeled_batch {self.unlabeled_batch}"
            found += f" for {processes} processes" if processes > 1 else ""
            fix = f"take equal batches, multiples of {pairs}"
            raise SegError("E-CONFIG", Exit.USAGE, "", found, fix, "pairs of each kind: BCP pastes one into the other")


class Bcp(Method):
    """See the module's docstring."""

    Config = BcpConfig
    config: BcpConfig

    def __init__(self, network: nn.Module, config: BcpConfig, iterations: int) -> None:
        super().__init__(network, config, iterations)
        self.teacher = Ema(network, config.ema)

    @property
    def _pretraining(self) -> int:
        return round(self.config.pretraining * self.iterations)

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """See the base class."""
        outer = self._outer(batch)
        (xa, xb), (ya, yb) = batch.x.chunk(2), batch.y.chunk(2)
        if step < self._pretraining:
            logits, y = self.student(torch.where(outer, xa, xb)), torch.where(outer, ya, yb)
            return {"supervised": _mixed_loss(logits, y, y, torch.ones_like(outer), 1.0, 0.0)}
        ua, ub = batch.u.chunk(2)
        pa, pb = self._pseudo_labels(batch.u).chunk(2)
        inward, outward = self.student(torch.cat([torch.where(outer, xa, ua), torch.where(outer, ub, xb)])).chunk(2)
        return {
            "supervised": _mixed_loss(inward, ya, pa, outer, 1.0, 0.0) + _mixed_loss(outward, pb, yb, outer, 0.0, 1.0),
            "pseudo": self.config.pseudo
            * (_mixed_loss(inward, ya, pa, outer, 0.0, 1.0) + _mixed_loss(outward, pb, yb, outer, 1.0, 0.0)),
        }

    def _outer(self, batch: Batch) -> Tensor:
        """(window) bool, True outside one random block that all crops share."""
        window = batch.x.shape[2:]
        outer = torch.ones(window, dtype=torch.bool, device=batch.x.device)
        draws = torch.rand(len(window), generator=batch.generator, device=batch.generator.device).tolist()
        block = []
        for extent, draw in zip(window, draws, strict=True):
            side = int(extent * self.config.kept)
            start = int(draw * (extent - side + 1))
            block.append(slice(start, start + side))
        outer[tuple(block)] = False
        return outer

    @torch.no_grad()
    def _pseudo_labels(self, u: Tensor) -> Tensor:
        with in_training_mode(self.teacher.network):  # as published: dropout on
            label = self.teacher(u).argmax(dim=1)
        kept = torch.zeros_like(label)
        for value in range(1, self.classes):
            kept = torch.where(largest_component(label == value), value, kept)
        return kept

    @property
    def classes(self) -> int:
        """K of the network."""
        return int(self.student.classes)  # type: ignore[arg-type]

    def after_step(self, step: int) -> None:
        """The teacher starts as the pre-trained network and follows without a warm-up."""
        if step + 1 <= self._pretraining:
            self.teacher.network.load_state_dict(self.student.state_dict())
        else:
            self.teacher.update(self.student, NO_WARM_UP)


def _mixed_loss(
    logits: Tensor, outer_label: Tensor, inner_label: Tensor, outer: Tensor, w_out: float, w_in: float
) -> Tensor:
    """(Dice + CE) / 2 of the region outside the block times `w_out`, plus the same inside times `w_in`."""
    total = logits.new_zeros((), dtype=torch.float32)
    for label, region, weight in ((outer_label, outer, w_out), (inner_label, ~outer, w_in)):
        if weight:
            keep = region.float().expand(label.shape)
            entropy = F.cross_entropy(logits.float(), label, reduction="none")
            total = total + weight * 0.5 * (
                _masked_dice(logits, label, keep) + (entropy * keep).sum() / (keep.sum() + 1e-16)
            )
    return total


def _masked_dice(logits: Tensor, label: Tensor, keep: Tensor) -> Tensor:
    """Dice loss of `keep`'s voxels, linear denominator, per crop and class, with the background (mask_DiceLoss)."""
    p = logits.float().softmax(dim=1) * keep[:, None]
    t = one_hot(label, logits.shape[1]) * keep[:, None]
    axes = list(range(2, p.ndim))
    ratio = (2 * (p * t).sum(axes) + 1e-5) / ((p + t).sum(axes) + 1e-5)
    return (1 - ratio).mean()
