"""The step against plain PyTorch, and what a run asks of it besides."""

import copy
from pathlib import Path

import pytest
import torch
from test_loop import plain_loop
from tiny import make_batch
from torch import Tensor, nn

from seg.infer.errors import SegError
from seg.train import device
from seg.train.finite import FiniteWatch
from seg.train.methods import METHODS, Batch, Method
from seg.train.networks.vnet import VNet
from seg.train.optim import learning_rate
from seg.train.processes import Processes
from seg.train.step import Compiled, Step, compile_network

CPU = torch.device("cpu")


ALONE = [name for name in METHODS if name != "distill"]  # that one learns from another network


def build(name: str = "crossmatch") -> tuple[Step, Method]:
    """A step, and the same method for a plain loop. SGD, because AdamW makes full steps of rounding errors too."""
    methods = []
    for _ in range(2):
        torch.manual_seed(0)
        config = METHODS[name].Config(optimizer="sgd", lr=1e-3)
        methods.append(METHODS[name](VNet(width=2), config, 10).train())
    return Step(methods[0], 10, CPU, torch.float32), methods[1]


class PlainStep:
    """The contract of `train.methods.base` in plain PyTorch with its default optimisers.

    The layout is the step's: another one rounds differently, and methods that select voxels turn that into a choice.
    """

    def __init__(self, method: Method) -> None:
        device.arrange(method, CPU, torch.float32)
        self.method, self.optimizers = method, {}
        for phase in method.phases:
            config = method.settings(phase)
            kind, options = (
                (torch.optim.SGD, dict(momentum=0.9))
                if config.optimizer == "sgd"
                else (torch.optim.AdamW, dict(betas=config.betas))
            )
            self.optimizers[phase] = kind(method.trainable(phase), weight_decay=config.weight_decay, **options)

    def __call__(self, batch: Batch, number: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for phase, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = learning_rate(self.method.settings(phase), number, 10)
            losses = self.method.losses(batch, number, phase)
            optimizer.zero_grad()
            torch.autograd.backward(torch.stack(list(losses.values())).sum())
            optimizer.step()
            found |= losses
        self.method.after_step(number)
        return found


@pytest.mark.parametrize("name", ALONE)
def test_three_steps_are_plain_pytorch(name: str) -> None:
    step, method = build(name)
    plain = PlainStep(method)
    for number in range(3):
        values = []
        for one in (step, plain):
            torch.manual_seed(number)
            values.append(one(make_batch(method.config, seed=number), number))
        found, expected = values
        assert {k: v.item() for k, v in found.items()} == pytest.approx(
            {k: v.item() for k, v in expected.items()}, rel=1e-4, abs=1e-6
        )
        assert not any(loss.requires_grad for loss in found.values())


def test_state_round_trip() -> None:
    step, _ = build()
    step(make_batch(step.method.config), 0)
    other, _ = build()
    other.load_state_dict(copy.deepcopy(step.state_dict()))
    losses = []
    for one in (step, other):
        torch.manual_seed(3)
        losses.append(one(make_batch(one.method.config, seed=4), 1))
    assert losses[0] == losses[1]
    for p, q in zip(step.method.state_dict().values(), other.method.state_dict().values(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("size", [1, 2])
def test_losses_are_computed_in_the_run_s_precision(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process and in several, whose losses come from DistributedDataParallel in one go."""
    monkeypatch.setattr("seg.train.step.DistributedDataParallel", lambda module, **_: module)
    monkeypatch.setattr("seg.train.step.share_batch_norm", lambda *_: None)
    method = METHODS["supervised"](VNet(width=2), METHODS["supervised"].Config(optimizer="sgd"), 10).train()
    found: list[bool] = []
    plain = method.losses
    monkeypatch.setattr(
        method, "losses", lambda *given: found.append(torch.is_autocast_enabled("cpu")) or plain(*given)
    )
    Step(method, 10, CPU, torch.bfloat16, processes=Processes(0, size))(make_batch(method.config), 0)
    assert found == [True]


def test_loaded_moments_have_their_parameters_layout() -> None:
    """A checkpoint of another device, whose convolutions have another one: fused kernels go by memory alone."""
    step, _ = build()
    step(make_batch(step.method.config), 0)
    state = copy.deepcopy(step.state_dict())
    for optimizer in state["optimizers"].values():
        for moments in optimizer["state"].values():
            moments |= {name: value.contiguous() for name, value in moments.items()}
    other, _ = build()
    other.load_state_dict(state)
    for optimizer, expected in zip(other.optimizers.values(), step.optimizers.values(), strict=True):
        found = zip(optimizer.state.items(), expected.state.values(), strict=True)
        for (parameter, moments), before in found:
            for name, value in moments.items():
                assert torch.equal(value, before[name])
                assert value.shape != parameter.shape or value.stride() == parameter.stride()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_too_little_memory_is_told(error: Exception) -> None:
    with pytest.raises(SegError) as caught, device.memory_told("run"):
        raise error
    assert (caught.value.code, caught.value.exit) == ("E-LIMIT-MEMORY", 13)
    with pytest.raises(RuntimeError, match="other"), device.memory_told("run"):
        raise RuntimeError("other")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.device_of("cuda:1") == torch.device("cuda:1")
    with pytest.raises(SegError, match="no device cuda:2"):
        device.device_of("cuda:2")


@pytest.mark.parametrize(
    ("kind", "precision", "expected"),
    [
        ("cpu", torch.float32, True),
        ("cpu", torch.bfloat16, False),
        ("cuda", torch.float32, True),
        ("cuda", torch.bfloat16, True),
    ],
)
def test_layout(kind: str, precision: torch.dtype, expected: bool) -> None:
    assert device.channels_last(torch.device(kind), precision) is expected


def test_activations_follow_the_weights() -> None:
    network = VNet(width=4).eval()
    x = torch.randn(2, 1, 32, 32, 32)
    plain = network(x)
    device.arrange(network, CPU, torch.bfloat16)
    assert network.encode(x)[1].is_contiguous()
    device.arrange(network, CPU, torch.float32)
    assert all(level.is_contiguous(memory_format=torch.channels_last_3d) for level in network.encode(x)[:2])
    torch.testing.assert_close(network(x), plain, rtol=1e-4, atol=1e-5)
    flat = nn.Conv2d(3, 4, 3)
    device.arrange(flat, CPU, torch.float32)
    assert flat.weight.is_contiguous(memory_format=torch.channels_last)


def test_bf16_gradients_of_shallow_volumes_on_a_cpu() -> None:
    """Memory that was used before must not matter: an extent of 32 leaves 2 voxels at the coarsest level."""
    found = []
    for _ in range(6):
        used = [torch.full((1 << size,), -1, dtype=torch.int8) for size in range(10, 22) for _ in range(3)]
        del used
        torch.manual_seed(0)
        config = METHODS["supervised"].Config(optimizer="sgd", labeled_batch=2)
        method = METHODS["supervised"](VNet(width=8, dropout=0.0), config, 10).train()
        step = Step(method, 10, CPU, torch.bfloat16)
        x = torch.randn(2, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
        step(Batch(x, (x[:, 0] > 0.3).long(), x[:0], torch.Generator()), 0)
        found.append(torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None]))
    assert all(torch.equal(gradient, found[0]) for gradient in found)
    assert found[0].isfinite().all()


def test_devices_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device.device_of("auto") == device.device_of("cuda") == torch.device("cuda:3")
    assert device.device_of("cuda:1") == torch.device("cuda:1")
    assert device.device_of("cpu") == CPU


@pytest.mark.parametrize("graphs", [False, True])
def test_compiled_halves_serve_training_alone(graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    modes: set[str | None] = set()

    def compile(function: object, mode: str | None, **_: object) -> object:
        modes.add(mode)

        def fast(*args: Tensor) -> object:
            used.append(function.__name__)  # type: ignore[attr-defined]
            return function(*args)  # type: ignore[operator]

        return fast

    monkeypatch.setattr(torch, "compile", compile)
    network = VNet(width=2)
    compile_network(network, graphs)
    x = torch.randn(2, 1, 16, 16, 16)
    network.eval()(x)
    assert used == []
    network.train()(x)
    assert used == ["encode", "decode"]
    assert modes == {"reduce-overhead" if graphs else None}
    assert set(network.state_dict()) == set(VNet(width=2).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"),
    [("supervised", True), ("crossmatch", True), ("crossmatch", "graphs"), ("mc_net", True), ("bcp", True)],
)
def test_compiled_steps_have_the_plain_losses(name: str, how: Compiled) -> None:
    """Without dropout, whose random numbers a compiled network draws in its own order. CPUs replay no graphs."""
    found = []
    for compiled in (False, how):
        torch.manual_seed(0)
        config = METHODS[name].Config(dropout=0.0)
        method = METHODS[name](VNet(width=2, dropout=0.0), config, 10).train()
        step = Step(method, 10, CPU, torch.float32, compiled=compiled)
        torch.manual_seed(1)
        found.append(step(make_batch(config), 0))
    plain, fast = ({name: loss.item() for name, loss in losses.items()} for losses in found)
    assert fast == pytest.approx(plain, rel=1e-4)


def test_a_loss_is_judged_at_once_on_a_cpu(tmp_path: Path) -> None:
    watch = FiniteWatch(CPU, tmp_path)
    watch.watch(0, {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, ("x",))
    with pytest.raises(SegError, match="nan at step 1, on x, y"):
        watch.watch(1, {"a": torch.tensor(1.0), "b": torch.tensor(float("nan"))}, ("x", "y"))


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    loop = plain_loop(tmp_path)
    with torch.no_grad():
        next(iter(loop.method.parameters())).fill_(float("inf"))
    with pytest.raises(SegError, match="weights are not finite"):
        loop._save()
    assert not (tmp_path / "checkpoint.pt").exists()


def test_batches_ahead_are_those_asked_for(tmp_path: Path) -> None:
    ahead, direct = plain_loop(tmp_path).loader, plain_loop(tmp_path).loader
    for step in (0, 1, 2, 7, 8, 3):
        drawn = direct.batch(step, *direct.draw(step))
        loaded = ahead.load(step)
        assert torch.equal(loaded.batch.x, drawn.batch.x)
        assert loaded.ids == drawn.ids


def test_an_unreadable_volume_ends_the_step_that_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = plain_loop(tmp_path)
    draw = loop.loader.draw

    def failing(step: int) -> object:
        if step == 2:
            raise OSError("gone")
        return draw(step)

    monkeypatch.setattr(loop.loader, "draw", failing)
    with pytest.raises(OSError, match="gone"):
        loop.run()
    assert loop.step == 2
