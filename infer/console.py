"""What all commands share at the terminal: one error line, the right exit status, --version."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, NoReturn

import typer

from . import __version__
from .errors import Exit, SegError


def _print_version(value: bool) -> None:
    if value:
        print(f"seg-toolkit {__version__}")
        raise typer.Exit


version_option = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]


@contextmanager
def guarded(command: str, debug: bool = False) -> Iterator[None]:
    """Turn failures into one line on stderr and an exit status; tracebacks only with `debug`.

    SIGTERM unwinds like SIGINT, so that temporary files are removed.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except SegError as error:
        if debug:
            raise
        _fail(command, f"error {error}", error.exit)
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except KeyboardInterrupt:
        _fail(command, "stopped by SIGINT; nothing partial is left", Exit.SIGINT)
    except _Terminated:
        _fail(command, "stopped by SIGTERM; nothing partial is left", Exit.SIGTERM)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.OUTPUT)
    except MemoryError:
        _fail(command, "error E-LIMIT-MEMORY: out of memory. Fix: use a machine with more memory.", Exit.LIMIT)
    except Exception as error:
        if debug:
            raise
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        _fail(command, f"error E-INTERNAL: {what}. Fix: run again with --debug and report the output.", Exit.INTERNAL)


class _Terminated(BaseException):
    """SIGTERM as an exception."""


def _terminate(_: int, __: FrameType | None) -> NoReturn:
    raise _Terminated


def _fail(command: str, line: str, status: int) -> NoReturn:
    print(f"{command}: {line}", file=sys.stderr, flush=True)
    sys.exit(int(status))
