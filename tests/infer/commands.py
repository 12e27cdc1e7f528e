"""seg-infer as the tests call it: in this process, or in a fresh one, perhaps with parts replaced."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

MAIN = "from seg.infer.cli import main; main()"


def command(*arguments: str, program: str = "") -> list[str]:
    """The command line of a fresh process that runs `program` before seg-infer."""
    return [sys.executable, "-c", f"{program}\n{MAIN}", *arguments]


def infer(*arguments: str, program: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """seg-infer in a fresh process."""
    line = command(*arguments, program=program)
    settings = {"capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run(line, check=False, **settings)


def run(*arguments: str) -> int:
    """seg-infer in this process; returns the exit status."""
    from seg.infer.cli import app

    try:
        app(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def voxels(path: Path | str) -> np.ndarray:
    """Stored values of a NIfTI file."""
    return np.asarray(nib.load(path).dataobj)
