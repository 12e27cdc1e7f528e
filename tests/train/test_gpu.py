"""Training on a CUDA device: the same numbers as on a CPU where they can be, whole runs where they cannot."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_loop import plain_loop
from tiny import make_batch
from typer.testing import CliRunner

from seg.train.cli import app
from seg.train.loader import Loader
from seg.train.methods import METHODS
from seg.train.networks.vnet import VNet
from seg.train.step import Compiled, Step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(1800),  # compiling takes minutes
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
OPTIONS = [["--precision", "fp32"], ["--precision", "bf16"], ["--compile"], ["--graphs"]]
SMALL = ["--window", "32", "--width", "4", "--iterations", "6", "--device", "cuda"]


@pytest.mark.parametrize("name", ["supervised", "crossmatch", "hstf_crossmatch"])
def test_steps_have_the_losses_of_a_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 without TF32, dropout, and random numbers, which devices draw each in its own way."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.nn.functional, "dropout3d", lambda value, *_, **__: value)
    for module in ("crossmatch", "hstf", "hstf_crossmatch"):
        monkeypatch.setattr(f"seg.train.methods.{module}.strong_view", lambda u, _: 1.1 * u + 0.1)
        boxes = lambda n, shape, g: torch.zeros(n, *shape, dtype=torch.bool, device=g.device)  # noqa: E731
        monkeypatch.setattr(f"seg.train.methods.{module}.cutmix_boxes", boxes)
    found = []
    batch = make_batch(METHODS[name].Config())
    for device in (torch.device("cpu"), torch.device("cuda")):
        torch.manual_seed(0)
        config = METHODS[name].Config(dropout=0.0, optimizer="sgd")
        step = Step(METHODS[name](VNet(width=2, dropout=0.0), config, 10).to(device).train(), 10, device, torch.float32)
        moved = replace(batch, x=batch.x.to(device), y=batch.y.to(device), u=batch.u.to(device))
        moved = replace(moved, generator=torch.Generator(device).manual_seed(0))
        found.append([{k: v.item() for k, v in step(moved, number).items()} for number in range(3)])
    for cpu, cuda in zip(*found, strict=True):
        assert cuda == pytest.approx(cpu, rel=1e-3, abs=1e-5)


def test_batches_of_the_side_stream_are_those_made_directly(tmp_path: Path) -> None:
    device, made = torch.device("cuda"), plain_loop(tmp_path).loader
    placed = (made.window, made.foreground, made.overhang)
    common = (made.labeled, made.unlabeled, *placed, made.augmentation, made.seed, device)
    ahead, direct = (Loader(made.data, *common, made.processes) for _ in range(2))
    for step in (0, 1, 2, 7):
        expected = direct.batch(step, *direct.draw(step)).batch
        loaded = ahead.load(step).batch
        torch.cuda.synchronize()
        assert torch.equal(loaded.x, expected.x)
        assert torch.equal(loaded.y, expected.y)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("method", ["supervised", "crossmatch"])
def test_a_run(write_cases: Callable[..., Path], tmp_path: Path, method: str, options: list[str]) -> None:
    data = write_cases(tmp_path / "data", 6, (34, 33, 35), unlabeled=2)
    command = [str(data), "-o", str(tmp_path / "run"), "--method", method, *SMALL, *options]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "lr" in line]
    assert all(torch.tensor(line["supervised"]).isfinite() for line in steps)
    assert 0 <= json.loads((tmp_path / "run" / "validation.json").read_text())["mean"]["foreground"]["dice"] <= 1


@pytest.mark.parametrize("how", [True, "graphs"])
@pytest.mark.parametrize("name", ["supervised", "crossmatch", "mc_net", "bcp", "hstf_crossmatch"])
def test_compiled_steps_have_the_plain_losses(name: str, how: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several steps: what a graph has overwritten too early would show in the second part or the next step."""
    torch._dynamo.reset()  # networks of earlier tests count against the limit of recompilations, and then run plainly
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    device, found = torch.device("cuda"), []
    config = METHODS[name].Config(dropout=0.0, optimizer="sgd")
    batch = make_batch(config)
    for compiled in (False, how):
        torch.manual_seed(0)
        method = METHODS[name](VNet(width=2, dropout=0.0), config, 10).to(device).train()
        step = Step(method, 10, device, torch.float32, compiled=compiled)
        moved = replace(batch, x=batch.x.to(device), y=batch.y.to(device), u=batch.u.to(device))
        moved = replace(moved, generator=torch.Generator(device).manual_seed(0))
        torch.manual_seed(1)
        found.append([{k: v.item() for k, v in step(moved, number).items()} for number in range(5)])
    for number, (plain, fast) in enumerate(zip(*found, strict=True)):
        assert fast == pytest.approx(plain, rel=1e-2 if number else 1e-3, abs=1e-4)


def test_a_step_can_be_resumed(tmp_path: Path) -> None:
    """The state of optimisers and averages goes to a file, the CPU and back."""
    device, config = torch.device("cuda"), METHODS["crossmatch"].Config()
    torch.manual_seed(0)
    network = VNet(width=2).to(device)
    steps = [
        Step(METHODS["crossmatch"](copy.deepcopy(network), config, 10).to(device).train(), 10, device, torch.float32)
        for _ in range(2)
    ]
    batch = make_batch(config)
    moved = replace(batch, x=batch.x.to(device), y=batch.y.to(device), u=batch.u.to(device))
    with_numbers = lambda: replace(moved, generator=torch.Generator(device).manual_seed(0))  # noqa: E731
    steps[0](with_numbers(), 0)
    torch.save(steps[0].state_dict(), tmp_path / "state.pt")
    steps[1].load_state_dict(torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True))
    losses = []
    for step in steps:
        torch.manual_seed(3)
        losses.append({k: v.item() for k, v in step(with_numbers(), 1).items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
