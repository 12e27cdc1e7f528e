"""MC-Net+ (Wu et al., MedIA 2022) and MC-Net: decoders that differ must agree.

One encoder, decoders that differ in how they enlarge; on every scan each decoder's probabilities must match the others'
sharpened ones. Source: code/train_mcnet_3d.py and networks/VNet.py (MC-Net fee453c); its two-decoder network is what
the authors call similar to MC-Net. Departure: the official loop keeps all probability maps and their pairwise losses on
the CPU; here they stay on the device, with the same values. Sharpened targets are not detached, as published.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, permutations
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ..losses import linear_dice
from ..networks import Network
from ..networks.vnet import Up
from ..ramp import ramped
from .base import Batch, Method, MethodConfig, Optimizer, Schedule

UP_MODES: tuple[Up, ...] = ("transposed", "linear", "nearest")


@dataclass(frozen=True)
class McNetConfig(MethodConfig):
    """Defaults of the official script."""

    labeled_batch: int = 2
    unlabeled_batch: int = 2
    optimizer: Optimizer = "sgd"
    lr: float = 0.01
    schedule: Schedule = "constant"  # the official rate is computed and never set
    others: int = 1  # decoders beside the network's own
    cost: ClassVar[float] = 2.2
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"others": (1, 2)}
    supervised: float = 0.5  # --lamda
    consistency: float = 1.0  # --consistency
    ramp_up: float = 0.4  # 40 epochs of 150 iterations = 6000 of 15000
    temperature: float = 0.1
    least_unlabeled: ClassVar[int] = 1


@dataclass(frozen=True)
class McNetPlusConfig(McNetConfig):
    """Three decoders."""

    others: int = 2
    cost: ClassVar[float] = 3.4


class McNet(Method):
    """Two decoders; see the module's docstring."""

    Config = McNetConfig
    config: McNetConfig

    def __init__(self, network: nn.Module, config: McNetConfig, iterations: int) -> None:
        super().__init__(network, config, iterations)
        net = cast(Network, network)
        kinds = [up for up in UP_MODES if up != net.up_mode][: config.others]
        self.others = nn.ModuleList(decoder_alone(net.twin(up)) for up in kinds)

    def trainable(self, phase: str) -> Iterable[nn.Parameter]:
        """The network and the further decoders."""
        return chain(self.student.parameters(), self.others.parameters())

    def losses(self, batch: Batch, step: int, phase: str = "student") -> dict[str, Tensor]:
        """See the base class."""
        cfg, n = self.config, len(batch.x)
        networks = [cast(Network, net) for net in (self.student, *self.others)]
        levels = networks[0].encode(torch.cat([batch.x, batch.u]))
        logits = [network.decode(levels) for network in networks]
        supervised = torch.stack([linear_dice(z[:n], batch.y) for z in logits]).sum()
        weight = cfg.consistency * ramped(step + 1, cfg.ramp_up, self.iterations)
        return {
            "supervised": cfg.supervised * supervised,
            "consistency": weight * mutual_consistency(logits, cfg.temperature),
        }


class McNetPlus(McNet):
    """Three decoders."""

    Config = McNetPlusConfig


def mutual_consistency(logits: list[Tensor], temperature: float) -> Tensor:
    """Sum over ordered pairs of the mean of (p_i - sharpen(p_j))^2, over all channels."""
    p = [z.float().softmax(dim=1) for z in logits]
    sharp = [sharpened(q, temperature) for q in p]
    return torch.stack([(p[i] - sharp[j]).square().mean() for i, j in permutations(range(len(p)), 2)]).sum()


def sharpened(p: Tensor, temperature: float) -> Tensor:
    """p^(1/T) normalised over the classes; with two classes p^(1/T) / (p^(1/T) + (1 - p)^(1/T)) as published."""
    powers = p ** (1.0 / temperature)
    return powers / powers.sum(dim=1, keepdim=True)


def decoder_alone(network: Network) -> nn.Module:
    """A network without what comes before its decoder: no parameter is left that no loss reaches."""
    module = cast(nn.Module, network)
    for part in ("encoder", "down", "stem", "embed", "tokens"):  # V-Net's and U-Net's; HSTF's
        if hasattr(module, part):
            setattr(module, part, None)
    return module
