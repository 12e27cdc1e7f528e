"""Where DICOM objects lie: the files of a folder, the members of a zip file, or one file alone.

Names serve messages alone: no file is made after them, nothing is extracted, a DICOMDIR is not followed. What the
files hold is known here only as far as their first bytes tell.
"""

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import IO, BinaryIO

from ..errors import Exit, SegError

MAX_FILES = 50_000
MAX_DEPTH = 16
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
COPY_AGAIN = "copy the file again and compare sizes"
_MAX_RATIO = 1032  # of deflate: a member that claims more is not what its headers say
_ENCRYPTED = 1
_SNIFFED = 132


@dataclass(frozen=True, eq=False)
class Entry:
    """One file, or one member of a zip file.

    Attributes
    ----------
    name : as the user would type it, for messages; of a zip member the zip's path and the member's name.
    label : the same without the path that was given, for messages that name that path too.
    size : bytes, uncompressed.
    path : of the file or of the zip.
    member : the zip's entry, or None.
    """

    name: str
    label: str
    size: int
    path: str
    member: zipfile.ZipInfo | None = None


class Store:
    """The entries below one path, readable in any order; a member of a zip file is inflated once if it is read forward.

    Attributes
    ----------
    path : as the user typed it.
    entries : sorted by name; hidden files are left out.
    """

    def __init__(self, path: str, entries: list[Entry], archive: zipfile.ZipFile | None = None) -> None:
        self.path, self.entries, self._archive = path, entries, archive
        self._open: tuple[Entry, IO[bytes]] | None = None  # the member that was read last

    def read(self, entry: Entry, start: int, count: int) -> bytes:
        """At most `count` bytes from `start` on; fewer only at the end.

        Raises
        ------
        SegError : E-IN-READ (exit 10), E-ZIP-DAMAGED (11).
        """
        try:
            if entry.member is None:
                with open(entry.path, "rb", buffering=0) as file:
                    file.seek(start)
                    return _read(file, count)
            return self._inflate(entry, start, count)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
            found = f"cannot be unpacked ({type(error).__name__})"
            raise SegError("E-ZIP-DAMAGED", Exit.INPUT_CORRUPT, entry.name, found, COPY_AGAIN) from error
        except OSError as error:
            raise _unreadable(entry.name, error) from error

    def _inflate(self, entry: Entry, start: int, count: int) -> bytes:
        """Of a member: a seek backward begins again, so the stream stays open for a read further on."""
        assert self._archive is not None
        assert entry.member is not None
        if self._open is not None and self._open[0] is not entry:
            self.close()
        stream = self._archive.open(entry.member) if self._open is None else self._open[1]
        self._open = None  # what fails below is not read on
        stream.seek(start)
        piece = stream.read(count)
        while start + count >= entry.size and stream.read(1 << 16):
            pass  # the checksum is compared at the end of the stream
        self._open = (entry, stream)
        return piece

    def close(self) -> None:
        """Let go of the member that was read last."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


def _read(file: BinaryIO, count: int) -> bytes:
    """One read gives at most 2 GiB on Linux."""
    pieces = []
    while count > 0 and (piece := file.read(min(count, 1 << 30))):
        pieces.append(piece)
        count -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _unreadable(name: str, error: OSError) -> SegError:
    found, fix = f"cannot be read ({error.strerror})", "check its permissions and the disk"
    return SegError("E-IN-READ", Exit.INPUT_MISSING, name, found, fix)


@contextmanager
def open_store(path: str) -> Iterator[Store]:
    """The entries below `path`, a folder, a zip file or a file.

    Raises
    ------
    SegError : E-IN-MISSING, E-IN-READ (exit 10), E-ZIP-DAMAGED (11), E-ZIP-REFUSED (12), E-LIMIT-FILES (13).
    """
    if os.path.isdir(path):
        yield Store(path, [Entry(name, os.path.relpath(name, path), size, name) for name, size in sorted(_walk(path))])
        return
    try:
        with open(path, "rb") as file:
            start, size = file.read(4), os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        raise SegError("E-IN-MISSING", Exit.INPUT_MISSING, path, "no such file or folder", "check the path") from error
    except (OSError, ValueError) as error:
        found = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise SegError("E-IN-READ", Exit.INPUT_MISSING, path, found, "check its permissions") from error
    if start not in ZIP:
        yield Store(path, [Entry(path, os.path.basename(path), size, path)])
        return
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        found = "is a damaged zip file"
        raise SegError("E-ZIP-DAMAGED", Exit.INPUT_CORRUPT, path, found, COPY_AGAIN) from error
    with archive, closing(Store(path, _members(path, archive, size), archive)) as store:
        yield store


def _walk(folder: str) -> Iterator[tuple[str, int]]:
    """(path, size) of every regular file below a folder but hidden ones. Links are followed, each folder entered once.

    A link that leads nowhere may be a slice.
    """
    waiting, count, entered = [(folder, 0)], 0, set()
    while waiting:
        place, depth = waiting.pop()
        try:
            state = os.stat(place)
            if (state.st_dev, state.st_ino) in entered:
                continue
            entered.add((state.st_dev, state.st_ino))
            with os.scandir(place) as found:
                for item in found:
                    if item.name.startswith("."):
                        continue
                    count += 1
                    if count > MAX_FILES or depth > MAX_DEPTH:
                        raise _too_many(folder, f"over {MAX_FILES:,} files, or folders over {MAX_DEPTH} deep")
                    if item.is_dir():
                        waiting.append((item.path, depth + 1))
                    elif item.is_file():
                        yield item.path, item.stat().st_size
                    elif item.is_symlink() and not os.path.exists(item.path):
                        lost, fix = "is a link to nothing", "bring the file that it stands for, or remove the link"
                        raise SegError("E-IN-READ", Exit.INPUT_MISSING, item.path, lost, fix)
        except OSError as error:
            raise _unreadable(place, error) from error


def _too_many(path: str, found: str) -> SegError:
    return SegError("E-LIMIT-FILES", Exit.LIMIT, path, f"holds {found}", "give the folder of one study or series")


def _members(path: str, archive: zipfile.ZipFile, size: int) -> list[Entry]:
    """The entries of a zip file that are files, each checked to be what it claims to be."""
    infos = archive.infolist()
    if len(infos) > MAX_FILES:
        raise _too_many(path, f"{len(infos):,} members")
    entries = []
    for info in infos:
        if not info.filename:
            found = "has a member without a name"
            raise SegError("E-ZIP-DAMAGED", Exit.INPUT_CORRUPT, path, found, COPY_AGAIN)
        parts = info.filename.replace("\\", "/").split("/")
        if info.is_dir() or any(part.startswith(".") and part not in (".", "..") for part in parts):
            continue
        if "__MACOSX" in parts:
            continue
        name = f"{path}/{info.filename}"
        if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            found = "is encrypted" if info.flag_bits & _ENCRYPTED else "is compressed in an uncommon way"
            fix = "unpack it and give the folder"
            raise SegError("E-ZIP-REFUSED", Exit.INPUT_REFUSED, name, found, fix, "a plain zip file")
        if info.file_size > info.compress_size * _MAX_RATIO + 64 or info.compress_size > size:
            found = f"claims {info.file_size:,} bytes in {info.compress_size:,} packed ones"
            raise SegError("E-ZIP-DAMAGED", Exit.INPUT_CORRUPT, name, found, COPY_AGAIN)
        entries.append(Entry(name, info.filename, info.file_size, path, info))
    return sorted(entries, key=lambda entry: entry.name)


def is_dicom(start: bytes) -> bool:
    """Whether the first bytes (132 or more) of a file are those of a DICOM object, also of one without its preamble.

    Such a one starts with an element of group 2 or 8, whose low numbers are little endian.
    """
    if start[128:132] == b"DICM":
        return True
    return len(start) >= 8 and start[0] in (2, 8) and start[1] == 0 and start[3] == 0


def holds_dicom(path: str) -> bool:
    """Whether a file is a DICOM object or a zip file, or a folder holds at least one DICOM object, at any depth."""
    if not os.path.isdir(path):
        start = _start(path)
        return start[:4] in ZIP or is_dicom(start)
    return any(is_dicom(_start(name)) for name, _ in _walk(path))


def _start(path: str) -> bytes:
    try:
        if not os.path.isfile(path):  # opening a pipe would wait
            return b""
        with open(path, "rb", buffering=0) as file:
            return file.read(_SNIFFED)
    except (OSError, ValueError):
        return b""


def files_below(path: str) -> list[str]:
    """The files whose bytes a mask depends on: the file itself, or everything below a folder. Raises OSError."""
    if not os.path.isdir(path):
        return [path]
    try:
        return sorted(name for name, _ in _walk(path))
    except SegError as error:
        raise OSError(error.found) from error
