"""The contract of methods, clause by clause, over every row of the table; and the worked example of CONTRIBUTING."""

import json
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from tiny import make_batch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from seg.infer.errors import Exit, SegError
from seg.infer.spec import ModelSpec, Normalisation
from seg.train import methods
from seg.train.config import refuse_bad_options
from seg.train.losses import supervised_loss
from seg.train.methods import METHODS, PRESETS, Batch, Distill, Method, base
from seg.train.networks.unet import UNet2d
from seg.train.networks.vnet import VNet
from seg.train.processes import Processes
from seg.train.settings import Settings
from seg.train.step import Step

ALL = [(name, row) for name in METHODS for row in (None, *PRESETS.get(name, {}))]
# Method -> the weights of what it learns from unlabelled scans.
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
    "fixmatch": ("strong",),
    "unimatch": ("strong", "perturbed"),
    "caml": ("consistency", "correlation"),
    "crossmatch": ("ip_weight", "kd_weight"),
    "hstf": ("pseudo_weight", "csc_weight", "feature_weight"),
    "hstf_crossmatch": ("ip_weight", "kd_weight", "csc_weight", "feature_weight"),
    "distill": ("weight",),
}
SHARE = {"fixmatch": 0.5, "unimatch": 0.5}  # of CE and Dice in the loss; the papers' (L_x + L_u) / 2
PLAIN_SUPERVISED = {"ua_mt", "fixmatch", "unimatch", "crossmatch", "distill"}  # CE and Dice of the student alone
FROM_LABELS = ("supervised", "distance", "discriminator")
EXPORTED = [("supervised", None), ("crossmatch", "fast"), ("distill", None)]  # student, average, another's student
LATE = 60  # of 100 steps: BCP has begun to learn from unlabelled scans


def build(name: str, classes: int = 2, dims: int = 3, row: str | None = None, **changes: object) -> Method:
    """A method at full weight from the first step, on a network without dropout that is sure here and there."""
    torch.manual_seed(0)
    cls = METHODS[name]
    config = replace(cls.Config(), **(PRESETS[name][row] if row else {}))
    plain = {"ramp_up": 0.0, "threshold": 0.0, "dropout": 0.0}
    given: dict[str, Any] = {k: v for k, v in plain.items() if k in {f.name for f in fields(config)}}
    network = (VNet if dims == 3 else UNet2d)(classes=classes, width=2, dropout=0.0)
    with torch.no_grad():
        network.head.weight *= 10.0  # UA-MT's teacher teaches only where it is sure
    method = cls(network, replace(config, **given | changes), 100).train()
    if isinstance(method, Distill):
        method.teacher = torch.no_grad()(network.twin().eval())
    return method


def slices(batch: Batch) -> Batch:
    """The first slice of each crop."""
    return Batch(batch.x[..., 0], batch.y[..., 0], batch.u[..., 0], batch.generator)


