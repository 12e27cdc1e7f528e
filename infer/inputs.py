"""From command-line words to pairs of input scan and output mask, checked before anything is computed.

A word is a file, a folder, a quoted pattern, an address in a PACS or, after @, a list of paths. Of what is in the files
only this is known here: whether they look like DICOM. A folder of NIfTI files is that many scans; a folder without any,
but with DICOM objects at any depth, is one scan, like a zip file, one multi-frame file or an address, unless all its
series are asked for.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .dicomweb.address import is_address, parse_address
from .errors import Exit, SegError
from .nifti_write import check_output
from .outputs import make_folder

SUFFIXES = (".nii.gz", ".nii")
PAIR_SUFFIXES = (".hdr.gz", ".hdr")
DICOM_SUFFIXES = (".dcm", ".zip")
MAX_LIST_BYTES = 1 << 26
ALL_SERIES = "all"

Form = Literal["nifti", "seg", "labelmap", "rtstruct"]  # of masks


@dataclass(frozen=True)
class Job:
    """One scan to segment: paths as the user typed them (or below a folder as typed).

    Attributes
    ----------
    dicom : the scan is a DICOM series.
    series : its SeriesInstanceUID, if it is one of several that are all asked for.
    """

    scan: str
    mask: str
    dicom: bool = False
    series: str | None = None

    @property
    def name(self) -> str:
        """Mask file name without suffix; no two jobs of a folder share it."""
        return stem(self.mask)

    @property
    def probabilities(self) -> str:
        """Where --save-probabilities goes: beside the mask."""
        suffix = self.mask[len(self.mask) - len(os.path.basename(self.mask)) + len(self.name) :]
        kind = suffix if suffix.lower() in SUFFIXES else ".nii.gz"
        return self.mask[: len(self.mask) - len(suffix)] + "_probabilities" + kind


@dataclass(frozen=True)
class Batch:
    """What one call has to do.

    Attributes
    ----------
    jobs : one per scan, in the order given.
    folder : where the masks go, or None when one mask has a path of its own.
    form : of the masks.
    """

    jobs: list[Job]
    folder: str | None
    form: Form = "nifti"


@dataclass(frozen=True)
class Source:
    """A scan, the mask file name that a list asks for, and whether it is DICOM, perhaps one series of many."""

    scan: str
    name: str | None = None
    dicom: bool = False
    series: str | None = None


def stem(path: str) -> str:
    """Name of a file without .nii, .nii.gz, .hdr, .hdr.gz, .dcm or .zip, or of a folder."""
    name = os.path.basename(path) or os.path.basename(os.path.abspath(path))
    if name in (os.curdir, os.pardir):
        name = os.path.basename(os.path.abspath(path)) or "scan"
    suffixes = SUFFIXES + PAIR_SUFFIXES + DICOM_SUFFIXES
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
        kept.setdefault((os.path.abspath(source.scan), source.name), source)
    return list(kept.values())


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
        names = sorted(n for n in os.listdir(path) if n.lower().endswith(SUFFIXES) and not n.startswith("."))
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


def plan_jobs(
    words: Sequence[str],
    output: str,
    overwrite: bool,
    lists: Sequence[str] = (),
    *,
    probabilities: bool = False,
    make: bool = True,
    form: Form | None = None,
    series: str | None = None,
) -> Batch:
    """Pair every scan with its mask path and check that it can be written.

    One scan and an output that is no folder: that path. Otherwise `output` is a folder, made if needed, and each mask
    has its scan's name, or the name that the list gives. Of a DICOM scan, a name without suffix is a folder's.

    Parameters
    ----------
    probabilities : each mask has a file of probabilities beside it.
    make : make the folder of the masks.
    form : of the masks; without it NIfTI, or DICOM SEG for an output that ends in .dcm.
    series : "all" makes every series of a DICOM folder a scan of its own; a mask then has the folder's name and a
        number, for nothing of a header ever becomes part of a path.

    Raises
    ------
    SegError : E-IN-EMPTY, E-IN-LIST, E-OUT-* (exit 30), E-OUT-SUFFIX or E-FORMAT (exit 2).
    """
    sources = expand(words, lists)
    _check_addresses([word for word in (*(source.scan for source in sources), output) if is_address(word)])
    form = _form(output, form, sources)
    if series == ALL_SERIES:
        sources = [each for source in sources for each in _every_series(source)]
    if is_address(output):
        return _plan_storing(sources, output, form, probabilities=probabilities, ask=make)
    files = [source.scan for source in sources]
    one = not lists and len(files) == 1 and files == list(words)  # a folder or pattern may hold more tomorrow
    _refuse_within(output, sources)
    named = output.lower().endswith((*SUFFIXES, ".dcm")) or not all(source.dicom for source in sources)
    if one and named and not os.path.isdir(output) and not output.endswith(os.sep):
        job = Job(files[0], output, sources[0].dicom, sources[0].series)
        for path in _outputs([job], probabilities):
            check_output(path, files, overwrite)
        return Batch([job], None, form)
    if output.lower().endswith((*SUFFIXES, ".dcm")) and not os.path.isdir(output):
        found = f"one file cannot hold {len(files)} masks" if len(files) > 1 else "a folder, pattern or list needs one"
        raise SegError("E-OUT-SUFFIX", Exit.USAGE, output, found, "give a folder with -o")
    if make:
        make_folder(output)
    for word in words:
        if os.path.isdir(word) and os.path.isdir(output) and os.path.samefile(word, output):
            found, fix = "is the folder of the scans: the masks would be scans next time", "choose another folder"
            raise SegError("E-OUT-SAME", Exit.OUTPUT, output, found, fix)
    jobs = [Job(s.scan, os.path.join(output, _mask_name(s, form)), s.dicom, s.series) for s in sources]
    outputs = _outputs(jobs, probabilities)
    _refuse_twice(outputs)
    known = _identities(files)
    for path in outputs if os.path.isdir(output) else ():
        check_output(path, [known[i] for i in _identities([path]) if i in known], overwrite)
    return Batch(jobs, output, form)


def _form(output: str, form: Form | None, sources: Sequence[Source]) -> Form:
    """The form of the masks, from the option and the output's name."""
    nifti, dicom = output.lower().endswith(SUFFIXES), output.lower().endswith(".dcm") or is_address(output)
    if not os.path.isdir(output) and ((nifti and form not in (None, "nifti")) or (dicom and form == "nifti")):
        found, fix = f"is no name for a mask of --format {form}", "end the name in .nii.gz for NIfTI, in .dcm for DICOM"
        raise SegError("E-OUT-SUFFIX", Exit.USAGE, output, found, fix)
    form = form or ("seg" if dicom and not os.path.isdir(output) else "nifti")
    if form != "nifti" and (other := next((s.scan for s in sources if not s.dicom), None)) is not None:
        found, fix = "is no DICOM series, which a DICOM mask needs", "give the DICOM series, or use --format nifti"
        raise SegError("E-FORMAT", Exit.USAGE, other, found, fix)
    return form


