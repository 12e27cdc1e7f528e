"""The error contract: one line, one code, one exit status, one fix.

Every failure a user can cause is a `SegError`. The command line prints it as
`seg-infer: error E-NII-TRUNC: scan.nii.gz: <found>, expected <expected>. Fix: <fix>.` and exits with its status.
Paths are shown as the user typed them.
"""

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path


class Exit(IntEnum):
    """Exit statuses shared by all commands."""

    OK = 0
    USAGE = 2
    INPUT_MISSING = 10  # absent, unreadable, or the wrong kind of thing
    INPUT_CORRUPT = 11  # not the format it claims, or damaged
    INPUT_REFUSED = 12  # valid, but ambiguous or unsupported
    LIMIT = 13  # memory, voxels, decompressed size
    MODEL = 20  # invalid, tampered or incompatible artifact or checkpoint
    RUNTIME = 21  # device, provider, missing extra, non-finite output
    OUTPUT = 30  # cannot be written
    BATCH = 40  # some cases of a batch failed
    INTERNAL = 70  # a bug
    SIGINT = 130
    SIGTERM = 143


@dataclass(eq=False)
class SegError(Exception):
    """A failure with everything needed to print, report and fix it.

    Attributes
    ----------
    code : stable identifier such as ``E-NII-TRUNC``.
    exit : process exit status.
    path : the file as the user typed it, or "" when no file is concerned.
    found : what is there, stated against what was expected.
    fix : one thing to do about it.
    """

    code: str
    exit: Exit
    path: str
    found: str
    fix: str
    expected: str = ""

    def __str__(self) -> str:
        where = f"{printable(self.path)}: " if self.path else ""
        expected = f", expected {self.expected}" if self.expected else ""
        return f"{self.code}: {where}{printable(self.found)}{expected}. Fix: {self.fix}."

    def as_dict(self) -> dict[str, str | int]:
        """The same fields for a JSON report."""
        return {
            "code": self.code,
            "exit": int(self.exit),
            "path": printable(self.path),
            "found": self.found,
            "expected": self.expected,
            "fix": self.fix,
        }


def printable(text: str | Path) -> str:
    """Text safe for one terminal line: control characters and undecodable bytes escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


_NO_MEMORY = ("failed to allocate", "can't allocate memory", "out of memory", "bad_alloc")  # ORT, OpenVINO, torch, CUDA


def lacks_memory(error: BaseException) -> bool:
    """Whether memory was short: NumPy and CuPy raise MemoryError, engines errors of their own with words of theirs."""
    engine = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime.")
    said = str(error).lower() if engine else ""
    return isinstance(error, MemoryError) or any(words in said for words in _NO_MEMORY)


def out_of_memory(path: str) -> SegError:
    """The error for a scan or a network that the memory does not hold."""
    fix = "give a smaller --window or --max-memory, or use a machine with more memory"
    return SegError("E-LIMIT-MEMORY", Exit.LIMIT, path, "out of memory", fix)


def missing_extra(package: str, extra: str) -> SegError:
    """The error for an optional dependency that is not installed."""
    return SegError(
        "E-EXTRA", Exit.RUNTIME, "", f"the package {package} is not installed", f'pip install "seg-toolkit[{extra}]"'
    )
