"""Networks by name. A network has `encode`, `decode`, `forward`; `stride`, `dims` and `tiling` are of its class."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from .hstf import Hstf, Hstf2d, HstfSmall
from .hstf_variants import VARIANTS
from .unet import UNet2d
from .vnet import Up, VNet


class Network(Protocol):
    """What methods use of a network beyond nn.Module.

    Attributes
    ----------
    tiling : as in `ModelSpec`: "window" unless tiles larger than in training are safe and cost no more a voxel.
    widths, stages : channels of the feature levels and of the decoder's stages, finest first.
    """

    stride: tuple[int, int, int]
    dims: int
    tiling: str
    widths: tuple[int, ...]
    stages: tuple[int, ...]
    width: int
    channels: int
    classes: int
    up_mode: Up
    head: nn.Conv2d | nn.Conv3d

    def encode(self, x: Tensor, after: Mapping[int, nn.Module] | None = None) -> list[Tensor]:
        """Input -> feature levels, finest first; `after` is applied to a level before the next one sees it."""
        ...

    def pyramid(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Feature levels -> the decoder's stages, finest first."""
        ...

    def features(self, levels: Sequence[Tensor], head_dropout: bool = True) -> Tensor:
        """Feature levels -> (N, width, ...), what the head sees."""
        ...

    def decode(self, levels: Sequence[Tensor], head_dropout: bool = True) -> Tensor:
        """Feature levels -> logits."""
        ...

    def twin(self, up: Up = "transposed") -> "Network":
        """A network of the same size with weights of its own."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Input -> logits."""
        ...


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "vnet": VNet,
    "unet2d": UNet2d,
    "hstf": Hstf,
    "hstf_s": HstfSmall,
    "hstf2d": Hstf2d,
    **VARIANTS,
}


def build_network(name: str, channels: int, classes: int, width: int, dropout: float) -> nn.Module:
    """A network by its name in `NETWORKS`: PyTorch's initialisation, and mostly background (`prior`)."""
    return NETWORKS[name](channels=channels, classes=classes, width=width, dropout=dropout)


def run_windows(network: nn.Module, x: Tensor) -> Tensor:
    """(N, C, X, Y, Z) windows -> (N, K, X, Y, Z) logits; a network of two dimensions takes their slices as a batch.

    Modules that are no `Network` take volumes.
    """
    if getattr(network, "dims", 3) == 3:
        logits: Tensor = network(x)
        return logits
    slices: Tensor = network(x.movedim(-1, 1).flatten(0, 1))
    return slices.reshape(len(x), -1, *slices.shape[1:]).movedim(1, -1)
