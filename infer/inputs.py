"""From command-line words to pairs of input scan and output mask, checked before anything is computed.

A word is a file, a folder, a quoted pattern or, after @, a list of paths. What is in the files is not known here.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .errors import Exit, SegError
from .nifti_write import check_output
from .outputs import make_folder

SUFFIXES = (".nii.gz", ".nii")
PAIR_SUFFIXES = (".hdr.gz", ".hdr")
MAX_LIST_BYTES = 1 << 26


@dataclass(frozen=True)
class Job:
    """One scan to segment: paths as the user typed them (or below a folder as typed)."""

    scan: str
    mask: str

    @property
    def name(self) -> str:
        """Mask file name without suffix; no two jobs of a folder share it."""
        return stem(self.mask)

    @property
    def probabilities(self) -> str:
        """Where --save-probabilities goes: beside the mask."""
        suffix = self.mask[len(self.mask) - len(os.path.basename(self.mask)) + len(self.name) :]
        return self.mask[: len(self.mask) - len(suffix)] + "_probabilities" + suffix


@dataclass(frozen=True)
class Batch:
    """What one call has to do.

    Attributes
    ----------
    jobs : one per scan, in the order given.
    folder : where the masks go, or None when one mask has a path of its own.
    """

    jobs: list[Job]
    folder: str | None


@dataclass(frozen=True)
class Source:
    """A scan, and the mask file name that a list asks for."""

    scan: str
    name: str | None = None


def stem(path: str) -> str:
    """File name without .nii, .nii.gz, .hdr or .hdr.gz."""
    name = os.path.basename(path)
    return next((name[: -len(s)] for s in SUFFIXES + PAIR_SUFFIXES if name.lower().endswith(s)), name)


def expand(words: Sequence[str], lists: Sequence[str] = ()) -> list[Source]:
    """Words, then lists, as scans; a scan that is named twice counts once unless a list gives its mask a name.

    A word that is there is taken as it is, whatever characters it has. Otherwise ``@FILE`` is a list, and a word with
    ``*``, ``?`` or ``[`` a pattern (``**`` spans folders). Folders and patterns give the NIfTI files in them, sorted,
    hidden ones left out.

    Raises
    ------
    SegError : E-IN-EMPTY, E-IN-LIST or E-IN-READ (exit 10).
    """
    found = [source for word in words for source in _expand_word(word)]
    found += [source for path in lists for source in read_list(path)]
    kept: dict[tuple[str, str | None], Source] = {}
    for source in found:
        kept.setdefault((os.path.abspath(source.scan), source.name), source)
    return list(kept.values())


def _expand_word(word: str) -> Iterator[Source]:
    if os.path.isdir(word):
        yield from map(Source, _folder(word))
    elif os.path.lexists(word):
        yield Source(word)
    elif word.startswith("@"):
        yield from read_list(word[1:])
    elif glob.has_magic(word):
        yield from map(Source, _pattern(word))
    else:
        yield Source(word)  # not there: this scan's own error, the others go on


def _folder(path: str) -> list[str]:
    try:
        names = sorted(n for n in os.listdir(path) if n.lower().endswith(SUFFIXES) and not n.startswith("."))
    except OSError as error:
        found, fix = f"cannot be listed ({error.strerror})", "check its permissions"
        raise SegError("E-IN-READ", Exit.INPUT_MISSING, path, found, fix) from error
    if not names:
        fix = "give a folder of NIfTI scans, or name the files"
        raise SegError("E-IN-EMPTY", Exit.INPUT_MISSING, path, "the folder has no .nii or .nii.gz file", fix)
    return [os.path.join(path, name) for name in names]


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
        yield from map(Source, _folder(scan) if os.path.isdir(scan) else [scan])
        return
    name = rest[0]
    if os.path.basename(name) != name or name in ("", os.curdir, os.pardir) or os.path.isdir(scan):
        raise _bad_list(path, f"line {number} gives {name!r} as mask name", "one file name without folder for one file")
    yield Source(scan, name if name.lower().endswith(SUFFIXES) else name + ".nii.gz")


def _bad_list(path: str, found: str, expected: str = "") -> SegError:
    return SegError("E-IN-LIST", Exit.INPUT_MISSING, path, found, "correct the list, or name the scans", expected)


def plan_jobs(
    words: Sequence[str],
    output: str,
    overwrite: bool,
    lists: Sequence[str] = (),
    *,
    probabilities: bool = False,
    make: bool = True,
) -> Batch:
    """Pair every scan with its mask path and check that it can be written.

    One file and an output that is no folder: that path. Otherwise `output` is a folder, made if needed, and each mask
    has its scan's name, or the name that the list gives.

    Parameters
    ----------
    probabilities : each mask has a file of probabilities beside it.
    make : make the folder of the masks.

    Raises
    ------
    SegError : E-IN-EMPTY, E-IN-LIST, E-OUT-* (exit 30), or E-OUT-SUFFIX (exit 2).
    """
    sources = expand(words, lists)
    files = [source.scan for source in sources]
    one = not lists and len(files) == 1 and files == list(words)  # a folder or pattern may hold more tomorrow
    if one and not os.path.isdir(output) and not output.endswith(os.sep):
        job = Job(files[0], output)
        for path in _outputs([job], probabilities):
            check_output(path, files, overwrite)
        return Batch([job], None)
    if output.lower().endswith(SUFFIXES) and not os.path.isdir(output):
        found = f"one file cannot hold {len(files)} masks" if len(files) > 1 else "a folder, pattern or list needs one"
        raise SegError("E-OUT-SUFFIX", Exit.USAGE, output, found, "give a folder with -o")
    if make:
        make_folder(output)
    for word in words:
        if os.path.isdir(word) and os.path.isdir(output) and os.path.samefile(word, output):
            found, fix = "is the folder of the scans: the masks would be scans next time", "choose another folder"
            raise SegError("E-OUT-SAME", Exit.OUTPUT, output, found, fix)
    jobs = [Job(s.scan, os.path.join(output, s.name or stem(s.scan) + ".nii.gz")) for s in sources]
    outputs = _outputs(jobs, probabilities)
    if twice := sorted(path for path, count in Counter(outputs).items() if count > 1):
        fix = "give scans with distinct names, or name the masks in a list (path, tab, name)"
        raise SegError("E-OUT-SAME", Exit.OUTPUT, twice[0], "two scans would write this mask", fix)
    known = _identities(files)
    for path in outputs if os.path.isdir(output) else ():
        check_output(path, [known[i] for i in _identities([path]) if i in known], overwrite)
    return Batch(jobs, output)


def _outputs(jobs: Sequence[Job], probabilities: bool) -> list[str]:
    return [path for job in jobs for path in ((job.mask, job.probabilities) if probabilities else (job.mask,))]


def _identities(paths: Iterable[str]) -> dict[tuple[int, int], str]:
    """(device, inode) -> path, of those that are there."""
    found: dict[tuple[int, int], str] = {}
    for path in paths:
        try:
            state = os.stat(path)
        except (OSError, ValueError):
            continue
        found[state.st_dev, state.st_ino] = path
    return found
