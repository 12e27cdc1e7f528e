"""The seal of files that are programs: TensorRT plans and torch.export archives run code of whoever wrote them.

Such a file is loaded only with a seal, a keyed hash whose key lies in a folder that only this user can read and write
(SEG_CACHE, or seg-toolkit in the user's cache folder). So only what this user's own seg-export wrote here is loaded.
ONNX artifacts are plain data and need no seal. What this does not know: who else runs as this user.
"""

import hashlib
import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from ..errors import Exit, SegError

KEY_NAME = "seal.key"
KEY_BYTES = 32


def private_folder() -> Path:
    """The cache folder, made with mode 0700 where it is missing.

    Raises
    ------
    SegError : E-CACHE when it belongs to somebody else, others may enter it, or it cannot be made.
    """
    given = os.environ.get("SEG_CACHE")
    folder = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seg-toolkit"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        _refuse_shared(folder, folder.lstat(), stat.S_ISDIR)
    except OSError as error:
        raise _cache_error(folder, f"cannot be used ({error.strerror})") from error
    return folder


def seal(*parts: bytes) -> str:
    """The keyed hash of `parts`, in hexadecimal. Makes the key if there is none."""
    mac = hmac.new(_key(private_folder()), digestmod=hashlib.sha256)
    for part in parts:
        mac.update(len(part).to_bytes(8, "little"))  # so that no bytes can move from one part to the next
        mac.update(part)
    return mac.hexdigest()


def refuse_unsealed(path: str, given: str, *parts: bytes) -> None:
    """Raise unless `given` is the seal of `parts`.

    Raises
    ------
    SegError : E-UNSEALED, exit status 20.
    """
    if not hmac.compare_digest(given.encode(), seal(*parts).encode()):
        raise unsealed(path, "was changed, or was not written by this user's seg-export on this machine")


def unsealed(path: str, found: str) -> SegError:
    """The error for a program of unknown origin."""
    return SegError("E-UNSEALED", Exit.MODEL, path, found, "export it here from the .onnx artifact with seg-export")


def _key(folder: Path) -> bytes:
    """32 secret bytes, made once."""
    path = folder / KEY_NAME
    try:
        if not path.exists():
            draft = folder / f"{KEY_NAME}.{secrets.token_hex(8)}"
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
            try:
                with suppress(FileExistsError):  # another process was first: its key counts
                    os.link(draft, path)
            finally:
                draft.unlink()
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            _refuse_shared(path, os.fstat(file.fileno()), stat.S_ISREG)
            key = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise _cache_error(path, f"cannot be used ({error.strerror})") from error
    if len(key) != KEY_BYTES:
        raise _cache_error(path, f"holds {len(key)} bytes")
    return key


def _refuse_shared(path: Path, status: os.stat_result, is_kind: object) -> None:
    assert callable(is_kind)
    if not is_kind(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise _cache_error(path, f"is not private (owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o})")


def _cache_error(path: Path, found: str) -> SegError:
    return SegError(
        "E-CACHE", Exit.RUNTIME, str(path), found, "remove it, or name a folder of your own, mode 0700, in SEG_CACHE"
    )
