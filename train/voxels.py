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


def mlp(inputs: int, hidden: int, outputs: int, slope: float = 0.0) -> nn.Sequential:
    """Linear, batch norm, (leaky) ReLU, linear: the heads and selectors of SS-Net and CAML."""
    bend = nn.LeakyReLU(slope) if slope else nn.ReLU()
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), bend, nn.Linear(hidden, outputs))
