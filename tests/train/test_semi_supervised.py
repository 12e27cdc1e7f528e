"""The methods of the papers' tables: what their phases reach, and each one's formula against a plain recomputation."""

from copy import deepcopy
from dataclasses import fields, replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_batch
from torch import Tensor

from seg.train.losses import linear_dice, soft_dice
from seg.train.methods import METHODS, Distill, Method
from seg.train.methods.bcp import Bcp, _mixed_loss
from seg.train.methods.caml import Caml, CrossSampleAttention
from seg.train.methods.fixmatch import hard_target
from seg.train.methods.mc_net import decoder_alone, mutual_consistency
from seg.train.methods.ss_net import SsNet, _overlap_loss
from seg.train.methods.streams import kept_statistics
from seg.train.methods.ua_mt import UaMt, UaMtConfig
from seg.train.networks import build_network
from seg.train.networks.vnet import VNet


def build(name: str) -> Method:
    """At full weight from the first step, without dropout."""
    torch.manual_seed(0)
    cls = METHODS[name]
    names = {f.name for f in fields(cls.Config)}
    given: dict[str, Any] = {k: 0.0 for k in ("ramp_up", "threshold", "dropout") if k in names}
    network = VNet(width=2, dropout=0.0)
    method = cls(network, replace(cls.Config(), **given), 100).train()
    if isinstance(method, Distill):
        method.teacher = torch.no_grad()(deepcopy(network).eval())
    return method


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


def test_bcp_first_learns_the_mixture_as_one_labelled_scan() -> None:
    method = build("bcp")
    batch = make_batch(method.config)
    outer = method._outer(batch)  # type: ignore[operator]
    (xa, xb), (ya, yb) = batch.x.chunk(2), batch.y.chunk(2)
    logits, label = method.student(torch.where(outer, xa, xb)), torch.where(outer, ya, yb)
    p, t = logits.softmax(1), torch.nn.functional.one_hot(label, 2).movedim(-1, 1)
    dice = 1 - (2 * (p * t).sum((2, 3, 4)) + 1e-5) / ((p + t).sum((2, 3, 4)) + 1e-5)
    expected = (torch.nn.functional.cross_entropy(logits, label) + dice.mean()) / 2
    torch.testing.assert_close(method.losses(make_batch(method.config), 0)["supervised"], expected)


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
    before = {name: value.clone() for name, value in network.named_buffers() if name.endswith(("mean", "var"))}
    with kept_statistics(network):
        network(torch.randn(2, 1, 16, 16, 16))
    assert all(torch.equal(network.get_buffer(name), value) for name, value in before.items())
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


def test_sassnets_discriminator_drops_channels_before_each_later_convolution() -> None:
    rest = build("sassnet").discriminator.rest  # type: ignore[union-attr]
    names = [type(layer).__name__ for layer in rest]  # type: ignore[arg-type]
    assert names == ["LeakyReLU", "Dropout3d", "Conv3d"] * 3 + ["LeakyReLU"]


def test_ss_nets_adversary_sees_one_ratio_over_both_classes() -> None:
    p, q = (z.softmax(1) for z in probabilities(2, 2))
    expected = 1 - 2 * (p * q).sum() / (p.sum() + q.sum())
    assert float(_overlap_loss(p.log(), q)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["ss_net", "caml"])
def test_heads_on_embeddings_see_all_classes_at_once(name: str) -> None:
    method = build(name)
    batch = make_batch(method.config)
    rows: list[int] = []
    heads = [method.prediction] if isinstance(method, SsNet) else list(method.predictions)  # type: ignore[arg-type]
    for head in heads:
        head.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))  # type: ignore[union-attr]
    method.losses(batch, 60)
    voxels = batch.u[:, 0].numel()
    assert rows == [voxels, voxels]  # SS-Net: labelled, the others; CAML: each network


def test_camls_correlation_is_a_mean_over_all_agreed_voxels() -> None:
    method = build("caml")
    assert isinstance(method, Caml)
    batch = make_batch(method.config)
    method.ring.normal_()
    method.filled.fill_(method.config.ring)
    features = [torch.randn(2, method.student.width, 4, 4, 4) for _ in range(2)]  # type: ignore[arg-type]
    logits = [torch.randn(2, 2, 4, 4, 4) for _ in range(2)]
    for heads in (method.projections, method.predictions):
        heads.eval()  # batch norm sees voxels that are not agreed, too, where there are few
    memory, _ = method._drawn(torch.Generator().manual_seed(3))
    agreed = (logits[0].argmax(1) == logits[1].argmax(1)).flatten()
    similar = []
    for k in range(2):
        rows = features[k].movedim(1, -1).reshape(-1, features[k].shape[1])[agreed]
        similar.append((method.predictions[k](method.projections[k](rows)) @ memory.T / 0.1).softmax(1))
    expected = -(similar[1] * similar[0].log()).sum(1).mean()
    own = replace(batch, generator=torch.Generator().manual_seed(3))
    found = method._correlation((features[0], features[1]), (logits[0], logits[1]), own)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", ["vnet", "hstf"])
def test_a_decoder_alone_decodes(network: str) -> None:
    torch.manual_seed(0)
    whole = build_network(network, 1, 2, 4, 0.0).eval()
    levels = whole.encode(torch.randn(1, 1, 32, 32, 32))  # type: ignore[operator]
    expected = whole.decode(levels)  # type: ignore[operator]
    alone = decoder_alone(whole)  # type: ignore[arg-type]
    assert torch.equal(alone.decode(levels), expected)  # type: ignore[operator]
    assert {name.split(".")[0] for name, _ in alone.named_parameters()} <= {"up", "skip", "decoder", "head"}


def test_a_decoder_that_stands_alone_has_no_encoder() -> None:
    method = build("mc_net_plus")
    names = {name.split(".")[2] for name, _ in method.named_parameters() if name.startswith("others.")}
    assert names == {"up", "decoder", "head"}
    sizes = [sum(p.numel() for p in cls.parameters()) for cls in (build("mc_net"), method)]
    assert sizes[0] < sizes[1] < 3 * sizes[0]
    assert np.isclose(sum(p.numel() for p in VNet(width=16).parameters()), 9_448_866)
