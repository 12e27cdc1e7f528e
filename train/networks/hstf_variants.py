"""HSTF's network with one part exchanged: what its ablations compare. Every other part, and the interface, is `hstf`'s.

    hstf_identity    no transformer: the embeddings of T3 and T4 alone
    hstf_conv        residual convolutions in place of the transformer blocks, one for one, with their number of weights
    hstf_t4          transformer blocks at T4 alone
    hstf_noposition  transformer blocks that cannot tell places apart, but for what the convolutions around them tell
    hstf_rope        axial rotary positions (Su et al. 2021; frequencies of each axis as in Heo et al., ECCV 2024)
    hstf_instance    instance norm for batch norm
    hstf_nearest     nearest-neighbour interpolation and a 3^3 convolution for transposed convolutions

At width 16 and 112x112x80 `hstf` has 7.47 M parameters and 35.8 GMAC, identity 2.51 and 25.5, conv 7.42 and 29.8 (the
products of attention have no weights), T4 alone 5.68 and 26.4, nearest 8.29 and 60.9, the others what `hstf` has.
Tiles are windows for all of them, as for `hstf`, so that their Dice is measured alike.
"""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .hstf import LAYER_SCALE, Hstf, TokenStage, Turn, heads_of, stochastic_depth
from .vnet import Up

ROTARY_BASE = 100.0  # of the frequencies; grids have tens of tokens along an axis, sentences thousands


class HstfIdentity(Hstf):
    """See the module's docstring."""

    def _token_stage(self, level: int, channels: int, rates: Sequence[float]) -> nn.Module:
        return nn.Identity()


class HstfT4(Hstf):
    """See the module's docstring."""

    def _token_stage(self, level: int, channels: int, rates: Sequence[float]) -> nn.Module:
        return super()._token_stage(level, channels, rates) if level == 4 else nn.Identity()


class HstfConv(Hstf):
    """See the module's docstring."""

    def _token_stage(self, level: int, channels: int, rates: Sequence[float]) -> nn.Module:
        return nn.Sequential(*(ConvBlock(channels, rate) for rate in rates))


class HstfNoPosition(Hstf):
    """See the module's docstring."""

    def _token_stage(self, level: int, channels: int, rates: Sequence[float]) -> nn.Module:
        return PlainStage(self.dims, channels, rates)


class HstfRope(Hstf):
    """See the module's docstring."""

    def _token_stage(self, level: int, channels: int, rates: Sequence[float]) -> nn.Module:
        return RotaryStage(self.dims, channels, rates)


class HstfInstance(Hstf):
    """See the module's docstring."""

    def __init__(
        self, channels: int = 1, classes: int = 2, width: int = 16, dropout: float = 0.5, up: Up = "transposed"
    ) -> None:
        super().__init__(channels, classes, width, dropout, up)
        _exchange_norms(self)


class HstfNearest(Hstf):
    """See the module's docstring."""

    def __init__(
        self, channels: int = 1, classes: int = 2, width: int = 16, dropout: float = 0.5, up: Up = "nearest"
    ) -> None:
        super().__init__(channels, classes, width, dropout, up)

    def twin(self, up: Up = "nearest") -> Hstf:
        """A network of the same size with weights of its own: a second model, or another decoder."""
        return super().twin(up)


class ConvBlock(nn.Module):
    """x + drop(scale * f(x)), f of three convolutions with the bottleneck that gives a transformer block's weights.

    A block has 12 C^2 weights; convolutions 1, 3, 1 with m channels between have 2 C m + 27 m^2.
    """

    def __init__(self, channels: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        between = max(1, round(channels * (sqrt(1 + 27 * 12) - 1) / 27))
        self.convolutions = nn.Sequential(
            nn.Conv3d(channels, between, 1, bias=False),
            nn.BatchNorm3d(between),
            nn.ReLU(inplace=True),
            nn.Conv3d(between, between, 3, padding=1, bias=False),
            nn.BatchNorm3d(between),
            nn.ReLU(inplace=True),
            nn.Conv3d(between, channels, 1, bias=False),
            nn.BatchNorm3d(channels),
        )
        self.scale = nn.Parameter(torch.full((channels, 1, 1, 1), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, X, Y, Z) -> the same shape."""
        return x + stochastic_depth(self.scale * self.convolutions(x), self.rate, self.training)


class PlainStage(TokenStage):
    """Transformer blocks without positions."""

    def __init__(self, dims: int, channels: int, rates: Sequence[float]) -> None:
        super().__init__(dims, channels, rates)
        del self.position

    def placed(self, x: Tensor) -> Tensor:
        """The feature map as it is."""
        return x


class RotaryStage(PlainStage):
    """Transformer blocks whose queries and keys are turned by their place, a share of the channels for each axis."""

    def turn(self, x: Tensor) -> Turn:
        """See the base class; `x` is (N, C, X, Y, Z)."""
        size, axes = x.shape[1] // heads_of(x.shape[1]), x.dim() - 2
        pairs = size // (2 * axes)
        frequencies = ROTARY_BASE ** (-torch.arange(pairs, device=x.device) / pairs)
        grid = torch.meshgrid(*(torch.arange(n, device=x.device) for n in x.shape[2:]), indexing="ij")
        angles = (torch.stack(grid, dim=-1).flatten(0, -2)[..., None] * frequencies).flatten(1)  # (L, axes * pairs)
        cos, sin = angles.cos(), angles.sin()

        def turned(q: Tensor) -> Tensor:
            c, s = cos.to(q.dtype), sin.to(q.dtype)
            a, b, rest = q.split_with_sizes([axes * pairs, axes * pairs, size - 2 * axes * pairs], dim=-1)
            return torch.cat([a * c - b * s, a * s + b * c, rest], dim=-1)

        return turned


class InstanceNorm(nn.GroupNorm):
    """Instance norm with learned scale and shift, of a single voxel too, where torch's own stops: it becomes the shift.

    A window of 16^3 has one voxel at T4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, X, Y, Z) -> the same shape."""
        return torch.instance_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps, False)


def _exchange_norms(module: nn.Module) -> None:
    """Instance norm in place of every batch norm below a module."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, InstanceNorm(child.num_features))
        else:
            _exchange_norms(child)


VARIANTS: dict[str, type[Hstf]] = {
    "hstf_identity": HstfIdentity,
    "hstf_conv": HstfConv,
    "hstf_t4": HstfT4,
    "hstf_noposition": HstfNoPosition,
    "hstf_rope": HstfRope,
    "hstf_instance": HstfInstance,
    "hstf_nearest": HstfNearest,
}
