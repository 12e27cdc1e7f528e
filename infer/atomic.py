"""Files that are absent or whole, whatever happens while they are written.

The bytes go to a hidden temporary file in the target's own folder (a rename across file systems is a copy), reach the
disk, and only then take the target's name. What this does not know: a temporary file left by a killed process on
another host, or in another container, stays until that host writes the same target again.
"""

import errno
import filecmp
import hashlib
import os
import platform
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Literal

from .errors import Exit, SegError

Overwrite = bool | Literal["equal"]  # "equal": a file of the same bytes alone is replaced

_FULL = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some disk space",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or choose another file system",
}
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_FOLDER_SYNC_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF}


@contextmanager
def atomic_file(path: str, *, overwrite: Overwrite = False) -> Iterator[BinaryIO]:
    """Open `path` for writing; it appears, complete and on disk, when the block ends without an exception.

    Any exception, also KeyboardInterrupt, removes the temporary file and leaves an existing target untouched. An
    OSError inside the block is taken to be about the output, so do nothing else there. With `overwrite`, a symbolic
    link is replaced and what it points to stays as it is. Of two processes writing the same target, the last whole
    file wins. The mode is what the umask gives.

    Parameters
    ----------
    path : target file as the user typed it; its folder must exist.
    overwrite : replace an existing file or link; "equal" refuses one of other bytes.

    Yields
    ------
    BinaryIO
        Buffered binary file.

    Raises
    ------
    SegError
        E-OUT-EXISTS, E-OUT-KIND, E-OUT-DIR, E-OUT-FULL or E-OUT-WRITE, all with exit status 30.
    """
    folder, name = os.path.split(path)
    folder = folder or os.curdir
    refuse_existing(path, overwrite)
    try:
        prefix = _prefix(name)
        _remove_stale(folder, prefix)
        temp = os.path.join(folder, f"{prefix}{os.getpid()}-{secrets.token_hex(8)}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(temp, flags, 0o666)
    except (OSError, ValueError) as error:
        raise output_error(path, error) from error
    try:
        with _buffered(descriptor) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        refuse_existing(path, overwrite)  # it may have appeared while we wrote
        if overwrite == "equal" and os.path.lexists(path) and not _equal(temp, path):
            found, fix = "is there, and is not what this run writes", "move it away, or use --overwrite"
            raise SegError("E-OUT-EXISTS", Exit.OUTPUT, path, found, fix)
        replaces = os.path.lexists(path)
        os.replace(temp, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temp)
        if isinstance(error, OSError):
            raise output_error(path, error) from error
        raise
    try:
        _sync_folder(folder)
    except OSError as error:
        # A failure is reported, so nothing may be left that looks like a result; but what was replaced is gone already.
        if not replaces:
            with suppress(OSError):
                os.unlink(path)
        raise output_error(path, error) from error


def _equal(temp: str, path: str) -> bool:
    with suppress(OSError):  # a link to nothing, a file that cannot be read
        return filecmp.cmp(temp, path, shallow=False)
    return False


def atomic_text(path: str, text: str, *, overwrite: bool = True) -> None:
    """Write `text` as UTF-8 through `atomic_file`. Raises what it raises."""
    data = text.encode("utf-8", "backslashreplace")
    with atomic_file(path, overwrite=overwrite) as file:
        file.write(data)


def refuse_existing(path: str, overwrite: Overwrite) -> None:
    """Raise unless `path` is free, or may be replaced.

    Raises
    ------
    SegError
        E-OUT-DIR for a folder, E-OUT-KIND for a device, pipe or socket, E-OUT-EXISTS without `overwrite`.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise output_error(path, error) from error
    link = stat.S_ISLNK(mode)
    if stat.S_ISDIR(mode):
        raise SegError("E-OUT-DIR", Exit.OUTPUT, path, "is a folder", "give a file name inside it", "a file to write")
    if not link and not stat.S_ISREG(mode):
        raise SegError("E-OUT-KIND", Exit.OUTPUT, path, "is a device, pipe or socket", "choose another file name")
    if not overwrite:
        found = "is a symbolic link" if link else "already exists"
        raise SegError("E-OUT-EXISTS", Exit.OUTPUT, path, found, "choose another name or pass --overwrite")


def output_error(path: str, error: OSError | ValueError) -> SegError:
    """The `SegError` for a failed write of `path`."""
    number = error.errno if isinstance(error, OSError) else None
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    if number in _FULL:
        return SegError("E-OUT-FULL", Exit.OUTPUT, path, f"no room for the output ({reason})", _FULL[number])
    if number in _NO_FOLDER:
        fix = "create the folder, or choose another path"
        return SegError("E-OUT-DIR", Exit.OUTPUT, path, f"cannot be created here ({reason})", fix)
    fix = "choose a folder on a healthy, writable disk"
    return SegError("E-OUT-WRITE", Exit.OUTPUT, path, f"cannot be written ({reason})", fix)


def _buffered(descriptor: int) -> BinaryIO:
    try:
        return os.fdopen(descriptor, "wb", buffering=1 << 20)
    except BaseException:
        os.close(descriptor)
        raise


def _prefix(name: str) -> str:
    """Start of the names of all temporary files of one target on this host.

    A digest instead of the name: names of 255 bytes leave no room for a suffix, and a temporary name must not carry a
    patient's name. The host is in it because a process number says nothing on a folder shared between hosts.
    """
    key = os.fsencode(platform.node()) + b"\0" + os.fsencode(name)
    return f".seg-{hashlib.sha256(key).hexdigest()[:16]}-"


def _remove_stale(folder: str, prefix: str) -> None:
    """Remove temporary files of this target whose process is gone, as far as the folder can be listed."""
    if os.name != "posix":  # elsewhere os.kill(pid, 0) is not a harmless question
        return
    pattern = re.compile(re.escape(prefix) + r"(\d+)-[0-9a-f]{16}\.tmp")
    with suppress(OSError):
        for entry in os.listdir(folder):
            match = pattern.fullmatch(entry)
            if match and not _alive(int(match[1])):
                os.unlink(os.path.join(folder, entry))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: str) -> None:
    """Make the rename durable. File systems that cannot sync a folder are left to their own order."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # a folder may be writable without being readable
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _FOLDER_SYNC_UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
