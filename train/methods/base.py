"""Contract 4, the method: how a network learns from one batch.

The loop knows nothing of methods; a method knows nothing of devices, files, schedules of validation or logging. A
training step is

    for phase in method.phases:
        for losses in method.parts(batch, step, phase): sum(losses.values()).backward()
        optimiser[phase].step()
    method.after_step(step)

`parts` is all of `losses` at once unless a method can release the graph of one part before it builds the next.
One phase is the rule; an adversarial method adds a second one with its own parameters (SASSNet's discriminator). A
pre-training period (BCP) is a branch on `step`, a teacher (UA-MT) is updated in `after_step`. Everything that must
survive an interruption is a parameter or a buffer. A method that learns from pseudo-labels of whole scans says by which
`rules`; the loop makes and keeps them between steps.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from seg.infer.errors import Exit, SegError

from ..networks import Network
from ..pseudo import Rules

Optimizer = Literal["sgd", "nesterov", "adamw"]
Schedule = Literal["poly", "step", "constant"]


@dataclass(frozen=True)
class Batch:
    """One step's data, on the training device.

    Attributes
    ----------
    x : (B, C, X, Y, Z) labelled images, network grid, normalised, weakly augmented; slices are (B, C, X, Y).
    y : (B, X, Y[, Z]) int64 class indices.
    u : (U, C, X, Y[, Z]) unlabelled images, weakly augmented; U may be 0.
    bank : (U, K + 1, X, Y[, Z]) float32 in [0, 1], for methods with `rules` once there are pseudo-labels: probability
        of each class, and last whether it may be trusted; all 0 for cases without. Moved along with `u`.
    generator : the step's random numbers, seeded from (seed, step), so that a resumed run repeats them; the same in
        all processes, see `draws`.
    """

    x: Tensor
    y: Tensor
    u: Tensor
    generator: torch.Generator
    bank: Tensor | None = None


@dataclass(frozen=True)
class MethodConfig:
    """Settings every method has. Subclasses override defaults and add their own.

    Attributes
    ----------
    least_unlabeled : unlabelled crops that the method needs in a step.
    cost : FLOP of a step a crop, in units of supervised training's: for estimates. Default: every crop once.
    ranges : least and greatest value of settings that `seg.train.ranges` does not name, or has another range for.
    """

    least_unlabeled: ClassVar[int] = 0
    cost: ClassVar[float] = 1.0
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}

    labeled_batch: int = 4
    unlabeled_batch: int = 0
    dropout: float = 0.5  # V-Net's own, bottleneck and head
    optimizer: Optimizer = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Schedule = "poly"  # step: x0.1 every 2500 iterations
    stretch: float = 1.0  # schedules end at this multiple of the run; CrossMatch's code stops at 14,000 of 17,000
    clip_norm: float = 0.0  # 0 is off
    betas: tuple[float, float] = (0.9, 0.999)  # of adamw
    warm_up: float = 0.0  # share of the run over which the rate rises linearly
    attention_lr: float = 0.3  # of transformer blocks, in units of lr
    attention_decay: float = 0.05  # their weight decay

    def check(self, processes: int = 1) -> None:
        """Raise SegError, E-CONFIG, for a batch that the method cannot learn from, shared among so many processes.

        Other values are checked by type and range.
        """
        if self.unlabeled_batch < self.least_unlabeled:
            why = "" if self.least_unlabeled < 2 else ": CutMix mixes them"
            expected = f"at least {self.least_unlabeled}{why}"
            fix = "take a larger one, or --method supervised"
            raise SegError("E-CONFIG", Exit.USAGE, "", f"unlabeled_batch {self.unlabeled_batch}", fix, expected)

    def shared(self) -> dict[str, int]:
        """Counts of windows, by field: each of several processes takes an equal part."""
        return {name: value for name, value in asdict(self).items() if name.endswith("_batch")}

    @property
    def crops(self) -> float:
        """Crops of supervised training that take the FLOP of this method's step."""
        return self.cost * (self.labeled_batch + self.unlabeled_batch)

    def length(self, iterations: int) -> float:
        """Steps over which the schedules of a run of `iterations` go."""
        return self.stretch * iterations


class Method(nn.Module):
    """Base of all methods; see the module's docstring for the contract."""

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    phases: ClassVar[tuple[str, ...]] = ("student",)

    def __init__(self, network: nn.Module, config: MethodConfig, iterations: int) -> None:
        super().__init__()
        self.student = network
        self.config = config
        self.iterations = iterations

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        """Parameters that the optimiser of `phase` moves."""
        return self.student.parameters()

    def settings(self, phase: str) -> MethodConfig:
        """What the optimiser of `phase` is built from: optimizer, lr, schedule, weight_decay, betas."""
        return self.config

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """Named weighted scalars whose sum is minimised. `step` counts from 0."""
        raise NotImplementedError

    def parts(self, batch: Batch, step: int, phase: str = "student") -> Iterator[dict[str, Tensor]]:
        """`losses` in parts that sum up to it; gradients of each are taken before the next is asked for."""
        yield self.losses(batch, step, phase)

    def after_step(self, step: int) -> None:
        """Called once after the optimisers' steps: moving averages, memories."""

    def rules(self) -> Rules | None:
        """How the loop keeps pseudo-labels of the unlabelled scans, which then come with each batch; None: not."""
        return None

    def elders(self) -> Sequence[nn.Module]:
        """Earlier states of the deployed network since the last round: what has not changed since is trusted."""
        return ()

    def deployed(self) -> nn.Module:
        """The network to validate and export: one input, one logits output."""
        return self.student


@contextmanager
def in_training_mode(module: nn.Module) -> Iterator[None]:
    """Dropout on and batch statistics, as teachers of several methods have it, for the length of a block."""
    modes = {part: part.training for part in module.modules()}
    for part in modes:
        part.training = True
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def pointwise(network: Network, inputs: int, outputs: int) -> nn.Module:
    """A 1x1(x1) convolution of the network's dimension: a further head."""
    return nn.Conv3d(inputs, outputs, 1) if network.dims == 3 else nn.Conv2d(inputs, outputs, 1)
