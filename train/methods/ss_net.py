"""SS-Net (Wu et al., MICCAI 2022): smooth under the worst small perturbation, and classes kept apart.

Virtual adversarial training makes the prediction smooth; embeddings of a class's voxels are pulled towards prototypes
taken from labelled voxels. Source: train_ss_3d.py, utils/losses.py VAT3d, contrastive_losses.py, feature_memory.py
(SS-Net c0a8bf6). Faults of the official code that are not copied: prototypes are those with the *lowest* score although
its comment says highest, and the mean over classes counts the background, which never has prototypes. Departures: the
adversarial target is the prediction already made, not one more forward pass; the direction's gradient is taken with
respect to the image alone; a random sample of the labelled voxels and one of the others are embedded, not all. As
published, batch norm of the heads sees all classes, that of a selector its class alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..draws import uniform
from ..losses import linear_dice, linear_ratio
from ..networks import Network
from ..ramp import ramped
from ..voxels import flat_channels, mlp, pick
from .base import Batch, Method, MethodConfig, Optimizer, Schedule
from .streams import kept_statistics

EMBEDDING = 32


@dataclass(frozen=True)
class SsNetConfig(MethodConfig):
    """Defaults of the official script."""

    labeled_batch: int = 2
    unlabeled_batch: int = 2
    cost: ClassVar[float] = 2.7
    optimizer: Optimizer = "sgd"
    lr: float = 0.01
    schedule: Schedule = "step"
    consistency: float = 1.0  # --consistency
    ramp_up: float = 0.4  # 6000 of 15000
    magnitude: float = 10.0  # --magnitude, of the perturbation, in the image's unit
    contrast: float = 0.1
    prototypes: int = 32
    samples: int = 1 << 16  # voxels that are embedded, labelled and unlabelled each
    of_class: int = 4096  # of those at most, that is
    least_unlabeled: ClassVar[int] = 1


class SsNet(Method):
    """See the module's docstring."""

    Config = SsNetConfig
    config: SsNetConfig

    def __init__(self, network: nn.Module, config: SsNetConfig, iterations: int) -> None:
        super().__init__(network, config, iterations)
        net = cast(Network, network)
        self.projection = mlp(net.width, EMBEDDING, EMBEDDING)
        self.prediction = mlp(EMBEDDING, EMBEDDING, EMBEDDING)
        self.selectors, self.memory_selectors = (
            nn.ModuleList(mlp(EMBEDDING, EMBEDDING, 1, slope=0.2) for _ in range(net.classes - 1)) for _ in range(2)
        )

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        """The network and the heads on its embeddings."""
        heads = (self.projection, self.prediction, self.selectors, self.memory_selectors)
        return chain(self.student.parameters(), *(head.parameters() for head in heads))

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """See the base class."""
        cfg, network, n = self.config, cast(Network, self.student), len(batch.x)
        images = torch.cat([batch.x, batch.u])
        features = network.features(network.encode(images))
        logits = network.head(features)
        weight = cfg.consistency * ramped(step + 1, cfg.ramp_up, self.iterations)
        label = torch.cat([batch.y, logits[n:].detach().argmax(dim=1)])
        return {
            "supervised": linear_dice(logits[:n], batch.y),
            "adversarial": weight * self._smoothness(images, logits.detach(), batch.generator),
            "contrast": weight * cfg.contrast * self._contrast(features, logits, label, n, batch.generator),
        }

    def _smoothness(self, images: Tensor, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Dice between the prediction and the one at the worst perturbation of a given size (VAT)."""
        target = logits.float().softmax(dim=1)
        draw = uniform(generator, *images.shape) - 0.5
        direction = _unit(draw).requires_grad_()
        with kept_statistics(self.student):
            moved = self.student(images + self.config.magnitude * direction)
            (gradient,) = torch.autograd.grad(_overlap_loss(moved, target), direction)
            worst = self.student(images + self.config.magnitude * _unit(gradient))
        return _overlap_loss(worst, target)

    def _contrast(self, features: Tensor, logits: Tensor, label: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Mean weighted (1 - cosine) between voxels of each foreground class and its prototypes."""
        flat, labels = flat_channels(features).float(), label.flatten()
        border = n * label[0].numel()
        right = logits.argmax(dim=1).flatten() == labels
        right[border:] = False
        embedded, of = [], []
        for begin, end in ((0, border), (border, len(flat))):
            count = min(self.config.samples, end - begin)
            index = torch.randint(begin, end, (count,), generator=generator, device=generator.device).to(flat.device)
            embedded.append(self.prediction(self.projection(flat[index])))
            of.append(labels[index])
        parts = []
        for value, (selector, memory) in enumerate(zip(self.selectors, self.memory_selectors, strict=True), start=1):
            prototypes, real = self._prototypes(flat, right & (labels == value), selector, generator)
            known = _shares(memory(F.normalize(prototypes, dim=1)), real)
            for vectors, classes in zip(embedded, of, strict=True):
                index, found = pick(classes == value, self.config.of_class, generator)
                rows = vectors[_repeated(index, found)]  # batch norm of the selector sees no other class
                cosine = F.normalize(rows, dim=1) @ F.normalize(prototypes, dim=1).T
                shares = _shares(selector(rows.detach()), torch.ones_like(rows[:, 0]))
                parts.append(((1 - cosine) * shares[:, None] * known).sum() * (found.any() & real.any()))
        total: Tensor = torch.stack(parts).sum() / len(self.selectors)
        return total

    @torch.no_grad()
    def _prototypes(
        self, flat: Tensor, mask: Tensor, selector: nn.Module, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The best-scored projections of correctly labelled voxels (P, 32), and which are real (P,)."""
        index, found = pick(mask, self.config.of_class, generator)
        self.projection.eval(), selector.eval()
        projected = self.projection(flat[index])
        score = selector(projected)[:, 0].masked_fill(~found, -torch.inf)
        self.projection.train(self.training), selector.train(self.training)
        _, best = score.topk(min(self.config.prototypes, len(score)))
        return projected[best], found[best].float()


def _overlap_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Linear Dice loss between probabilities, one ratio over all classes and the whole batch (Binary_dice_loss)."""
    p = logits.float().softmax(dim=1)
    return linear_ratio((p * target).sum(), p.sum() + target.sum())


def _shares(scores: Tensor, real: Tensor) -> Tensor:
    """(M, 1) scores -> (M,) weights of those that are real, together 1."""
    trust = scores[:, 0].sigmoid() * real
    return trust / trust.sum().clamp_min(1e-8)


def _repeated(index: Tensor, found: Tensor) -> Tensor:
    """What `pick` found, over and over, in the place of what is not real."""
    return index[torch.arange(len(index), device=index.device) % found.sum().clamp_min(1)]


def _unit(x: Tensor) -> Tensor:
    """Each sample scaled to Euclidean length 1."""
    length = x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
    return x.div(length + 1e-8)
