"""A series of a PACS as a folder, for as long as it is read.

The folder is private, in the system's place for temporary files (TMPDIR), and removed in any case but SIGKILL; what a
killed process left is removed by the next one of the same user.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..errors import SegError
from .address import parse_address
from .transfer import download

_LEFT = re.compile(r"seg-web-(\d+)-.*")


@contextmanager
def fetched(word: str) -> Iterator[str]:
    """A folder with the files of an address.

    Raises
    ------
    SegError : see `download`; one that comes from the block says the address instead of the folder.
    """
    _remove_left()
    with tempfile.TemporaryDirectory(prefix=f"seg-web-{os.getpid()}-") as folder:
        download(parse_address(word), folder)
        try:
            yield folder
        except SegError as error:
            path, found = (_renamed(text, folder, word) for text in (error.path, error.found))
            raise SegError(error.code, error.exit, path, found, error.fix, error.expected) from error


def _renamed(text: str, folder: str, word: str) -> str:
    return text.replace(folder + os.sep, f"{word} object ").replace(folder, word)


def _remove_left() -> None:
    """Remove folders of processes that are gone."""
    place = tempfile.gettempdir()
    with suppress(OSError):
        for name in os.listdir(place):
            match, path = _LEFT.fullmatch(name), os.path.join(place, name)
            if match and not os.path.exists(f"/proc/{match[1]}") and os.lstat(path).st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)
