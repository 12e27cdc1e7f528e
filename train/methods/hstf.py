"""HSTF (Khurshid and Kim): a mean teacher, consistency across scales, and pseudo-labels refined in rounds.

The paper proposes the parts without equations or numbers; each is made concrete here, and each is a switch in `Config`.

    L = 1/2 (L_sup + 1/2 L_sup_scaled + r(t) (w_pseudo L_pseudo + w_csc L_csc + w_feature L_feature))

* Burn-in: supervision alone, labelled windows pasted into each other.
* Targets: the teacher's probability P of the weak view, and where the bank (see `refinement`) has the voxel their
  geometric mean; no weight where the two disagree or cleaning changed the voxel. Voxel weights as in SoftMatch, of each
  class (see `softmatch`).
* CSC: the student's prediction of the window at another scale against the teacher's at its own, on the coarser of the
  two grids: 1/2 KL + 1/2 Dice, sharpened targets; and the cosine between the features of the first token stage.
  It is consistency of inputs, not of an output pyramid: URPC's pyramid scores below UA-MT on the left atrium.
* r(t) = exp(-5 (1 - t)^2) over a share of the run after the burn-in.

Departures from the proposal. Lengths are shares of the run (of 9000 iterations), so that short runs have all parts.
Views have one exact scale along all axes, and a grid that the stride divides (see `zoom`), where the proposal lists
windows for one size. Half of the labelled windows are seen scaled, since all would cost more than an iteration may.
Strong views have a pass of their own: batch norm's statistics for inference are of what is seen there (hippocampus, 10
labels, 800 steps, one seed: Dice 84.1 after 83.1).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seg.infer.errors import Exit, SegError

from ..ema import Ema
from ..losses import distribution_loss, soft_dice, supervised_loss, weighted_mean
from ..networks import Network
from ..processes import reversed_batch
from ..pseudo import Rules
from ..ramp import ramped
from ..softmatch import SoftMatch
from ..strong import cutmix_boxes, strong_view
from ..zoom import Zoom
from .base import Batch, Method, MethodConfig, pointwise
from .streams import Part, Stream, in_groups, in_one, kept_statistics

FEATURE_LEVEL = 3  # the first token stage of the hybrid


@dataclass(frozen=True)
class HstfConfig(MethodConfig):
    """The proposal's values, lengths as shares of the run."""

    labeled_batch: int = 4
    unlabeled_batch: int = 2
    cost: ClassVar[float] = 1.2
    dropout: float = 0.1
    clip_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.98)
    warm_up: float = 0.06
    ema: float = 0.99
    burn_in: float = 0.22
    copy_paste: bool = True  # during the burn-in
    ramp_up: float = 0.17  # after it
    pseudo_weight: float = 1.0
    cutmix: bool = True
    sharpening: float = 0.5  # temperature T of targets; 1 is off
    weights: Literal["softmatch", "threshold", "none"] = "softmatch"
    threshold: float = 0.85  # for "threshold"
    csc: Literal["both", "down", "up", "off", "augment"] = "both"  # augment: scaled labelled windows alone
    csc_weight: float = 0.5
    feature_weight: float = 0.1
    down: tuple[float, ...] = (0.8, 0.7, 0.57)
    down_shares: tuple[float, ...] = (0.4, 0.4, 0.2)
    up: float = 1.5
    up_share: float = 0.25
    scaled_labeled: int = 2  # labelled windows in the scaled pass, evenly taken
    scaled_statistics: bool = False  # whether scaled passes move batch norm's running statistics
    strong_statistics: bool = False  # whether strongly perturbed streams do; they have a pass of their own if not
    rounds: tuple[float, ...] = (0.22, 0.44, 0.72)  # () keeps no bank
    stability: bool = True  # quality asks earlier states of the teacher too
    scales: tuple[float, ...] = (1.0, 0.75)
    memory: float = 0.3
    cleaning: Literal["largest", "lesions", "off"] = "largest"
    curriculum: tuple[float, ...] = (0.5, 0.75, 1.0)
    tolerance: float = 0.02
    volume_bound: float = 3.0
    enough: float = 0.02
    least_unlabeled: ClassVar[int] = 2

    def check(self, processes: int = 1) -> None:
        """See the base class; lists are checked here, too: they are looked into late in the run."""
        super().check(processes)
        for name in ("scales", "curriculum", "down"):
            if not getattr(self, name):
                raise refused(f"{name} is []", "one number at least")
        if self.memory > 1:
            raise refused(f"memory is {self.memory}", "from 0 to 1")
        if list(self.rounds) != sorted(set(self.rounds)):
            raise refused(f"rounds is {list(self.rounds)}", "shares of the run that rise")

    def shared(self) -> dict[str, int]:
        """See the base class; of the scaled pass, too."""
        return super().shared() | ({"scaled_labeled": self.scaled_labeled} if self.csc != "off" else {})


def refused(found: str, expected: str) -> SegError:
    """The error for a setting that the method cannot follow."""
    return SegError("E-CONFIG", Exit.USAGE, "", f"[method] {found}", "correct the value", expected)


