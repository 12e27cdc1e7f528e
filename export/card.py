"""What the user may write into a model card; the rest the export knows itself."""

import tomllib
from pathlib import Path

from seg.infer.errors import Exit, SegError

ENTRIES = ("data", "license", "limits")


def card_entries(path: str) -> dict[str, str]:
    """The entries in a TOML file; the figures, for one, are not the user's to write.

    Raises
    ------
    SegError : E-CONFIG, exit status 2.
    """
    try:
        entries = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: not TOML, or not UTF-8
        raise SegError("E-CONFIG", Exit.USAGE, path, f"cannot be read ({error})", "give a TOML file") from error
    for key, value in entries.items():
        if key not in ENTRIES:
            found, expected = f"unknown entry {key}", f"only {', '.join(ENTRIES)}"
            raise SegError("E-CONFIG", Exit.USAGE, path, found, "remove it", expected)
        if not isinstance(value, str):
            raise SegError("E-CONFIG", Exit.USAGE, path, f"{key} is {value!r}", "correct the value", "text in quotes")
    return entries
