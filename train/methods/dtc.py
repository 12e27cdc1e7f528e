"""DTC (Luo et al., AAAI 2021): the segmentation and a signed distance map must tell the same shape.

A second head regresses the signed distance map; on every scan its value, turned into a soft mask by a steep sigmoid,
must match the segmentation. Source: code/train_la_dtc.py (DTC 2525b9c). For more than two classes there is one map a
foreground class. Departures: distance maps are made on the device for the two labelled crops (official: on the CPU
inside the step, for all four); the softmax of K logits stands for the sigmoid of one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ..distance import signed_distance_maps
from ..losses import dice_loss
from ..networks import Network
from ..ramp import ramped
from .base import Batch, Method, MethodConfig, Optimizer, Schedule, pointwise


@dataclass(frozen=True)
class DtcConfig(MethodConfig):
    """Defaults of the official script."""

    labeled_batch: int = 2
    unlabeled_batch: int = 2
    optimizer: Optimizer = "sgd"
    lr: float = 0.01
    schedule: Schedule = "step"
    distance: float = 0.3  # --beta
    consistency: float = 1.0  # --consistency
    ramp_up: float = 1.0  # 40 epochs of 150 iterations = all of 6000
    steepness: float = 1500.0  # k of the transform
    least_unlabeled: ClassVar[int] = 1


class Dtc(Method):
    """See the module's docstring."""

    Config = DtcConfig
    config: DtcConfig

    def __init__(self, network: nn.Module, config: DtcConfig, iterations: int) -> None:
        super().__init__(network, config, iterations)
        net = cast(Network, network)
        self.distance_head = pointwise(net, net.width, net.classes - 1)

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        """The network and the second head."""
        return chain(self.student.parameters(), self.distance_head.parameters())

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """See the base class."""
        cfg, network, n = self.config, cast(Network, self.student), len(batch.x)
        features = network.features(network.encode(torch.cat([batch.x, batch.u])))
        logits, distance = network.head(features), self.distance_head(features).float().tanh()
        truth = signed_distance_maps(batch.y, network.classes)
        mask = torch.sigmoid(-cfg.steepness * distance)
        consistency = (mask - logits.float().softmax(dim=1)[:, 1:]).square().mean()
        weight = cfg.consistency * ramped(step, cfg.ramp_up, self.iterations)
        return {
            "supervised": dice_loss(logits[:n], batch.y),
            "distance": cfg.distance * (distance[:n] - truth).square().mean(),
            "consistency": weight * consistency,
        }
