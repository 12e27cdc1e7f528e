"""The training loop: steps, logging, validation, checkpoints. It knows nothing of any method.

Everything random in step t comes from (seed, t), so a run resumed at step t continues as if it had never stopped. Equal
means equal on the same machine, thread count and library versions.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format

from seg.infer.errors import Exit, SegError
from seg.infer.volume import Shape3

from .augment import WeakAugmentation, weak_augment
from .methods import Batch, Method
from .optim import build_optimizer, learning_rate
from .run import save_checkpoint, truncate_metrics
from .sampling import LABELED, UNLABELED, Crops, Sample, draw


@dataclass(frozen=True)
class LoopConfig:
    """Settings of the loop itself.

    Attributes
    ----------
    foreground : probability that a labelled crop is placed on a foreground voxel.
    save_seconds : least time between two checkpoints.
    log_every, validate_every : in steps; 0 validates at the end alone.
    """

    iterations: int
    window: Shape3
    seed: int = 0
    foreground: float = 0.33
    log_every: int = 10
    validate_every: int = 0
    save_seconds: float = 60.0

    @property
    def extents(self) -> tuple[int, ...]:
        """The window as networks see it: a window of one slice has two extents."""
        return self.window if self.window[2] > 1 else self.window[:2]


@dataclass(frozen=True)
class Data:
    """Prepared cases; `unlabeled` may be empty for methods that do not use it."""

    labeled: Sequence[Sample]
    unlabeled: Sequence[Sample]


class Loop:
    """One training run in one folder.

    Parameters
    ----------
    validate : (deployed network, finished steps) -> metrics with ["mean"]["foreground"]["dice"], or None.
    report : called with (step, losses, steps per second) for the progress bar.
    """

    def __init__(
        self,
        method: Method,
        data: Data,
        config: LoopConfig,
        augmentation: WeakAugmentation,
        folder: Path,
        device: torch.device,
        precision: torch.dtype,
        validate: Callable[[torch.nn.Module, int], dict[str, Any]] | None = None,
        report: Callable[[int, dict[str, float], float], None] = lambda *_: None,
    ) -> None:
        self.method = method.to(device)
        if len(config.extents) == 2:
            convert_conv2d_weight_memory_format(method, torch.channels_last)  # a fifth faster on a CPU
        self.data, self.config, self.augmentation = data, config, augmentation
        self.folder, self.device, self.precision = folder, device, precision
        self.validate, self.report = validate, report
        self.step = 0
        self.optimizers = {p: build_optimizer(method.trainable(p), method.settings(p)) for p in method.phases}
        self._stop: int | None = None
        self._saved = time.monotonic()
        if method.config.unlabeled_batch and not data.unlabeled:
            raise SegError(
                "E-DATA-UNLABELED",
                Exit.INPUT_REFUSED,
                "",
                "this method needs unlabelled scans and there are none",
                "add unlabelled scans, use --labeled N, or --method supervised",
            )

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {
            "step": self.step,
            "method": self.method.state_dict(),
            "optimizers": {phase: optimizer.state_dict() for phase, optimizer in self.optimizers.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; newer log lines are dropped."""
        self.step = int(state["step"])
        self.method.load_state_dict(state["method"])
        for phase, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][phase])
        truncate_metrics(self.folder / "metrics.jsonl", self.step)

    def run(self) -> None:
        """Train to the end. On SIGINT or SIGTERM: save, then raise SegError with that signal's exit status."""
        from torch.utils.tensorboard import SummaryWriter

        torch.set_flush_denormal(True)  # denormals make CPU convolutions ten times slower
        writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step)
        previous = self._catch_signals()
        self.method.train()
        began, first = time.perf_counter(), self.step
        try:
            with open(self.folder / "metrics.jsonl", "a") as log, ThreadPoolExecutor(1) as reader:
                crops = reader.submit(self._draw, self.step)
                while self.step < self.config.iterations and self._stop is None:
                    losses, crops = self._one_step(crops, reader)
                    rate = (self.step - first) / (time.perf_counter() - began)
                    self._record(losses, rate, log, writer)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            writer.close()
        save_checkpoint(self.folder, self.state())
        if self._stop is not None:
            raise SegError(
                "E-STOPPED",
                Exit(128 + self._stop),
                str(self.folder),
                f"stopped by {signal.Signals(self._stop).name} at step {self.step}; the checkpoint is saved",
                "continue with --resume",
            )

    def _one_step(
        self, crops: "Future[tuple[Crops, Crops | None]]", reader: ThreadPoolExecutor
    ) -> tuple[dict[str, Tensor], "Future[tuple[Crops, Crops | None]]"]:
        labeled, unlabeled = crops.result()
        upcoming = reader.submit(self._draw, self.step + 1)
        batch = self._batch(labeled, unlabeled)
        every: dict[str, Tensor] = {}
        for phase, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.method.settings(phase), self.step, self.config.iterations)
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                losses = self.method.losses(batch, self.step, phase)
            total = torch.stack(list(losses.values())).sum()
            if not math.isfinite(value := float(total.detach())):
                names = ", ".join((*labeled.ids, *(unlabeled.ids if unlabeled else ())))
                raise SegError(
                    "E-NONFINITE",
                    Exit.RUNTIME,
                    str(self.folder),
                    f"the loss is {value} at step {self.step}, on {names}",
                    "check these scans, lower the learning rate, or use --precision fp32; the last checkpoint is kept",
                )
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(total)
            if self.method.config.clip_norm > 0:
                torch.nn.utils.clip_grad_norm_(list(self.method.trainable(phase)), self.method.config.clip_norm)
            optimizer.step()
            every |= {name: loss.detach() for name, loss in losses.items()}
        self.method.after_step(self.step)
        self.step += 1
        return every, upcoming

    def _draw(self, step: int) -> tuple[Crops, Crops | None]:
        """The step's crops, with the margin that rotation and scaling need."""
        cfg, aug, method = self.config, self.augmentation, self.method.config
        common: dict[str, Any] = dict(seed=cfg.seed, step=step, flips=aug.mirror, rotate=aug.rot90)
        window = aug.margin(cfg.window)
        labeled = draw(
            self.data.labeled, method.labeled_batch, window, stream=LABELED, foreground=cfg.foreground, **common
        )
        if not method.unlabeled_batch:
            return labeled, None
        return labeled, draw(self.data.unlabeled, method.unlabeled_batch, window, stream=UNLABELED, **common)

    def _batch(self, labeled: Crops, unlabeled: Crops | None) -> Batch:
        seed = int(np.random.SeedSequence((self.config.seed, self.step)).generate_state(1, np.uint64)[0] >> 1)
        torch.manual_seed(seed)  # dropout
        generator = torch.Generator(self.device).manual_seed(seed)

        extents = self.config.extents

        def moved(array: NDArray[Any]) -> Tensor:
            tensor = torch.from_numpy(array).to(self.device, non_blocking=True)
            return tensor if len(extents) == 3 else tensor.squeeze(-1)

        def weak(crops: Crops) -> tuple[Tensor, Tensor | None]:
            label = None if crops.label is None else moved(crops.label)
            return weak_augment(moved(crops.image), label, extents, self.augmentation, generator)

        x, y = weak(labeled)
        assert y is not None
        u = weak(unlabeled)[0] if unlabeled is not None else x[:0]
        return Batch(x, y, u, generator)

    def _record(self, losses: dict[str, Tensor], rate: float, log: Any, writer: Any) -> None:
        """Log, validate and save when it is time; `self.step` steps are done."""
        step, cfg = self.step, self.config
        last = step == cfg.iterations
        if step % cfg.log_every == 0 or last:
            values = {name: float(loss) for name, loss in losses.items()}
            lr = learning_rate(self.method.config, step - 1, cfg.iterations)
            log.write(json.dumps({"step": step - 1, "lr": lr, **values}) + "\n")
            log.flush()
            for name, value in values.items():
                writer.add_scalar(f"loss/{name}", value, step)
            writer.add_scalar("lr", lr, step)
            writer.add_scalar("steps_per_second", rate, step)
            self.report(step, values, rate)
        if self.validate is not None and cfg.validate_every and step % cfg.validate_every == 0 and not last:
            mean = self.validate(self.method.deployed(), step)["mean"]
            for label, metrics in mean.items():
                writer.add_scalar(f"dice/{label}", metrics["dice"], step)
            log.write(json.dumps({"step": step - 1, "dice": {k: m["dice"] for k, m in mean.items()}}) + "\n")
            log.flush()
            self.method.train()
        if time.monotonic() - self._saved > cfg.save_seconds:
            save_checkpoint(self.folder, self.state())
            self._saved = time.monotonic()

    def _catch_signals(self) -> dict[int, Any]:
        def note(number: int, _: FrameType | None) -> None:
            if self._stop is not None:  # a second signal ends at once; files are replaced whole anyway
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self._stop = number

        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
