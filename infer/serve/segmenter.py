"""What the worker needs of a segmenter, and what identifies a run."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .. import __version__

if TYPE_CHECKING:
    from pydicom import Dataset


class Segmenter(Protocol):
    """Series in, DICOM objects out. Called from one thread."""

    def identity(self, model: str) -> str:
        """Digest of what the model computes. Raises SegError."""

    def segment(self, folder: Path, model: str) -> "Sequence[Dataset]":
        """Segment the one series in a folder of DICOM files. Raises SegError."""


def inputs_digest(digests: Sequence[str], identity: str) -> str:
    """What a result depends on: the objects' bytes, the model, this program. Its UIDs are derived from it."""
    text = "\n".join([__version__, identity, *sorted(digests)])
    return hashlib.sha256(text.encode()).hexdigest()
