"""One training in several processes (torchrun): who they are, and what they compute together.

Every process takes its share of each batch, and what is of the whole batch stays so: the sums of Dice losses and of
weighted means and the moments of batch norm are added up over the processes, gradients are averaged by
DistributedDataParallel, random numbers are drawn for all (`draws`), and CutMix finds its partners in other processes
too. The losses are therefore those of one process with the same batch, but for dropout, which each draws by itself.
BCP mixes its own share, SS-Net and CAML embed and remember it.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seg.infer.errors import Exit, SegError

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # the first reads data and validates while others wait; gloo notices a lost peer at once

_LOST = ("closed by peer", "Connection reset", "Broken pipe", "gloo", "NCCL")


@dataclass(frozen=True)
class Processes:
    """This process among all of the training; alone by default."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def share(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, in every one. Where it raises SegError the others exit silently."""
        if self.size == 1:
            return make()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = make()
            except SegError as error:
                box[1] = int(error.exit)
                dist.broadcast_object_list(box)
                raise
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise SystemExit(box[1])
        return cast(T, box[0])

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process; all must ask."""
        if self.size == 1:
            return flag
        flags = torch.tensor([flag], dtype=torch.uint8)  # on the CPU: no device is waited for
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Means over the processes; waits for the device."""
        stacked = torch.stack([value.float() for value in values.values()])
        if self.size > 1:
            dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.size).tolist(), strict=True))

    def portions(self, batches: Mapping[str, int]) -> dict[str, int]:
        """This process's part of each batch.

        Raises
        ------
        SegError : E-CONFIG when the processes cannot share one equally.
        """
        odd = {name: batch for name, batch in batches.items() if batch % self.size}
        if odd:
            found = ", ".join(f"{name} {batch}" for name, batch in odd.items())
            fix = " ".join(f"--set {name}={-(-batch // self.size) * self.size}" for name, batch in odd.items())
            fix += ", or another number of processes"
            raise SegError("E-CONFIG", Exit.USAGE, "", f"{found} for {self.size} processes", fix)
        return {name: batch // self.size for name, batch in batches.items()}


def join(device: torch.device) -> Processes:
    """The processes that torchrun started, connected: gloo for the CPU, NCCL for a GPU. Alone without torchrun.

    A GPU becomes this process's current one, which is where streams and events belong that name none.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Processes()
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return joined()


@contextmanager
def left_at_the_end(processes: Processes) -> Iterator[None]:
    """Close the connections, whatever happened: threads that still wait on them abort the process when it exits."""
    try:
        yield
    finally:
        if processes.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def refused_by_a_peer(processes: Processes, path: str) -> Iterator[None]:
    """Where several processes train, a lost connection becomes E-PEER: another one ended, and its message tells why."""
    try:
        yield
    except RuntimeError as error:  # gloo's and NCCL's errors have no type of their own
        if processes.size == 1 or not any(word in str(error) for word in _LOST):
            raise
        found = f"another of the {processes.size} processes ended ({str(error).splitlines()[0]})"
        fix = "see its message, then start all of them again with --resume"
        raise SegError("E-PEER", Exit.RUNTIME, path, found, fix) from error


class _Sum(torch.autograd.Function):
    """Sum over processes. Each adds its gradient of the result; DistributedDataParallel's mean undoes the factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def joined() -> Processes:
    """This process among those that `join` connected; alone without."""
    if not (dist.is_available() and dist.is_initialized()):
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


def summed(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, differentiable; itself in a single process."""
    if joined().size == 1:
        return value
    return cast(Tensor, _Sum.apply(value))  # type: ignore[no-untyped-call]


def reversed_batch(value: Tensor) -> Tensor:
    """This process's rows (B, ...) of the batch of all in reverse order, without gradient: partners to mix with."""
    value = value.detach()
    own = joined()
    if own.size == 1:
        return value.flip(0)
    parts = [torch.empty_like(value) for _ in range(own.size)]
    dist.all_gather(parts, value.contiguous())
    return parts[-1 - own.rank].flip(0)


class _SharedBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, on any device; torch's SyncBatchNorm is for GPUs alone."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        axes = [0, *range(2, x.dim())]
        count = x.numel() // x.shape[1] * dist.get_world_size()
        sums, squares = summed(torch.stack([x.sum(axes), (x * x).sum(axes)])) / count
        variance = (squares - sums * sums).clamp_min(0)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(sums, self.momentum)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
        shape = [1, -1] + [1] * (x.dim() - 2)
        factor = torch.rsqrt(variance + self.eps) * self.weight
        out: Tensor = x * factor.view(shape) + (self.bias - sums * factor).view(shape)
        return out.to(input.dtype)


def share_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with batch statistics over all processes; names of parameters and buffers stay."""
    if device.type == "cuda":
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(module))  # type: ignore[no-untyped-call]
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.__class__ = _SharedBatchNorm  # the same parameters and buffers
    return module
