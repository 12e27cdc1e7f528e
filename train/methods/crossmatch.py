"""CrossMatch (Zhao et al., IEEE JBHI 2024): image-level and feature-level perturbation with self-distillation.

Every unlabelled scan has five predictions: wn (weak image, no feature perturbation: the teacher), ww, ws, sw, ss
(weak/strong image x weak/strong feature perturbation), and the clean predictions of the two strong views, s1 and s2.
Losses (equations 10 to 12):

    L_ip  = mean of D(s1; wn), D(s2; wn)                        image perturbation
    L_tkd = mean of D(ww; wn), D(ws; wn), D(sw; wn), D(ss; wn)  teacher distillation
    L_dkd = mean of D(sw; ww), D(ss; ws)                        assistant distillation
    L     = scale * (L_sup + w_ip L_ip + w_kd ((1 - eta) L_tkd + eta L_dkd))

D is the Dice loss against hard targets (Algorithm 1) where the teacher is confident, or its mean with their cross
entropy; the temperature of section 3 is 1, as in the code. Paper, paper-time code and today's code differ; `Config`
covers all three and the presets say which value comes from where.
Common to all: the box of CutMix has the volume drawn, and the CutMix partner is the batch reversed unless `mix_batch`
asks for the official third loader. There are two passes, [x, u] and [s1, s2], and batch norm sees each by itself. The
second's targets carry no gradient, so that the loop takes the first's gradients before it: less memory.
`teacher="stacked"` has the teacher among the first pass's streams, as published; otherwise it stands apart, without
gradient. Perturbations are functions of the training step: nothing of them is in `deployed()`.

What `fast` changes and why (hippocampus, 10 labels, 800 steps, one seed; Dice in percent, supervised training 83.8; all
from before networks began with mostly background, see `networks.prior`):

* Dice on confident voxels alone makes the foreground grow: 77.9 to 82.5 at a precision far below the recall. With cross
  entropy beside it 82.5 becomes 84.4.
* Streams whose channels are dropped have more variance. In one batch with them labelled scans are normalised by a
  variance that no scan has at inference. `batch_norm="apart"` normalises perturbed streams by themselves and keeps
  running statistics of clean, weakly augmented scans alone: 82.5 after 81.3.
* Averaged weights teach in the place of the student's own: 81.3 after 77.9, with Dice alone and one batch.
* Weights of 0.3 in the place of 1: 84.6 after 84.4. The gap hardly matters: 0, 0.25, 0.5 and 0.75
  had 83.5, 83.2, 83.5 and 83.5 after 400 steps (later, with three labelled windows).

Since then, with windows that overhang scans (see `sampling`) and three labelled ones a step (hippocampus, means over
seeds): with 10 labels and 800 steps 85.5 +- 0.4, supervised training 84.7 +- 0.4; with 20 labels level after 800 steps
(86.0 both), 87.0 +- 0.2 after 2400, supervised training 86.1 +- 0.3, of 87.7 with all 200 after 800. So length makes it
pay. Within the scans, 10 labels: 85.0 +- 0.5; one seed: a threshold of 0.5, which keeps nearly all, had 84.9 after
85.5, and Dice losses that count the background 85.5.

Three labelled windows are the default: on the left atrium (8 labels, 2400 steps, one seed) they had 90.3, two 87.9,
four 89.8, supervised training 89.0; after 800 steps three 86.8, supervised training 88.1, for one scan of ten (0.52 and
0.64). A step costs 3.27 V-Net's in FLOP with three, 3.02 with two, 3.52 with four.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from seg.infer.errors import Exit, SegError

from ..ema import Ema
from ..losses import supervised_loss
from ..networks import Network
from ..processes import reversed_batch
from ..ramp import gaussian_ramp, ramped
from ..strong import cutmix_boxes, strong_view
from .base import Batch, Method, MethodConfig
from .streams import (
    Distance,
    Perturbation,
    Stream,
    StreamTarget,
    in_groups,
    in_one,
    kept_statistics,
    perturbed,
)


@dataclass(frozen=True)
class CrossMatchConfig(MethodConfig):
    """The method's settings; the defaults are the `fast` preset."""

    labeled_batch: int = 3  # paper and official: 2
    unlabeled_batch: int = 2
    cost: ClassVar[float] = 2.7
    dropout: float = 0.1  # paper and official: 0.5
    ip_weight: float = 0.3  # equation 12: 1
    kd_weight: float = 0.3
    scale: float = 1.0
    eta: float = 0.3  # Table 4
    gap: float = 0.25  # Table 5: weak p = (1 - gap) / 2, strong p = (1 + gap) / 2
    perturbation: Perturbation = "dropout"  # Fig. 5
    distance: Distance = "dice_ce"
    dice_background: bool = False  # whether the Dice losses count it as a class; official for ACDC: they do
    threshold: float = 0.85  # paper, section IV
    threshold_ramp: bool = False  # official: (c + (1 - c) r(step)) * ln 2 from the second step on
    mix_batch: int = 0  # official: half the unlabelled crops are CutMix partners; 0 takes the batch reversed
    teacher: Literal["stacked", "apart", "ema"] = "ema"
    ema: float = 0.99
    batch_norm: Literal["shared", "apart"] = "apart"  # apart: perturbed streams leave clean ones alone
    background_start: bool = True  # see networks.prior; published: PyTorch's own start, equal chances for all classes
    ramp_up: float = 0.4  # share of the run over which the unsupervised losses fade in; 0 acts from the first step

    def check(self, processes: int = 1) -> None:
        """See the base class."""
        super().check(processes)
        found = f"unlabeled_batch {self.unlabeled_batch} and mix_batch {self.mix_batch}"
        if self.unlabeled_batch < 2:
            fix = "take a larger unlabeled_batch"
            raise SegError("E-CONFIG", Exit.USAGE, "", found, fix, "two scans at least: CutMix mixes them")
        if self.mix_batch and 2 * self.mix_batch != self.unlabeled_batch:
            fix = f"--set unlabeled_batch={2 * self.mix_batch}, or mix_batch=0"
            raise SegError("E-CONFIG", Exit.USAGE, "", found, fix, "a CutMix partner for each unlabelled scan")
        if self.teacher == "ema" and not self.ema:
            fix = "--set teacher=apart, or an ema above 0"
            raise SegError("E-CONFIG", Exit.USAGE, "", "teacher ema and ema 0", fix, "averaged weights")


