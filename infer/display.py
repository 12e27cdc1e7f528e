"""What seg-infer shows on stderr: a line per scan, on a terminal a progress bar, at the end a table.

Names of files are shown escaped and never as markup.
"""

import io
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .console import say
from .errors import printable

if TYPE_CHECKING:
    from .result import Result

MAX_ROWS = 60  # of the table; beyond, only what failed is listed
MAX_CLASSES = 6  # columns of volumes


class Display:
    """Shows results as they come. Used as a context.

    Parameters
    ----------
    total : scans in all.
    settled : results that are there before anything is computed: scans finished before, and failures.
    quiet : errors only.
    debug : tracebacks as well.
    """

    def __init__(self, total: int, settled: Sequence["Result"], quiet: bool, debug: bool) -> None:
        self._failed = [result for result in settled if result.error is not None]
        skipped = len(settled) - len(self._failed)
        self._total, self._number, self._quiet, self._debug = total, skipped, quiet, debug
        self._began = time.perf_counter()
        self._bar: Any = None
        self._task: Any = None
        if skipped and not quiet:
            say(f"{skipped} of {total} scans are finished and skipped")
        if total > 1 and len(settled) < total and not quiet and _on_terminal():
            self._bar = _progress_bar()
            self._task = self._bar.add_task("", total=total, completed=skipped)

    def __enter__(self) -> "Display":
        if self._bar is not None:
            self._bar.start()
        for result in self._failed:
            self.show(result)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def show(self, result: "Result") -> None:
        """One scan: the error, or what was written and how long it took."""
        self._number += 1
        if result.error is not None:
            if self._debug and result.trace:
                self._line(result.trace)
            self._line(f"seg-infer: error {result.error}")
        elif not self._quiet:
            count = f"[{self._number}/{self._total}] " if self._total > 1 else ""
            stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in result.seconds.items())
            self._line(f"{count}{printable(result.job.mask)}  ({stages} s)")
            for note in result.notes:
                self._line(f"note: {printable(result.job.scan)}: {note}")
        if self._bar is not None:
            self._bar.advance(self._task)

    def summary(self, results: Sequence["Result"]) -> None:
        """After several scans: a table, and how many failed."""
        self._end()
        if len(results) < 2:
            return
        if not self._quiet:
            rows = results if len(results) <= MAX_ROWS else [r for r in results if r.error is not None][:MAX_ROWS]
            if rows:
                _print_table(rows)
        failed, skipped = (sum(r.status == status for r in results) for status in ("failed", "skipped"))
        if failed:
            say(f"seg-infer: {failed} of {len(results)} scans failed")
        elif not self._quiet:
            seconds = time.perf_counter() - self._began
            say(f"{len(results) - skipped} scans done, {skipped} skipped, in {seconds:.1f} s")

    def _line(self, text: str) -> None:
        if self._bar is None:
            say(text)
        else:
            with suppress(OSError, ValueError):
                self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _end(self) -> None:
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.stop()
            self._bar = None


def _on_terminal() -> bool:
    with suppress(OSError, ValueError):
        return sys.stderr.isatty()
    return False


def _progress_bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "ETA", TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _print_table(results: Sequence["Result"]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = list(dict.fromkeys(name for r in results for name in r.statistics or {}))
    if len(names) > MAX_CLASSES:
        names = []
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("scan", "status"):
        table.add_column(title, overflow="fold")
    for title in ("seconds", *(f"{name} ml" for name in names)):
        table.add_column(Text(printable(title)), justify="right", no_wrap=True)
    for r in results:
        status = r.status if r.error is None else r.error.code
        volumes = (r.statistics or {}) if r.error is None else {}
        cells = [printable(r.job.scan), status, f"{sum(r.seconds.values()):.2f}" if r.seconds else ""]
        cells += [f"{volumes[name]['volume_ml']:.2f}" if name in volumes else "" for name in names]
        table.add_row(*map(Text, cells))
    page, terminal = io.StringIO(), _on_terminal()  # printing itself, rich ends the process when nobody reads
    Console(file=page, force_terminal=terminal, width=None if terminal else 1000).print(table)
    say("\n".join(line.rstrip() for line in page.getvalue().splitlines()))
