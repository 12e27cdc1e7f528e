"""What all commands share at the terminal: one error line, the right exit status, --version, safe standard streams."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Annotated, NoReturn

import typer

from . import __version__
from .errors import Exit, SegError, lacks_memory


def _print_version(value: bool) -> None:
    if value:
        with guarded("seg-toolkit"):
            print(f"seg-toolkit {__version__}")
        raise typer.Exit


version_option = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]


def say(line: str) -> None:
    """One line of diagnostics on stderr. That nobody can read it, or its disk is full, never stops the work."""
    with suppress(OSError, ValueError):  # ValueError: the stream is closed
        print(line, file=sys.stderr, flush=True)


@contextmanager
def guarded(command: str, debug: bool = False) -> Iterator[None]:
    """Turn failures into one line on stderr and an exit status; tracebacks only with `debug`.

    SIGTERM unwinds like SIGINT, so that temporary files are removed.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
        _flush_stdout()
    except SegError as error:
        _fail(command, f"error {error}", error.exit, debug)
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except KeyboardInterrupt:
        _fail(command, "stopped by SIGINT; nothing partial is left", Exit.SIGINT, debug)
    except Terminated:
        _fail(command, "stopped by SIGTERM; nothing partial is left", Exit.SIGTERM, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.OUTPUT)
    except Exception as error:
        if lacks_memory(error):
            line = "error E-LIMIT-MEMORY: out of memory. Fix: use a machine with more memory."
            _fail(command, line, Exit.LIMIT, debug)
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        line = f"error E-INTERNAL: {what}. Fix: run again with --debug and report the output."
        _fail(command, line, Exit.INTERNAL, debug)


def _flush_stdout() -> None:
    """Here a closed pipe or a full disk has a handler; at the interpreter's end it has none."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        found, fix = f"standard output cannot be written ({error.strerror})", "send it elsewhere"
        raise SegError("E-OUT-WRITE", Exit.OUTPUT, "", found, fix) from error


class Terminated(BaseException):
    """SIGTERM as an exception."""


def _terminate(_: int, __: FrameType | None) -> NoReturn:
    raise Terminated


def _fail(command: str, line: str, status: int, debug: bool) -> NoReturn:
    if debug:
        import traceback

        say(traceback.format_exc().rstrip())
    say(f"{command}: {line}")
    sys.exit(int(status))


def launch(command: Callable[[], object]) -> NoReturn:
    """Run a command as this process's purpose, and end the process.

    It ends without the interpreter's teardown: that costs a tenth of a second with an engine loaded, and would wait for
    the threads that a signal made pointless (a reader on a dead network share). All outputs are closed by now.
    """
    _open_standard_streams()
    status: object = 0
    try:
        command()
    except SystemExit as stop:
        status = stop.code
    except KeyboardInterrupt:  # before or after `guarded`
        status = Exit.SIGINT
    except Terminated:
        status = Exit.SIGTERM
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = Exit.INTERNAL
    if not isinstance(status, int):
        status = 0 if status is None else Exit.USAGE
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        status = status or Exit.OUTPUT
    os._exit(int(status))


def _open_standard_streams() -> None:
    """Point closed standard streams at the null device.

    Otherwise the next file that is opened, perhaps a mask, gets number 1 or 2, and whatever prints there, be it a
    native library, writes into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", closefd=False, errors="backslashreplace")  # noqa: SIM115
            setattr(sys, name, stream)
