"""One training step on one batch: losses, gradients, optimisers, averages, in the run's layout, precision, processes.

It knows nothing of data, files or logging. What is timed as "one iteration" is a call of `Step`.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .device import arrange
from .methods import Batch, Method
from .networks.hstf import attention_parameters
from .optim import build_optimizer, learning_rate, set_rate
from .processes import Processes, share_batch_norm

Compiled = bool | Literal["graphs"]


class _Losses(nn.Module):
    """`Method.losses` as the forward of a module: DistributedDataParallel hooks forwards."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch, step: int, phase: str) -> dict[str, Tensor]:
        return self.method.losses(batch, step, phase)


class Step:
    """Moves a method by one step at a time.

    Parameters
    ----------
    iterations : length of the run, for the learning rate.
    compiled : through `torch.compile`: minutes at the first step, then faster; "graphs": replayed as CUDA graphs, for
        windows so small that starting kernels takes longer than they do.
    """

    def __init__(
        self,
        method: Method,
        iterations: int,
        device: torch.device,
        precision: torch.dtype,
        *,
        compiled: Compiled = False,
        processes: Processes | None = None,
    ) -> None:
        self.method, self.iterations, self.device, self.precision = method, iterations, device, precision
        several = processes is not None and processes.size > 1
        if several:
            share_batch_norm(method, device)
        arrange(method, device, precision)
        attention = attention_parameters(method)
        self.optimizers = {
            phase: build_optimizer(method.trainable(phase), method.settings(phase), attention)
            for phase in method.phases
        }
        self._parts: Callable[[Batch, int, str], Iterator[dict[str, Tensor]]] = method.parts
        self._graphs = False
        if compiled:
            self.compile(graphs=compiled == "graphs")
        if several:
            # Equal batch statistics and equal gradients keep buffers and parameters equal: nothing is broadcast.
            # What a user cannot change: torch 2.13 renames broadcast_buffers, and channels-last gradients of kernels of
            # one voxel have two equal strides.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            warnings.filterwarnings("ignore", message="Grad strides do not match", category=UserWarning)
            losses = DistributedDataParallel(
                _Losses(method),
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                find_unused_parameters=len(method.phases) > 1,
            )

            def whole(batch: Batch, step: int, phase: str) -> Iterator[dict[str, Tensor]]:
                yield losses(batch, step, phase)  # computed when asked for, which is in the run's precision

            self._parts = whole  # gradients are summed up over processes in one go

    def compile(self, *, graphs: bool) -> None:
        """Compile the student, see `compiled` above."""
        self._graphs = graphs
        compile_network(self.method.student, graphs)

    def __call__(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Step number `step` (from 0). Returns the detached losses; nothing waits for the device."""
        found: dict[str, Tensor] = {}
        if self._graphs:
            # What graphs have written until now may be overwritten: nothing of the last step is looked at again.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        for phase, optimizer in self.optimizers.items():
            set_rate(optimizer, learning_rate(self.method.settings(phase), step, self.iterations))
            optimizer.zero_grad(set_to_none=True)
            parts = self._parts(batch, step, phase)
            while losses := self._next(parts):
                torch.autograd.backward(torch.stack(list(losses.values())).sum())
                for name, loss in losses.items():
                    found[name] = found[name] + loss.detach() if name in found else loss.detach()
                losses.clear()
            if self.method.config.clip_norm > 0:
                torch.nn.utils.clip_grad_norm_(list(self.method.trainable(phase)), self.method.config.clip_norm)
            optimizer.step()
        self.method.after_step(step)
        return found

    def _next(self, parts: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The next part's losses, computed in the run's precision; none are left: empty."""
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            return next(parts, {})

    def state_dict(self) -> dict[str, Any]:
        """Weights, statistics and moments."""
        return {
            "method": self.method.state_dict(),
            "optimizers": {phase: optimizer.state_dict() for phase, optimizer in self.optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.method.load_state_dict(state["method"])
        for phase, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][phase])
            lay_out(optimizer)


def lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Moments in their parameters' memory layout, which fused kernels take for granted: another device has another."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def compile_network(network: nn.Module, graphs: bool = False) -> None:
    """Compile both halves of a network for training; evaluation, whose shapes change, keeps the plain ones."""
    mode = "reduce-overhead" if graphs else None

    def replaced(plain: Callable[..., Any]) -> Callable[..., Any]:
        fast = torch.compile(plain, dynamic=False, mode=mode)  # a few shapes, each for the whole run

        def call(*args: Any, **kwargs: Any) -> Any:
            return (fast if network.training else plain)(*args, **kwargs)

        return call

    for half in ("encode", "decode"):
        setattr(network, half, replaced(cast(Callable[..., Any], getattr(network, half))))
