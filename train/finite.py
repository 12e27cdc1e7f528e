"""Numbers that are not finite end a training before they reach a checkpoint."""

import math
from collections import deque
from pathlib import Path

import torch
from torch import Tensor, nn

from seg.infer.errors import Exit, SegError


class FiniteWatch:
    """Notices a loss that is not finite, without making a GPU wait: there, one step later than on a CPU.

    `flush` comes before every checkpoint, so that none has weights that such a loss has moved.
    """

    def __init__(self, device: torch.device, folder: Path) -> None:
        self._device, self._cuda, self._folder = device, device.type == "cuda", folder
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None, tuple[str, ...]]] = deque()

    def watch(self, step: int, losses: dict[str, Tensor], ids: tuple[str, ...]) -> None:
        """Take note of a step's losses; judge those that have arrived."""
        total = torch.stack(list(losses.values())).sum()
        arrived = None
        if self._cuda:
            total = torch.empty((), dtype=total.dtype, pin_memory=True).copy_(total, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(torch.cuda.current_stream(self._device))
        self._pending.append((step, total, arrived, ids))
        while len(self._pending) > self._cuda:
            self._judge()

    def flush(self) -> None:
        """Judge all; waits for the device."""
        while self._pending:
            self._judge()

    def judge_weights(self, module: nn.Module, step: int) -> None:
        """The weights after `step` steps, batch norm's statistics among them; waits for the device."""
        values = [value for value in module.state_dict().values() if value.is_floating_point()]
        norms = torch.stack(torch._foreach_norm(values))
        if not bool(norms.isfinite().all()):
            raise self._refusal(f"weights are not finite after step {step - 1}", "")

    def _judge(self) -> None:
        step, total, arrived, ids = self._pending.popleft()
        if arrived is not None:
            arrived.synchronize()
        if not math.isfinite(value := float(total)):
            raise self._refusal(f"the loss is {value} at step {step}, on {', '.join(ids)}", "check these scans, ")

    def _refusal(self, found: str, first: str) -> SegError:
        fix = f"{first}train again in another folder with a lower learning rate (--set lr=...) or --precision fp32"
        return SegError("E-NONFINITE", Exit.RUNTIME, str(self._folder), found, fix)
