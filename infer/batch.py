"""One call of seg-infer, from parsed arguments to the exit status."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace

from .artifact import DEFAULT_MODEL, Artifact, load, resolve
from .backends import TRITON, Backend, engine_for
from .compute import ComputeOptions, load_network, mirrored_axes, plan_header, stored_precision
from .console import say
from .display import Display
from .errors import Exit, SegError, printable
from .jobs import Batch, Job, plan_jobs
from .manifest import Manifest
from .outputs import plan_previews, plan_sides
from .pipeline import Extras, process
from .plan import PROTOCOLS, TilingOptions
from .reading import ReadOptions, inspect
from .report import Report, write_statistics
from .request import Request
from .result import Result
from .resume import expected_plan, settled
from .volume import spacing_of

__all__ = ["PROTOCOLS", "ComputeOptions", "ReadOptions", "Request", "TilingOptions", "run"]


def run(request: Request) -> int:
    """Segment; the report, if asked for, is written whatever happens. Returns the exit status.

    Raises
    ------
    SegError : what stops the whole call. An error of one scan of several does not.
    """
    plan_sides(request.report, request.statistics, overwrite=request.overwrite)
    report = Report(request.told())
    try:
        status = report.exit = _run(request, report)
    except BaseException as error:
        report.stop(error)
        if request.report is not None:
            with suppress(SegError):  # what stopped the call is the error to tell
                report.write(request.report)
        raise
    if request.report is not None:
        report.write(request.report)
    return status


def _run(request: Request, report: Report) -> int:
    batch = _plan(request)
    report.jobs = batch.jobs
    artifact = _served(request) if request.triton else _local(request)
    _refuse_precision(artifact, request)
    mirrored_axes(artifact, request.computing)  # raises
    report.spec = artifact.spec
    if request.model is None and not request.quiet:
        name = f"{artifact.spec.name} in {stored_precision(artifact.spec)}"
        say(f"model: {name} (choose another with -m; seg-infer --models lists them)")
    if request.dry_run:
        return _dry_run(batch, artifact, request, report)
    previews = plan_previews(request.preview, batch.jobs, request.overwrite or request.resume)
    options = request.mask_options(engine_for(artifact.path, request.device), artifact.spec, batch.form)
    manifest = Manifest(batch.folder, artifact.spec, options) if batch.folder is not None else None
    unknown: set[str] = set()
    results = report.results = {}
    if manifest is not None and request.resume:
        results.update(settled(batch, artifact, manifest, previews, request, unknown))
    todo = [job for job in batch.jobs if job.mask not in results]
    extras = Extras(
        statistics=request.statistics is not None,
        previews=previews,
        overwrite=request.overwrite or request.resume,
        unknown=unknown,
        hashes=request.report is not None,
        manifest=manifest,
        form=batch.form,
    )
    with Display(len(batch.jobs), list(results.values()), request.quiet, request.debug) as display:
        if todo:
            with (
                _loading(artifact, request, todo, batch.at_a_time) as backend,
                closing(
                    process(todo, artifact, backend, request.computing, extras, request.reading, batch.at_a_time)
                ) as done,
            ):
                for result in done:
                    results[result.job.mask] = result
                    display.show(result)
        ordered = [results[job.mask] for job in batch.jobs]
        display.summary(ordered)
    if request.statistics is not None:
        write_statistics(request.statistics, artifact.spec, ordered)
    return _status(ordered)


def _local(request: Request) -> Artifact:
    return load(resolve(request.model, request.computing.precision, request.device))


def _served(request: Request) -> Artifact:
    """The model on the Triton servers.

    With -m FILE it must be that file's network, whose masks are made as the file says; a name is the one it is served
    under.
    """
    from .backends.triton_ import model_name as served_name

    model = DEFAULT_MODEL if request.model is None else request.model
    mine = load(model).spec if os.path.isfile(model) else None
    if mine is None and (not model or os.sep in model):  # no name on a server
        found, fix = "no such file" if model else "is empty", "give the model's file, or the name it is served under"
        raise SegError("E-MODEL-MISSING", Exit.MODEL, model or "-m", found, fix)
    name = model if mine is None else served_name(mine)
    artifact = load(f"{TRITON}{','.join(request.triton)}/{name}")
    if mine is not None and mine.graph_sha256 != artifact.spec.graph_sha256:
        found, fix = f"{artifact.path} is another network", "serve this file, or give the served model's name with -m"
        raise SegError("E-MODEL-OTHER", Exit.MODEL, model, found, fix)
    if mine is None:
        return artifact
    spec = replace(artifact.spec, largest_component=mine.largest_component, mirror=mine.mirror)
    return replace(artifact, spec=spec)


def _refuse_precision(artifact: Artifact, request: Request) -> None:
    """A model computes as it was exported: fp32 and int8 are forms of the file, not switches of the engine."""
    asked, stored = request.computing.precision, stored_precision(artifact.spec)
    if asked in ("fp32", "int8") and asked != stored:
        own = f"use --precision {stored}" if stored in ("fp32", "int8") else "leave --precision out"
        found, fix = f"is an {stored} artifact", f"{own}, or the {asked} form of the model"
        raise SegError("E-PRECISION", Exit.MODEL, artifact.path, found, fix, asked)


def _dry_run(batch: Batch, artifact: Artifact, request: Request, report: Report) -> int:
    """Print the plan of every scan, from its header; nothing is loaded, computed or written but the report."""
    for job in batch.jobs:
        result = report.results[job.mask] = Result(job, planned=True)
        try:
            header = inspect(job, request.reading, artifact.spec)
            plan = plan_header(header, artifact, request.computing, at_a_time=batch.at_a_time)
            result.plan, result.notes = plan.as_dict(), header.notes
            result.shape, result.spacing = header.shape, tuple(map(float, spacing_of(header.affine)))
            print(f"{printable(job.scan)}: {plan.describe()}")
        except SegError as error:
            say(f"seg-infer: error {result.fail(error).error}")
    return _status([report.results[job.mask] for job in batch.jobs])


def _plan(request: Request) -> Batch:
    """The jobs, every mask checked to be writable."""
    batch = plan_jobs(
        request.scans,
        request.output,
        request.overwrite or request.resume,
        request.lists,
        probabilities=request.computing.probabilities,
        make=not request.dry_run,
        form=request.form,
        series=request.reading.series,
    )
    _refuse_dicom_options(batch.jobs, request.reading)
    if batch.form == "rtstruct":
        from .dicom.contours import require_contourpy

        require_contourpy()
    if request.resume and batch.folder is None:
        found, fix = "is no folder; --continue needs the record that a folder of masks has", "give a folder with -o"
        raise SegError("E-OUT-DIR", Exit.USAGE, request.output, found, fix)
    return batch


def _refuse_dicom_options(jobs: list[Job], reading: ReadOptions) -> None:
    """Options about DICOM would do nothing where no scan is: a scan that is not there may have been."""
    given = {"--series": reading.series, "--time-point": reading.time_point, "--resample-tilt": reading.resample_tilt}
    flags = [flag for flag, value in given.items() if value]
    if flags and all(not job.dicom and os.path.isfile(job.scan) for job in jobs):
        found, fix = f"is no DICOM series, which {flags[0]} is about", f"leave {' and '.join(flags)} out"
        raise SegError("E-FORMAT", Exit.USAGE, jobs[0].scan, found, fix)


@contextmanager
def _loading(artifact: Artifact, request: Request, todo: list[Job], at_a_time: int) -> Iterator["Future[Backend]"]:
    """The network, loading in a thread of its own; after an exception nobody waits for it."""
    pool = ThreadPoolExecutor(1, "load")
    shape = None
    if len(todo) == 1 and not todo[0].dicom:  # whose headers take as long as they save
        plan = expected_plan(todo[0], artifact, request, at_a_time)
        shape = None if plan is None else (1, len(artifact.spec.channels), *plan.tiling.window)
    try:
        yield pool.submit(load_network, artifact, request.device, request.computing, shape)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _status(results: list[Result]) -> int:
    failed = [result.error for result in results if result.error is not None]
    if not failed:
        return int(Exit.OK)
    return int(failed[0].exit) if len(results) == 1 else int(Exit.BATCH)
