"""Many scans through one loaded network: reading, computing and writing overlap in threads.

While one scan is computed, the next is read and inflated and the last one's mask is compressed and written, so at most
three scans are in memory. One bad scan does not stop the rest. The calling thread only waits, so that a signal finds it
at once: then the mask being written is finished, everything else is dropped.
"""

import time
from collections.abc import Collection, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event

from .artifact import Artifact
from .atomic import Overwrite
from .backends import Backend
from .compute import Computed, ComputeOptions, compute, plan_header
from .dicomweb.address import is_address
from .errors import SegError
from .jobs import Form, Job
from .manifest import FileState, Manifest, scan_state, stamp, tiling_of
from .masks import about_codes, keep_unless_equal, write_mask
from .nifti_write import write_probabilities
from .reading import ReadOptions, inspect, parts, read
from .result import Result
from .scan import Scan
from .spec import ModelSpec

__all__ = ["Extras", "ReadOptions", "process"]


@dataclass(frozen=True)
class Extras:
    """What is made of each mask besides the file.

    Attributes
    ----------
    statistics : volumes per class.
    previews : mask path -> path of its picture.
    overwrite : replace existing masks.
    unknown : masks, pictures and files of probabilities that may only be replaced by the same bytes.
    hashes : digests of scans and masks.
    manifest : record of finished masks; implies hashes and statistics.
    form : of the masks.
    """

    statistics: bool = False
    previews: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False
    unknown: Collection[str] = ()
    hashes: bool = False
    manifest: Manifest | None = None
    form: Form = "nifti"

    def may_replace(self, side: str) -> Overwrite:
        """What may be done to a file that has the name of a picture or of probabilities."""
        return "equal" if side in self.unknown else self.overwrite


@dataclass(frozen=True)
class _Loaded:
    """What the reading thread hands over."""

    scan: Scan
    state: FileState | None
    seconds: float


class _Threads:
    """One thread for each stage. Left by an exception, only the mask being written is waited for."""

    def __init__(self) -> None:
        self.reader, self.computer, self.writer = (ThreadPoolExecutor(1, n) for n in ("read", "compute", "write"))
        self.stopping = Event()

    def __enter__(self) -> "_Threads":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.stopping.set()
        for pool in (self.reader, self.computer):
            pool.shutdown(wait=kind is None, cancel_futures=True)
        self.writer.shutdown(wait=True, cancel_futures=True)


def process(
    jobs: Sequence[Job],
    artifact: Artifact,
    backend: "Future[Backend]",
    options: ComputeOptions,
    extras: Extras,
    reading: ReadOptions,
    at_a_time: int = 3,
) -> Generator[Result, None, None]:
    """Segment every job; results come in order, each once its mask is on disk.

    Parameters
    ----------
    backend : the network, possibly still loading while the first scan is read. If it does not load, that error ends
        the iteration: no scan can do without it.
    at_a_time : scans for which there must be room in memory together.
    """
    hashes = extras.hashes or extras.manifest is not None
    with _Threads() as threads:

        def load(job: Job) -> _Loaded:
            _refuse_too_large(job, artifact, options, reading, at_a_time)
            return _read(job, artifact.spec, reading, hashes)

        def fetch(number: int) -> "Future[_Loaded] | None":
            return threads.reader.submit(load, jobs[number]) if number < len(jobs) else None

        current, written = fetch(0), None
        for number, job in enumerate(jobs):
            assert current is not None
            result, write = Result(job), None
            failure = current.exception()  # waits
            following = fetch(number + 1)
            if failure is None:
                scan = _take(current.result(), result)
                engine = _await_network(backend, result)
                work = threads.computer.submit(_compute, scan, artifact, engine, options, result, at_a_time)
                if (failure := work.exception()) is None:
                    done = work.result()
                    write = threads.writer.submit(_write, scan, done, artifact, extras, result, threads.stopping)
            if failure is not None:
                write = _done(result.fail(failure))
            if written is not None:
                yield written.result()
            current, written = following, write
        if written is not None:
            yield written.result()


def _done(result: Result) -> "Future[Result]":
    finished: Future[Result] = Future()
    finished.set_result(result)
    return finished