def _check_addresses(words: Sequence[str]) -> None:
    if words:
        from .dicomweb.session import refuse_shared_token

        refuse_shared_token([parse_address(word) for word in words])


def _plan_storing(sources: Sequence[Source], output: str, form: Form, *, probabilities: bool, ask: bool) -> Batch:
    """Masks that go into a PACS; what comes after its address in their names serves messages alone."""
    from .dicomweb.transfer import check_storing

    if probabilities:
        fix = "give a folder with -o, or leave --save-probabilities out"
        raise SegError("E-FORMAT", Exit.USAGE, output, "takes DICOM masks and no probabilities", fix)
    if ask:
        check_storing(parse_address(output))
    jobs = [Job(s.scan, f"{output.rstrip('/')}/{_mask_name(s, form)}", s.dicom, s.series) for s in sources]
    _refuse_twice([job.mask for job in jobs])
    return Batch(jobs, None, form)


def _refuse_twice(outputs: Sequence[str]) -> None:
    if twice := sorted(path for path, count in Counter(outputs).items() if count > 1):
        fix = "give scans with distinct names, or name the masks in a list (path, tab, name)"
        raise SegError("E-OUT-SAME", Exit.OUTPUT, twice[0], "two scans would write this mask", fix)


def _mask_name(source: Source, form: Form) -> str:
    if form == "nifti":
        return source.name or _scan_name(source.scan) + ".nii.gz"
    return (stem(source.name) if source.name else _scan_name(source.scan)) + ".dcm"


def _scan_name(scan: str) -> str:
    """What a mask is named after: the scan's file or folder, of an address a keyed hash of its UID."""
    if not is_address(scan):
        return stem(scan)
    from .dicom.listing import pseudonym

    address = parse_address(scan)
    return f"series-{pseudonym(address.series or address.study)[:16]}"


def _every_series(source: Source) -> list[Source]:
    """One source for each series of a DICOM source, named after it and numbered."""
    if not source.dicom:
        return [source]
    if is_address(source.scan):
        return _series_of(source)
    from .dicom.files import open_store
    from .dicom.study import scan

    try:
        with open_store(source.scan) as store:
            found = scan(store).series
    except SegError:
        return [source]  # this scan's own error, the others go on
    name = stem(source.name or source.scan)
    return [replace(source, name=f"{name}_{n:03}.nii.gz", series=one.uid) for n, one in enumerate(found, 1)]


def _series_of(source: Source) -> list[Source]:
    """The series of a study in a PACS that may be volumes."""
    from .dicomweb.transfer import list_series

    address, study = parse_address(source.scan), source.scan.rstrip("/")
    if address.series:
        return [replace(source, series=address.series)]
    return [replace(source, scan=f"{study}/series/{uid}", series=uid) for uid in list_series(address)]


def _refuse_within(output: str, sources: Sequence[Source]) -> None:
    """A mask in the folder of a series would be part of the input next time."""
    place = os.path.realpath(output if os.path.isdir(output) else os.path.dirname(output) or os.curdir)
    for source in sources:
        if source.dicom and os.path.isdir(source.scan):
            folder = os.path.realpath(source.scan)
            if os.path.commonpath([place, folder]) == folder:
                found, fix = "lies in the folder of the DICOM scan, which it would change", "choose another folder"
                raise SegError("E-OUT-SAME", Exit.OUTPUT, output, found, fix)


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
