"""SASSNet (Li et al., MICCAI 2020): an adversary judges whether a predicted shape comes from a labelled scan.

A second head regresses signed distance maps; a discriminator sees map and image and tells labelled from unlabelled; on
unlabelled crops the network tries to be taken for labelled. Source: code/train_gan_sdfloss.py and
networks/discriminator.py (SASSNet 1761aa8). Two phases: the network, then the discriminator with an optimiser of its
own. Departures: distance maps on the device; the discriminator's last pooling covers the whole map, whatever the window
(the official 7 x 7 x 5 is the whole map of its window); the softmax of K logits stands for the sigmoid of one.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distance import signed_distance_maps
from ..losses import dice_loss
from ..networks import Network
from ..ramp import ramped
from .base import Batch, Method, MethodConfig, Optimizer, Schedule, pointwise


@dataclass(frozen=True)
class SassNetConfig(MethodConfig):
    """Defaults of the official script."""

    labeled_batch: int = 2
    unlabeled_batch: int = 2
    cost: ClassVar[float] = 1.8
    optimizer: Optimizer = "sgd"
    lr: float = 0.01
    schedule: Schedule = "step"
    distance: float = 0.3  # --beta
    adversarial: float = 0.01  # --consistency; the README gives 0.015 for 8 labels, the paper 0.001
    ramp_up: float = 1.0  # 40 epochs of 150 iterations = all of 6000
    discriminator_lr: float = 1e-4  # --D_lr, Adam (0.9, 0.99)
    least_unlabeled: ClassVar[int] = 1


class SassNet(Method):
    """See the module's docstring."""

    Config = SassNetConfig
    config: SassNetConfig
    phases = ("student", "discriminator")

    def __init__(self, network: nn.Module, config: SassNetConfig, iterations: int) -> None:
        super().__init__(network, config, iterations)
        net = cast(Network, network)
        self.distance_head = pointwise(net, net.width, net.classes - 1)
        self.discriminator = Discriminator(net.dims, net.channels, net.classes - 1)

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        """The network with its second head, or the discriminator."""
        if phase == "discriminator":
            return self.discriminator.parameters()
        return chain(self.student.parameters(), self.distance_head.parameters())

    def settings(self, phase: str) -> MethodConfig:
        """The discriminator has Adam at a constant rate."""
        if phase == "student":
            return self.config
        lr = self.config.discriminator_lr
        return replace(self.config, optimizer="adamw", lr=lr, schedule="constant", weight_decay=0.0, betas=(0.9, 0.99))

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """See the base class."""
        return self._student(batch, step) if phase == "student" else self._judge(batch)

    def _student(self, batch: Batch, step: int) -> dict[str, Tensor]:
        cfg, network, n = self.config, cast(Network, self.student), len(batch.x)
        logits, distance = self._predict(torch.cat([batch.x, batch.u]))
        truth = signed_distance_maps(batch.y, network.classes)
        with frozen(self.discriminator):
            verdict = self.discriminator(distance[n:], batch.u)
        adversarial = F.cross_entropy(verdict, torch.ones(len(batch.u), dtype=torch.long, device=verdict.device))
        weight = cfg.adversarial * ramped(step, cfg.ramp_up, self.iterations)
        return {
            "supervised": dice_loss(logits[:n], batch.y),
            "distance": cfg.distance * (distance[:n] - truth).square().mean(),
            "adversarial": weight * adversarial,
        }

    def _judge(self, batch: Batch) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.u])
        self.student.eval()  # as published: no dropout, running statistics
        with torch.no_grad():
            distance = self._predict(images)[1]
        self.student.train(self.training)
        labeled = torch.arange(len(images), device=images.device) < len(batch.x)
        return {"discriminator": F.cross_entropy(self.discriminator(distance, images), labeled.long())}

    def _predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and signed distance maps."""
        network = cast(Network, self.student)
        features = network.features(network.encode(images))
        return network.head(features), self.distance_head(features).float().tanh()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """In evaluation mode, and without gradients of its own: those of the other phase's loss would be thrown away."""
    training = module.training
    module.eval().requires_grad_(False)
    try:
        yield
    finally:
        module.train(training).requires_grad_(True)


class Discriminator(nn.Module):
    """(N, K - 1, ...) maps and (N, C, ...) images -> (N, 2) logits unlabelled, labelled: four strided convolutions."""

    def __init__(self, dims: int, channels: int, maps: int, width: int = 64) -> None:
        super().__init__()
        conv: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv3d if dims == 3 else nn.Conv2d
        drop = nn.Dropout3d if dims == 3 else nn.Dropout2d
        self.map = conv(maps, width, 4, stride=2, padding=1)
        self.image = conv(channels, width, 4, stride=2, padding=1)
        self.rest = nn.Sequential(
            *(nn.LeakyReLU(0.2), drop(0.5), conv(width, 2 * width, 4, stride=2, padding=1)),
            *(nn.LeakyReLU(0.2), drop(0.5), conv(2 * width, 4 * width, 4, stride=2, padding=1)),
            *(nn.LeakyReLU(0.2), drop(0.5), conv(4 * width, 8 * width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)),
        )
        self.verdict = nn.Linear(8 * width, 2)

    def forward(self, maps: Tensor, image: Tensor) -> Tensor:
        """Logits."""
        x = self.rest(self.map(maps) + self.image(image))
        verdict: Tensor = self.verdict(x.flatten(2).mean(dim=2))
        return verdict.float()
