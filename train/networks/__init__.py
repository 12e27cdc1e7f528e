"""Networks by name. A network has `encode`, `decode`, `forward`, and the class attributes `stride` and `dims`."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from .unet import UNet2d
from .vnet import VNet


class Network(Protocol):
    """What methods use of a network beyond nn.Module."""

    stride: tuple[int, int, int]
    dims: int

    def encode(self, x: Tensor) -> list[Tensor]:
        """Input -> feature levels, finest first."""
        ...

    def decode(self, levels: Sequence[Tensor], head_dropout: bool = True) -> Tensor:
        """Feature levels -> logits."""
        ...


NETWORKS: dict[str, Callable[..., nn.Module]] = {"vnet": VNet, "unet2d": UNet2d}


def build_network(name: str, channels: int, classes: int, width: int, dropout: float) -> nn.Module:
    """A network by its name in `NETWORKS`, default PyTorch initialisation."""
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
