"""Single volumes go to oneDNN, with the same results; everything else is torch's as before."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from seg.train.networks import build_network
from seg.train.onednn import SingleVolumes

PLAIN = "aten::slow_conv3d_forward"


def called(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, set[str]]:
    """The result, and the operators it took."""
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as found:
        result = network(x)
    return result, {event.key for event in found.key_averages()}


@pytest.mark.parametrize("name", ["vnet", "hstf"])
def test_same_logits_by_onednn(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, 1, 3, 4, 0.0).eval()
    x = torch.randn(1, 1, 32, 32, 16)
    with torch.inference_mode():
        expected = network(x)
    with SingleVolumes():
        found, operators = called(network, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert PLAIN not in operators
    assert "aten::mkldnn_convolution" in operators


@pytest.mark.parametrize(
    ("x", "padding"),
    [
        (torch.randn(2, 1, 4, 4, 4), 1),  # a batch has the right kernel anyway
        (torch.randn(1, 1, 4, 4, 4).double(), 1),
        (torch.randn(1, 1, 4, 4, 4), "same"),
    ],
)
def test_others_are_left_alone(x: torch.Tensor, padding: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(1, 2, 3, padding=padding).to(x.dtype)
    asked: list[object] = []
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda *arguments: asked.append(arguments))
    with torch.inference_mode():
        expected = layer(x)
        with SingleVolumes():
            assert torch.equal(layer(x), expected)
            assert not asked
            nn.Conv3d(1, 2, 3, padding=1)(x[:1].float())
    assert len(asked) == 1
