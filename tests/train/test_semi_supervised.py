"""The methods of the papers' tables: one contract for all, and each one's formula against a plain recomputation."""

from copy import deepcopy
from dataclasses import fields, replace
from itertools import permutations

import numpy as np
import pytest
import torch
from tiny import make_batch
from torch import Tensor, nn

from seg.train.losses import linear_dice, soft_dice
from seg.train.methods import METHODS, Batch, Distill, Method
from seg.train.methods.bcp import Bcp, _mixed_loss
from seg.train.methods.caml import CrossSampleAttention
from seg.train.methods.fixmatch import hard_target
from seg.train.methods.mc_net import mutual_consistency
from seg.train.methods.ss_net import _statistics_kept
from seg.train.methods.ua_mt import UaMt, UaMtConfig
from seg.train.networks.unet import UNet2d
from seg.train.networks.vnet import VNet

# Method -> the weights that switch off what it learns from unlabelled scans.
WEIGHTS = {
    "ua_mt": ("consistency",),
    "sassnet": ("adversarial",),
    "dtc": ("consistency",),
    "mc_net": ("consistency",),
    "mc_net_plus": ("consistency",),
    "urpc": ("consistency",),
    "ss_net": ("consistency",),
    "dmd": ("distillation",),
    "bcp": ("pseudo",),
    "fixmatch": (),
    "unimatch": ("strong", "perturbed"),
    "caml": ("consistency", "correlation"),
    "crossmatch": ("ip_weight", "kd_weight"),
    "distill": ("weight",),
}
FROM_LABELS = ("supervised", "distance", "discriminator")


def build(name: str, classes: int = 2, dims: int = 3, **changes: object) -> Method:
    torch.manual_seed(0)
    cls = METHODS[name]
    given = dict(changes)
    names = {f.name for f in fields(cls.Config)}
    for field, value in (("ramp_up", 0.0), ("threshold", 0.0), ("dropout", 0.0)):
        if field in names:
            given.setdefault(field, value)
    network: nn.Module = (VNet if dims == 3 else UNet2d)(classes=classes, width=2, dropout=0.0)
    method = cls(network, replace(cls.Config(), **given), 100).train()  # type: ignore[arg-type]
    if isinstance(method, Distill):
        method.teacher = torch.no_grad()(deepcopy(network).eval())
    return method


def slices(batch: Batch) -> Batch:
    """The first slice of each crop."""
    return Batch(batch.x[..., 0], batch.y[..., 0], batch.u[..., 0], batch.generator)


def unlabeled_terms(losses: dict[str, Tensor]) -> list[Tensor]:
    return [loss for name, loss in losses.items() if name not in FROM_LABELS]


def test_every_semi_supervised_method_is_walked() -> None:
    assert set(WEIGHTS) == {name for name, cls in METHODS.items() if cls.Config().unlabeled_batch}


@pytest.mark.parametrize(("classes", "dims"), [(2, 3), (4, 3), (4, 2)])
@pytest.mark.parametrize("name", list(WEIGHTS))
def test_unlabelled_scans_move_the_student_and_no_teacher(name: str, classes: int, dims: int) -> None:
    method = build(name, classes, dims)
    batch = make_batch(method.config, classes)
    losses = method.losses(batch if dims == 3 else slices(batch), 60)
    assert all(torch.isfinite(loss) for loss in losses.values())
    torch.autograd.backward(torch.stack(unlabeled_terms(losses)).sum())
    moved = [p.grad.abs().sum() for p in method.student.parameters() if p.grad is not None]
    assert float(torch.stack(moved).sum()) > 0
    teachers = [part for n in ("teacher", "average") if isinstance(part := getattr(method, n, None), nn.Module)]
    assert all(not p.requires_grad and p.grad is None for part in teachers for p in part.parameters())


@pytest.mark.parametrize("name", [name for name in WEIGHTS if WEIGHTS[name]])
def test_without_its_weights_only_the_labels_teach(name: str) -> None:
    method = build(name, **dict.fromkeys(WEIGHTS[name], 0.0))
    losses = method.losses(make_batch(method.config), 60)
    assert [float(loss.detach()) for loss in unlabeled_terms(losses)] == [0.0] * len(unlabeled_terms(losses))


