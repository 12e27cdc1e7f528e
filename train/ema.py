"""Exponential moving average of a network: the mean teacher, or simply better final weights."""

import copy

import torch
from torch import Tensor, nn


class Ema(nn.Module):
    """A gradient-free copy of a network that follows it.

    The rate is alpha = min(1 - 1 / (t + 1), decay): after step 0 the copy is the student (UA-MT).
    Batch-norm running statistics are averaged alike.
    """

    def __init__(self, student: nn.Module, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.network = copy.deepcopy(student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Ema":
        """The average is never in training mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """Move towards the student after optimiser step `step` (from 0)."""
        alpha = min(1.0 - 1.0 / (step + 1), self.decay)
        pairs = [
            (mine.detach(), theirs.detach())
            for part in (nn.Module.parameters, nn.Module.buffers)
            for mine, theirs in zip(part(self.network), part(student), strict=True)
        ]
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in moving], [theirs for _, theirs in moving], 1.0 - alpha)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> (N, K, ...) logits."""
        logits: Tensor = self.network(x)
        return logits
