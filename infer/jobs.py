"""From scans to pairs of scan and mask, checked before anything is computed.

One mask may have a path of its own; all others go into a folder, each under its scan's name. All series of a DICOM
folder, or of a study in a PACS, are scans of their own when they are asked for.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .dicomweb.address import is_address, parse_address
from .errors import Exit, SegError
from .inputs import SUFFIXES, Source, expand, identity, stem
from .nifti_write import check_output
from .outputs import make_folder

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

    @property
    def at_a_time(self) -> int:
        """Scans in memory together: one is computed, the next being read, the last one's mask written.

        The same when the batch is continued, because room for them decides the windows.
        """
        return min(3, len(self.jobs))


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
    one = not lists and len(files) == 1  # and named: a folder or pattern may hold more tomorrow
    one = one and {identity(word) for word in words} == {identity(files[0])}
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
    return (_list_name(source.name) if source.name else _scan_name(source.scan)) + ".dcm"


def _list_name(name: str) -> str:
    """The mask name of a list without suffix: before the .nii.gz that reading the list adds, .dcm may stand."""
    name = stem(name)
    return stem(name) if name.lower().endswith(".dcm") else name


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
    name = _list_name(source.name) if source.name else stem(source.scan)
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
