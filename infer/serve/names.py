"""Names for what must not be named: keyed hashes instead of UIDs, numbers instead of file names."""

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from ..atomic import atomic_file

UID = re.compile(r"[0-9]+(\.[0-9]+)*")


def is_uid(text: str) -> bool:
    """Whether this is a DICOM UID: digits and dots, at most 64 characters (PS3.5 section 9)."""
    return len(text) <= 64 and UID.fullmatch(text) is not None


class Key:
    """A secret of this installation. Who has a name but not the key cannot tell which UID it stands for."""

    def __init__(self, path: Path) -> None:
        """Read the key, or make it. Raises SegError E-OUT-* when it cannot be written."""
        if not path.exists():
            with atomic_file(str(path)) as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(secrets.token_bytes(32))
        self._key = path.read_bytes()

    def name(self, uid: str) -> str:
        """16 hexadecimal digits for a UID."""
        return hmac.new(self._key, uid.encode(), hashlib.sha256).hexdigest()[:16]
