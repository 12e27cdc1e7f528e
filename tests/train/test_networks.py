from typing import Any

import pytest
import torch

from seg.train.networks import NETWORKS, build_network
from seg.train.networks.vnet import VNet


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_vnet_has_the_parameters_of_the_papers() -> None:
    assert count(VNet(channels=1, classes=2, width=16)) == 9_448_866


@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (2, 4)])
def test_output_shape(channels: int, classes: int) -> None:
    network = build_network("vnet", channels, classes, width=2, dropout=0.5)
    with torch.no_grad():
        assert network(torch.zeros(2, channels, 16, 32, 48)).shape == (2, classes, 16, 32, 48)


def test_levels_halve_and_double() -> None:
    levels = VNet(width=3).encode(torch.zeros(2, 1, 32, 16, 48))
    assert [tuple(level.shape) for level in levels] == [
        (2, 3, 32, 16, 48),
        (2, 6, 16, 8, 24),
        (2, 12, 8, 4, 12),
        (2, 24, 4, 2, 6),
        (2, 48, 2, 1, 3),
    ]


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    network, x = VNet(width=2, dropout=0.5), torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))


def test_head_dropout_can_be_left_out() -> None:
    torch.manual_seed(0)
    network = VNet(width=2, dropout=0.5)
    with torch.no_grad():
        levels = network.encode(torch.randn(2, 1, 16, 16, 16))
        a, b = (network.decode(levels, head_dropout=False) for _ in range(2))
        assert torch.equal(a, b)
        assert not torch.equal(network.decode(levels), network.decode(levels))


def test_table_names_stride_and_dims() -> None:
    for network in NETWORKS.values():
        assert len(network.stride) == 3  # type: ignore[attr-defined]
        assert network.dims in (2, 3)  # type: ignore[attr-defined]


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


@pytest.mark.parametrize("name", sorted(NETWORKS))
@torch.no_grad()
def test_its_parts_are_what_methods_take_them_for(name: str) -> None:
    """`encode` and `decode` make the whole; levels halve and have the widths it says; a twin has weights of its own."""
    torch.manual_seed(0)
    network: Any = build_network(name, 2, 3, width=4, dropout=0.5).eval()
    extent = [2 * stride for stride in network.stride[: network.dims]]
    x = torch.randn(2, 2, *extent)
    logits, levels = network(x), network.encode(x)
    assert logits.shape == (2, 3, *extent)
    for head_dropout in (True, False):
        assert torch.equal(network.decode(levels, head_dropout), logits)
        assert torch.equal(network.head(network.features(levels, head_dropout)), logits)
    assert [level.shape[1:] for level in levels] == [
        (width, *(n >> k for n in extent)) for k, width in enumerate(network.widths)
    ]
    assert [stage.shape[1:] for stage in network.pyramid(levels)] == [
        (width, *(n >> k for n in extent)) for k, width in enumerate(network.stages)
    ]
    for k in range(len(levels)):
        assert not torch.equal(network.decode(network.encode(x, {k: Doubled()})), logits)
    for up in ("transposed", "linear", "nearest"):
        twin = network.twin(up).eval()
        assert (type(twin), twin.up_mode) == (type(network), up)
        assert (twin.channels, twin.classes, twin.width) == (2, 3, 4)
        assert twin(x).shape == logits.shape
        assert not torch.equal(twin(x), logits)


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("classes", [2, 4])
def test_a_new_network_sees_mostly_background(name: str, classes: int) -> None:
    """With all features off, where no gradient reaches what feeds the head, classes of the foreground are equal."""
    network = build_network(name, 1, classes, width=4, dropout=0.0)
    assert network.head.bias is not None
    p = network.head.bias.softmax(dim=0)
    assert p.tolist() == pytest.approx([0.8, *[0.2 / (classes - 1)] * (classes - 1)])
