"""Segmentation losses. Logits are (N, K, ...) of any float type, targets (N, ...) integer; sums are float32."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .processes import summed

SMOOTH = 1e-5


def soft_dice(p: Tensor, target: Tensor, keep: Tensor | None = None) -> Tensor:
    """Dice loss 1 - (2 sum pt + s) / (sum p^2 + sum t^2 + s), one ratio over the whole batch, of all processes.

    Source: losses.dice_loss of the UA-MT and CrossMatch repositories.

    Parameters
    ----------
    p, target : (N, ...) probability and target of one class.
    keep : (N, ...) weight w in [0, 1] of a voxel in the three sums, wpt, wp^2 and wt^2. Same value as dropping voxels
        of 0 by boolean indexing, without the device synchronisation and sorted scatter of that.
    """
    t = target if keep is None else target * keep
    q = p if keep is None else p * keep
    overlap, squares = summed(torch.stack([(q * target).sum(), (q * p).sum() + (t * target).sum()]))
    loss: Tensor = 1.0 - (2.0 * overlap + SMOOTH) / (squares + SMOOTH)
    return loss


def weighted_mean(value: Tensor, weight: Tensor) -> Tensor:
    """sum(w v) / sum(w) over the whole batch, of all processes; 0 where all weights are."""
    total, weights = summed(torch.stack([(value * weight).sum(), weight.sum()]))
    mean: Tensor = total / weights.clamp_min(1)
    return mean


def dice_loss(logits: Tensor, target: Tensor, keep: Tensor | None = None, *, background: bool = False) -> Tensor:
    """Mean D2 Dice loss over the foreground classes, or over all. With two classes the papers' is the foreground's."""
    p = logits.float().softmax(dim=1)
    losses = [soft_dice(p[:, k], (target == k).float(), keep) for k in range(0 if background else 1, p.shape[1])]
    return torch.stack(losses).mean()


def supervised_loss(logits: Tensor, target: Tensor, *, background: bool = False) -> Tensor:
    """(CE + Dice) / 2, the supervised loss of CrossMatch and of the V-Net baseline."""
    return 0.5 * (F.cross_entropy(logits.float(), target) + dice_loss(logits, target, background=background))


def linear_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Mean Dice loss 1 - (2 sum pt + s) / (sum p + sum t + s) over the foreground classes (MC-Net, SS-Net, CAML)."""
    p = logits.float().softmax(dim=1)[:, 1:]
    t = one_hot(target, logits.shape[1])[:, 1:]
    axes = [0, *range(2, p.ndim)]
    return linear_ratio((p * t).sum(axes), p.sum(axes) + t.sum(axes)).mean()


def linear_ratio(overlap: Tensor, sums: Tensor) -> Tensor:
    """1 - (2 overlap + s) / (sums + s), of sums that are added up over all processes."""
    overlap, sums = summed(torch.stack([overlap, sums]))
    loss: Tensor = 1.0 - (2 * overlap + 1e-8) / (sums + 1e-8)
    return loss


def distribution_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1/2 sum(w KL(target || p)) / sum(w) + 1/2 weighted Dice over the foreground; target (N, K, ...) sums to 1."""
    log_p = logits.float().log_softmax(dim=1)
    divergence = (target * (target.clamp_min(1e-6).log() - log_p)).sum(dim=1)
    mean = weighted_mean(divergence, weight)
    p = log_p.exp()
    dice = [soft_dice(p[:, k], target[:, k], weight) for k in range(1, p.shape[1])]
    return 0.5 * (mean + torch.stack(dice).mean())


def one_hot(target: Tensor, classes: int) -> Tensor:
    """(N, ...) int -> (N, K, ...) float32."""
    return F.one_hot(target, classes).movedim(-1, 1).float()
