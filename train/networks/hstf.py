"""The hybrid network of HSTF (Khurshid and Kim): convolutions at fine levels, transformer blocks on coarse tokens.

The paper names a "CNN + ViT" hybrid without layers or numbers. What is built here: a convolutional encoder down to a
quarter of the extent, tokens of 8^3 and 16^3 voxels with four transformer blocks each, a narrow convolutional decoder
whose skips are added. Attention stands on coarse tokens alone, behind a convolutional stem: many hybrids lose little
without their transformer, and those that gain do so there (nnU-Net's documentation on Primus). Positions enter as a
depthwise convolution on the tokens (conditional positional encoding), so any extent that the stride divides will do and
the export has no table of positions.

Measured at width 16 (tests hold both to 5 %): HSTF-B 7.5 M parameters and 35.8 GMAC at 112x112x80,
HSTF-S 3.4 M and 21.0, two dimensions 6.0 M and 6.7 GMAC at 256x256; V-Net 9.4 M and 40.1.

Convolutions before batch norm have no bias, which the norm would take away again. `dropout` has V-Net's meaning
(bottleneck and head), so that a method's setting fits every network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .prior import start_at_background
from .vnet import Up

HEAD_DIM = 32  # channels of an attention head, as near as the width allows
BLOCKS = 4  # transformer blocks of each token stage
LAYER_SCALE, DROP_PATH = 0.1, 0.2  # at the last block; the first has none
Turn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Layout:
    """Channels in units of the width, and convolutions of each stage, finest first.

    Attributes
    ----------
    widths : of E0, E1, E2, T3, T4.
    decoder : of D0, D1, D2, D3.
    depths, decoder_depths : convolutions of E0, E1, E2 (beside the one that halves) and of D0 to D3.
    """

    widths: tuple[float, float, float, float, float] = (1, 2, 4, 12, 16)
    decoder: tuple[float, float, float, float] = (1, 2, 4, 8)
    depths: tuple[int, int, int] = (1, 1, 2)
    decoder_depths: tuple[int, int, int, int] = (1, 1, 2, 2)


class Hstf(nn.Module):
    """HSTF-B for volumes.

    Parameters
    ----------
    channels, classes : input channels and output classes.
    width : channels of the first stage; the others are multiples (proposal: 16).
    dropout : channel dropout on the bottleneck and before the head while training.
    up : how the decoder doubles the extent.
    """

    stride: tuple[int, int, int] = (16, 16, 16)
    dims = 3
    layout = Layout()
    tiling = "window"  # attention costs the square of a tile's tokens; Dice stays in larger ones (docs/hstf.md)

    def __init__(
        self, channels: int = 1, classes: int = 2, width: int = 16, dropout: float = 0.5, up: Up = "transposed"
    ) -> None:
        super().__init__()
        self.channels, self.classes, self.width, self.dropout = channels, classes, width, dropout
        self.up_mode = up
        widths, narrow = ([max(1, round(width * m)) for m in row] for row in (self.layout.widths, self.layout.decoder))
        self.widths, self.stages = tuple(widths), tuple(narrow)
        dims, depths = self.dims, self.layout.depths
        stem = [_stage(dims, channels, widths[0], depths[0])]
        for k in (1, 2):
            down = _unit(_conv(dims)(widths[k - 1], widths[k], 2, stride=2, bias=False), dims)
            stem.append(nn.Sequential(down, _stage(dims, widths[k], widths[k], depths[k])))
        self.stem = nn.ModuleList(stem)
        third = _unit(_conv(dims)(widths[2], widths[3], 3, stride=2, padding=1, bias=False), dims)
        self.embed = nn.ModuleList([third, _unit(_conv(dims)(widths[3], widths[4], 2, stride=2, bias=False), dims)])
        rates = torch.linspace(0, DROP_PATH, 2 * BLOCKS).tolist()
        shares = {3: rates[:BLOCKS], 4: rates[BLOCKS:]}
        self.tokens = nn.ModuleList(self._token_stage(k, widths[k], share) for k, share in shares.items())
        self.up = nn.ModuleList(_up(dims, n, narrow[k], up) for k, n in enumerate([*narrow[1:], widths[4]]))
        self.skip = nn.ModuleList(
            nn.Identity() if widths[k] == narrow[k] else _conv(dims)(widths[k], narrow[k], 1) for k in range(4)
        )
        self.decoder = nn.ModuleList(
            _stage(dims, narrow[k], narrow[k], self.layout.decoder_depths[k]) for k in range(4)
        )
        self.head = start_at_background(_conv(dims)(narrow[0], classes, 1))
        drop = nn.Dropout3d if dims == 3 else nn.Dropout2d
        self.bottleneck_dropout, self.head_dropout = drop(dropout), drop(dropout)

    def _token_stage(self, level: int, channels: int, rates: Sequence[float]) -> nn.Module:
        """What follows the embedding of a coarse level; `rates` of stochastic depth, one a block."""
        return TokenStage(self.dims, channels, rates)

    def twin(self, up: Up = "transposed") -> "Hstf":
        """A network of the same size with weights of its own: a second model, or another decoder."""
        return type(self)(self.channels, self.classes, self.width, self.dropout, up)

    def encode(self, x: Tensor, after: Mapping[int, nn.Module] | None = None) -> list[Tensor]:
        """(N, C, X, Y[, Z]) -> five levels, finest first; level k is (N, widths[k], X >> k, Y >> k[, Z >> k]).

        `after` holds what is applied to a level before the next one sees it (CAML's attention).
        """
        levels: list[Tensor] = []
        for k in range(5):
            x = self.stem[k](x) if k < 3 else self.tokens[k - 3](self.embed[k - 3](x))
            if after is not None and k in after:
                x = after[k](x)
            levels.append(x)
        levels[4] = self.bottleneck_dropout(levels[4])
        return levels

    def pyramid(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Five encoder levels -> the decoder's four stages, finest first; stage k is (N, stages[k], X >> k, ...)."""
        x, found = levels[4], []
        for k in (3, 2, 1, 0):
            x = self.decoder[k](self.up[k](x) + self.skip[k](levels[k]))
            found.append(x)
        return found[::-1]

    def features(self, levels: Sequence[Tensor], head_dropout: bool = True) -> Tensor:
        """Five levels -> (N, width, X, Y[, Z]), what the head sees."""
        x = self.pyramid(levels)[0]
        return self.head_dropout(x) if head_dropout else x

    def decode(self, levels: Sequence[Tensor], head_dropout: bool = True) -> Tensor:
        """Five levels -> (N, K, X, Y[, Z]) logits."""
        logits: Tensor = self.head(self.features(levels, head_dropout))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, X, Y[, Z]) -> (N, K, X, Y[, Z]) logits; extents multiples of 16."""
        return self.decode(self.encode(x))


class HstfSmall(Hstf):
    """HSTF-S: fewer channels and one convolution a stage."""

    layout = Layout((1, 1.5, 3, 8, 12), (1, 1.5, 3, 4), (1, 1, 1), (1, 1, 1, 1))


class Hstf2d(Hstf):
    """HSTF-B for slices, two convolutions a stage."""

    stride = (16, 16, 1)
    dims = 2
    layout = Layout(depths=(2, 2, 2), decoder_depths=(2, 2, 2, 2))


class TokenStage(nn.Module):
    """Transformer blocks on the voxels of a coarse feature map: (N, C, ...) -> the same shape."""

    def __init__(self, dims: int, channels: int, rates: Sequence[float]) -> None:
        super().__init__()
        self.position = _conv(dims)(channels, channels, 3, padding=1, groups=channels)
        self.blocks = nn.ModuleList(Block(channels, rate) for rate in rates)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        tokens, turn = self.placed(x).flatten(2).transpose(1, 2), self.turn(x)  # (N, L, C)
        for block in self.blocks:
            tokens = block(tokens, turn)
        found: Tensor = tokens.transpose(1, 2).reshape(x.shape)
        return found

    def placed(self, x: Tensor) -> Tensor:
        """The feature map with what tells its voxels apart by place."""
        found: Tensor = x + self.position(x)
        return found

    def turn(self, x: Tensor) -> Turn | None:
        """What the place does to queries and keys in every block."""
        return None


class Block(nn.Module):
    """Attention and MLP, each after a layer norm, with learned scale and stochastic depth."""

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.heads = heads_of(channels)
        self.drop_path = drop_path
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.scale1, self.scale2 = (nn.Parameter(torch.full((channels,), LAYER_SCALE)) for _ in range(2))

    def forward(self, x: Tensor, turn: Turn | None = None) -> Tensor:
        """(N, L, C) -> (N, L, C); `turn` is applied to queries and keys, (N, heads, L, C / heads)."""
        x = x + stochastic_depth(self.scale1 * self._attention(self.norm1(x), turn), self.drop_path, self.training)
        return x + stochastic_depth(self.scale2 * self.mlp(self.norm2(x)), self.drop_path, self.training)

    def _attention(self, x: Tensor, turn: Turn | None) -> Tensor:
        size = x.shape[-1] // self.heads
        q, k, v = (part.unflatten(-1, (self.heads, size)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        if turn is not None:
            q, k = turn(q), turn(k)
        if torch.compiler.is_exporting():
            # The form that every engine knows; the scale on q before the product is what TensorRT fuses.
            mixed = ((q * size**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        found: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return found


def heads_of(channels: int) -> int:
    """Attention heads of a block: of `HEAD_DIM` channels where they divide the width."""
    return next(h for h in range(max(1, channels // HEAD_DIM), 0, -1) if channels % h == 0)


def stochastic_depth(branch: Tensor, rate: float, training: bool) -> Tensor:
    """The branch of a residual block, in training left out for some samples of the batch; the others are scaled up."""
    if not training or rate == 0:
        return branch
    return branch * F.dropout(branch.new_ones(len(branch), *[1] * (branch.dim() - 1)), rate)


def attention_parameters(network: nn.Module) -> set[int]:
    """Ids of the parameters inside transformer blocks, which learn at a rate of their own."""
    return {id(p) for part in network.modules() if isinstance(part, Block) for p in part.parameters()}


def _conv(dims: int) -> type[nn.Conv3d] | type[nn.Conv2d]:
    return nn.Conv3d if dims == 3 else nn.Conv2d


def _unit(conv: nn.Conv3d | nn.Conv2d | nn.ConvTranspose3d | nn.ConvTranspose2d, dims: int) -> nn.Sequential:
    norm = nn.BatchNorm3d if dims == 3 else nn.BatchNorm2d
    return nn.Sequential(conv, norm(conv.out_channels), nn.ReLU(inplace=True))


def _stage(dims: int, inputs: int, outputs: int, depth: int) -> nn.Sequential:
    sizes = [inputs, *[outputs] * depth]
    return nn.Sequential(*(_unit(_conv(dims)(sizes[i], outputs, 3, padding=1, bias=False), dims) for i in range(depth)))


def _up(dims: int, inputs: int, outputs: int, mode: Up) -> nn.Sequential:
    """Twice the extent: a transposed convolution, or interpolation and a convolution."""
    if mode == "transposed":
        grow = nn.ConvTranspose3d if dims == 3 else nn.ConvTranspose2d
        return _unit(grow(inputs, outputs, 2, stride=2, bias=False), dims)
    linear = mode == "linear"
    how = ("trilinear" if dims == 3 else "bilinear") if linear else "nearest"
    scale = nn.Upsample(scale_factor=2, mode=how, align_corners=linear or None)
    return nn.Sequential(scale, _unit(_conv(dims)(inputs, outputs, 3, padding=1, bias=False), dims))