# What both have in common. AdamW is the text's. It says nothing of dropout, the teacher's place and batch norm, nor of
# 1e-3, weight decay 1e-4 and the polynomial schedule, every method's defaults: those are the code's.
_PUBLISHED: dict[str, Any] = dict(
    dropout=0.5,
    ip_weight=1.0,
    kd_weight=1.0,
    gap=0.5,
    distance="dice",
    teacher="stacked",
    ema=0.0,
    batch_norm="shared",
    background_start=False,
    ramp_up=0.0,
)
PRESETS: dict[str, dict[str, Any]] = {  # the papers' left atrium
    # Text of the paper: equation 12, threshold 0.85 fixed, batch 2 + 2, no third loader.
    "paper": dict(_PUBLISHED, labeled_batch=2, unlabeled_batch=2),
    # Repository HEAD 59772e0, LA/code/train.sh and train_cross_match.py: c 0.75 with ramp, L / 2, L_ip weight 0.5.
    "official": dict(
        _PUBLISHED,
        labeled_batch=2,
        unlabeled_batch=4,
        stretch=17 / 14,
        mix_batch=2,
        threshold=0.75,
        threshold_ramp=True,
        ip_weight=0.5,
        scale=0.5,
    ),
    # For small budgets; what each choice is worth is in the module's docstring.
    "fast": {},
}

_ACDC: dict[str, Any] = dict(
    _PUBLISHED, labeled_batch=12, optimizer="nesterov", lr=0.01, threshold=0.95, dice_background=True
)
PRESETS_2D: dict[str, dict[str, Any]] = {  # slices: the papers' ACDC
    # Section IV: SGD, threshold 0.95. The text's batch of 12 is 12 + 12 in the code. Equation 12 has no weights.
    "paper": dict(_ACDC, unlabeled_batch=12),
    # Repository HEAD 59772e0, ACDC/train_cross_match.py: L_kd has half the weight it has for the left atrium.
    "official": dict(_ACDC, unlabeled_batch=24, mix_batch=12, ip_weight=0.5, kd_weight=0.5, scale=0.5),
    "fast": {},
}


