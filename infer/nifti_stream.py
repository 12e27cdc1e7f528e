"""The bytes of one regular file in order, inflated when the content (not the name) is gzip.

Reading to the end verifies the CRC32 and length of every gzip member. Nothing here knows what the bytes mean.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from isal import isal_zlib

from .errors import Exit, SegError

GZIP = b"\x1f\x8b"
COPY_AGAIN = "copy the file again and compare checksums"
MAX_DEFLATE_RATIO = 1032  # 258 bytes from two bits: no deflate stream can grow more
_FIRST_CHUNK = 1 << 12  # enough to tell what a file is and to inflate its header
_RAW_CHUNK = 1 << 16
_MAX_SURPLUS = 64 << 20  # bytes of content after what was asked for that are read over before a file counts as a bomb
_OUT_CHUNK = 1 << 20
_INFLATE_ERROR: type[Exception] = isal_zlib.IsalError  # type: ignore[assignment]  # its stub says: an instance

_COMPRESSED = {
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
}


class ByteStream:
    """Sequential reader over an open regular file.

    Attributes
    ----------
    path : name for messages.
    size : bytes in the file.
    gzip : whether the content is inflated.
    position : bytes delivered or skipped so far, after inflating.
    cut : the gzip stream ended before its trailer.
    trailing : bytes after the last gzip member, ignored.
    """

    def __init__(self, descriptor: int, path: str) -> None:
        self.path = path
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        self._before = os.fstat(descriptor)
        self.size = self._before.st_size
        self.position = 0
        self.cut = False
        self.trailing = 0
        self._pending = self._raw(_FIRST_CHUNK)
        self.gzip = self._pending.startswith(GZIP)
        self._inflater = isal_zlib.decompressobj(31)
        self._ended = False

    @property
    def capacity(self) -> int:
        """The most bytes this file can deliver, known without reading it."""
        return self.size * MAX_DEFLATE_RATIO if self.gzip else self.size

    def treat_as_plain(self) -> None:
        """Deliver the bytes as they are although they start like gzip. Only before anything was read."""
        self.gzip = False

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def readinto(self, view: memoryview) -> int:
        """Fill `view` (bytes); returns how many were there, fewer only at the end of the stream."""
        filled = 0
        while filled < len(view):
            rest = view[filled:]
            if self.gzip or self._pending:
                piece = self._inflate(min(len(rest), _OUT_CHUNK)) if self.gzip else self._ahead(len(rest))
                count = len(piece)
                rest[:count] = piece
            else:
                count = self._raw_into(rest)  # no copy
            if not count:
                break
            filled += count
            self.position += count
        return filled

    def skip(self, count: int) -> int:
        """Pass over `count` bytes without keeping them; returns how many were there."""
        if not self.gzip:
            return self._seek(count)
        passed = 0
        while passed < count:
            piece = self._inflate(min(count - passed, _OUT_CHUNK))
            if not piece:
                break
            passed += len(piece)
            self.position += len(piece)
        return passed

    def _seek(self, count: int) -> int:
        step = min(count, self.size - self.position)
        self._file.seek(step - len(self._ahead(step)), os.SEEK_CUR)
        self.position += step
        return step

    def drain(self) -> int:
        """Read to the end, which verifies the checksums; returns how many bytes were left.

        Raises
        ------
        SegError
            E-NII-CRC or E-NII-TRUNC, exit 11; E-LIMIT-SIZE, exit 13, if far more is left than any file has by accident.
        """
        if not self.gzip:
            return self.size - self.position
        start = self.position
        surplus = self.skip(_MAX_SURPLUS + 1)
        if self.cut:
            found = f"the gzip stream ends without its checksum, after {self.position:,} bytes of content"
            raise SegError("E-NII-TRUNC", Exit.INPUT_CORRUPT, self.path, found, COPY_AGAIN)
        if surplus > _MAX_SURPLUS:
            found = f"inflates to over {_MAX_SURPLUS:,} bytes more than the header says"
            fix = "check the header's dim fields, or write the scan again"
            raise SegError("E-LIMIT-SIZE", Exit.LIMIT, self.path, found, fix, f"{start:,} bytes")
        return surplus

    def check_unchanged(self) -> None:
        """Raise if the file was written to since it was opened.

        Raises
        ------
        SegError
            E-IN-CHANGED, exit 10.
        """
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns):
            fix = "wait until the file is complete and run again"
            raise SegError("E-IN-CHANGED", Exit.INPUT_MISSING, self.path, "changed while it was read", fix)

    def _raw(self, count: int) -> bytes:
        try:
            return self._file.read(count) or b""
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def _raw_into(self, view: memoryview) -> int:
        try:
            return self._file.readinto(view) or 0
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def _ahead(self, limit: int) -> bytes:
        piece, self._pending = self._pending[:limit], self._pending[limit:]
        return piece

    def _inflate(self, limit: int) -> bytes:
        while not self._ended:
            source = self._pending or self._raw(_RAW_CHUNK)
            try:
                piece: bytes = self._inflater.decompress(source, limit)
            except _INFLATE_ERROR as error:
                raise self._damaged(error) from error
            if self._inflater.eof:
                self._start_member(self._inflater.unused_data)
            else:
                self._pending = self._inflater.unconsumed_tail
                if not source and not piece:
                    self.cut = self._ended = True
            if piece:
                return piece
        return b""

    def _start_member(self, rest: bytes) -> None:
        """After a gzip member: another one, the end, or bytes that are not ours."""
        if len(rest) < len(GZIP):
            rest += self._raw(_RAW_CHUNK)
        if rest.startswith(GZIP):
            self._pending = rest
            self._inflater = isal_zlib.decompressobj(31)
            return
        self._ended = True
        self._pending = b""
        self.trailing = self.size - self._file.tell() + len(rest)

    def _damaged(self, error: Exception) -> SegError:
        found = f"the gzip stream is damaged after {self.position:,} bytes of content ({error})"
        return SegError("E-NII-CRC", Exit.INPUT_CORRUPT, self.path, found, COPY_AGAIN)


@contextmanager
def open_stream(path: str) -> Iterator[ByteStream]:
    """Open a regular file, through links, for reading once from start to end.

    Parameters
    ----------
    path : file as the user typed it.

    Raises
    ------
    SegError
        E-IN-MISSING, E-IN-READ or E-IN-KIND, exit 10: absent, unreadable, not a regular file, or compressed by
        something else than gzip.
    """
    try:
        _refuse_special(path, os.stat(path).st_mode)  # before open: opening some devices has effects
        # A pipe put in its place meanwhile must not block us.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    try:
        _refuse_special(path, os.fstat(descriptor).st_mode)
    except SegError:
        os.close(descriptor)
        raise
    stream = ByteStream(descriptor, path)
    try:
        yield stream
    finally:
        stream.close()


def refuse_compressed(path: str, start: bytes) -> None:
    """Raise if `start` is the beginning of a compressed form that is not read (anything but gzip).

    Raises
    ------
    SegError
        E-IN-KIND, exit 10.
    """
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            fix = "decompress it first"
            raise SegError("E-IN-KIND", Exit.INPUT_MISSING, path, f"is {name} compressed", fix, "plain or gzip NIfTI")


def _refuse_special(path: str, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    found = "is a folder" if stat.S_ISDIR(mode) else "is a device, pipe or socket"
    fix = "give the path of a .nii, .nii.gz, .hdr or .img file"
    raise SegError("E-IN-KIND", Exit.INPUT_MISSING, path, found, fix, "a regular file")


def _unreadable(path: str, error: OSError | ValueError) -> SegError:
    if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
        found = "is a link to a file that is not there" if os.path.islink(path) else "does not exist"
        return SegError("E-IN-MISSING", Exit.INPUT_MISSING, path, found, "check the path")
    reason = "is a loop of links" if error.errno == errno.ELOOP else f"cannot be read ({error.strerror or error})"
    fix = "check the path, the permissions and the disk"
    return SegError("E-IN-READ", Exit.INPUT_MISSING, path, reason, fix)
