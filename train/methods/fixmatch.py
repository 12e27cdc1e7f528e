"""FixMatch (Sohn et al., NeurIPS 2020) for segmentation: confident predictions of a weak view teach a strong one.

Source: UniMatch more-scenarios/medical/fixmatch.py (0324f3d), ported as methods of the left-atrium tables share it:
strong views and CutMix as CrossMatch makes them, the partner being the batch reversed instead of a third loader, hard
targets, masked Dice where that file has cross entropy; the strong view goes through the same pass, not one of its own.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..losses import dice_loss, supervised_loss
from ..processes import reversed_batch
from ..strong import cutmix_boxes, strong_view
from .base import Batch, Method, MethodConfig


@dataclass(frozen=True)
class FixMatchConfig(MethodConfig):
    """CrossMatch's protocol with FixMatch's threshold."""

    labeled_batch: int = 2
    unlabeled_batch: int = 2
    cost: ClassVar[float] = 1.5
    threshold: float = 0.95  # tau
    scale: float = 0.5  # (L_x + L_u) / 2
    strong: float = 1.0  # of L_u
    least_unlabeled: ClassVar[int] = 2


class FixMatch(Method):
    """See the module's docstring."""

    Config = FixMatchConfig
    config: FixMatchConfig

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """See the base class."""
        cfg, n, m = self.config, len(batch.x), len(batch.u)
        strong = strong_view(batch.u, batch.generator)
        box = cutmix_boxes(m, batch.u.shape[2:], batch.generator)
        mixed = torch.where(box[:, None], reversed_batch(strong), strong)
        zx, zu, zs = self.student(torch.cat([batch.x, batch.u, mixed])).split([n, m, m])
        label, keep = hard_target(zu, cfg.threshold, box)
        return {
            "supervised": cfg.scale * supervised_loss(zx, batch.y),
            "strong": cfg.scale * cfg.strong * dice_loss(zs, label, keep),
        }


@torch.no_grad()
def hard_target(logits: Tensor, threshold: float, box: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Labels (B, ...) and the voxels that count (B, ...) 0/1; inside `box` those of the batch reversed."""
    confidence, label = logits.detach().float().softmax(dim=1).max(dim=1)
    if box is not None:
        confidence, label = (torch.where(box, reversed_batch(value), value) for value in (confidence, label))
    return label, (confidence >= threshold).float()
