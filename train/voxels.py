"""Embeddings of single voxels: picking some of a class, and the small networks on them."""

import torch
from torch import Tensor, nn


def pick(mask: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Up to `count` random True places of a flat mask: indices (count,) and which of them are real (count,) bool.

    Fixed shapes instead of boolean indexing: nothing waits for the device.
    """
    draws = torch.rand(mask.shape, generator=generator, device=generator.device).to(mask.device)
    score, index = torch.where(mask, draws, -1.0).topk(min(count, mask.numel()))
    return index, score >= 0


def flat_channels(x: Tensor) -> Tensor:
    """(N, C, ...) -> (voxels, C)."""
    return x.movedim(1, -1).flatten(0, -2)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear: the projection and prediction heads of SS-Net and CAML."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))
