"""What every benchmark shares: fresh processes, their peak memory, the machine they ran on, a table and a JSON file.

Imports the standard library alone, because the scripts are their own workers: what a worker imports is measured.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA = Path(os.environ.get("SEG_DATA") or ROOT.parent / "shared" / "data")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16")
PACKAGES = (
    "seg-toolkit",
    "numpy",
    "openvino",
    "nibabel",
    "pydicom",
    "highdicom",
    "contourpy",
    "torch",
    "monai",
    "nnunetv2",
)


class Failed(Exception):
    """A worker did not finish; the message is the end of what it said."""


def usable_threads() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0))


def peak_bytes() -> int:
    """Peak resident memory of this process. The kernel's own figure, and, unlike ru_maxrss, not the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel reports no VmHWM")


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def versions() -> dict[str, str]:
    """Versions of the packages that matter, as installed beside this interpreter."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def fresh(
    command: Sequence[str], *, threads: int | None = None, environment: Mapping[str, str] | None = None
) -> tuple[float, dict[str, Any]]:
    """Run a command in a fresh process.

    Returns
    -------
    seconds : from start to end of the process.
    report : the JSON object on the last line of its standard output, {} if there is none.

    Raises
    ------
    Failed : on a non-zero exit status.
    """
    variables = {**os.environ, **(environment or {})}
    if threads is not None:
        variables |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    began = time.perf_counter()
    done = subprocess.run(list(command), capture_output=True, text=True, check=False, env=variables)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    last = (done.stdout.strip().splitlines() or [""])[-1]
    return seconds, json.loads(last) if last.startswith("{") else {}


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median of every number in the runs' reports; None and absent values are left out."""
    numbers: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                numbers.setdefault(name, []).append(value)
    return {name: median(values) for name, values in numbers.items()}


def machine(command: Sequence[str] = ()) -> dict[str, Any]:
    """The environment of a result: processor, memory, versions, commit, command. No host name and no absolute path."""
    return {
        "cpu": _cpu_model(),
        "cpu_flags": [
            flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16") if flag in cpu_flags()
        ],
        "threads": usable_threads(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": " ".join(_public(word) for word in command or sys.argv),
    }


def cpu_flags() -> set[str]:
    """The processor's instruction sets; empty where the kernel does not list them."""
    return set(_cpuinfo("flags").split())


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or "unknown"


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def commit() -> str:
    """Short commit, with + when files differ from it; "" outside a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD")
    return commit + ("+" if commit and git("status", "--porcelain", "--untracked-files=no") else "")


def _public(word: str) -> str:
    """A word of the command without the folders it was typed with, unless they are the project's own."""
    if os.sep not in word:
        return word
    path = Path(word).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(name: str, content: Mapping[str, Any], text: str, folder: Path | None) -> None:
    """Print the table; write content and environment as JSON, and the table beside it, unless `folder` is None."""
    print(text)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"environment": machine(), **content, "table": text.splitlines()}
    (folder / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