@pytest.mark.parametrize("name", sorted(set(WEIGHTS) - {"bcp"}))
def test_other_unlabelled_scans_change_nothing_in_the_labelled_loss(name: str) -> None:
    """But through batch norm, which is off here, and CutMix of labelled with unlabelled crops, which is BCP."""
    method = build(name)
    for part in method.modules():
        if isinstance(part, nn.BatchNorm3d | nn.BatchNorm1d):
            part.eval()
            part.train = lambda mode=True, part=part: part  # type: ignore[method-assign,assignment,misc]
    batch = make_batch(method.config)
    torch.manual_seed(0)
    one = method.losses(batch, 0)["supervised"]
    torch.manual_seed(0)
    other = Batch(batch.x, batch.y, batch.u.flip(2) * 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(method.losses(other, 0)["supervised"], one)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_phase_has_parameters_of_its_own_that_its_losses_reach(name: str) -> None:
    method = build(name)
    batch = make_batch(method.config)
    seen: set[int] = set()
    for phase in method.phases:
        parameters = list(method.trainable(phase))
        assert not seen & {id(p) for p in parameters}
        seen |= {id(p) for p in parameters}
        method.losses(batch, 0, phase)  # BCP learns differently at first, CAML fills its memory
        total = torch.stack(list(method.losses(batch, 60, phase).values())).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        unreached = [i for i, gradient in enumerate(gradients) if gradient is None]
        assert not unreached, [n for n, p in method.named_parameters() if any(p is parameters[i] for i in unreached)]


@pytest.mark.parametrize("name", list(METHODS))
def test_the_same_step_gives_the_same_losses(name: str) -> None:
    def losses() -> dict[str, Tensor]:
        method = build(name)
        torch.manual_seed(7)
        return method.losses(make_batch(method.config), 60)

    one, two = losses(), losses()
    assert all(torch.equal(one[key], two[key]) for key in one)


# Formulas


def probabilities(*seeds: int) -> list[Tensor]:
    return [torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(s)) for s in seeds]


def test_mutual_consistency_is_the_published_sum() -> None:
    logits = probabilities(0, 1, 2)
    p = [z.softmax(1) for z in logits]
    sharp = [q**10 / (q**10 + (1 - q) ** 10) for q in p]
    expected = sum(float(((p[i] - sharp[j]) ** 2).mean()) for i, j in permutations(range(3), 2))
    assert float(mutual_consistency(logits, 0.1)) == pytest.approx(expected, rel=1e-5)


def test_linear_dice() -> None:
    (logits,) = probabilities(3)
    y = torch.randint(0, 2, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    p = logits.softmax(1)[:, 1]
    expected = 1 - (2 * (p * y).sum() + 1e-8) / (p.sum() + y.sum() + 1e-8)
    torch.testing.assert_close(linear_dice(logits, y), expected)
    assert not torch.isclose(linear_dice(logits, y), soft_dice(p, y.float()))


def test_ua_mt_lets_only_certain_voxels_teach() -> None:
    """A teacher that knows nothing teaches nothing; one that is sure teaches the squared difference."""
    method = UaMt(VNet(width=2, dropout=0.0), UaMtConfig(ramp_up=0.0, consistency=1.0, dropout=0.0), 100).train()
    batch = make_batch(method.config)
    with torch.no_grad():
        method.teacher.network.head.weight.zero_()  # type: ignore[union-attr]
        method.teacher.network.head.bias.zero_()  # type: ignore[union-attr]
    assert float(method.losses(batch, 0)["consistency"].detach()) == 0.0
    with torch.no_grad():
        method.teacher.network.head.bias.copy_(torch.tensor([0.0, 20.0]))  # type: ignore[union-attr]
    torch.manual_seed(0)
    found = method.losses(batch, 0)["consistency"]
    p = method.student(torch.cat([batch.x, batch.u]))[len(batch.x) :].softmax(1)
    expected = ((p - torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1)) ** 2).sum(1).mean() / 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_hard_targets_inside_the_box_are_the_other_crops() -> None:
    logits = torch.zeros(2, 2, 2, 2, 2)
    logits[0, 1], logits[1, 0] = 5.0, 0.1
    box = torch.zeros(2, 2, 2, 2, dtype=torch.bool)
    box[:, 0] = True
    label, keep = hard_target(logits, 0.9, box)
    assert label[0, 0].eq(0).all()
    assert label[0, 1].eq(1).all()
    assert keep[0, 0].eq(0).all()  # the other crop is not confident
    assert keep[0, 1].eq(1).all()
    assert label[1, 0].eq(1).all()


