"""U-Net for slices, as the semi-supervised papers use it on cardiac cine MRI (ACDC).

Source: SSL4MIS code/networks/unet.py, which CrossMatch's ACDC model/unet.py repeats. At width 16 with one input channel
and four classes: 1,813,764 parameters. One difference: upsampling is bilinear with pixel centres aligned, not corners,
so that what a pixel gets does not depend on how far it is from the border of the tile.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .prior import start_at_background
from .vnet import Up

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


def _up(inputs: int, outputs: int, mode: Up) -> nn.Module:
    """Channels halved: before the interpolation, or while a transposed convolution doubles the extent."""
    if mode == "transposed":
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
    return nn.Conv2d(inputs, outputs, 1)


class UNet2d(nn.Module):
    """Five levels of two 3x3 convolutions, joined by max pooling down and bilinear upsampling up; skips are stacked.

    Parameters
    ----------
    channels, classes : input channels and output classes.
    width : channels of the first level, doubled at each of four downsamplings (papers: 16).
    dropout : rate between the convolutions of the coarsest level while training, less at finer ones (papers: 0.5).
    up : how the decoder doubles the extent.
    """

    stride = (16, 16, 1)
    dims = 2
    tiling = "free"

    def __init__(
        self,
        channels: int = 1,
        classes: int = 4,
        width: int = 16,
        dropout: float = 0.5,
        up: Up = "linear",
    ) -> None:
        super().__init__()
        self.channels, self.classes, self.width, self.dropout = channels, classes, width, dropout
        self.up_mode = up
        widths = [width << level for level in range(LEVELS)]
        self.widths, self.stages = tuple(widths), tuple(widths[: LEVELS - 1])
        self.encoder = nn.ModuleList(
            _block(n, m, dropout * share) for n, m, share in zip([channels, *widths[:-1]], widths, DROPOUT, strict=True)
        )
        self.narrow = nn.ModuleList(_up(widths[k + 1], widths[k], up) for k in range(LEVELS - 1))
        self.decoder = nn.ModuleList(_block(2 * widths[k], widths[k]) for k in range(LEVELS - 1))
        self.head = start_at_background(nn.Conv2d(width, classes, 3, padding=1))

    def twin(self, up: Up = "linear") -> "UNet2d":
        """A network of the same size with weights of its own: a second model, or another decoder."""
        return UNet2d(self.channels, self.classes, self.width, self.dropout, up)

    def encode(self, x: Tensor, after: Mapping[int, nn.Module] | None = None) -> list[Tensor]:
        """(N, C, X, Y) -> five levels, finest first; level k is (N, width << k, X >> k, Y >> k).

        `after` holds what is applied to a level before the next one sees it (CAML's attention).
        """
        levels: list[Tensor] = []
        for k, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if k else x)
            if after is not None and k in after:
                x = after[k](x)
            levels.append(x)
        return levels

    def pyramid(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Five encoder levels -> the decoder's four stages, finest first, shaped like levels 0 to 3."""
        x, stages = levels[-1], []
        for k in reversed(range(LEVELS - 1)):
            x = self.narrow[k](x)
            if self.up_mode != "transposed":
                mode = "bilinear" if self.up_mode == "linear" else "nearest"
                x = F.interpolate(x, scale_factor=2, mode=mode, align_corners=False if mode == "bilinear" else None)
            x = self.decoder[k](torch.cat([levels[k], x], dim=1))
            stages.append(x)
        return stages[::-1]

    def features(self, levels: Sequence[Tensor], head_dropout: bool = True) -> Tensor:
        """Five levels -> (N, width, X, Y), what the head sees. There is no dropout before the head."""
        return self.pyramid(levels)[0]

    def decode(self, levels: Sequence[Tensor], head_dropout: bool = True) -> Tensor:
        """Five levels -> (N, K, X, Y) logits."""
        logits: Tensor = self.head(self.features(levels, head_dropout))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, X, Y) -> (N, K, X, Y) logits; X, Y multiples of 16."""
        return self.decode(self.encode(x))
