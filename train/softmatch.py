"""SoftMatch (Chen et al., ICLR 2023): how much a pseudo-label counts, by how usual its confidence is for its class."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .processes import summed


class SoftMatch(nn.Module):
    """exp(-2 min(confidence - mean, 0)^2 / variance), with running statistics for each class.

    For each class, since FreeMatch's thresholds scale with class frequency: a small foreground would accept everything.
    The averages start from what is seen, not from constants, which short runs would not forget.
    """

    def __init__(self, classes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.statistics = nn.Buffer(torch.zeros(3, classes))  # mean, variance, updates of each class

    def forward(self, confidence: Tensor, label: Tensor) -> Tensor:
        """(N, ...) in [0, 1], after these voxels have moved the statistics; of all processes."""
        each = F.one_hot(label.flatten(), self.statistics.shape[1]).float()
        values = confidence.flatten()[:, None]
        count, first, second = summed(
            torch.stack([each.sum(dim=0), (each * values).sum(dim=0), (each * values.square()).sum(dim=0)])
        )
        mean = first / count.clamp_min(1)
        variance = (second / count.clamp_min(1) - mean.square()).clamp_min(0)
        old, seen = self.statistics[:2], self.statistics[2]
        alpha = torch.minimum(1 - 1 / (seen + 1), torch.full_like(seen, self.momentum))
        alpha = torch.where(count > 0, alpha, 1.0)
        self.statistics[:2] = alpha * old + (1 - alpha) * torch.stack([mean, variance])
        self.statistics[2] = seen + (count > 0)
        mean, variance = self.statistics[0][label], self.statistics[1][label]
        return torch.exp(-2 * (confidence - mean).clamp_max(0).square() / variance.clamp_min(1e-8))
