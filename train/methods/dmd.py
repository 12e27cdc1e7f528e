"""DMD (Dual Mutual Distillation, 2024): two networks distil each other's softened probabilities.

Source: train_dmd.py (SilenceMonk/Dual-Mutual-Distillation 9be47df), the one released file. Known faults of it that are
not copied: its supervised Dice broadcasts (2, 1, ...) with (2, ...) and so intersects different scans, and the network
it imports returns a tuple. The softmax of K logits stands for the sigmoid of one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ..losses import dice_loss, soft_dice
from ..networks import Network
from .base import Batch, Method, MethodConfig, Optimizer, Schedule


@dataclass(frozen=True)
class DmdConfig(MethodConfig):
    """Defaults of the official script."""

    labeled_batch: int = 2
    unlabeled_batch: int = 2
    cost: ClassVar[float] = 2.0
    optimizer: Optimizer = "sgd"
    lr: float = 0.01
    schedule: Schedule = "step"
    temperature: float = 2.0
    distillation: float = 4.0  # lambda; no ramp
    least_unlabeled: ClassVar[int] = 1


class Dmd(Method):
    """See the module's docstring."""

    Config = DmdConfig
    config: DmdConfig

    def __init__(self, network: nn.Module, config: DmdConfig, iterations: int) -> None:
        super().__init__(network, config, iterations)
        self.other = cast(nn.Module, cast(Network, network).twin())

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        """Both networks."""
        return chain(self.student.parameters(), self.other.parameters())

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """See the base class."""
        cfg, n, images = self.config, len(batch.x), torch.cat([batch.x, batch.u])
        one, two = self.student(images), self.other(images)
        p, q = ((z.float() / cfg.temperature).softmax(dim=1) for z in (one, two))
        mutual = torch.stack([soft_dice(p[:, k], q[:, k]) for k in range(1, p.shape[1])]).mean()
        return {
            "supervised": dice_loss(one[:n], batch.y) + dice_loss(two[:n], batch.y),
            "distillation": cfg.distillation * mutual,
        }
