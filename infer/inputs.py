"""From command-line words to scans.

A word is a file, a folder, a quoted pattern, an address in a PACS or, after @, a list of paths. Of what is in the files
only this is known here: whether they look like DICOM. A folder of NIfTI files is that many scans; a folder without any,
but with DICOM objects at any depth, is one scan, like a zip file, one multi-frame file or an address.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .dicomweb.address import is_address, parse_address
from .errors import Exit, SegError
from .nifti import parts

SUFFIXES = (".nii.gz", ".nii")
PAIR_SUFFIXES = (".hdr.gz", ".hdr")
IMAGE_SUFFIXES = (".img.gz", ".img")  # of pairs: a folder's pairs are known by their headers
DICOM_SUFFIXES = (".dcm", ".zip")
MAX_LIST_BYTES = 1 << 26


@dataclass(frozen=True)
class Source:
    """A scan, the mask file name that a list asks for, and whether it is DICOM, perhaps one series of many."""

    scan: str
    name: str | None = None
    dicom: bool = False
    series: str | None = None


def stem(path: str) -> str:
    """Name of a file without .nii, .hdr or .img (all perhaps with .gz), .dcm or .zip, or of a folder."""
    name = os.path.basename(path) or os.path.basename(os.path.abspath(path))
    if name in (os.curdir, os.pardir):
        name = os.path.basename(os.path.abspath(path)) or "scan"
    suffixes = SUFFIXES + PAIR_SUFFIXES + IMAGE_SUFFIXES + DICOM_SUFFIXES
    return next((name[: -len(s)] for s in suffixes if name.lower().endswith(s)), name)


def expand(words: Sequence[str], lists: Sequence[str] = ()) -> list[Source]:
    """Words, then lists, as scans; a scan that is named twice counts once unless a list gives its mask a name.

    A word that is there is taken as it is, whatever characters it has. Otherwise ``@FILE`` is a list, and a word with
    ``*``, ``?`` or ``[`` a pattern (``**`` spans folders). Folders and patterns give the NIfTI files in them, sorted,
    hidden ones left out; a folder without NIfTI files that holds DICOM is one scan.

    Raises
    ------
    SegError : E-IN-EMPTY, E-IN-LIST or E-IN-READ (exit 10).
    """
    found = [source for word in words for source in _expand_word(word)]
    found += [source for path in lists for source in read_list(path)]
    kept: dict[tuple[str, str | None], Source] = {}
    for source in found:
        kept.setdefault((identity(source.scan), source.name), source)
    return list(kept.values())


def identity(scan: str) -> str:
    """A path by which a scan is known, whichever of its names was given: of a pair, its header's."""
    path = os.path.abspath(scan)
    return parts(path)[0] if path.lower().endswith(IMAGE_SUFFIXES) else path


def _expand_word(word: str) -> Iterator[Source]:
    if os.path.isdir(word):
        yield from _folder(word)
    elif os.path.lexists(word) or is_address(word):
        yield _file(word)
    elif word.startswith("@"):
        yield from read_list(word[1:])
    elif glob.has_magic(word):
        yield from map(Source, _pattern(word))
    else:
        yield Source(word)  # not there: this scan's own error, the others go on


def _file(path: str) -> Source:
    if is_address(path) and not os.path.lexists(path):
        parse_address(path)  # an address that is none stops the call: nobody has been asked yet
        return Source(path, dicom=True)
    if path.lower().endswith(SUFFIXES + PAIR_SUFFIXES):
        return Source(path)
    from .dicom.files import holds_dicom

    return Source(path, dicom=holds_dicom(path))


def _folder(path: str) -> list[Source]:
    try:
        names = sorted(n for n in os.listdir(path) if n.lower().endswith(SUFFIXES + PAIR_SUFFIXES) and n[0] != ".")
    except OSError as error:
        found, fix = f"cannot be listed ({error.strerror})", "check its permissions"
        raise SegError("E-IN-READ", Exit.INPUT_MISSING, path, found, fix) from error
    if names:
        return [Source(os.path.join(path, name)) for name in names]
    from .dicom.files import holds_dicom

    if holds_dicom(path):
        return [Source(path, dicom=True)]
    fix = "give a folder of NIfTI scans or of a DICOM series, or name the files"
    raise SegError("E-IN-EMPTY", Exit.INPUT_MISSING, path, "the folder has no NIfTI and no DICOM file", fix)


def _pattern(pattern: str) -> list[str]:
    matches = sorted(glob.glob(pattern, recursive=True))
    scans = [m for m in matches if m.lower().endswith(SUFFIXES + PAIR_SUFFIXES) and not os.path.isdir(m)]
    if not scans:
        found = f"none of the {len(matches)} matches is a NIfTI file" if matches else "the pattern matches nothing"
        raise SegError("E-IN-EMPTY", Exit.INPUT_MISSING, pattern, found, "check the pattern and the current folder")
    return scans


def read_list(path: str) -> list[Source]:
    """Scans of a list file: one path a line, taken literally and seen from the current folder.

    A folder stands for its scans. After a tab, the mask's file name may follow. Empty lines are skipped.

    Raises
    ------
    SegError : E-IN-LIST, exit 10.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _bad_list(path, f"the list cannot be read ({reason})") from error
    if len(data) > MAX_LIST_BYTES or b"\0" in data:
        raise _bad_list(path, "is no list of paths", "text with one path a line")
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    sources = [s for number, line in enumerate(lines, 1) for s in _list_line(path, number, os.fsdecode(line))]
    if not sources:
        raise _bad_list(path, "the list names no scan", "one path a line")
    return sources


def _list_line(path: str, number: int, line: str) -> Iterator[Source]:
    scan, *rest = line.removesuffix("\r").split("\t")
    if not scan.strip() and not rest:
        return
    if not scan.strip() or len(rest) > 1:
        raise _bad_list(path, f"line {number} has {len(rest)} tabs", "a path, or a path, one tab and a mask name")
    if not rest:
        yield from _folder(scan) if os.path.isdir(scan) else [_file(scan)]
        return
    name = rest[0]
    sources = _folder(scan) if os.path.isdir(scan) else [_file(scan)]
    if os.path.basename(name) != name or name in ("", os.curdir, os.pardir) or sources[0].scan != scan:
        raise _bad_list(path, f"line {number} gives {name!r} as mask name", "one file name without folder for one scan")
    yield replace(sources[0], name=name if name.lower().endswith(SUFFIXES) else name + ".nii.gz")


def _bad_list(path: str, found: str, expected: str = "") -> SegError:
    return SegError("E-IN-LIST", Exit.INPUT_MISSING, path, found, "correct the list, or name the scans", expected)
