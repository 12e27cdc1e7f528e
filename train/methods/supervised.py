"""Supervised training on the labelled scans alone: the baseline, and the choice when everything is labelled.

Source: UA-MT code/train_LA.py: 0.5 * (CE + Dice), batch 4. Its SGD 0.01 with steps is
`optimizer="sgd", lr=0.01, schedule="step", dropout=0.5, ema=0`; the default here is AdamW with the polynomial schedule
and averaged weights.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from ..ema import Ema
from ..losses import supervised_loss
from .base import Batch, Method, MethodConfig


@dataclass(frozen=True)
class SupervisedConfig(MethodConfig):
    """Defaults of the supervised baseline."""

    dropout: float = 0.1  # the official 0.5 needs many more iterations at small widths
    ema: float = 0.99  # decay of the averaged weights that are deployed; 0 deploys the last weights


class Supervised(Method):
    """Cross entropy and Dice on labelled crops."""

    Config = SupervisedConfig
    config: SupervisedConfig

    def __init__(self, network: nn.Module, config: SupervisedConfig, iterations: int) -> None:
        super().__init__(network, config, iterations)
        self.average = Ema(network, config.ema) if config.ema > 0 else None

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """See the base class."""
        return {"supervised": supervised_loss(self.student(batch.x), batch.y)}

    def after_step(self, step: int) -> None:
        """Follow the student."""
        if self.average is not None:
            self.average.update(self.student, step)

    def deployed(self) -> nn.Module:
        """The averaged weights, or the last ones."""
        return self.student if self.average is None else self.average.network
