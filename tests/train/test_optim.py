from dataclasses import replace

import pytest
import torch

from seg.train.methods import MethodConfig
from seg.train.optim import build_optimizer, learning_rate

CONFIG = MethodConfig(lr=0.01)


@pytest.mark.parametrize(
    ("schedule", "step", "rate"),
    [
        ("poly", 0, 0.01),
        ("poly", 500, 0.01 * 0.5**0.9),
        ("poly", 999, 0.01 * 0.001**0.9),
        ("poly", 1000, 0.0),
        ("poly", 1500, 0.0),
        ("step", 0, 0.01),
        ("step", 2499, 0.01),
        ("step", 2500, 0.001),
        ("step", 5000, 0.0001),
        ("constant", 999, 0.01),
    ],
)
def test_schedule(schedule: str, step: int, rate: float) -> None:
    assert learning_rate(replace(CONFIG, schedule=schedule), step, 1000) == pytest.approx(rate, rel=1e-9)  # type: ignore[arg-type]


def test_a_stretched_schedule_ends_after_the_run() -> None:
    official = replace(CONFIG, stretch=17 / 14)
    assert learning_rate(official, 13_999, 14_000) == pytest.approx(0.01 * (1 - 13_999 / 17_000) ** 0.9, rel=1e-9)


def test_sgd_has_momentum() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer([parameter], replace(CONFIG, optimizer="sgd", weight_decay=0.0))
    places = []
    for _ in range(2):
        parameter.grad = torch.ones(1)
        optimizer.step()
        places.append(parameter.item())
    assert places == pytest.approx([-0.01, -0.01 - 0.019])


def test_adamw_decays_apart_from_the_gradient() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = build_optimizer([parameter], replace(CONFIG, weight_decay=0.5))
    parameter.grad = torch.zeros(1)
    optimizer.step()
    assert parameter.item() == pytest.approx(1 - 0.01 * 0.5)
