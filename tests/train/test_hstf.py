"""HSTF's losses: each part acts, can be switched off, and follows its formula."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import make_batch
from torch import Tensor, nn

from seg.train.losses import distribution_loss
from seg.train.methods import METHODS, PRESETS, Batch, hstf, hstf_crossmatch
from seg.train.methods.hstf import Hstf
from seg.train.methods.streams import in_groups, in_one
from seg.train.networks.hstf import Hstf2d
from seg.train.networks.vnet import VNet

BOTH = ("hstf", "hstf_crossmatch")


def build(name: str = "hstf", classes: int = 2, **changes: Any) -> Hstf:
    torch.manual_seed(0)
    cls = METHODS[name]
    parts = PRESETS.get(name, {}).get("all", {})
    method = cls(VNet(classes=classes, width=2), replace(cls.Config(), **parts | changes), 100).train()
    assert isinstance(method, Hstf)
    return method


def losses(method: Hstf, step: int = 60, bank: Tensor | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return method.losses(replace(make_batch(method.config, method._network.classes), bank=bank), step)


@pytest.mark.parametrize("name", BOTH)
def test_the_burn_in_is_supervised(name: str) -> None:
    method = build(name)
    assert list(losses(method, 21)) == ["supervised"]
    assert {"scale", "feature"} < losses(method, 22).keys()


@pytest.mark.parametrize("name", BOTH)
def test_each_part_has_a_gradient_and_the_teacher_none(name: str) -> None:
    for term in losses(build(name)):
        method = build(name)
        torch.autograd.backward(losses(method)[term])
        total = sum(float(p.grad.abs().sum()) for p in method.student.parameters() if p.grad is not None)
        assert total > 1e-7, term
        assert all(p.grad is None for p in method.teacher.parameters())


@pytest.mark.parametrize("name", BOTH)
def test_parts_can_be_switched_off(name: str) -> None:
    assert not {"scale", "feature"} & losses(build(name, csc="off")).keys()
    augmented = losses(build(name, csc="augment"))
    assert not {"scale", "feature"} & augmented.keys()
    assert augmented["supervised"].item() > losses(build(name, csc="off"))["supervised"].item()
    assert "feature" not in losses(build(name, feature_weight=0.0))
    assert build(name, feature_weight=0.0).predictor is None
    assert build(name, rounds=()).rules() is None
    assert len(build(name, stability=False).elders()) == 0
    assert "pseudo" not in losses(build("hstf", pseudo_weight=0.0))


def test_rounds_of_one_step_are_one() -> None:
    config = METHODS["hstf_crossmatch"].Config(rounds=(0.5, 0.65, 0.8))  # type: ignore[call-arg]
    rules = METHODS["hstf_crossmatch"](VNet(width=2), config, 4).rules()
    assert rules is not None
    assert rules.steps == (2, 3)


def test_directions() -> None:
    batch = make_batch(build().config)
    factors = {
        csc: {
            build(csc=csc)._zoom(replace(batch, generator=torch.Generator().manual_seed(n))).factor for n in range(40)
        }
        for csc in ("both", "down", "up")
    }
    assert factors == {"both": {0.8, 0.7, 0.57, 1.5}, "down": {0.8, 0.7, 0.57}, "up": {1.5}}


def test_scaled_passes_leave_running_statistics_alone() -> None:
    found = {}
    for kept in (False, True):
        method = build(scaled_statistics=kept)
        losses(method)
        found[kept] = method.student.state_dict()["encoder.0.1.running_mean"].clone()
    plain = build(csc="off")
    losses(plain)
    assert torch.equal(found[False], plain.student.state_dict()["encoder.0.1.running_mean"])
    assert not torch.equal(found[True], found[False])


@pytest.mark.parametrize("name", BOTH)
def test_strong_streams_may_leave_running_statistics_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then these do not depend on strong views at all, while the streams still learn; else they do.

    The views differ in shape, for batch norm undoes scale and shift.
    """

    def statistics(strong: bool, view: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        for module in (hstf, hstf_crossmatch):
            monkeypatch.setattr(module, "strong_view", lambda u, _: u**view)
        method = build(name, csc="off", strong_statistics=strong)
        found = losses(method)
        return {k: v.clone() for k, v in method.student.named_buffers() if "running" in k}, found

    (one, first), (other, second) = (statistics(False, view) for view in (1, 3))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)
    term = "pseudo" if name == "hstf" else "image"
    assert not torch.equal(first[term], second[term])
    (one, _), (other, _) = (statistics(True, view) for view in (1, 3))
    assert not any(torch.equal(one[k], other[k]) for k in one)


