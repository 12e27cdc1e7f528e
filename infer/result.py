"""What became of one scan: figures, times, or the error. It holds no voxels."""

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import Exit, SegError, lacks_memory, out_of_memory
from .jobs import Job
from .manifest import FileState


@dataclass
class Result:
    """What became of one scan.

    Attributes
    ----------
    error : why there is no mask.
    trace : the traceback as text, if there was an error.
    seconds : per stage; "load" is the time this scan waited for the network.
    shape, spacing : of the scan, in voxels and mm along its own axes.
    scan, mask : file states, where hashes were asked for.
    plan : how the scan was cut into windows, and what that was estimated to cost.
    skipped : the mask was there, proved by the manifest.
    planned : nothing was made, in a dry run.
    series : of a DICOM scan, what may be told of its series.
    """

    job: Job
    error: SegError | None = None
    trace: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    statistics: dict[str, Any] | None = None
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    scan: FileState | None = None
    mask: FileState | None = None
    skipped: bool = False
    planned: bool = False
    plan: dict[str, Any] | None = None
    series: dict[str, Any] | None = None

    @property
    def status(self) -> Literal["done", "skipped", "planned", "failed"]:
        """In one word."""
        if self.error is not None:
            return "failed"
        return "skipped" if self.skipped else "planned" if self.planned else "done"

    def fail(self, error: BaseException) -> "Result":
        """Keep what is to be said about an error, and not the error itself, whose frames hold whole scans."""
        self.trace = "".join(traceback.format_exception(error)).rstrip()
        self.error = scan_error(error, self.job.scan)
        return self


def scan_error(error: BaseException, path: str) -> SegError:
    """What to tell about anything that went wrong with one scan.

    Of an exception that is nobody's message to the user, only type and place are told: its text may quote the data.
    """
    if isinstance(error, SegError):
        return SegError(error.code, error.exit, error.path or path, error.found, error.fix, error.expected)
    if lacks_memory(error):
        return out_of_memory(path)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    fix = "run this scan again with --debug and report the output"
    return SegError("E-INTERNAL", Exit.INTERNAL, path, f"{type(error).__name__}{place}", fix)
