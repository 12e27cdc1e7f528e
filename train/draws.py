"""Random numbers for this process's part of a batch.

Every process draws for the batch of all, from one seed, and takes its own rows: several processes see what one would.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .processes import joined


def uniform(generator: torch.Generator, count: int, *shape: int) -> Tensor:
    """(count, *shape) uniform in [0, 1), on the generator's device; `count` samples in each process."""
    return _rows(torch.rand, generator, count, shape)


def normal(generator: torch.Generator, count: int, *shape: int) -> Tensor:
    """(count, *shape) standard normal, likewise."""
    return _rows(torch.randn, generator, count, shape)


def _rows(draw: Callable[..., Tensor], generator: torch.Generator, count: int, shape: tuple[int, ...]) -> Tensor:
    own = joined()
    drawn = draw(own.size * count, *shape, generator=generator, device=generator.device)
    return drawn[own.rank * count : (own.rank + 1) * count]
