"""The hybrid network: its size, its interface, and how its transformer blocks are trained."""

import pytest
import torch
from test_networks import count
from torch.utils.flop_counter import FlopCounterMode

from seg.train.methods import METHODS
from seg.train.networks import NETWORKS, build_network
from seg.train.networks.hstf import Hstf, Hstf2d, HstfSmall, attention_parameters
from seg.train.networks.hstf_variants import VARIANTS
from seg.train.optim import build_optimizer, learning_rate, set_rate
from seg.train.step import Step


@pytest.mark.parametrize(
    ("name", "classes", "extent", "parameters", "macs"),
    [
        ("hstf", 2, (112, 112, 80), 7.5e6, 35.8e9),
        ("hstf_s", 2, (112, 112, 80), 3.38e6, 21.0e9),
        ("hstf2d", 4, (256, 256), 6.0e6, 6.7e9),
    ],
)
def test_size_is_that_of_the_table(
    name: str, classes: int, extent: tuple[int, ...], parameters: float, macs: float
) -> None:
    network = build_network(name, 1, classes, 16, 0.5).eval().to("meta")
    assert count(network) == pytest.approx(parameters, rel=0.05)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, *extent, device="meta"))
    assert counter.get_total_flops() / 2 == pytest.approx(macs, rel=0.05)


@pytest.mark.parametrize("up", ["transposed", "linear", "nearest"])
@pytest.mark.parametrize("kind", [Hstf, HstfSmall, Hstf2d])
def test_any_extent_that_the_stride_divides(kind: type[Hstf], up: str) -> None:
    network = kind(channels=2, classes=3, width=4).twin(up).eval()  # type: ignore[arg-type]
    for extent in ((16, 48, 32), (32, 16, 16)):
        x = torch.randn(2, 2, *extent[: network.dims])
        with torch.no_grad():
            levels = network.encode(x)
            assert network.decode(levels).shape == (2, 3, *x.shape[2:])
            assert [level.shape[1] for level in levels] == list(network.widths)
            assert [stage.shape[1] for stage in network.pyramid(levels)] == list(network.stages)
            for k, level in enumerate(levels):
                assert level.shape[2:] == tuple(n >> k for n in x.shape[2:])


def test_attention_reaches_far() -> None:
    """A voxel's logits depend on one at the other end of the window, far outside any convolution's reach."""
    torch.manual_seed(0)
    network = Hstf(width=4).eval()
    x = torch.randn(1, 1, 16, 16, 256, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x)[0, 1, 8, 8, 0], x)
    assert float(gradient[..., 240:].abs().max()) > 0


def test_stochastic_depth_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    network, x = Hstf(width=4, dropout=0.0), torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))


def test_blocks_learn_at_a_rate_of_their_own() -> None:
    method = METHODS["supervised"](Hstf(width=2), METHODS["supervised"].Config(), 10)
    step = Step(method, 10, torch.device("cpu"), torch.float32)
    plain, blocks = step.optimizers["student"].param_groups
    assert {id(p) for p in blocks["params"]} == attention_parameters(method.student)
    assert (plain["weight_decay"], blocks["weight_decay"]) == (1e-4, 0.05)
    set_rate(step.optimizers["student"], 1.0)
    assert (plain["lr"], blocks["lr"]) == (1.0, 0.3)
    assert len(build_optimizer(method.student.parameters(), method.config).param_groups) == 1


def test_the_rate_warms_up() -> None:
    config = METHODS["supervised"].Config(lr=1.0, schedule="constant", warm_up=0.5)
    assert [learning_rate(config, step, 8) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("method", ["crossmatch", "urpc", "mc_net_plus", "caml"])
@pytest.mark.parametrize("network", ["hstf", "hstf_s"])
def test_methods_that_look_inside_work_on_it(method: str, network: str) -> None:
    from tiny import make_batch

    cls = METHODS[method]
    built = cls(build_network(network, 1, 2, 2, 0.1), cls.Config(), 10).train()
    losses = built.losses(make_batch(built.config), 5)
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    assert all(p.grad is not None for p in built.student.parameters())


def test_tiles_are_windows_unless_measured() -> None:
    assert {name: network.tiling for name, network in NETWORKS.items()} == {  # type: ignore[attr-defined]
        "vnet": "free",
        "unet2d": "free",
        "hstf": "window",
        "hstf_s": "window",
        "hstf2d": "window",
        **dict.fromkeys(VARIANTS, "window"),
    }
