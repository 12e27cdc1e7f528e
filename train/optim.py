"""Optimisers and learning-rate schedules of the methods' configurations."""

from collections.abc import Iterable

import torch
from torch import nn

from .methods.base import MethodConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: MethodConfig) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, plain or Nesterov's, or AdamW; fused."""
    if config.optimizer in ("sgd", "nesterov"):
        nesterov = config.optimizer == "nesterov"
        return torch.optim.SGD(
            parameters, config.lr, momentum=0.9, weight_decay=config.weight_decay, nesterov=nesterov, fused=True
        )
    return torch.optim.AdamW(parameters, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)


def learning_rate(config: MethodConfig, step: int, iterations: int) -> float:
    """The rate at `step` (from 0) of a run: poly (1 - t)^0.9, a tenth every 2500 steps, or constant."""
    if config.schedule == "poly":
        return config.lr * float(max(0.0, 1.0 - step / config.length(iterations)) ** 0.9)
    if config.schedule == "step":
        return config.lr * float(0.1 ** (step // 2500))
    return config.lr
