"""Random numbers for this process's part of a batch.

Every process draws for the batch of all, from one seed, and takes its own rows: several processes see what one would.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor


def uniform(generator: torch.Generator, count: int, *shape: int) -> Tensor:
    """(count, *shape) uniform in [0, 1), on the generator's device; `count` samples in each process."""
    return _rows(torch.rand, generator, count, shape)


def normal(generator: torch.Generator, count: int, *shape: int) -> Tensor:
    """(count, *shape) standard normal, likewise."""
    return _rows(torch.randn, generator, count, shape)


def _rows(draw: Callable[..., Tensor], generator: torch.Generator, count: int, shape: tuple[int, ...]) -> Tensor:
    shared = dist.is_available() and dist.is_initialized()
    size, rank = (dist.get_world_size(), dist.get_rank()) if shared else (1, 0)
    drawn = draw(size * count, *shape, generator=generator, device=generator.device)
    return drawn[rank * count : (rank + 1) * count]