class CrossMatch(Method):
    """See the module's docstring."""

    Config = CrossMatchConfig
    config: CrossMatchConfig

    def __init__(self, network: nn.Module, config: CrossMatchConfig, iterations: int) -> None:
        super().__init__(network, config, iterations)
        if not config.background_start:
            self._network.head.reset_parameters()
        self.average = Ema(network, config.ema) if config.ema > 0 else None

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """See the base class."""
        found: dict[str, Tensor] = {}
        for part in self.parts(batch, step, phase):
            found |= {name: found[name] + loss if name in found else loss for name, loss in part.items()}
        return found

    def parts(self, batch: Batch, step: int, phase: str = "student") -> Iterator[dict[str, Tensor]]:
        """The losses of [x, u], then those of [s1, s2]: without gradient in targets the first graph is free by then."""
        cfg = self.config
        u, partner = self._unlabeled(batch)
        s1, s2 = strong_view(u, batch.generator), strong_view(u, batch.generator)
        box1, box2 = (cutmix_boxes(len(u), u.shape[2:], batch.generator) for _ in range(2))
        p1, p2 = (self._partner_view(partner, view, batch.generator) for view in (s1, s2))
        s1, s2 = torch.where(box1[:, None], p1, s1), torch.where(box2[:, None], p2, s2)
        weight = cfg.scale * self._ramp(step)
        of_teacher = weight * cfg.kd_weight * (1 - cfg.eta) / 4

        given = None if partner is None else self._partner_logits(batch.x, partner)
        zx, wn, ww, ws = self._streams(batch.x, u, cfg.teacher == "stacked")
        # What stands inside the CutMix box: the partners' predictions of the same kind.
        mix, mix_w, mix_s = given or (reversed_batch(wn), reversed_batch(ww), reversed_batch(ws))
        c, background = self._threshold(step), cfg.dice_background
        target = partial(StreamTarget.of, threshold=c, distance=cfg.distance, background=background)
        teacher, t1, t2 = target(wn), target(wn, mix, box1), target(wn, mix, box2)
        k1, k2 = target(ww, mix_w, box2), target(ws, mix_s, box2)
        yield {
            "supervised": cfg.scale * supervised_loss(zx, batch.y, background=background),
            "teacher": of_teacher * (teacher.loss(ww) + teacher.loss(ws)),
        }
        del zx, wn, ww, ws, mix, mix_w, mix_s, given
        with kept_statistics(self.student, cfg.batch_norm == "apart"):
            z1, z2, sw, ss = self._streams(s1, s2)
        yield {
            "image": weight * cfg.ip_weight * (t1.loss(z1) + t2.loss(z2)) / 2,
            "teacher": of_teacher * (t2.loss(sw) + t2.loss(ss)),
            "assistant": weight * cfg.kd_weight * cfg.eta * (k1.loss(sw) + k2.loss(ss)) / 2,
        }

    def _unlabeled(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The unlabelled crops and, in official mode, their CutMix partners from the third loader.

        They alternate in the batch, so that several processes have the pairs of one.
        """
        return (batch.u[0::2], batch.u[1::2]) if self.config.mix_batch else (batch.u, None)

    def _partner_view(self, partner: Tensor | None, view: Tensor, generator: torch.Generator) -> Tensor:
        """What is pasted into a strong view: a strong view of the partner."""
        return reversed_batch(view) if partner is None else strong_view(partner, generator)

    @torch.no_grad()
    def _partner_logits(self, x: Tensor, partner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Teacher, weakly and strongly perturbed logits of the third loader's crops."""
        clean = (self._mean_teacher or self.student)(partner)
        _, _, weak, strong = self._streams(x, partner)
        return clean, weak, strong

    def _streams(self, first: Tensor, second: Tensor, stacked: bool = True) -> tuple[Tensor, ...]:
        """Logits of `first`, of `second`, and of `second` under weak and strong perturbation: one decoder pass.

        Without `stacked` those of `second` are the teacher's, made apart and without gradient.
        """
        network, n, m = self._network, len(first), len(second)
        levels = network.encode(torch.cat([first, second]))
        head, tail = zip(*(level.split_with_sizes([n, m]) for level in levels), strict=True)
        streams = [head, *([tail] if stacked else []), *(self._perturbed(tail, p) for p in self._rates())]
        found = [logits for (logits,) in self._decoded(streams)]
        if stacked:
            return tuple(found)
        z, weak, strong = found
        with torch.no_grad():
            average = self._mean_teacher
            teacher = network.decode(tail, head_dropout=False) if average is None else average(second)
        return z, teacher, weak, strong

    def _decoded(self, streams: Sequence[Stream]) -> list[Stream]:
        """Logits of each stream; the last two are perturbed."""

        def decode(levels: list[Tensor]) -> list[Tensor]:
            return [self._network.decode(levels, head_dropout=False)]

        if self.config.batch_norm == "shared":
            return in_one(decode, streams)
        calm = range(len(streams) - 2)
        return in_groups(self.student, decode, streams, [calm, range(len(calm), len(streams))])

    @property
    def _mean_teacher(self) -> Ema | None:
        return self.average if self.config.teacher == "ema" else None

    @property
    def _network(self) -> Network:
        return cast(Network, self.student)

    def _rates(self) -> tuple[float, float]:
        return (1 - self.config.gap) / 2, (1 + self.config.gap) / 2

    def _perturbed(self, levels: Sequence[Tensor], p: float) -> list[Tensor]:
        """Feature perturbation on all five levels (LA/code/networks/vnet.py, PertDropout)."""
        return perturbed(levels, p, self.config.perturbation, self._network.dims)

    def _threshold(self, step: int) -> float:
        c = self.config.threshold
        if not self.config.threshold_ramp or step == 0:
            return c
        return (c + (1 - c) * gaussian_ramp((step - 1) / self.config.length(self.iterations))) * math.log(2)

    def _ramp(self, step: int) -> float:
        return ramped(step, self.config.ramp_up, self.iterations)

    def after_step(self, step: int) -> None:
        """Move the averaged weights."""
        if self.average is not None:
            self.average.update(self.student, step)

    def deployed(self) -> nn.Module:
        """The averaged weights where there are any, else the student: without perturbations."""
        return self.student if self.average is None else self.average.network
