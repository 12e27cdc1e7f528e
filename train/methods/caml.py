"""CAML (Gao et al., MICCAI 2023): two networks, one of which attends across scans, share omni-correlation.

Network 1 is plain; network 2 has attention within and across the batch's samples after its fourth stage and enlarges
by interpolation. They agree as in MC-Net. Where both agree on unlabelled voxels, the correlation of their embeddings
with a memory of labelled embeddings must agree too. Source: train_caml.py, networks/VNet.py, utils/correlation.py,
feature_memory.py (CAML b635479). Departures: the memory is a ring on the device instead of one array a scan on the
host; a random sample of the unlabelled voxels that both agree on is embedded, not all. The official code multiplies
embeddings without the normalisation that the paper's cosine has: so does this.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ..losses import linear_dice, weighted_mean
from ..networks import Network
from ..ramp import ramped
from ..voxels import flat_channels, mlp, pick
from .base import Batch, Method, MethodConfig, Optimizer, Schedule
from .mc_net import mutual_consistency

EMBEDDING = 32
ATTENTION_LEVEL = 3  # after stage four


@dataclass(frozen=True)
class CamlConfig(MethodConfig):
    """Defaults of the official script."""

    labeled_batch: int = 2
    unlabeled_batch: int = 2
    cost: ClassVar[float] = 2.7
    optimizer: Optimizer = "sgd"
    lr: float = 0.01
    schedule: Schedule = "constant"
    supervised: float = 0.5  # --lamda
    consistency: float = 1.0  # --consistency
    correlation: float = 0.05  # --consistency_o
    ramp_up: float = 0.4  # 6000 of 15000
    temperature: float = 0.1
    memory: int = 256  # vectors drawn per class
    ring: int = 4096  # vectors kept per class
    samples: int = 1 << 16  # unlabelled voxels that are embedded
    of_class: int = 12800  # the most confident of those, per class
    least_unlabeled: ClassVar[int] = 1


class Caml(Method):
    """See the module's docstring."""

    Config = CamlConfig
    config: CamlConfig
    ring: Tensor
    filled: Tensor

    def __init__(self, network: nn.Module, config: CamlConfig, iterations: int) -> None:
        super().__init__(network, config, iterations)
        net = cast(Network, network)
        self.other = cast(nn.Module, net.twin("linear"))
        self.attention = CrossSampleAttention(net.widths[ATTENTION_LEVEL])
        self.projections = nn.ModuleList(mlp(net.width, EMBEDDING, EMBEDDING) for _ in range(2))
        self.predictions = nn.ModuleList(mlp(EMBEDDING, EMBEDDING, EMBEDDING) for _ in range(2))
        self.register_buffer("ring", torch.zeros(net.classes, config.ring, EMBEDDING))
        self.register_buffer("filled", torch.zeros(net.classes, dtype=torch.long))

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        """Both networks, the attention, and the heads on the embeddings."""
        parts = (self.student, self.other, self.attention, self.projections, self.predictions)
        return chain(*(part.parameters() for part in parts))

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """See the base class."""
        cfg, n, images = self.config, len(batch.x), torch.cat([batch.x, batch.u])
        one, two = cast(Network, self.student), cast(Network, self.other)
        f1 = one.features(one.encode(images))
        f2 = two.features(two.encode(images, {ATTENTION_LEVEL: self.attention}))
        z1, z2 = one.head(f1), two.head(f2)
        weight = ramped(step + 1, cfg.ramp_up, self.iterations)
        self._remember((f1[:n], f2[:n]), (z1[:n], z2[:n]), batch)
        return {
            "supervised": cfg.supervised * (linear_dice(z1[:n], batch.y) + linear_dice(z2[:n], batch.y)),
            "consistency": weight * cfg.consistency * mutual_consistency([z1, z2], cfg.temperature),
            "correlation": weight * cfg.correlation * self._correlation((f1[n:], f2[n:]), (z1[n:], z2[n:]), batch),
        }

    @torch.no_grad()
    def _remember(self, features: tuple[Tensor, Tensor], logits: tuple[Tensor, Tensor], batch: Batch) -> None:
        """Mean projections of labelled voxels that both networks get right go into the ring."""
        label = batch.y.flatten()
        right = (logits[0].argmax(1).flatten() == label) & (logits[1].argmax(1).flatten() == label)
        flat = [flat_channels(f).float() for f in features]
        self.projections.eval()
        for value in range(len(self.ring)):
            index, found = pick(right & (label == value), self.config.memory, batch.generator)
            both = zip(self.projections, flat, strict=True)
            vectors = torch.stack([head(f[index]) for head, f in both]).mean(dim=0)
            # those that are not real go where the next ones will overwrite them
            place = (self.filled[value] + torch.arange(len(index), device=index.device)) % self.config.ring
            self.ring[value, place] = torch.where(found[:, None], vectors, self.ring[value, place])
            self.filled[value] += found.sum()
        self.projections.train(self.training)

    def _correlation(self, features: tuple[Tensor, Tensor], logits: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """Cross entropy between the two networks' similarities of unlabelled voxels with the memory."""
        memory, known = self._drawn(batch.generator)
        labels = [z.argmax(dim=1).flatten() for z in logits]
        confidence = logits[0].detach().float().softmax(dim=1).amax(dim=1).flatten()
        index, agreed = pick(labels[0] == labels[1], self.config.samples, batch.generator)
        label, confidence = labels[0][index], torch.where(agreed, confidence[index], -1.0)
        heads = zip(self.projections, self.predictions, features, strict=True)
        embedded = [predict(project(flat_channels(f).float()[index])) for project, predict, f in heads]
        entropy, real = [], []
        for value in range(len(self.ring)):
            score, best = torch.where(label == value, confidence, -1.0).topk(min(self.config.of_class, len(label)))
            one, two = (
                (rows[best] @ memory.T / self.config.temperature).masked_fill(~known, -1e4).log_softmax(dim=1)
                for rows in embedded
            )
            entropy.append(-(two.exp() * one).sum(dim=1))
            real.append((score >= 0).float())
        return weighted_mean(torch.cat(entropy), torch.cat(real)) * known.any()

    def _drawn(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random memory vectors (K * memory, 32) and whether each is known."""
        cfg = self.config
        draws = torch.rand(len(self.ring), cfg.memory, generator=generator, device=generator.device).to(
            self.ring.device
        )
        count = self.filled.clamp(max=cfg.ring)[:, None]
        index = (draws * count).long()
        vectors = torch.gather(self.ring, 1, index[..., None].expand(-1, -1, EMBEDDING))
        return vectors.flatten(0, 1), (count > 0).expand(-1, cfg.memory).flatten()


class CrossSampleAttention(nn.Module):
    """(N, C, ...) -> the same: attention among the voxels of a sample, then among the samples at a voxel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        heads = max(h for h in (1, 2, 4) if channels % h == 0)
        self.within, self.across = (
            nn.TransformerEncoderLayer(channels, heads, 4 * channels, dropout=0.5, batch_first=True) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Skipped outside training, as published: a single scan has no other to attend to."""
        if not self.training:
            return x
        tokens = self.within(x.flatten(2).transpose(1, 2))  # (N, voxels, C)
        tokens = self.across(tokens.transpose(0, 1)).transpose(0, 1)  # a sequence of N at each voxel
        return cast(Tensor, tokens.transpose(1, 2).reshape(x.shape))
