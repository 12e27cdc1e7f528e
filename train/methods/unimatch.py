"""UniMatch (Yang et al., CVPR 2023): two strong views and one feature perturbation follow the weak view.

Source: UniMatch more-scenarios/medical/unimatch.py (0324f3d), which is 2D; no left-atrium code is published. Port:
CrossMatch's strong views, feature dropout 0.5 on all levels, the CutMix partner is the batch reversed. Departure: the
labelled half is not decoded a second time with perturbed features, whose output the official code throws away; all
views go through one pass, so batch norm sees them together; the background has no Dice term.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import dice_loss, supervised_loss
from ..networks import Network
from ..processes import reversed_batch
from ..strong import cutmix_boxes, strong_view
from .base import Batch, Method, MethodConfig
from .fixmatch import hard_target


@dataclass(frozen=True)
class UniMatchConfig(MethodConfig):
    """Weights of the official script, batch and rate of the left-atrium tables."""

    labeled_batch: int = 2
    unlabeled_batch: int = 2
    cost: ClassVar[float] = 2.3
    threshold: float = 0.95
    scale: float = 0.5
    strong: float = 0.25  # each of two views
    perturbed: float = 0.5
    feature_dropout: float = 0.5
    least_unlabeled: ClassVar[int] = 2


class UniMatch(Method):
    """See the module's docstring."""

    Config = UniMatchConfig
    config: UniMatchConfig

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """See the base class."""
        cfg, network, n, m = self.config, cast(Network, self.student), len(batch.x), len(batch.u)
        boxes = [cutmix_boxes(m, batch.u.shape[2:], batch.generator) for _ in range(2)]
        views = [strong_view(batch.u, batch.generator) for _ in boxes]
        mixed = [torch.where(box[:, None], reversed_batch(view), view) for box, view in zip(boxes, views, strict=True)]
        levels = network.encode(torch.cat([batch.x, batch.u, *mixed]))
        drop = F.dropout3d if network.dims == 3 else F.dropout2d
        streams = [torch.cat([f, drop(f[n : n + m], cfg.feature_dropout, training=True)]) for f in levels]
        zx, zu, z1, z2, zp = network.decode(streams).split_with_sizes([n, m, m, m, m])
        strong = [dice_loss(z, *hard_target(zu, cfg.threshold, box)) for z, box in zip((z1, z2), boxes, strict=True)]
        return {
            "supervised": cfg.scale * supervised_loss(zx, batch.y),
            "strong": cfg.scale * cfg.strong * torch.stack(strong).sum(),
            "perturbed": cfg.scale * cfg.perturbed * dice_loss(zp, *hard_target(zu, cfg.threshold)),
        }