def unlabeled_terms(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([loss for name, loss in losses.items() if name not in FROM_LABELS]).sum()


def labeled_terms(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([loss for name, loss in losses.items() if name in FROM_LABELS]).sum()


def gradients(loss: Tensor, method: Method) -> list[Tensor]:
    parameters = list(method.student.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def size(tensors: list[Tensor]) -> float:
    return float(torch.stack([t.detach().abs().sum() for t in tensors]).sum())


@pytest.fixture
def fixed_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm alone would carry unlabelled scans into the labelled loss."""
    plain = _BatchNorm.forward

    def forward(self: _BatchNorm, x: Tensor) -> Tensor:
        training, self.training = self.training, False
        try:
            return plain(self, x)
        finally:
            self.training = training

    monkeypatch.setattr(_BatchNorm, "forward", forward)


def test_every_semi_supervised_method_is_walked() -> None:
    assert set(WEIGHTS) == {name for name, cls in METHODS.items() if cls.Config().unlabeled_batch}


@pytest.mark.parametrize(("classes", "dims"), [(2, 3), (4, 3), (4, 2)])
@pytest.mark.parametrize(("name", "row"), ALL)
def test_losses_are_finite(name: str, row: str | None, classes: int, dims: int) -> None:
    """With dropout, ramps and thresholds as they are configured."""
    config = replace(METHODS[name].Config(), **(PRESETS[name][row] if row else {}))
    given = {k: getattr(config, k) for k in ("ramp_up", "threshold") if hasattr(config, k)}
    method = build(name, classes, dims, row, dropout=config.dropout, **given)
    batch = make_batch(method.config, classes)
    for step in (0, LATE):
        for phase in method.phases:
            losses = method.losses(batch if dims == 3 else slices(batch), step, phase)
            assert losses
            assert all(torch.isfinite(loss) and loss.ndim == 0 for loss in losses.values())


@pytest.mark.parametrize(("classes", "dims"), [(2, 3), (4, 3), (4, 2)])
@pytest.mark.parametrize("name", list(WEIGHTS))
def test_unlabelled_scans_teach_the_student(name: str, classes: int, dims: int) -> None:
    method = build(name, classes, dims)
    batch = make_batch(method.config, classes)
    terms = unlabeled_terms(method.losses(batch if dims == 3 else slices(batch), LATE))
    found = gradients(terms, method)
    assert all(torch.isfinite(g).all() for g in found)
    assert size(found) > 1e-6


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, row in ALL if name in WEIGHTS])
def test_no_gradient_reaches_a_teacher(name: str, row: str | None) -> None:
    """Not even when it asks for one: what no optimiser moves takes no part in the graph."""
    method = build(name, row=row)
    moved = {id(p) for phase in method.phases for p in method.trainable(phase)}
    teachers = [p for p in method.parameters() if id(p) not in moved]
    assert not any(p.requires_grad for p in teachers)
    if not teachers:
        return
    for parameter in teachers:
        parameter.requires_grad_(True)
    total = torch.stack(list(method.losses(make_batch(method.config), LATE).values())).sum()
    assert all(g is None for g in torch.autograd.grad(total, teachers, allow_unused=True))


@pytest.mark.usefixtures("fixed_statistics")
@pytest.mark.parametrize("name", list(WEIGHTS))
def test_weight_0_is_supervised_training(name: str) -> None:
    method = build(name, **dict.fromkeys(WEIGHTS[name], 0.0))
    batch = replace(make_batch(method.config), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    losses = method.losses(batch, LATE)
    assert float(unlabeled_terms(losses).detach()) == 0.0
    assert float(unlabeled_terms(build(name).losses(batch, LATE)).detach()) > 0.0  # which the weights have switched off
    found, alone = gradients(torch.stack(list(losses.values())).sum(), method), gradients(labeled_terms(losses), method)
    assert size(alone) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))
    if name in PLAIN_SUPERVISED:
        plain = SHARE.get(name, method.config.scale if name == "crossmatch" else 1.0)  # type: ignore[attr-defined]
        expected = plain * supervised_loss(method.student(batch.x), batch.y)
        torch.testing.assert_close(losses["supervised"], expected)
        for a, b in zip(found, gradients(expected, method), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    if name != "bcp":  # whose labelled loss is of crops with unlabelled ones pasted in
        torch.manual_seed(1)
        other = Batch(batch.x, batch.y, 2 * batch.u.flip(2), torch.Generator().manual_seed(0))
        torch.testing.assert_close(labeled_terms(method.losses(other, LATE)), labeled_terms(losses))


def trained(name: str, row: str | None, steps: range, state: dict[str, Any] | None = None) -> Step:
    """Steps of a run, each seeded as the loop does it."""
    method = build(name, row=row, dropout=0.5)
    step = Step(method, 100, torch.device("cpu"), torch.float32)
    if state is not None:
        step.load_state_dict(state)
    for number in steps:
        torch.manual_seed(number)
        step(make_batch(method.config, seed=number), number)
    return step


@pytest.mark.parametrize("name", list(METHODS))
def test_cost_is_that_of_a_step(name: str) -> None:
    """The plan's estimate goes by it. Windows this small round HSTF's scales, and CAML's heads weigh more."""
    config = METHODS[name].Config()
    method = METHODS[name](VNet(width=16), config, 100).train()
    if isinstance(method, Distill):
        method.teacher = torch.no_grad()(VNet(width=32).eval())
    step = Step(method, 100, torch.device("cpu"), torch.float32)
    with FlopCounterMode(display=False) as taken:
        step(make_batch(config), LATE)
    with FlopCounterMode(display=False) as unit, torch.no_grad():
        VNet(width=16)(torch.zeros(2, 1, 16, 16, 16))
    forward_and_back = 3 * unit.get_total_flops() / 2
    assert taken.get_total_flops() / forward_and_back == pytest.approx(
        config.crops, rel=0.5 if name in ("caml", "hstf") else 0.15
    )


def leaves(value: object, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{name}.{key}")
    else:
        yield name, value


@pytest.mark.parametrize(("name", "row"), ALL)
def test_resumed_is_the_same_training(name: str, row: str | None, tmp_path: Path) -> None:
    """Through a file, at the step at which BCP changes from one kind of training to the other."""
    start = 10
    torch.save(trained(name, row, range(start, start + 2)).state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = dict(leaves(trained(name, row, range(start + 2, start + 4), state).state_dict()))
    whole = dict(leaves(trained(name, row, range(start, start + 4)).state_dict()))
    assert resumed.keys() == whole.keys()
    for key, value in whole.items():
        assert torch.equal(resumed[key], value) if isinstance(value, Tensor) else resumed[key] == value, key


@pytest.mark.parametrize(("name", "row"), ALL)
def test_deployed_exports_and_matches(name: str, row: str | None) -> None:
    """One input, one logits output; through torch.export, which the exporter to ONNX begins with, once of each kind.

    The others have the same modules, and no hook or method of their own that would make them different. A step moves
    every tensor of it: not so where nobody moves an average, or where the student is left in evaluation mode.
    """
    new, method = build(name, row=row, dropout=0.5), trained(name, row, range(1)).method
    assert [part.training for part in method.modules()] == [part.training for part in new.modules()]
    pairs = zip(new.deployed().state_dict().items(), method.deployed().state_dict().values(), strict=True)
    assert not [key for (key, before), after in pairs if torch.equal(before, after)]
    network, x = method.deployed().eval(), torch.randn(1, 1, 16, 16, 16)
    plain = VNet(width=2)
    assert [type(part) for part in network.modules()] == [type(part) for part in plain.modules()]
    for part, other in zip(network.modules(), plain.modules(), strict=True):
        assert vars(part).keys() == vars(other).keys()
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
    with torch.no_grad():
        logits = network(x)
        if (name, row) in EXPORTED:
            torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), logits)
        assert torch.equal(network(x), logits)  # nothing random is left in it
    assert logits.shape == (1, 2, 16, 16, 16)
    assert size([logits[:, 0] - logits[:, 1]]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_deployed_becomes_an_artifact(name: str, tmp_path: Path) -> None:
    """The exporter compares it with torch and raises where they differ."""
    from seg.export.onnx_ import export

    method = trained(name, None, range(1)).method
    spec = ModelSpec(
        name="tiny",
        labels=("background", "a"),
        channels=("MR",),
        spacing=(1.0, 1.0, 1.0),
        normalisation=Normalisation(),
        window=(16, 16, 16),
        stride=(16, 16, 16),
    )
    _, parity = export(method.deployed(), spec, str(tmp_path / "model.onnx"))
    assert parity.error < 1e-4


@pytest.mark.parametrize(("labeled", "unlabeled"), [(4, 2), (3, 3), (0, 0)])
def test_bcp_refuses_batches_that_are_no_pairs(labeled: int, unlabeled: int) -> None:
    with pytest.raises(SegError, match="BCP pastes") as caught:
        replace(METHODS["bcp"].Config(), labeled_batch=labeled, unlabeled_batch=unlabeled).check()
    assert caught.value.exit == Exit.USAGE
    METHODS["bcp"].Config().check(processes=2)  # 4 and 4: a pair of each kind in each
    with pytest.raises(SegError, match="4 processes"):
        METHODS["bcp"].Config().check(processes=4)


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].Config().unlabeled_batch])
def test_no_unlabelled_crops_are_refused_where_they_teach(name: str) -> None:
    options = replace(METHODS[name].Config(), unlabeled_batch=0)
    if name == "distill":  # labelled scans lend their images
        options.check()
    else:
        with pytest.raises(SegError) as caught:
            options.check()
        assert caught.value.exit == Exit.USAGE


@pytest.mark.parametrize("values", [{"curriculum": ()}, {"scales": ()}, {"down": ()}, {"rounds": (0.8, 0.5)}])
def test_hstf_refuses_lists_that_it_would_stumble_over_late(values: dict[str, Any]) -> None:
    for name in ("hstf", "hstf_crossmatch"):
        METHODS[name].Config().check()
        with pytest.raises(SegError) as caught:
            replace(METHODS[name].Config(), **values).check()
        assert caught.value.exit == Exit.USAGE
    replace(METHODS["hstf"].Config(), rounds=()).check()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("method", "value"),
    [
        *(("distill", "weight=7"), ("distill", "temperature=0"), ("bcp", "kept=1.5"), ("bcp", "kept=0")),
        *(("crossmatch", "ip_weight=-1"), ("crossmatch", "scale=-0.5"), ("ua_mt", "passes=3")),
        *(("mc_net", "others=0"), ("mc_net_plus", "others=7"), ("mc_net", "temperature=0"), ("caml", "ring=0")),
        *(("caml", "samples=0"), ("unimatch", "feature_dropout=1.5"), ("dtc", "steepness=0")),
        *(("hstf", "scaled_labeled=-1"), ("hstf", "memory=1.5"), ("hstf", "scales=[0]"), ("hstf", "sharpening=0")),
        *(("hstf_crossmatch", "pseudo_weight=0.5"), ("hstf", "down=[0.8,-1]"), ("ss_net", "magnitude=NaN")),
    ],
)
def test_values_that_would_train_nonsense_are_refused(method: str, value: str) -> None:
    name, _, text = value.partition("=")
    torch.set_flush_denormal(True)  # as a training before leaves it: the least number above 0 is 0 then
    with pytest.raises(SegError, match=name) as caught:
        refuse_bad_options(Settings((), "", method=method, method_options={name: json.loads(text)}), Processes())
    assert (caught.value.code, caught.value.exit) == ("E-CONFIG", Exit.USAGE)


