import math

import pytest
import torch
import torch.nn.functional as F

from seg.train.losses import SMOOTH, dice_loss, soft_dice, supervised_loss


def test_soft_dice_by_hand() -> None:
    p = torch.tensor([[0.9, 0.4, 0.1]])
    t = torch.tensor([[1.0, 1.0, 0.0]])
    # overlap 1.3; squares 0.81 + 0.16 + 0.01 + 2
    assert float(soft_dice(p, t)) == pytest.approx(1 - (2 * 1.3 + 1e-5) / (2.98 + 1e-5), abs=1e-6)


def test_soft_dice_of_nothing_is_zero() -> None:
    nothing = torch.zeros(1, 3)
    assert float(soft_dice(nothing, nothing)) == 0.0
    assert float(soft_dice(torch.full((1, 3), 0.3), torch.ones(1, 3), keep=nothing)) == 0.0


def test_one_ratio_over_the_whole_batch() -> None:
    p = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    t = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert float(soft_dice(p, t)) == pytest.approx(1 - 2 / 4, abs=1e-5)  # the mean over samples would be 1/2 * (0 + 1)
    p = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert float(soft_dice(p, t)) == pytest.approx(1 - 2 / 5, abs=1e-5)


def test_keep_equals_dropping_the_voxels() -> None:
    torch.manual_seed(0)
    p, t, keep = torch.rand(2, 5, 6, 7), (torch.rand(2, 5, 6, 7) > 0.5).float(), torch.rand(2, 5, 6, 7) > 0.3
    assert float(soft_dice(p, t, keep.float())) == pytest.approx(float(soft_dice(p[keep], t[keep])), abs=1e-6)
    assert float(soft_dice(p, t, keep.float())) != pytest.approx(float(soft_dice(p, t)), abs=1e-3)


def test_a_voxel_of_half_the_weight_counts_half() -> None:
    """As often as its weight says, in sums of as many voxels."""
    torch.manual_seed(0)
    p, t, times = torch.rand(1, 50), torch.rand(1, 50), torch.randint(5, (50,))
    repeated = soft_dice(p.repeat_interleave(times, dim=1), t.repeat_interleave(times, dim=1))
    assert float(soft_dice(p, t, times[None] / 4)) == pytest.approx(float(repeated), abs=1e-5)


def test_dice_loss_is_the_mean_over_foreground_classes() -> None:
    probability = torch.tensor([[0.2, 0.7], [0.5, 0.2], [0.3, 0.1]])  # (K, voxels)
    target = torch.tensor([[1, 2]])
    one = 1 - (2 * 0.5 + SMOOTH) / (0.25 + 0.04 + 1 + SMOOTH)
    two = 1 - (2 * 0.1 + SMOOTH) / (0.09 + 0.01 + 1 + SMOOTH)
    assert float(dice_loss(probability.log()[None], target)) == pytest.approx((one + two) / 2, abs=1e-6)


def test_dice_loss_with_keep_has_the_gradient_of_dropping() -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    target, keep = torch.randint(3, (2, 4, 4, 4)), torch.rand(2, 4, 4, 4) > 0.4
    (masked,) = torch.autograd.grad(dice_loss(logits, target, keep.float()), logits)
    p = logits.softmax(dim=1)
    plain = torch.stack([soft_dice(p[:, k][keep], (target == k)[keep].float()) for k in (1, 2)]).mean()
    (dropped,) = torch.autograd.grad(plain, logits)
    torch.testing.assert_close(masked, dropped, atol=1e-6, rtol=1e-4)


def test_supervised_loss_is_the_mean_of_both() -> None:
    torch.manual_seed(2)
    logits, target = torch.randn(2, 2, 4, 4, 4), torch.randint(2, (2, 4, 4, 4))
    expected = 0.5 * (F.cross_entropy(logits, target) + dice_loss(logits, target))
    assert float(supervised_loss(logits, target)) == pytest.approx(float(expected), abs=1e-6)


def test_supervised_loss_by_hand() -> None:
    logits = torch.zeros(1, 2, 2)  # probability 1/2 everywhere
    dice = 1 - (2 * 0.5 + SMOOTH) / (2 * 0.25 + 1 + SMOOTH)
    assert float(supervised_loss(logits, torch.tensor([[0, 1]]))) == pytest.approx((math.log(2) + dice) / 2, abs=1e-6)


def test_low_precision_logits_are_summed_in_float32() -> None:
    logits = torch.zeros(1, 2, 300, 300, dtype=torch.bfloat16)
    loss = dice_loss(logits, torch.ones(1, 300, 300, dtype=torch.int64))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(1 - 1 / 1.25, abs=1e-5)
