"""Distillation (Hinton et al., NIPS workshop 2014, arXiv 1503.02531): a small student learns what a large teacher says.

With teacher logits t and student logits z of the same crops, labelled and unlabelled, softmax s(.) and temperature T,

    L = (1 - w) supervised(z, y) + w / 2 (T^2 KL(s(t / T) || s(z / T)) + Dice(s(z), s(t)))

The first two terms are Hinton's: the hard term on labelled crops alone, and the soft one times T^2, which keeps its
gradient's size whatever T is (section 2). KL is the mean over voxels, as the pixel-wise part of Liu et al. (CVPR 2019)
takes it for dense prediction. The Dice term is the supervised loss's own, with the teacher's probabilities as target:
the mean over voxels alone is mostly background.

The teacher sees the augmented crop that the student sees: Beyer et al. (CVPR 2022) found targets of another view worse.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ema import Ema
from ..losses import soft_dice, supervised_loss
from .base import Batch, Method, MethodConfig


@dataclass(frozen=True)
class DistillConfig(MethodConfig):
    """Defaults of the distillation."""

    labeled_batch: int = 2
    unlabeled_batch: int = 2  # labelled scans lend their images where there are no others
    cost: ClassVar[float] = 2.3  # with a teacher of twice the width
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"weight": (0.0, 1.0)}
    dropout: float = 0.0  # a student too small to fit needs none
    temperature: float = 2.0  # Hinton's section 3: 2.5 to 4 is best for very small students, Liu et al. have 1
    weight: float = 0.7  # of the soft terms; section 2: "a considerably lower weight" for the hard one
    ema: float = 0.99  # decay of the averaged weights that are deployed; 0 deploys the last weights


class Distill(Method):
    """A student with a frozen teacher; see the module's docstring.

    Attributes
    ----------
    teacher : (N, C, X, Y, Z) -> (N, K, X, Y, Z) float32 logits on the same device, without gradient. Whoever trains
        sets it; it is no part of the state, and an export does without.
    """

    Config = DistillConfig
    config: DistillConfig

    def __init__(self, network: nn.Module, config: DistillConfig, iterations: int) -> None:
        super().__init__(network, config, iterations)
        self.average = Ema(network, config.ema) if config.ema > 0 else None
        self.teacher: Callable[[Tensor], Tensor] | None = None

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """See the base class."""
        assert self.teacher is not None
        cfg, x = self.config, torch.cat([batch.x, batch.u])
        t, z = self.teacher(x), self.student(x).float()
        soft = cfg.weight / 2
        return {
            "supervised": (1 - cfg.weight) * supervised_loss(z[: len(batch.x)], batch.y),
            "divergence": soft * divergence(z, t, cfg.temperature),
            "imitation": soft * imitation_dice(z, t),
        }

    def after_step(self, step: int) -> None:
        """Follow the student."""
        if self.average is not None:
            self.average.update(self.student, step)

    def deployed(self) -> nn.Module:
        """The averaged weights, or the last ones."""
        return self.student if self.average is None else self.average.network


def divergence(z: Tensor, t: Tensor, temperature: float) -> Tensor:
    """T^2 KL(s(t / T) || s(z / T)), mean over voxels; z and t are (N, K, ...) logits."""
    mine, theirs = F.log_softmax(z / temperature, dim=1), F.log_softmax(t / temperature, dim=1)
    per_voxel = F.kl_div(mine, theirs, reduction="none", log_target=True).sum(dim=1)
    return temperature**2 * per_voxel.mean()


def imitation_dice(z: Tensor, t: Tensor) -> Tensor:
    """Mean Dice loss over the foreground classes of the student's probabilities against the teacher's."""
    p, q = z.softmax(dim=1), t.softmax(dim=1)
    return torch.stack([soft_dice(p[:, k], q[:, k]) for k in range(1, p.shape[1])]).mean()
