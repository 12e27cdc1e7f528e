"""Streams of a batch: how their features are perturbed, which pass they take, and what they should predict.

A stream is one tensor a level, (N, C, ...), or one in all. Batch norm sees the streams of a pass together.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..losses import dice_loss

Stream = Sequence[Tensor]
Part = Callable[[list[Tensor]], Sequence[Tensor]]
Perturbation = Literal["dropout", "alpha", "feature_alpha"]
Distance = Literal["dice", "dice_ce"]


def perturbed(levels: Sequence[Tensor], p: float, kind: Perturbation, dims: int) -> list[Tensor]:
    """Feature perturbation of rate `p` on all levels."""
    if kind == "dropout":  # one factor a channel: no copy of the level besides the product
        whole = F.dropout3d if dims == 3 else F.dropout2d
        ones = (level.new_ones(*level.shape[:2], *[1] * (level.dim() - 2)) for level in levels)
        return [level * whole(one, p) for level, one in zip(levels, ones, strict=True)]
    drop = F.alpha_dropout if kind == "alpha" else F.feature_alpha_dropout
    return [drop(level, p, training=True) for level in levels]


def stack(streams: Sequence[Stream]) -> list[Tensor]:
    """Levels of several streams -> one batch per level."""
    return [torch.cat(parts) for parts in zip(*streams, strict=True)]


def in_one(run: Part, streams: Sequence[Stream]) -> list[Stream]:
    """Each stream's results, of one pass over all of them."""
    sizes = [len(stream[0]) for stream in streams]
    levels = (level.split_with_sizes(sizes) for level in run(stack(streams)))
    return list(zip(*levels, strict=True))


def in_groups(
    network: nn.Module, run: Part, streams: Sequence[Stream], groups: Sequence[Sequence[int]]
) -> list[Stream]:
    """The same of a pass for each group of stream numbers; the first alone moves batch norm's running statistics."""
    found: dict[int, Stream] = {}
    for group in groups:
        with kept_statistics(network, keep=bool(found)):
            found |= zip(group, in_one(run, [streams[n] for n in group]), strict=True)
    return [found[number] for number in range(len(streams))]


@contextmanager
def kept_statistics(network: nn.Module, keep: bool = True) -> Iterator[None]:
    """Batch norm with the batch's statistics, the running ones left as they are."""
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)] if keep else []
    momenta: list[Any] = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@dataclass(frozen=True)
class StreamTarget:
    """What a stream should predict, without gradient, and how far it is from that.

    Attributes
    ----------
    label, keep : (B, X, Y[, Z]) hard labels and weights: 1 where the confidence reaches a threshold, or in [0, 1].
    distance : Dice loss on weighted voxels, or its mean with their cross entropy.
    background : whether the Dice loss counts the background as a class.
    """

    label: Tensor
    keep: Tensor
    distance: Distance
    background: bool = False

    @classmethod
    def of(
        cls,
        logits: Tensor,
        mix: Tensor | None = None,
        box: Tensor | None = None,
        *,
        threshold: float,
        distance: Distance,
        background: bool = False,
    ) -> "StreamTarget":
        """From teacher logits, taken from `mix` inside `box`."""
        z = logits.detach().float()
        if mix is not None and box is not None:
            z = torch.where(box[:, None], mix.detach().float(), z)
        confidence, label = z.softmax(dim=1).max(dim=1)
        return cls(label, (confidence >= threshold).float(), distance, background)

    def loss(self, logits: Tensor) -> Tensor:
        """Distance of (B, K, ...) logits."""
        dice = dice_loss(logits, self.label, self.keep, background=self.background)
        if self.distance == "dice":
            return dice
        entropy = F.cross_entropy(logits.float(), self.label, reduction="none")
        return 0.5 * (dice + (entropy * self.keep).mean())