def test_passes_keep_the_order_of_streams() -> None:
    """Apart, each group is normalised by its own statistics; without a norm both ways are the same."""
    torch.manual_seed(0)
    part, streams = nn.Conv3d(1, 2, 1), [[torch.randn(n, 1, 2, 2, 2)] for n in (1, 3, 2, 1)]
    whole = in_one(lambda levels: [part(levels[0])], streams)
    apart = in_groups(part, lambda levels: [part(levels[0])], streams, [[2, 0], [1], [3]])
    assert [len(stream[0]) for stream in whole] == [1, 3, 2, 1]
    for a, b in zip(whole, apart, strict=True):
        torch.testing.assert_close(a[0], b[0])


def test_targets_are_fused_with_the_bank() -> None:
    method = build(weights="none")
    p = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.6, 0.4], [0.6, 0.4]]).T.reshape(1, 2, 4, 1, 1)
    # agrees; disagrees; was changed by cleaning; unknown
    bank = torch.tensor([[0.9, 0.1, 1], [0.1, 0.9, 1], [0.9, 0.1, 0], [0, 0, 0]]).T.reshape(1, 3, 4, 1, 1)
    target = method._target(p, bank)
    assert target.weight.flatten().tolist() == [1, 0, 0, 1]
    first = (0.6 * 0.9) / (0.6 * 0.9 + 0.4 * 0.1)  # square root, then sharpened by T = 1/2
    last = 0.36 / (0.36 + 0.16)
    assert target.probability[0, 0].flatten()[[0, 3]].tolist() == pytest.approx([first, last], rel=1e-5)


def test_voxel_weights_are_softmatchs_of_each_class() -> None:
    method = build()
    confidence, label = torch.tensor([[0.6, 0.8, 1.0, 0.9, 0.9]]), torch.tensor([[0, 0, 0, 1, 1]])
    found = method._weight(confidence, label)
    variance = float(torch.tensor([0.6, 0.8, 1.0]).var(correction=0))
    expected = [torch.tensor(-2 * 0.2**2 / variance).exp().item(), 1, 1, 1, 1]
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-4)
    method._weight(torch.tensor([[0.7]]), torch.tensor([[1]]))  # the second update is half of the mean
    assert method.softmatch.statistics[0].tolist() == pytest.approx([0.8, 0.8])


def test_thresholds_are_the_control() -> None:
    found = build(weights="threshold")._weight(torch.tensor([[0.8, 0.9]]), torch.tensor([[0, 1]]))
    assert found.tolist() == [[0.0, 1.0]]


def test_the_loss_of_distributions() -> None:
    logits = torch.randn(2, 3, 4, 4, 4)
    target, weight = torch.rand(2, 3, 4, 4, 4).softmax(dim=1), torch.rand(2, 4, 4, 4)
    same = distribution_loss(target.log(), target, weight)
    assert float(same) == pytest.approx(0, abs=1e-5)
    assert float(distribution_loss(logits, target, weight)) > 0.05
    assert float(distribution_loss(logits, target, weight * 0)) == pytest.approx(0, abs=1e-6)


def test_the_teacher_is_the_student_after_the_burn_in() -> None:
    method = build()
    for step in range(23):
        with torch.no_grad():
            for parameter in method.student.parameters():
                parameter.fill_(float(step))
        method.after_step(step)
        same = torch.equal(next(method.teacher.parameters()), next(method.student.parameters()))
        assert same == (step in (0, 21))


def test_earlier_teachers_are_those_of_the_thirds() -> None:
    method = build(rounds=(0.3, 0.6))
    seen = {}
    for step in range(60):
        with torch.no_grad():
            for parameter in method.student.parameters():
                parameter.fill_(float(step))
        method.after_step(step)
        seen[step + 1] = next(method.teacher.parameters()).flatten()[0].item()
        if step + 1 in (30, 60):
            found = [next(elder.parameters()).flatten()[0].item() for elder in method.elders()]
            assert found == [seen[step - 19], seen[step - 9]]


@pytest.mark.parametrize("name", BOTH)
def test_slices(name: str) -> None:
    cls = METHODS[name]
    method = cls(Hstf2d(width=4), cls.Config(), 100).train()
    generator = torch.Generator().manual_seed(0)
    x, u = (torch.randn(4, 1, 32, 32, generator=generator) for _ in range(2))
    bank = torch.rand(4, 3, 32, 32)
    found = method.losses(Batch(x, (x[:, 0] > 0).long(), u, generator, bank), 60)
    assert all(torch.isfinite(loss) for loss in found.values())