def _refuse_too_large(
    job: Job, artifact: Artifact, options: ComputeOptions, reading: ReadOptions, at_a_time: int
) -> None:
    """Raise SegError, E-LIMIT-MEMORY, from the header of a NIfTI file: before its voxels are in memory.

    What else is wrong, reading says.
    """
    if job.dicom:
        return
    try:
        header = inspect(job, reading, artifact.spec)
        plan_header(header, artifact, options, at_a_time=at_a_time)
    except SegError as error:
        if error.code == "E-LIMIT-MEMORY":
            raise


def _read(job: Job, spec: ModelSpec, options: ReadOptions, hashes: bool) -> _Loaded:
    began = time.perf_counter()
    try:
        before = stamp(parts(job)) if hashes else None
    except (OSError, ValueError):
        before = None  # reading says what is wrong
    scan = read(job, options, spec)
    state = scan_state(job, before) if before is not None else None
    return _Loaded(scan, state, time.perf_counter() - began)


def _take(loaded: _Loaded, result: Result) -> Scan:
    header = loaded.scan.header
    result.seconds["read"], result.notes, result.scan = loaded.seconds, header.notes, loaded.state
    result.shape, result.spacing = header.shape, tuple(float(mm) for mm in loaded.scan.volume.spacing)
    if loaded.scan.series is not None:
        from .dicom.listing import facts

        result.series = facts(loaded.scan.series)
    return loaded.scan


def _await_network(backend: "Future[Backend]", result: Result) -> Backend:
    began = time.perf_counter()
    engine = backend.result()
    result.seconds["load"] = time.perf_counter() - began
    return engine


def _compute(
    scan: Scan, artifact: Artifact, engine: Backend, options: ComputeOptions, result: Result, at_a_time: int
) -> Computed:
    began = time.perf_counter()
    done = compute(scan, artifact, engine, options, at_a_time=at_a_time)
    result.plan = done.plan.as_dict()
    if not done.labels.any():
        result.notes += ("the mask is empty: is this the kind of scan that the model is made for?",)
    if done.dropped and options.largest_component is None:
        kept = "the largest part of each class was kept, as the model says"
        result.notes += (f"{kept}; {done.dropped} voxels of others became background (--no-largest-component)",)
    result.seconds["segment"] = time.perf_counter() - began
    return done


def _write(
    scan: Scan,
    done: Computed,
    artifact: Artifact,
    extras: Extras,
    result: Result,
    stopping: Event,
) -> Result:
    began = time.perf_counter()
    try:
        _outputs(scan, done, artifact, extras, result, stopping)
    except Exception as error:
        result.fail(error)
    result.seconds["write"] = time.perf_counter() - began
    return result


def _outputs(
    scan: Scan,
    done: Computed,
    artifact: Artifact,
    extras: Extras,
    result: Result,
    stopping: Event,
) -> None:
    """The mask comes last but for its record: a picture without a mask misleads nobody, and nothing is half done."""
    spec, job, mask = artifact.spec, result.job, done.labels
    if job.mask in extras.unknown:
        keep_unless_equal(job.mask, mask, scan, artifact, extras.form)
    if extras.statistics or extras.manifest is not None:
        from .statistics import mask_statistics

        result.statistics = mask_statistics(mask, scan.volume.affine, spec.labels, spec.label_values)
    if (picture := extras.previews.get(job.mask)) is not None:
        from .preview import preview_png

        may = extras.may_replace(picture)
        preview_png(scan.volume, mask, spec.labels, picture, label_values=spec.label_values, overwrite=may)
    if stopping.is_set():
        return  # nobody waits for this result
    if done.probabilities is not None:
        may = extras.may_replace(job.probabilities)
        write_probabilities(job.probabilities, done.probabilities, scan.header, overwrite=may)
    if job.mask not in extras.unknown:
        write_mask(job.mask, mask, scan, artifact, extras.form, overwrite=extras.overwrite)
    result.notes += about_codes(artifact, extras.form)
    if extras.manifest is not None and result.scan is not None:
        sides = [picture] if picture is not None else []
        sides += [job.probabilities] if done.probabilities is not None else []
        result.mask = extras.manifest.add(
            job, result.scan, result.statistics or {}, sides=sides, tiling=tiling_of(done.plan)
        )
    elif extras.hashes and not is_address(job.mask):
        result.mask = FileState.of([job.mask])
