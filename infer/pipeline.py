"""Many scans through one loaded network: reading, computing and writing overlap in threads.

While one scan is computed, the next is read and inflated and the last one's mask is compressed and written. One bad
scan does not stop the rest.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .artifact import Artifact
from .backends import Backend
from .errors import Exit, SegError
from .inputs import Job
from .nifti import Scan, read, write_mask
from .predict import TilingOptions, segment


@dataclass(frozen=True)
class ReadOptions:
    """What the user decides about odd scans; the names are those of `nifti.read`."""

    max_voxels: int = 2_000_000_000
    nonfinite: Literal["refuse", "zero"] = "refuse"
    volume: int | None = None
    prefer: Literal["sform", "qform"] | None = None


@dataclass(frozen=True)
class Extras:
    """What is made of each mask besides the file: statistics, and pictures (scan path -> PNG path)."""

    statistics: bool = False
    previews: Mapping[str, str] = field(default_factory=dict)
    overwrite: bool = False


@dataclass
class Result:
    """What became of one scan: seconds per stage, statistics, or the error."""

    job: Job
    error: SegError | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    statistics: dict[str, Any] | None = None


def process(
    jobs: Sequence[Job],
    artifact: Artifact,
    backend: "Future[Backend]",
    options: TilingOptions,
    extras: Extras,
    reading: ReadOptions,
) -> Iterator[Result]:
    """Segment every job; results come in order, each once its mask is on disk.

    Parameters
    ----------
    backend : the network, possibly still loading while the first scan is read.
    """

    def fetch(position: int) -> list[Future[tuple[Scan, float]]]:
        channels = len(artifact.spec.channels)
        return [reader.submit(_read, job, channels, reading) for job in jobs[position : position + 1]]

    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        upcoming = fetch(0)
        waiting: Future[Result] | None = None
        for number, job in enumerate(jobs):
            current = upcoming.pop()
            result = Result(job)
            try:
                try:
                    scan, result.seconds["read"] = current.result()
                finally:
                    upcoming = fetch(number + 1)
                result.notes = scan.header.notes
                mask = _compute(scan, artifact, backend, options, result)
                write = writer.submit(_write, scan, mask, artifact, extras, result)
            except SegError as error:
                result.error = _located(error, job)
                write = _done(result)
            if waiting is not None:
                yield waiting.result()
            waiting = write
        if waiting is not None:
            yield waiting.result()


def _done(result: Result) -> "Future[Result]":
    finished: Future[Result] = Future()
    finished.set_result(result)
    return finished


def _read(job: Job, channels: int, options: ReadOptions) -> tuple[Scan, float]:
    began = time.perf_counter()
    scan = read(
        job.scan,
        channels=channels,
        max_voxels=options.max_voxels,
        nonfinite=options.nonfinite,
        volume=options.volume,
        prefer=options.prefer,
    )
    return scan, time.perf_counter() - began


def _compute(
    scan: Scan, artifact: Artifact, backend: "Future[Backend]", options: TilingOptions, result: Result
) -> NDArray[np.unsignedinteger]:
    began = time.perf_counter()
    engine = backend.result()
    loaded = time.perf_counter()
    try:
        mask = segment(scan.volume, artifact.spec, engine, options)
    except ValueError as error:
        raise SegError(
            "E-CHANNELS", Exit.INPUT_REFUSED, result.job.scan, str(error), "choose the model made for this kind of scan"
        ) from error
    result.seconds["load"], result.seconds["segment"] = loaded - began, time.perf_counter() - loaded
    return mask


def _write(scan: Scan, mask: NDArray[np.unsignedinteger], artifact: Artifact, extras: Extras, result: Result) -> Result:
    began = time.perf_counter()
    spec, job = artifact.spec, result.job
    try:
        if extras.statistics:
            from .statistics import mask_statistics

            result.statistics = mask_statistics(mask, scan.volume.affine, spec.labels, spec.label_values)
        if job.scan in extras.previews:
            from .preview import preview_png

            preview_png(scan.volume, mask, spec.labels, extras.previews[job.scan], label_values=spec.label_values)
        write_mask(job.mask, mask, scan.header, overwrite=extras.overwrite)
    except SegError as error:
        result.error = error
    result.seconds["write"] = time.perf_counter() - began
    return result


def _located(error: SegError, job: Job) -> SegError:
    """The same error, naming the scan when it names no file."""
    if error.path:
        return error
    return SegError(error.code, error.exit, job.scan, error.found, error.fix, error.expected)
