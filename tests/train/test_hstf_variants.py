"""The networks of HSTF's ablations: each differs from the whole one by its part, and by nothing else."""

from itertools import product

import pytest
import torch
from test_networks import count
from tiny import make_batch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from seg.train.methods import METHODS
from seg.train.networks import build_network
from seg.train.networks.hstf import Hstf, TokenStage, attention_parameters
from seg.train.networks.hstf_variants import ROTARY_BASE, VARIANTS, InstanceNorm, PlainStage, RotaryStage

SIZES = {  # millions of parameters, GMAC
    "hstf_identity": (2.51, 25.5),
    "hstf_conv": (7.42, 29.8),
    "hstf_t4": (5.68, 26.4),
    "hstf_noposition": (7.45, 35.8),
    "hstf_rope": (7.45, 35.8),
    "hstf_instance": (7.47, 35.8),
    "hstf_nearest": (8.29, 60.9),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_size_is_that_of_the_docstring(name: str) -> None:
    network = build_network(name, 1, 2, 16, 0.5).eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, 112, 112, 80, device="meta"))
    found = count(network) / 1e6, counter.get_total_flops() / 2e9
    assert found == pytest.approx(SIZES[name], rel=2e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_interface_is_the_whole_networks(name: str) -> None:
    network = VARIANTS[name](channels=2, classes=3, width=4).twin().eval()
    assert type(network) is VARIANTS[name]
    x = torch.randn(2, 2, 16, 48, 32)
    with torch.no_grad():
        levels = network.encode(x)
        assert network.decode(levels).shape == (2, 3, 16, 48, 32)
        assert [level.shape[1] for level in levels] == list(Hstf(width=4).widths)
        assert [stage.shape[1] for stage in network.pyramid(levels)] == list(Hstf(width=4).stages)


@pytest.mark.parametrize("name", VARIANTS)
def test_crossmatch_trains_it(name: str) -> None:
    cls = METHODS["crossmatch"]
    method = cls(build_network(name, 1, 2, 2, 0.1), cls.Config(), 10).train()
    losses = method.losses(make_batch(method.config), 5)
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in method.student.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_bf16_is_nearly_float32(name: str) -> None:
    torch.manual_seed(0)
    network, x = VARIANTS[name](width=8).eval(), torch.randn(1, 1, 32, 32, 48)
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(x)
    assert found.dtype == torch.bfloat16
    assert float((found - expected).abs().max()) < 0.1 * float(expected.max() - expected.min())


@pytest.mark.parametrize("name", VARIANTS)
def test_only_transformers_reach_far(name: str) -> None:
    torch.manual_seed(0)
    network = VARIANTS[name](width=4).eval()
    norms = [part for part in network.modules() if isinstance(part, InstanceNorm)]
    for norm in norms:  # whose statistics reach everywhere
        norm.forward = nn.Identity()  # type: ignore[method-assign]
    x = torch.randn(1, 1, 16, 16, 512, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x)[0, 1, 8, 8, 0], x)
    attends = name not in ("hstf_identity", "hstf_conv")
    assert (float(gradient[..., 496:].abs().max()) > 0) == attends == bool(attention_parameters(network))


def test_convolutions_have_the_weights_of_the_blocks() -> None:
    """Stage by stage, without the positions that go with the blocks."""
    whole, convolutions = Hstf(), VARIANTS["hstf_conv"]()
    for blocks, instead in zip(whole.tokens, convolutions.tokens, strict=True):
        assert isinstance(blocks, TokenStage)
        assert count(instead) == pytest.approx(count(blocks.blocks), rel=0.02)
        assert len(instead) == len(blocks.blocks)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "blind"), [(PlainStage, True), (TokenStage, False), (RotaryStage, False)])
def test_without_positions_places_are_alike(kind: type[TokenStage], blind: bool) -> None:
    """Voxels in another order give the same features in that order."""
    torch.manual_seed(0)
    stage, x, order = kind(3, 64, [0.0, 0.0]).eval(), torch.randn(1, 64, 3, 4, 2), torch.randperm(24)

    def shuffled(y: torch.Tensor) -> torch.Tensor:
        return y.flatten(2)[..., order].reshape(y.shape)

    with torch.no_grad():
        assert torch.allclose(stage(shuffled(x)), shuffled(stage(x)), atol=1e-5) == blind


def test_rotary_products_depend_on_the_distance_along_each_axis() -> None:
    """And are those of complex numbers turned by frequency times distance, channel pairs in thirds."""
    torch.manual_seed(0)
    shape, size = (3, 4, 2), 32
    turn = RotaryStage(3, size, [0.0]).turn(torch.zeros(1, size, *shape))
    q, k = torch.randn(2, size)
    tq, tk = (turn(vector.expand(1, 1, 24, size))[0, 0] for vector in (q, k))
    products, places = (tq @ tk.T).reshape(24, 24), list(product(*map(range, shape)))
    zq, zk = (torch.complex(v[:15], v[15:30]) for v in (q, k))
    frequencies = ROTARY_BASE ** (-torch.arange(5) / 5)
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            angle = torch.cat([(m - n) * frequencies for m, n in zip(a, b, strict=True)])
            turned = zq * torch.polar(torch.ones(15), angle)
            expected = (turned * zk.conj()).real.sum() + q[30:] @ k[30:]
            assert float(products[i, j]) == pytest.approx(float(expected), abs=1e-4)


def test_instance_norm_is_torchs_and_takes_a_single_voxel() -> None:
    torch.manual_seed(0)
    mine, theirs, x = InstanceNorm(5), nn.InstanceNorm3d(5, affine=True), 3 + torch.randn(2, 5, 4, 3, 2)
    with torch.no_grad():
        for norm in (mine, theirs):
            norm.weight.copy_(torch.arange(5))
            norm.bias.copy_(torch.arange(5) - 2)
        torch.testing.assert_close(mine(x), theirs(x))
        alone = mine(x[:1, :, :1, :1, :1]).flatten()
        torch.testing.assert_close(alone, mine.bias.detach(), atol=1e-3, rtol=0)  # its rounding over sqrt(eps)
    network = VARIANTS["hstf_instance"]()
    kinds = [
        isinstance(part, InstanceNorm) for part in network.modules() if isinstance(part, (InstanceNorm, _BatchNorm))
    ]
    assert kinds == [True] * sum(isinstance(part, _BatchNorm) for part in Hstf().modules())


def test_no_transposed_convolution_with_nearest_neighbours() -> None:
    kinds = {type(part) for part in VARIANTS["hstf_nearest"]().modules()}
    assert nn.Upsample in kinds
    assert nn.ConvTranspose3d not in kinds
