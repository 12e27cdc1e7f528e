"""URPC (Luo et al., MICCAI 2021): predictions at four scales agree, the less the more they differ from their mean.

Source: SSL4MIS code/train_uncertainty_rectified_pyramid_consistency_3D.py (06df604); no left-atrium script is
published. The tables' figures belong to a 3D U-Net with instance norm; this is a port to any network here: side heads
on the decoder's stages, enlarged to the window. Departures: the supervised Dice leaves out the background, as in the
other methods; logarithms come from log_softmax, where the official log(softmax) can be -inf.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import supervised_loss
from ..networks import Network
from ..processes import summed
from ..ramp import ramped
from .base import Batch, Method, MethodConfig, Optimizer, Schedule, pointwise


@dataclass(frozen=True)
class UrpcConfig(MethodConfig):
    """The official script's weights with the left-atrium protocol of the other methods (batch, rate, ramp)."""

    labeled_batch: int = 2
    unlabeled_batch: int = 2
    optimizer: Optimizer = "sgd"
    lr: float = 0.01
    schedule: Schedule = "step"
    consistency: float = 0.1  # --consistency
    ramp_up: float = 1.0
    least_unlabeled: ClassVar[int] = 1


class Urpc(Method):
    """See the module's docstring."""

    Config = UrpcConfig
    config: UrpcConfig

    def __init__(self, network: nn.Module, config: UrpcConfig, iterations: int) -> None:
        super().__init__(network, config, iterations)
        net = cast(Network, network)
        self.heads = nn.ModuleList(pointwise(net, net.stages[k], net.classes) for k in (1, 2, 3))

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        """The network and the side heads."""
        return chain(self.student.parameters(), self.heads.parameters())

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """See the base class."""
        n, scales = len(batch.x), self._scales(torch.cat([batch.x, batch.u]))
        supervised = torch.stack([supervised_loss(z[:n], batch.y) for z in scales]).mean()
        logs = [z[n:].float().log_softmax(dim=1) for z in scales]
        p = torch.stack([log.exp() for log in logs])
        mean = p.mean(dim=0)
        log_mean = mean.clamp_min(1e-12).log()
        parts = []
        for log, one in zip(logs, p, strict=True):
            divergence = (mean * (log_mean - log)).sum(dim=1, keepdim=True)
            trust = torch.exp(-divergence)
            rectified, trusted = summed(torch.stack([((mean - one).square() * trust).mean(), trust.mean()]))
            parts.append(rectified / (trusted + 1e-8) + divergence.mean())
        weight = self.config.consistency * ramped(step, self.config.ramp_up, self.iterations)
        return {"supervised": supervised, "consistency": weight * torch.stack(parts).mean()}

    def _scales(self, images: Tensor) -> list[Tensor]:
        """Logits of the head and of the three side heads, all at the window's extent."""
        network = cast(Network, self.student)
        levels = network.encode(images)
        stages = network.pyramid(levels)
        mode = "trilinear" if network.dims == 3 else "bilinear"
        side = (head(stage) for head, stage in zip(self.heads, stages[1:], strict=True))
        return [
            network.head(stages[0]),
            *(F.interpolate(z, images.shape[2:], mode=mode, align_corners=False) for z in side),
        ]
