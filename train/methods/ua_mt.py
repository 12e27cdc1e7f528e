"""UA-MT (Yu et al., MICCAI 2019): a mean teacher whose certain voxels alone teach.

The teacher predicts noisy copies of the unlabelled crops eight times with dropout; voxels whose mean prediction has
little entropy keep their consistency loss, the squared difference of probabilities. Source: the script that the
official README names, code/train_LA_meanteacher_certainty_unlabel.py (UA-MT 88ed29a); its sibling without "_unlabel"
has the teacher and the consistency on the labelled crops too. Departures: the buffer of predictions, filled on the CPU
and copied in every iteration, is a running sum on the device; the ramp rises at every step, not every 150 steps (as in
all methods here).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from seg.infer.errors import Exit, SegError

from ..draws import normal
from ..ema import Ema
from ..losses import supervised_loss, weighted_mean
from ..ramp import gaussian_ramp, ramped
from .base import Batch, Method, MethodConfig, Optimizer, Schedule, in_training_mode


@dataclass(frozen=True)
class UaMtConfig(MethodConfig):
    """Defaults of the official script."""

    labeled_batch: int = 2
    unlabeled_batch: int = 2
    cost: ClassVar[float] = 2.5
    optimizer: Optimizer = "sgd"
    lr: float = 0.01
    schedule: Schedule = "step"
    ema: float = 0.99  # --ema_decay
    consistency: float = 0.1  # --consistency
    ramp_up: float = 1.0  # --consistency_rampup 40 epochs of 150 iterations = all of 6000
    passes: int = 8  # T, in pairs
    noise: float = 0.1  # standard deviation, cut at twice that
    least_unlabeled: ClassVar[int] = 1

    def check(self, processes: int = 1) -> None:
        """See the base class."""
        super().check(processes)
        if self.passes % 2:
            found, fix = f"[method] passes is {self.passes}", f"--set passes={self.passes + 1}"
            raise SegError("E-CONFIG", Exit.USAGE, "", found, fix, "an even number: they are made in pairs")


class UaMt(Method):
    """See the module's docstring."""

    Config = UaMtConfig
    config: UaMtConfig

    def __init__(self, network: nn.Module, config: UaMtConfig, iterations: int) -> None:
        super().__init__(network, config, iterations)
        self.teacher = Ema(network, config.ema)

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """See the base class."""
        cfg = self.config
        logits, unlabeled = self.student(torch.cat([batch.x, batch.u])).split([len(batch.x), len(batch.u)])
        classes = logits.shape[1]
        with torch.no_grad(), in_training_mode(self.teacher.network):
            target = self.teacher(self._noisy(batch.u, batch.generator)).float().softmax(dim=1)
            mean = self._mean_prediction(batch)
            entropy = -(mean * torch.log(mean + 1e-6)).sum(dim=1)
            share = 0.75 + 0.25 * gaussian_ramp(step / self.iterations)
            certain = (entropy < share * math.log(classes)).float()
        squares = (unlabeled.float().softmax(dim=1) - target).square().sum(dim=1)
        consistency = weighted_mean(squares / classes, certain)
        weight = cfg.consistency * ramped(step, cfg.ramp_up, self.iterations)
        return {"supervised": supervised_loss(logits, batch.y), "consistency": weight * consistency}

    def _noisy(self, u: Tensor, generator: torch.Generator) -> Tensor:
        noise = self.config.noise * normal(generator, *u.shape)
        return u + noise.clamp(-2 * self.config.noise, 2 * self.config.noise)

    def _mean_prediction(self, batch: Batch) -> Tensor:
        """Mean probability over noise and dropout, two copies of the crops at a time as published."""
        total: Tensor | None = None
        pairs = self.config.passes // 2
        for _ in range(pairs):
            twice = torch.cat([self._noisy(batch.u, batch.generator) for _ in range(2)])
            p = self.teacher(twice).float().softmax(dim=1)
            pair = p.unflatten(0, (2, len(batch.u))).sum(dim=0)
            total = pair if total is None else total + pair
        assert total is not None
        return total / (2 * pairs)

    def after_step(self, step: int) -> None:
        """Move the teacher."""
        self.teacher.update(self.student, step)