@pytest.mark.parametrize("name", METHODS)
def test_every_default_and_preset_is_in_range(name: str) -> None:
    for preset in (None, *PRESETS.get(name, {})):
        refuse_bad_options(Settings((), "", method=name, preset=preset), Processes())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_every_optimiser_and_schedule(name: str) -> None:
    for option, kind in (("optimizer", base.Optimizer), ("schedule", base.Schedule)):
        for value in get_args(kind):
            refuse_bad_options(Settings((), "", method=name, method_options={option: value}), Processes())


def test_ranges_of_one_method_are_not_those_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """`weight` of distillation is a share; a new method may have one above 1, or a range of its own."""
    mine = example()["Mine"]
    monkeypatch.setitem(METHODS, "mine", mine)
    settings = Settings((), "", method="mine", method_options={"weight": 1.5})
    refuse_bad_options(settings, Processes())
    monkeypatch.setattr(mine.Config, "ranges", {"weight": (2.0, 3.0)})
    with pytest.raises(SegError, match=r"weight is 1\.5, expected from 2 to 3"):
        refuse_bad_options(settings, Processes())


@pytest.mark.parametrize("name", ["hstf", "hstf_crossmatch"])
def test_cutmix_of_hstf_is_a_switch(name: str) -> None:
    found = []
    for cutmix in (True, False):
        config = replace(METHODS[name].Config(), burn_in=0.0, ramp_up=0.0, threshold=0.0, cutmix=cutmix)  # type: ignore[call-arg]
        torch.manual_seed(0)
        method = METHODS[name](VNet(width=2), config, 10)
        found.append(sum(loss.item() for loss in method.losses(make_batch(config), 5).values()))
    assert found[0] != pytest.approx(found[1], rel=1e-6)


