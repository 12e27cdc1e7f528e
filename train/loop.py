"""The training loop: steps, logging, validation, checkpoints. It knows nothing of any method.

Everything random in step t comes from (seed, t), so a run resumed at step t continues as if it had never stopped. Equal
means equal on the same machine, thread count and library versions.
"""

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from seg.infer.errors import Exit, SegError
from seg.infer.volume import Shape3

from .augment import WeakAugmentation
from .device import keep_freed_memory
from .finite import FiniteWatch
from .loader import Data, Loader
from .log import Log
from .methods import Method
from .optim import learning_rate
from .processes import Processes
from .refinement import Refinement
from .run import METRICS, save_checkpoint, truncate_metrics
from .step import Compiled, Step


@dataclass(frozen=True)
class LoopConfig:
    """Settings of the loop itself.

    Attributes
    ----------
    foreground : probability that a labelled crop is placed on a foreground voxel.
    overhang : share of a window's extent that may lie beyond an end of the volume (see `sampling`).
    save_seconds : least time between two checkpoints.
    log_every, validate_every : in steps; 0 validates at the end alone.
    """

    iterations: int
    window: Shape3
    seed: int = 0
    foreground: float = 0.33
    overhang: float = 0.125
    log_every: int = 10
    validate_every: int = 0
    save_seconds: float = 60.0


class Loop:
    """One training run in one folder.

    Parameters
    ----------
    method : its batch sizes are this process's.
    compiled : see `Step`.
    refinement : keeps pseudo-labels of the unlabelled scans, for methods with `rules`.
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
        *,
        compiled: Compiled = False,
        processes: Processes | None = None,
        refinement: Refinement | None = None,
        validate: Callable[[torch.nn.Module, int], dict[str, Any]] | None = None,
        report: Callable[[int, dict[str, float], float], None] = lambda *_: None,
    ) -> None:
        if method.config.unlabeled_batch and not data.unlabeled:
            raise SegError(
                "E-DATA-UNLABELED",
                Exit.INPUT_REFUSED,
                "",
                "this method needs unlabelled scans and there are none",
                "add unlabelled scans, use --labeled N, or --method supervised",
            )
        self.method, self.config, self.folder, self.device = method, config, folder, device
        self.processes = processes or Processes()
        self.validate, self.report, self.refinement = validate, report, refinement
        self.step = 0
        self.train_step = Step(
            method, config.iterations, device, precision, compiled=compiled, processes=self.processes
        )
        self.loader = Loader(
            data,
            method.config.labeled_batch,
            method.config.unlabeled_batch,
            config.window,
            config.foreground,
            config.overhang,
            augmentation,
            config.seed,
            device,
            self.processes,
        )
        self._finite = FiniteWatch(device, folder)
        self._stop: int | None = None
        self._saved = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"step": self.step, **self.train_step.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; newer log lines are dropped."""
        self.step = int(state["step"])
        self.train_step.load_state_dict(state)
        if self.refinement is not None:
            self.refinement.restore(self.step)
            self.loader.use(self.refinement.bank)
        if self.processes.first:
            truncate_metrics(self.folder / METRICS, self.step)

    def run(self) -> None:
        """Train to the end. On SIGINT or SIGTERM: save, then raise SegError with that signal's exit status."""
        torch.set_flush_denormal(True)  # denormals make CPU convolutions ten times slower
        if self.device.type == "cpu":
            keep_freed_memory()
        previous = self._catch_signals()
        self.method.train()
        began, first = time.perf_counter(), self.step
        try:
            with self.loader as loader, Log(self.folder, self.step, self.processes) as log:
                while self.step < self.config.iterations and not self._stopped():
                    self._refine(loader)
                    try:
                        losses = self._one_step(loader)
                    except Exception as error:  # torch.compile waits for compilers, which the same signal ends
                        if self._stop is None:
                            raise
                        fix = "continue with --resume, or start again if nothing was saved"
                        raise self._ended("no step since the last checkpoint is kept", fix) from error
                    self._record(losses, (self.step - first) / (time.perf_counter() - began), log)
            self._save()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._stop is not None:
            raise self._ended("the checkpoint is saved", "continue with --resume")

    def _ended(self, saved: str, fix: str) -> BaseException:
        """What a signal ends the run with: E-STOPPED in the first process, silence in the others."""
        assert self._stop is not None
        if not self.processes.first:
            return SystemExit(128 + self._stop)
        found = f"stopped by {signal.Signals(self._stop).name} at step {self.step}; {saved}"
        return SegError("E-STOPPED", Exit(128 + self._stop), str(self.folder), found, fix)

    def _stopped(self) -> bool:
        """Whether a signal came, to this process or another: all stop at the same step."""
        if self.processes.any(self._stop is not None):
            self._stop = self._stop or signal.SIGTERM
        return self._stop is not None

    def _refine(self, loader: Loader) -> None:
        """A round of pseudo-labels when it is due, and a checkpoint after it: banks before the last are not kept."""
        if self.refinement is not None and self.refinement.due(self.step):
            self._judge()
            self.refinement.refresh(self.step)
            loader.use(self.refinement.bank)
            self._save()
            self.refinement.prune()

    def _one_step(self, loader: Loader) -> dict[str, Tensor]:
        loaded = loader.load(self.step)
        torch.manual_seed(loader.seed_of(self.step, 1 + self.processes.rank))  # dropout
        losses = self.train_step(loaded.batch, self.step)
        self._finite.watch(self.step, losses, loaded.ids)
        self.step += 1
        return losses

    def _record(self, losses: dict[str, Tensor], rate: float, log: Log) -> None:
        """Log, validate and save when it is time; `self.step` steps are done."""
        step, cfg = self.step, self.config
        last = step == cfg.iterations
        if step % cfg.log_every == 0 or last:
            self._finite.flush()  # the next line waits for the device anyway
            values = self.processes.mean(losses)
            log.losses(step, learning_rate(self.method.config, step - 1, cfg.iterations), values, rate)
            self.report(step, values, rate)
        if self.validate is not None and cfg.validate_every and step % cfg.validate_every == 0 and not last:
            self._judge()
            if self.processes.first:
                mean = self.validate(self.method.deployed(), step)["mean"]
                log.dice(step, {label: metrics["dice"] for label, metrics in mean.items()})
            self.method.train()
        if time.monotonic() - self._saved > cfg.save_seconds:
            self._save()

    def _judge(self) -> None:
        """Before weights are used: E-NONFINITE for a loss or for weights that are not finite."""
        self._finite.flush()
        self._finite.judge_weights(self.method, self.step)

    def _save(self) -> None:
        self._judge()
        if self.processes.first:
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
