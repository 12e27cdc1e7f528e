"""`--report`: everything about one call that explains its masks, or why there are none, as one JSON file.

Nothing of a scan's header text enters, and not the computer's name; file names are those that the user typed.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import __version__
from .atomic import atomic_text
from .console import Terminated
from .dicomweb.address import presentable
from .errors import Exit, SegError, printable
from .jobs import Job
from .manifest import FileState, model_identity, portable
from .result import Result, scan_error
from .spec import ModelSpec

FORMAT = 1
LIBRARIES = ("openvino", "numpy", "nibabel", "isal", "pydicom", "highdicom")


@dataclass
class Report:
    """Filled in while the call goes on.

    Attributes
    ----------
    options : the arguments.
    spec : the model's, once it is read.
    results : mask path -> result of the scans that came to an end.
    error : what stopped the call, if anything did.
    exit : exit status.
    jobs : all scans; those without a result were not come to.
    """

    options: Mapping[str, Any]
    spec: ModelSpec | None = None
    results: dict[str, Result] = field(default_factory=dict)
    error: SegError | None = None
    exit: int = 0
    jobs: Sequence[Job] = ()
    began: float = field(default_factory=time.perf_counter)
    started: float = field(default_factory=time.time)

    def stop(self, error: BaseException) -> None:
        """Note what ends the call early."""
        if isinstance(error, KeyboardInterrupt | Terminated):
            self.exit = int(Exit.SIGINT if isinstance(error, KeyboardInterrupt) else Exit.SIGTERM)
            return
        self.error = scan_error(error, "")
        self.exit = int(self.error.exit)

    def as_dict(self) -> dict[str, Any]:
        """The content, ready for JSON."""
        return {
            "format": FORMAT,
            "command": "seg-infer",
            "exit": self.exit,
            "error": self.error.as_dict() if self.error is not None else None,
            "versions": _versions(),
            "platform": _platform(),
            "model": model_identity(self.spec) if self.spec is not None else None,
            "options": _presentable(self.options),
            "scans_given": len(self.jobs),
            "scans": [_row(self.results[job.mask]) for job in self.jobs if job.mask in self.results],
            "peak_rss_bytes": _peak_rss(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "wall_seconds": round(time.perf_counter() - self.began, 3),
        }

    def write(self, path: str) -> None:
        """Replace `path`, atomically. Raises SegError E-OUT-*."""
        atomic_text(path, json.dumps(self.as_dict(), indent=1) + "\n")


def _presentable(value: Any) -> Any:
    """Options without what may be a secret: a report is kept, also of a call that was refused for it."""
    if isinstance(value, Mapping):
        return {name: _presentable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_presentable(part) for part in value]
    return presentable(value) if isinstance(value, str) else value


def write_statistics(path: str, spec: ModelSpec, results: Sequence[Result]) -> None:
    """`--statistics`: volumes per class of each scan. Raises SegError E-OUT-*."""
    rows = [
        {"scan": portable(r.job.scan), "mask": portable(r.job.mask), "classes": r.statistics}
        if r.error is None
        else {"scan": portable(r.job.scan), "error": r.error.as_dict()}
        for r in results
    ]
    content = {"model": spec.name, "graph_sha256": spec.graph_sha256, "scans": rows}
    atomic_text(path, json.dumps(content, indent=1) + "\n")


def _row(result: Result) -> dict[str, Any]:
    def digest(state: FileState | None) -> str | None:
        return state.sha256 if state is not None else None

    done = result.status in ("done", "skipped")
    return {
        "scan": portable(result.job.scan),
        "mask": portable(result.job.mask) if done else None,
        "status": result.status,
        "seconds": {stage: round(seconds, 4) for stage, seconds in result.seconds.items()},
        "shape": list(result.shape) or None,
        "spacing_mm": list(result.spacing) or None,
        "series": result.series,
        "plan": result.plan,
        "notes": list(result.notes),
        "scan_sha256": digest(result.scan),
        "mask_sha256": digest(result.mask) if done else None,
        "statistics": result.statistics if done else None,
        "error": result.error.as_dict() if result.error is not None else None,
    }


def _versions() -> dict[str, str | None]:
    return {
        "seg-toolkit": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
    }


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _platform() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = (line.partition(":") for line in file)
            return next((printable(text.strip()) for key, _, text in lines if key.strip() == "model name"), "")
    except OSError:
        return platform.processor()


def _peak_rss() -> int | None:
    """Bytes, or None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
