import pytest
import torch
from torch import nn

from seg.train.ema import Ema


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.Dropout3d(0.5))


def shift(network: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(by)


def test_first_update_copies_the_student() -> None:
    student = net()
    average = Ema(student, 0.99)
    shift(student, 1.0)
    average.update(student, 0)
    for mine, theirs in zip(average.network.parameters(), student.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("step", "alpha"), [(1, 0.5), (3, 0.75), (10_000, 0.9)])
def test_rate_rises_to_the_decay(step: int, alpha: float) -> None:
    student = net()
    average = Ema(student, 0.9)
    before = student[0].weight.detach().clone()
    shift(student, 1.0)
    average.update(student, step)
    torch.testing.assert_close(average.network[0].weight, before + (1 - alpha))  # type: ignore[index]


def test_batch_norm_statistics_follow_and_counters_are_copied() -> None:
    student = net()
    average = Ema(student, 0.5)
    student(torch.randn(4, 1, 2, 2, 2) + 3)
    running = student[1].running_mean
    average.update(student, 5)
    mine = average.network[1]  # type: ignore[index]
    torch.testing.assert_close(mine.running_mean, running / 2)
    assert int(mine.num_batches_tracked) == 1


def test_average_never_trains() -> None:
    average = Ema(net())
    holder = nn.ModuleList([average]).train()
    assert holder.training
    assert not any(part.training for part in average.modules())
    assert not any(parameter.requires_grad for parameter in average.parameters())
    x = torch.randn(2, 1, 2, 2, 2)
    assert torch.equal(average(x), average(x))


def test_student_is_not_shared() -> None:
    student = net()
    average = Ema(student)
    shift(student, 1.0)
    assert not torch.equal(average.network[0].weight, student[0].weight)  # type: ignore[index]
    assert student[0].weight.requires_grad
