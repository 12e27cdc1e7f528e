"""U-Net for slices, as the semi-supervised papers use it on cardiac cine MRI (ACDC).

Source: SSL4MIS code/networks/unet.py, which CrossMatch's ACDC model/unet.py repeats. At width 16 with one input channel
and four classes: 1,813,764 parameters. One difference: upsampling is bilinear with pixel centres aligned, not corners,
so that what a pixel gets does not depend on how far it is from the border of the tile.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 5
DROPOUT = (0.1, 0.2, 0.4, 0.6, 1.0)  # of the rate given, by level: 0.05, 0.1, 0.2, 0.3, 0.5 in the papers


def _block(inputs: int, outputs: int, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(inplace=True),
    )


class UNet2d(nn.Module):
    """Five levels of two 3x3 convolutions, joined by max pooling down and bilinear upsampling up; skips are stacked.

    Parameters
    ----------
    channels, classes : input channels and output classes.
    width : channels of the first level, doubled at each of four downsamplings (papers: 16).
    dropout : rate between the convolutions of the coarsest level while training, less at finer ones (papers: 0.5).
    """

    stride = (16, 16, 1)
    dims = 2

    def __init__(self, channels: int = 1, classes: int = 4, width: int = 16, dropout: float = 0.5) -> None:
        super().__init__()
        widths = [width << level for level in range(LEVELS)]
        self.encoder = nn.ModuleList(
            _block(n, m, dropout * share) for n, m, share in zip([channels, *widths[:-1]], widths, DROPOUT, strict=True)
        )
        self.narrow = nn.ModuleList(nn.Conv2d(widths[k + 1], widths[k], 1) for k in range(LEVELS - 1))
        self.decoder = nn.ModuleList(_block(2 * widths[k], widths[k]) for k in range(LEVELS - 1))
        self.head = nn.Conv2d(width, classes, 3, padding=1)

    def encode(self, x: Tensor) -> list[Tensor]:
        """(N, C, X, Y) -> five levels, finest first; level k is (N, width << k, X >> k, Y >> k)."""
        levels: list[Tensor] = []
        for k, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if k else x)
            levels.append(x)
        return levels

    def decode(self, levels: Sequence[Tensor], head_dropout: bool = True) -> Tensor:
        """Five levels -> (N, K, X, Y) logits. There is no dropout before the head."""
        x = levels[-1]
        for k in reversed(range(LEVELS - 1)):
            x = F.interpolate(self.narrow[k](x), scale_factor=2, mode="bilinear", align_corners=False)
            x = self.decoder[k](torch.cat([levels[k], x], dim=1))
        logits: Tensor = self.head(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, X, Y) -> (N, K, X, Y) logits; X, Y multiples of 16."""
        return self.decode(self.encode(x))