def test_bcp_weighs_the_regions_of_a_mixture() -> None:
    (logits,) = probabilities(4)
    outside = torch.ones(4, 4, 4, dtype=torch.bool)
    outside[1:3, 1:3, 1:3] = False
    a, b = (torch.randint(0, 2, (2, 4, 4, 4), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    found = _mixed_loss(logits, a, b, outside, 1.0, 0.5)
    expected = 0.0
    for label, region, weight in ((a, outside, 1.0), (b, ~outside, 0.5)):
        p = logits.softmax(1)
        entropy = -p.gather(1, label[:, None]).log()[:, 0][:, region].mean()
        dice = []
        for sample in range(2):
            for value in range(2):
                q, t = p[sample, value][region], (label[sample] == value)[region].float()
                dice.append(1 - 2 * (q * t).sum() / (q.sum() + t.sum()))
        expected += weight * 0.5 * float(torch.stack(dice).mean() + entropy)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_bcp_pastes_one_block_and_first_trains_on_labels_alone() -> None:
    method = build("bcp")
    assert isinstance(method, Bcp)
    outer = method._outer(make_batch(method.config))
    assert int((~outer).sum()) == 10**3  # two thirds of 16, rounded down
    first, later = (method.losses(make_batch(method.config), step) for step in (0, 60))
    assert set(first) == {"supervised"}
    assert set(later) == {"supervised", "pseudo"}
    method.after_step(0)
    for mine, theirs in zip(method.teacher.network.parameters(), method.student.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_attention_is_for_training_alone() -> None:
    attention, x = CrossSampleAttention(8), torch.randn(3, 8, 2, 2, 2)
    assert torch.equal(attention.eval()(x), x)
    assert attention.train()(x).shape == x.shape
    assert not torch.equal(attention(x), x)


def test_running_statistics_stay_while_the_adversary_looks() -> None:
    network = VNet(width=2).train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    with _statistics_kept(network):
        network(torch.randn(2, 1, 16, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    network(torch.randn(2, 1, 16, 16, 16))
    assert not torch.equal(network.encoder[0][1].running_mean, before["encoder.0.1.running_mean"])  # type: ignore[index]


def test_sassnets_discriminator_has_an_optimiser_of_its_own() -> None:
    method = build("sassnet")
    student, judge = method.settings("student"), method.settings("discriminator")
    assert (student.optimizer, student.lr, student.schedule) == ("sgd", 0.01, "step")
    assert (judge.optimizer, judge.lr, judge.schedule, judge.betas) == ("adamw", 1e-4, "constant", (0.9, 0.99))
    batch = make_batch(method.config)
    torch.autograd.backward(method.losses(batch, 0, "discriminator")["discriminator"])
    assert all(p.grad is None for p in method.student.parameters())
    assert method.student.training


def test_a_decoder_that_stands_alone_has_no_encoder() -> None:
    method = build("mc_net_plus")
    names = {name.split(".")[2] for name, _ in method.named_parameters() if name.startswith("others.")}
    assert names == {"up", "decoder", "head"}
    sizes = [sum(p.numel() for p in cls.parameters()) for cls in (build("mc_net"), method)]
    assert sizes[0] < sizes[1] < 3 * sizes[0]
    assert np.isclose(sum(p.numel() for p in VNet(width=16).parameters()), 9_448_866)