def example() -> dict[str, Any]:
    """The names that CONTRIBUTING's worked example defines."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    block = text.split("## Add a method")[1].split("```python\n")[1].split("```")[0]
    code = "\n".join(line.removeprefix("   ") for line in block.splitlines())
    module = ModuleType(f"{methods.__name__}.mine")
    module.__package__ = methods.__name__
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), vars(module))
    finally:
        del sys.modules[module.__name__]
    return vars(module)


def test_the_worked_example_is_a_method(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One file and one row: it keeps every clause above."""
    monkeypatch.setitem(METHODS, "mine", example()["Mine"])
    monkeypatch.setitem(WEIGHTS, "mine", ("weight",))
    test_losses_are_finite("mine", None, 4, 2)
    test_unlabelled_scans_teach_the_student("mine", 2, 3)
    test_no_gradient_reaches_a_teacher("mine", None)
    test_cost_is_that_of_a_step("mine")
    test_resumed_is_the_same_training("mine", None, tmp_path)
    test_deployed_exports_and_matches("mine", None)
    test_no_unlabelled_crops_are_refused_where_they_teach("mine")
    test_every_default_and_preset_is_in_range("mine")


@pytest.mark.usefixtures("fixed_statistics")
def test_the_worked_example_is_supervised_training_without_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mine", example()["Mine"])
    monkeypatch.setitem(WEIGHTS, "mine", ("weight",))
    test_weight_0_is_supervised_training("mine")
