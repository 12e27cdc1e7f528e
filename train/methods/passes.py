"""Streams of a batch through a part of the network, and which of them move batch norm's running statistics.

A stream is one tensor a level, (N, C, ...), or one in all.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Stream = Sequence[Tensor]
Part = Callable[[list[Tensor]], Sequence[Tensor]]


def stack(streams: Sequence[Stream]) -> list[Tensor]:
    """Levels of several streams -> one batch per level."""
    return [torch.cat(parts) for parts in zip(*streams, strict=True)]


def in_one(run: Part, streams: Sequence[Stream]) -> list[Stream]:
    """Each stream's results, of one pass over all of them."""
    sizes = [len(stream[0]) for stream in streams]
    levels = (level.split_with_sizes(sizes) for level in run(stack(streams)))
    return list(zip(*levels, strict=True))


def in_two(network: nn.Module, run: Part, streams: Sequence[Stream], calm: Sequence[int]) -> list[Stream]:
    """The same of two passes: the streams numbered in `calm`, then the others, which leave running statistics alone."""
    rest = [number for number in range(len(streams)) if number not in calm]
    found = dict(zip(calm, in_one(run, [streams[n] for n in calm]), strict=True))
    with kept_statistics(network):
        found |= zip(rest, in_one(run, [streams[n] for n in rest]), strict=True)
    return [found[number] for number in range(len(streams))]


@contextmanager
def kept_statistics(network: nn.Module, keep: bool = True) -> Iterator[None]:
    """Batch norm with the batch's statistics, the running ones left as they are."""
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)] if keep else []
    momenta: list[Any] = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
