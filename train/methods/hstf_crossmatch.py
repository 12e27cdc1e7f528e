"""HSTF with CrossMatch: CrossMatch's five streams, their teacher the targets of HSTF, and consistency across scales.

    L = 1/2 (L_sup + 1/2 L_sup_scaled + r(t) U)
    U = 1/2 L_ip + (1 - eta) L_tkd + eta L_dkd + w_csc L_csc + w_feature L_feature

The stream wn is the mean teacher's (fused with the bank, weighted by voxel); the assistants ww and ws stay with the
student and are masked by CrossMatch's threshold. The CutMix partner is the batch reversed. See `hstf` and `crossmatch`.
Constants but the batch are those of CrossMatch's `fast`: cross entropy beside Dice, perturbed streams normalised
apart, a gap of 0.25, weights of 0.3. The proposal has Dice alone, one batch norm for all streams, a gap of 0.5,
weights of 0.5 and 1.

The default has those of HSTF's parts that cost no Dice (hippocampus, 10 labels, 800 steps): one threshold in the place
of SoftMatch's weights, no consistency across scales, rounds in the second half of the run; 85.3 +- 0.2, CrossMatch
85.4 +- 0.2. The preset `all` has all parts as HSTF alone has them; rounds from the burn-in on cost 1.7 points, see
docs/hstf.md. Consistency across scales (`csc = "both"`) costs 0.5 points at the trained scale, and between 0.6 and 1.4
of it the Dice falls by 2.9 points instead of 5.5; with the proposal's weights it costs 0.7.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..processes import reversed_batch
from ..strong import cutmix_boxes, strong_view
from .base import Batch
from .hstf import Hstf, HstfConfig, Target, refused
from .streams import Distance, Perturbation, StreamTarget, perturbed


@dataclass(frozen=True)
class HstfCrossMatchConfig(HstfConfig):
    """HSTF's values and CrossMatch's; see the module's docstring for what is off."""

    cost: ClassVar[float] = 2.4

    weights: Literal["softmatch", "threshold", "none"] = "threshold"
    csc: Literal["both", "down", "up", "off", "augment"] = "off"
    csc_weight: float = 0.1  # where csc is on
    feature_weight: float = 0.0
    rounds: tuple[float, ...] = (0.5, 0.65, 0.8)
    eta: float = 0.3
    gap: float = 0.25
    perturbation: Perturbation = "dropout"
    distance: Distance = "dice_ce"
    threshold: float = 0.85  # of the assistants, and of HSTF's weights where they are "threshold"
    ip_weight: float = 0.3
    kd_weight: float = 0.3

    def check(self, processes: int = 1) -> None:
        """See the base class."""
        super().check(processes)
        if self.pseudo_weight != HstfConfig.pseudo_weight:
            raise refused(f"pseudo_weight is {self.pseudo_weight}", "ip_weight and kd_weight in its place")


PRESETS: dict[str, dict[str, Any]] = {
    "all": {name: getattr(HstfConfig, name) for name in ("weights", "csc", "csc_weight", "feature_weight", "rounds")},
}


class HstfCrossMatch(Hstf):
    """See the module's docstring."""

    Config = HstfCrossMatchConfig
    config: HstfCrossMatchConfig

    def _views(self, batch: Batch, step: int, target: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of the labelled windows, and CrossMatch's losses."""
        cfg = self.config
        s1, s2 = strong_view(batch.u, batch.generator), strong_view(batch.u, batch.generator)
        box1, box2 = (cutmix_boxes(len(s1), s1.shape[2:], batch.generator) & cfg.cutmix for _ in range(2))
        s1, s2 = torch.where(box1[:, None], reversed_batch(s1), s1), torch.where(box2[:, None], reversed_batch(s2), s2)
        zx, z1, z2, ww, ws, sw, ss = self._streams(batch.x, batch.u, s1, s2)
        plain, t1, t2 = (self._stream_target(t) for t in (target, target.mixed(box1), target.mixed(box2)))
        stream = partial(StreamTarget.of, threshold=cfg.threshold, distance=cfg.distance)
        k1, k2 = (stream(z, reversed_batch(z), box2) for z in (ww, ws))
        ip = (t1.loss(z1) + t2.loss(z2)) / 2
        tkd = (plain.loss(ww) + plain.loss(ws) + t2.loss(sw) + t2.loss(ss)) / 4
        dkd = (k1.loss(sw) + k2.loss(ss)) / 2
        return zx, {
            "image": cfg.ip_weight * ip,
            "teacher": cfg.kd_weight * (1 - cfg.eta) * tkd,
            "assistant": cfg.kd_weight * cfg.eta * dkd,
        }

    def _stream_target(self, target: Target) -> StreamTarget:
        return StreamTarget(target.label, target.weight, self.config.distance)

    def _streams(self, x: Tensor, u: Tensor, s1: Tensor, s2: Tensor) -> tuple[Tensor, ...]:
        """Logits x, s1, s2, ww, ws, sw, ss; those with perturbed features have batch norm passes of their own."""
        net, kind = self._network, self.config.perturbation
        rates = (1 - self.config.gap) / 2, (1 + self.config.gap) / 2
        fx, fu, f1, f2 = self._passes(lambda levels: net.encode(levels[0]), [[x], [u], [s1], [s2]], [[0, 1], [2, 3]])
        streams = [fx, f1, f2, *(perturbed(f, p, kind, net.dims) for f in (fu, f2) for p in rates)]
        groups = [0], [1, 2], [3, 4], [5, 6]
        found = self._passes(lambda levels: [net.decode(levels, head_dropout=False)], streams, groups)
        return tuple(logits for (logits,) in found)
