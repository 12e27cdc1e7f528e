"""Deployed networks are plain, and what CrossMatch promises beyond the contract (test_contract.py)."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import confident_vnet, make_batch, preset
from torch import Tensor, nn

from seg.train.losses import supervised_loss
from seg.train.methods import METHODS, PRESETS, Distill, Method
from seg.train.methods.crossmatch import CrossMatch, CrossMatchConfig
from seg.train.networks.vnet import VNet
from seg.train.settings import override

ALL = [(name, row) for name in METHODS for row in (None, *PRESETS.get(name, {}))]
UNSUPERVISED = ("image", "teacher", "assistant")


def build(name: str, row: str | None, classes: int = 2) -> Method:
    values = PRESETS[name][row] if row else {}
    cls = METHODS[name]
    torch.manual_seed(0)
    method = cls(VNet(classes=classes, width=2), override(cls.Config(), values, "method"), 100)
    if isinstance(method, Distill):
        method.teacher = torch.no_grad()(confident_vnet(classes).eval())
    return method.train()


def crossmatch(classes: int = 2, factor: float = 7.0, **changes: object) -> CrossMatch:
    config = replace(CrossMatchConfig(), ramp_up=0.0, **changes)  # type: ignore[arg-type]
    return CrossMatch(confident_vnet(classes, factor), config, 100).train()


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize(("name", "row"), ALL)
def test_deployed_network_is_plain(name: str, row: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(name, row)
    method.losses(make_batch(method.config), 0)
    method.after_step(0)
    network, x = method.deployed().eval(), torch.randn(2, 1, 16, 16, 16)
    assert type(network) is VNet
    before = network(x)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("feature perturbation in evaluation mode")

    monkeypatch.setattr(CrossMatch, "_perturbed", refuse)
    for perturbation in ("alpha_dropout", "feature_alpha_dropout"):
        monkeypatch.setattr(F, perturbation, refuse)
    plain = F.dropout3d

    def off(value: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
        assert not training
        return plain(value, p, training, inplace)

    monkeypatch.setattr(F, "dropout3d", off)
    assert torch.equal(network(x), before)


def test_supervised_is_the_supervised_loss() -> None:
    method = build("supervised", None)
    batch = make_batch(method.config)
    torch.manual_seed(1)
    loss = method.losses(batch, 0)["supervised"]
    torch.manual_seed(1)
    assert torch.equal(loss, supervised_loss(method.student(batch.x), batch.y))


@pytest.mark.parametrize("row", list(PRESETS["crossmatch"]))
def test_deployed_weights(row: str) -> None:
    method = build("crossmatch", row)
    expected = method.average.network if row == "fast" else method.student  # type: ignore[union-attr]
    assert method.deployed() is expected


def test_presets_say_what_is_published() -> None:
    paper, official = preset("paper"), preset("official")
    assert (paper.labeled_batch, paper.unlabeled_batch, paper.mix_batch) == (2, 2, 0)
    assert (official.labeled_batch, official.unlabeled_batch, official.mix_batch) == (2, 4, 2)
    assert (paper.threshold, paper.threshold_ramp) == (0.85, False)
    assert (official.threshold, official.threshold_ramp) == (0.75, True)
    assert (paper.scale, paper.ip_weight, paper.kd_weight) == (1, 1, 1)
    assert (official.scale, official.ip_weight, official.kd_weight) == (0.5, 0.5, 1)
    for one in (paper, official):
        assert (one.eta, one.gap, one.dropout, one.optimizer, one.lr) == (0.3, 0.5, 0.5, "adamw", 1e-3)
        assert (one.teacher, one.ema, one.ramp_up) == ("stacked", 0.0, 0.0)


@pytest.mark.parametrize("row", list(PRESETS["crossmatch"]))
def test_published_presets_start_as_pytorch_does(row: str) -> None:
    bias = build("crossmatch", row).student.head.bias
    assert (bias[0] - bias[1] > 1) == (row == "fast")  # type: ignore[index]


@pytest.mark.parametrize("teacher", ["stacked", "apart", "ema"])
def test_unlabelled_data_move_the_student_and_not_the_teacher(teacher: str) -> None:
    method = crossmatch(teacher=teacher)
    losses = method.losses(make_batch(method.config), 0)
    torch.autograd.backward(torch.stack([losses[name] for name in UNSUPERVISED]).sum())
    student = method.student
    assert isinstance(student, VNet)
    for part in (student.encoder[0][0], student.encoder[4][0], student.decoder[0][0], student.head):
        assert part.weight.grad is not None
        assert float(part.weight.grad.abs().max()) > 0
    assert method.average is not None
    assert gradients(method.average) == []
    assert not any(p.requires_grad for p in method.average.parameters())


@pytest.mark.parametrize("name", UNSUPERVISED)
def test_each_loss_has_a_gradient(name: str) -> None:
    method = crossmatch()
    torch.autograd.backward(method.losses(make_batch(method.config), 0)[name])
    assert sum(float(g.abs().sum()) for g in gradients(method.student)) > 1e-6


@pytest.mark.parametrize("row", list(PRESETS["crossmatch"]))
def test_no_confident_voxel_no_unsupervised_loss(row: str) -> None:
    method = build("crossmatch", row)
    method.config = replace(method.config, threshold=1.5, threshold_ramp=False, ramp_up=0.0)  # type: ignore[call-arg]
    losses = method.losses(make_batch(method.config), 50)
    assert [losses[name].item() for name in UNSUPERVISED] == [0.0] * 3


@pytest.mark.parametrize("row", list(PRESETS["crossmatch"]))
def test_without_unsupervised_weights_the_supervised_loss_is_left(row: str) -> None:
    def run(**changes: float) -> tuple[Tensor, Tensor, list[Tensor]]:
        config = replace(preset(row), ramp_up=0.0, **changes)  # type: ignore[arg-type]
        method = CrossMatch(confident_vnet(), config, 100).train()
        torch.manual_seed(0)
        losses = method.losses(make_batch(config), 3)
        total = torch.stack(list(losses.values())).sum()
        torch.autograd.backward(total if changes else losses["supervised"])
        return total, losses["supervised"], gradients(method.student)

    total, supervised, gradient = run(ip_weight=0.0, kd_weight=0.0)
    assert torch.equal(total, supervised)
    full, same, alone = run()
    assert torch.equal(same, supervised)
    assert not torch.equal(full, supervised)
    for a, b in zip(gradient, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


def test_fade_in() -> None:
    def ratio(step: int) -> float:
        method = CrossMatch(confident_vnet(), replace(CrossMatchConfig(), ramp_up=0.4), 100).train()
        torch.manual_seed(0)
        faded = method.losses(make_batch(method.config), step)
        method = crossmatch()
        torch.manual_seed(0)
        plain = method.losses(make_batch(method.config), step)
        assert torch.equal(faded["supervised"], plain["supervised"])
        return (faded["teacher"] / plain["teacher"]).item()

    assert ratio(0) == pytest.approx(0.0067379, rel=1e-4)  # exp(-5)
    assert ratio(20) == pytest.approx(0.2865048, rel=1e-4)  # exp(-5/4)
    assert ratio(40) == ratio(99) == 1.0


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_eta_divides_between_the_teachers(eta: float) -> None:
    def run(value: float) -> dict[str, Tensor]:
        method = crossmatch(eta=value)
        torch.manual_seed(0)
        return method.losses(make_batch(method.config), 0)

    losses, half = run(eta), run(0.5)
    assert losses["teacher"].item() == pytest.approx(half["teacher"].item() * 2 * (1 - eta))
    assert losses["assistant"].item() == pytest.approx(half["assistant"].item() * 2 * eta)


def test_threshold_of_the_official_code() -> None:
    method = CrossMatch(VNet(width=2), preset("official"), 14_000)
    method.config = replace(method.config, threshold=0.85)
    found = [method._threshold(step) for step in (0, 1, 5_000, 9_000, 14_000)]
    assert found == pytest.approx([0.85, 0.590, 0.598, 0.624, 0.678], abs=6e-4)
    assert CrossMatch(VNet(width=2), preset("paper"), 9000)._threshold(5000) == 0.85


@pytest.mark.parametrize(("gap", "rates"), [(0.0, (0.5, 0.5)), (0.5, (0.25, 0.75)), (0.75, (0.125, 0.875))])
def test_gap(gap: float, rates: tuple[float, float]) -> None:
    assert crossmatch(gap=gap)._rates() == rates


@pytest.mark.parametrize("perturbation", ["dropout", "alpha", "feature_alpha"])
def test_perturbations_act_and_differ(perturbation: str) -> None:
    method = crossmatch(perturbation=perturbation, gap=0.5)
    levels = [torch.rand(2, 4, 8, 8, 8) + 1]
    torch.manual_seed(0)
    (weak,), (strong,) = (method._perturbed(levels, p) for p in method._rates())
    changed = [(out != levels[0] / (1 - p)).float().mean() for out, p in zip((weak, strong), (0.25, 0.75), strict=True)]
    assert 0 < changed[0] < changed[1] or perturbation != "dropout"
    assert not torch.equal(weak, levels[0])
    whole_channels = (weak[:, :, :1, :1, :1] == weak).flatten(2).all(dim=2).any()
    assert bool(whole_channels) == (perturbation != "alpha")
    assert all(torch.isfinite(loss) for loss in method.losses(make_batch(method.config), 0).values())


@pytest.mark.parametrize(("row", "encoded", "decoded"), [("paper", 8, 16), ("official", 14, 26), ("fast", 9, 15)])
def test_cost_in_samples(row: str, encoded: int, decoded: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples through the student's halves; 8 and 16 are published, today's official code adds 6 and 10 for mixing."""
    method = build("crossmatch", row)
    student = method.student
    assert isinstance(student, VNet)
    seen = {"encode": 0, "decode": 0}
    encode, decode = student.encode, student.decode

    def counted_encode(x: Tensor) -> list[Tensor]:
        seen["encode"] += len(x)
        return encode(x)

    def counted_decode(levels: list[Tensor], head_dropout: bool = True) -> Tensor:
        seen["decode"] += len(levels[0])
        return decode(levels, head_dropout)

    monkeypatch.setattr(student, "encode", counted_encode)
    monkeypatch.setattr(student, "decode", counted_decode)
    method.losses(make_batch(method.config), 0)
    assert seen == {"encode": encoded, "decode": decoded}


@pytest.mark.parametrize("row", list(PRESETS["crossmatch"]))
def test_bf16_keeps_every_gradient(row: str) -> None:
    """Weights cast to bf16 inside a no-grad pass must not be reused, without history, by the passes that learn."""
    method = build("crossmatch", row)
    with torch.autocast("cpu", torch.bfloat16):
        losses = method.losses(make_batch(method.config), 60)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    missing = [name for name, p in method.student.named_parameters() if p.grad is None]
    assert missing == []
