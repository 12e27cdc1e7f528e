"""Optimisers and learning-rate schedules of the methods' configurations."""

from collections.abc import Iterable, Set
from typing import Any

import torch
from torch import nn

from .methods.base import MethodConfig


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: MethodConfig, attention: Set[int] = frozenset()
) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, plain or Nesterov's, or AdamW; fused.

    Parameters
    ----------
    attention : ids of the parameters of transformer blocks. With AdamW they have a rate and a decay of their own.
    """
    if config.optimizer in ("sgd", "nesterov"):
        nesterov = config.optimizer == "nesterov"
        return torch.optim.SGD(
            parameters, config.lr, momentum=0.9, weight_decay=config.weight_decay, nesterov=nesterov, fused=True
        )
    plain, blocks = list[nn.Parameter](), list[nn.Parameter]()
    for parameter in parameters:
        (blocks if id(parameter) in attention else plain).append(parameter)
    groups: list[dict[str, Any]] = [{"params": plain}]
    if blocks:
        groups.append({"params": blocks, "weight_decay": config.attention_decay, "share": config.attention_lr})
    return torch.optim.AdamW(groups, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Every group learns at its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)


def learning_rate(config: MethodConfig, step: int, iterations: int) -> float:
    """The rate at `step` (from 0): poly (1 - t)^0.9, a tenth every 2500 steps, or constant; less in a warm-up."""
    rising = config.warm_up * iterations
    lr = config.lr * (min(1.0, (step + 1) / rising) if rising > 0 else 1.0)
    if config.schedule == "poly":
        return lr * float(max(0.0, 1.0 - step / config.length(iterations)) ** 0.9)
    if config.schedule == "step":
        return lr * float(0.1 ** (step // 2500))
    return lr
