"""V-Net as the semi-supervised left-atrium papers use it: no residuals, added skips, batch norm.

Source: UA-MT code/networks/vnet.py; CrossMatch LA/code/networks/vnet.py has the same layers.
At width 16 with one input channel and two classes: 9,448,866 parameters.
"""

from collections.abc import Sequence

from torch import Tensor, nn

DEPTHS = (1, 2, 3, 3, 3)  # 3x3x3 convolutions per encoder stage
DECODER_DEPTHS = (1, 2, 3, 3)


def _unit(conv: nn.Module, channels: int) -> list[nn.Module]:
    return [conv, nn.BatchNorm3d(channels), nn.ReLU(inplace=True)]


def _stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += _unit(nn.Conv3d(inputs if i == 0 else outputs, outputs, 3, padding=1), outputs)
    return nn.Sequential(*layers)


class VNet(nn.Module):
    """Encoder of five stages, decoder of four, 1x1x1 head. Knows nothing of losses or perturbations.

    Parameters
    ----------
    channels, classes : input channels and output classes.
    width : channels of the first stage, doubled at each of four downsamplings (paper: 16).
    dropout : channel dropout on the bottleneck and before the head while training (official code: 0.5).
    """

    stride = (16, 16, 16)
    dims = 3

    def __init__(self, channels: int = 1, classes: int = 2, width: int = 16, dropout: float = 0.5) -> None:
        super().__init__()
        widths = [width << level for level in range(5)]
        self.encoder = nn.ModuleList(
            _stage(channels if level == 0 else widths[level], widths[level], depth)
            for level, depth in enumerate(DEPTHS)
        )
        self.down = nn.ModuleList(
            nn.Sequential(*_unit(nn.Conv3d(widths[k], widths[k + 1], 2, stride=2), widths[k + 1])) for k in range(4)
        )
        self.up = nn.ModuleList(
            nn.Sequential(*_unit(nn.ConvTranspose3d(widths[k + 1], widths[k], 2, stride=2), widths[k]))
            for k in range(4)
        )
        self.decoder = nn.ModuleList(_stage(widths[k], widths[k], DECODER_DEPTHS[k]) for k in range(4))
        self.head = nn.Conv3d(width, classes, 1)
        self.bottleneck_dropout = nn.Dropout3d(dropout)
        self.head_dropout = nn.Dropout3d(dropout)

    def encode(self, x: Tensor) -> list[Tensor]:
        """(N, C, X, Y, Z) -> five levels, finest first; level k is (N, width << k, X >> k, Y >> k, Z >> k)."""
        levels = []
        for k, stage in enumerate(self.encoder):
            x = stage(x)
            levels.append(x)
            if k < 4:
                x = self.down[k](x)
        levels[4] = self.bottleneck_dropout(levels[4])
        return levels

    def decode(self, levels: Sequence[Tensor], head_dropout: bool = True) -> Tensor:
        """Five levels -> (N, K, X, Y, Z) logits."""
        x = levels[4]
        for k in (3, 2, 1, 0):
            x = self.decoder[k](self.up[k](x) + levels[k])
        if head_dropout:
            x = self.head_dropout(x)
        logits: Tensor = self.head(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, X, Y, Z) -> (N, K, X, Y, Z) logits; X, Y, Z multiples of 16."""
        return self.decode(self.encode(x))
