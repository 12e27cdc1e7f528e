"""V-Net as the semi-supervised left-atrium papers use it: no residuals, added skips, batch norm.

Source: UA-MT code/networks/vnet.py; CrossMatch LA/code/networks/vnet.py has the same layers.
At width 16 with one input channel and two classes: 9,448,866 parameters.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from .prior import start_at_background

DEPTHS = (1, 2, 3, 3, 3)  # 3x3x3 convolutions per encoder stage
DECODER_DEPTHS = (1, 2, 3, 3)
Up = Literal["transposed", "linear", "nearest"]


def _unit(conv: nn.Module, channels: int) -> list[nn.Module]:
    return [conv, nn.BatchNorm3d(channels), nn.ReLU(inplace=True)]


def _stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += _unit(nn.Conv3d(inputs if i == 0 else outputs, outputs, 3, padding=1), outputs)
    return nn.Sequential(*layers)


def _up(inputs: int, outputs: int, mode: Up) -> nn.Sequential:
    """Twice the extent: a transposed convolution, or interpolation and a convolution (MC-Net's other decoders)."""
    if mode == "transposed":
        return nn.Sequential(*_unit(nn.ConvTranspose3d(inputs, outputs, 2, stride=2), outputs))
    linear = mode == "linear"
    scale = nn.Upsample(scale_factor=2, mode="trilinear" if linear else "nearest", align_corners=linear or None)
    return nn.Sequential(scale, *_unit(nn.Conv3d(inputs, outputs, 3, padding=1), outputs))


class VNet(nn.Module):
    """Encoder of five stages, decoder of four, 1x1x1 head. Knows nothing of losses or perturbations.

    Parameters
    ----------
    channels, classes : input channels and output classes.
    width : channels of the first stage, doubled at each of four downsamplings (paper: 16).
    dropout : channel dropout on the bottleneck and before the head while training (official code: 0.5).
    up : how the decoder doubles the extent.
    """

    stride = (16, 16, 16)
    dims = 3
    tiling = "free"

    def __init__(
        self,
        channels: int = 1,
        classes: int = 2,
        width: int = 16,
        dropout: float = 0.5,
        up: Up = "transposed",
    ) -> None:
        super().__init__()
        self.channels, self.classes, self.width, self.dropout = channels, classes, width, dropout
        self.up_mode = up
        widths = [width << level for level in range(5)]
        self.widths, self.stages = tuple(widths), tuple(widths[:4])
        self.encoder = nn.ModuleList(
            _stage(channels if level == 0 else widths[level], widths[level], depth)
            for level, depth in enumerate(DEPTHS)
        )
        self.down = nn.ModuleList(
            nn.Sequential(*_unit(nn.Conv3d(widths[k], widths[k + 1], 2, stride=2), widths[k + 1])) for k in range(4)
        )
        self.up = nn.ModuleList(_up(widths[k + 1], widths[k], up) for k in range(4))
        self.decoder = nn.ModuleList(_stage(widths[k], widths[k], DECODER_DEPTHS[k]) for k in range(4))
        self.head = start_at_background(nn.Conv3d(width, classes, 1))
        self.bottleneck_dropout = nn.Dropout3d(dropout)
        self.head_dropout = nn.Dropout3d(dropout)

    def twin(self, up: Up = "transposed") -> "VNet":
        """A network of the same size with weights of its own: a second model, or another decoder."""
        return VNet(self.channels, self.classes, self.width, self.dropout, up)

    def encode(self, x: Tensor, after: Mapping[int, nn.Module] | None = None) -> list[Tensor]:
        """(N, C, X, Y, Z) -> five levels, finest first; level k is (N, width << k, X >> k, Y >> k, Z >> k).

        `after` holds what is applied to a level before the next one sees it (CAML's attention).
        """
        levels = []
        for k, stage in enumerate(self.encoder):
            x = stage(x)
            if after is not None and k in after:
                x = after[k](x)
            levels.append(x)
            if k < 4:
                x = self.down[k](x)
        levels[4] = self.bottleneck_dropout(levels[4])
        return levels

    def pyramid(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Five encoder levels -> the decoder's four stages, finest first, shaped like levels 0 to 3."""
        x, stages = levels[4], []
        for k in (3, 2, 1, 0):
            x = self.decoder[k](self.up[k](x) + levels[k])
            stages.append(x)
        return stages[::-1]

    def features(self, levels: Sequence[Tensor], head_dropout: bool = True) -> Tensor:
        """Five levels -> (N, width, X, Y, Z), what the head sees."""
        x = self.pyramid(levels)[0]
        return self.head_dropout(x) if head_dropout else x

    def decode(self, levels: Sequence[Tensor], head_dropout: bool = True) -> Tensor:
        """Five levels -> (N, K, X, Y, Z) logits."""
        logits: Tensor = self.head(self.features(levels, head_dropout))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, X, Y, Z) -> (N, K, X, Y, Z) logits; X, Y, Z multiples of 16."""
        return self.decode(self.encode(x))