@dataclass(frozen=True)
class Target:
    """What unlabelled voxels should be: label and weight (U, ...), sharpened probability (U, K, ...)."""

    label: Tensor
    weight: Tensor
    probability: Tensor

    def mixed(self, box: Tensor) -> "Target":
        """The reversed batch's inside the box."""
        label, weight = (torch.where(box, reversed_batch(t), t) for t in (self.label, self.weight))
        return Target(label, weight, torch.where(box[:, None], reversed_batch(self.probability), self.probability))


class Hstf(Method):
    """See the module's docstring."""

    Config = HstfConfig
    config: HstfConfig

    def __init__(self, network: nn.Module, config: HstfConfig, iterations: int) -> None:
        super().__init__(network, config, iterations)
        net = self._network
        self.teacher = Ema(network, config.ema)
        widths = net.widths[FEATURE_LEVEL]
        learned = config.feature_weight > 0 and config.csc not in ("off", "augment")
        self.predictor = pointwise(net, widths, widths) if learned else None
        kept = 2 if config.rounds and config.stability else 0
        self.early = nn.ModuleList(Ema(network, config.ema) for _ in range(kept))
        self.softmatch = SoftMatch(net.classes, config.ema)

    @property
    def _network(self) -> Network:
        return cast(Network, self.student)

    def _steps(self, share: float) -> int:
        return round(share * self.iterations)

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        """The student and what predicts the teacher's features."""
        return [*self.student.parameters(), *(self.predictor.parameters() if self.predictor is not None else ())]

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """See the base class."""
        cfg = self.config
        if step < self._steps(cfg.burn_in):
            return {"supervised": 0.5 * self._burn_in(batch) + self._unused()}
        teacher = cast(Network, self.teacher.network)
        with torch.no_grad():
            levels = teacher.encode(batch.u)
            logits = teacher.decode(levels).float()
            target = self._target(logits.softmax(dim=1), batch.bank)
        labeled, terms = self._views(batch, step, target)
        supervised, scaled = supervised_loss(labeled, batch.y), self._scaled(batch, target, levels[FEATURE_LEVEL])
        weight = 0.5 * ramped(step - self._steps(cfg.burn_in), cfg.ramp_up, self.iterations)
        found = {"supervised": 0.5 * (supervised + 0.5 * scaled.pop("supervised", torch.zeros_like(supervised)))}
        return found | {name: weight * loss for name, loss in (terms | scaled).items()}

    def _burn_in(self, batch: Batch) -> Tensor:
        """Supervision, labelled windows pasted into each other."""
        x, y = batch.x, batch.y
        if self.config.copy_paste:
            box = cutmix_boxes(len(x), x.shape[2:], batch.generator)
            x, y = torch.where(box[:, None], reversed_batch(x), x), torch.where(box, reversed_batch(y), y)
        return supervised_loss(self.student(x), y)

    def _unused(self) -> Tensor:
        """0, for processes that wait for the gradient of every parameter."""
        parts = [p.sum() for p in self.predictor.parameters()] if self.predictor is not None else []
        return 0.0 * torch.stack([self.softmatch.statistics.new_zeros(()), *parts]).sum()

    def _target(self, p: Tensor, bank: Tensor | None) -> Target:
        """Fused, sharpened, weighted; `p` (U, K, ...) is the teacher's probability."""
        agreed = torch.ones_like(p[:, 0])
        if bank is not None:
            prior, known = bank[:, :-1], bank[:, :-1].sum(dim=1) > 0.5
            fused = (p * prior).sqrt()
            fused = fused / fused.sum(dim=1, keepdim=True).clamp_min(1e-6)
            same = (p.argmax(dim=1) == prior.argmax(dim=1)) & (bank[:, -1] > 0.99)
            agreed = torch.where(known, same.float(), agreed)
            p = torch.where(known[:, None], fused, p)
        confidence, label = p.max(dim=1)
        sharp = p ** (1 / self.config.sharpening)
        sharp = sharp / sharp.sum(dim=1, keepdim=True).clamp_min(1e-6)
        return Target(label, agreed * self._weight(confidence, label), sharp)

    def _weight(self, confidence: Tensor, label: Tensor) -> Tensor:
        """(U, ...) in [0, 1]."""
        if self.config.weights == "none":
            return torch.ones_like(confidence)
        if self.config.weights == "threshold":
            return (confidence >= self.config.threshold).float()
        weight: Tensor = self.softmatch(confidence, label)
        return weight

    def _views(self, batch: Batch, step: int, target: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of the labelled windows, and the losses of unlabelled ones at their own scale."""
        if not self.config.pseudo_weight:
            return self.student(batch.x), {}
        strong = strong_view(batch.u, batch.generator)
        if self.config.cutmix:
            box = cutmix_boxes(len(strong), strong.shape[2:], batch.generator)
            strong, target = torch.where(box[:, None], reversed_batch(strong), strong), target.mixed(box)
        (labeled,), (unlabeled,) = self._passes(
            lambda levels: [self.student(levels[0])], [[batch.x], [strong]], [[0], [1]]
        )
        loss = distribution_loss(unlabeled, target.probability, target.weight)
        return labeled, {"pseudo": self.config.pseudo_weight * loss}

    def _passes(self, run: Part, streams: Sequence[Stream], groups: Sequence[Sequence[int]]) -> list[Stream]:
        """Streams through a part of the student, a pass for each group; those of the first are not perturbed."""
        if self.config.strong_statistics:
            return in_one(run, streams)
        return in_groups(self.student, run, streams, groups)

    def _scaled(self, batch: Batch, target: Target, features: Tensor) -> dict[str, Tensor]:
        """What the student loses at another scale: "supervised", "scale", "feature"; empty when switched off."""
        cfg, net = self.config, self._network
        if cfg.csc == "off":
            return {}
        zoom = self._zoom(batch)
        labeled = min(cfg.scaled_labeled, len(batch.x))
        taken = [number * len(batch.x) // labeled for number in range(labeled)]  # several processes have those of one
        xs, ys = ([windows[n : n + 1] for n in taken] for windows in (batch.x, batch.y))  # no index goes to the device
        u = batch.u if cfg.csc != "augment" else batch.u[:0]
        if labeled + len(u) == 0:
            return {}
        with kept_statistics(self.student, not cfg.scaled_statistics):
            levels = net.encode(zoom.image(torch.cat([*xs, u])))
            logits = net.decode(levels, head_dropout=False)
        zx, zu = logits.split_with_sizes([labeled, len(u)])
        inside = zoom.inside(device=u.device)
        found = {}
        if labeled:
            y = zoom.label(torch.cat(ys))
            keep = inside.expand(y.shape)
            entropy = (F.cross_entropy(zx.float(), y, reduction="none") * keep).sum() / keep.sum().clamp_min(1)
            p = zx.float().softmax(dim=1)
            dice = [soft_dice(p[:, k], (y == k).float(), keep) for k in range(1, net.classes)]
            found["supervised"] = 0.5 * (entropy + torch.stack(dice).mean())
        if not len(u):
            return found | ({"feature": self._unused()} if self.predictor is not None else {})
        if zoom.factor < 1:
            q, w = zoom.sample(target.probability), zoom.sample(target.weight[:, None])[:, 0] * inside
        else:
            zu = zoom.back(zu)
            q, w = zoom.cut(target.probability), zoom.cut(target.weight[:, None])[:, 0]
        found["scale"] = cfg.csc_weight * distribution_loss(zu, q, w)
        if self.predictor is not None:
            mine = levels[FEATURE_LEVEL][labeled:]
            grid = mine.shape[2:]
            theirs = zoom.sample(features, grid)
            sure = (zoom.sample(target.weight[:, None], grid)[:, 0] > 0.5).float()
            distance = 1 - F.cosine_similarity(self.predictor(mine).float(), theirs, dim=1)
            found["feature"] = cfg.feature_weight * weighted_mean(distance, sure)
        return found

    def _zoom(self, batch: Batch) -> Zoom:
        cfg, net, window = self.config, self._network, batch.x.shape[2:]
        draws = torch.rand(len(window) + 2, generator=batch.generator, device=batch.generator.device).tolist()
        up = {"up": 1.0, "down": 0.0}.get(cfg.csc, cfg.up_share)
        if draws[0] < up:
            factor = cfg.up
        else:
            below = sum(draws[1] >= at for at in accumulate(cfg.down_shares))
            factor = cfg.down[min(below, len(cfg.down) - 1)]
        return Zoom.draw(factor, window, net.stride[: net.dims], draws[2:])

    def after_step(self, step: int) -> None:
        """Move the teacher; remember it at one and two thirds of the way to each round."""
        self.teacher.update(self.student, step)
        if step + 1 == self._steps(self.config.burn_in):  # its average still holds the first, bad weights
            self.teacher.network.load_state_dict(self.student.state_dict())
        starts = [0, *self._round_steps()]
        for begin, end in pairwise(starts):
            for third, kept in enumerate(self.early, start=1):
                if step + 1 == begin + (end - begin) * third // 3:
                    kept.load_state_dict(self.teacher.state_dict())

    def rules(self) -> Rules | None:
        """The bank's; none without rounds."""
        cfg = self.config
        if not cfg.rounds:
            return None
        steps = self._round_steps()
        return Rules(steps, cfg.scales, cfg.memory, cfg.cleaning, cfg.curriculum, cfg.tolerance, cfg.volume_bound,
                     cfg.enough)  # fmt: skip

    def _round_steps(self) -> tuple[int, ...]:
        """Each once: in a short run two rounds may fall on one step."""
        return tuple(dict.fromkeys(self._steps(share) for share in self.config.rounds))

    def elders(self) -> Sequence[nn.Module]:
        """The teacher at one and two thirds of the way to this round."""
        return [cast(Ema, kept).network for kept in self.early]

    def deployed(self) -> nn.Module:
        """The teacher: averaged weights."""
        return self.teacher.network
