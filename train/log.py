"""What a training tells while it runs: metrics.jsonl, one line per logged step, and the same curves for TensorBoard."""

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from .processes import Processes
from .run import METRICS, TENSORBOARD, room_for

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Log:
    """Writes in the first process alone.

    Raises
    ------
    SegError : E-OUT-FULL when a line or a curve cannot be written.
    """

    def __init__(self, folder: Path, step: int, processes: Processes) -> None:
        self._folder = folder
        self._file: TextIO | None = None
        self._writer: SummaryWriter | None = None
        if processes.first:
            from torch.utils import tensorboard

            with room_for(folder):
                self._file = open(folder / METRICS, "a")  # noqa: SIM115 - open for the whole run
                self._writer = tensorboard.SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with room_for(self._folder) if kind is None else suppress(OSError):  # the first error is the one to tell
            if self._file is not None:
                self._file.close()
            if self._writer is not None:
                self._writer.close()

    def losses(self, step: int, lr: float, values: dict[str, float], rate: float) -> None:
        """After `step` steps."""
        self._line({"step": step - 1, "lr": lr, **values})
        curves = {**{f"loss/{name}": value for name, value in values.items()}, "lr": lr, "steps_per_second": rate}
        self._curves(step, curves)

    def dice(self, step: int, values: dict[str, float]) -> None:
        """After `step` steps, by label."""
        self._line({"step": step - 1, "dice": values})
        self._curves(step, {f"dice/{label}": value for label, value in values.items()})

    def _line(self, entry: dict[str, Any]) -> None:
        if self._file is not None:
            with room_for(self._folder / METRICS):
                self._file.write(json.dumps(entry) + "\n")
                self._file.flush()

    def _curves(self, step: int, values: dict[str, float]) -> None:
        if self._writer is not None:
            with room_for(self._folder / TENSORBOARD):
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)
