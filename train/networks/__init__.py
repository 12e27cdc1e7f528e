"""Networks by name. A network has `encode`, `decode`, `forward`, and the class attributes `stride` and `dims`."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

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


NETWORKS: dict[str, Callable[..., nn.Module]] = {"vnet": VNet}


def build_network(name: str, channels: int, classes: int, width: int, dropout: float) -> nn.Module:
    """A network by its name in `NETWORKS`, default PyTorch initialisation."""
    return NETWORKS[name](channels=channels, classes=classes, width=width, dropout=dropout)
