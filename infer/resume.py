"""--continue: which scans of a batch are done, and what of the others' files may be replaced."""

import os

from .artifact import Artifact
from .compute import plan_header
from .console import say
from .errors import Exit, SegError, printable
from .jobs import Batch, Job
from .manifest import Finished, Manifest, Unfinished, tiling_of
from .plan import Plan
from .reading import inspect
from .request import Request
from .result import Result


def settled(
    batch: Batch,
    artifact: Artifact,
    manifest: Manifest,
    previews: dict[str, str],
    request: Request,
    unknown: set[str],
) -> dict[str, Result]:
    """Mask path -> result of the jobs that are done, or whose mask somebody changed: that is not made again.

    `unknown` receives the masks that stand there without a record: a stop between mask and record leaves one, so does
    somebody else's work. They are made again, and kept if the bytes differ. So are pictures and probabilities, which a
    stop leaves before the mask.
    """
    found: dict[str, Result] = {}
    for job in batch.jobs:
        entry = manifest.finished(job)
        if isinstance(entry, Finished) and _other_windows(entry, job, artifact, request, batch.at_a_time):
            entry = Unfinished("was made with other windows, which --max-memory decides", "ours")
        sides = [previews[job.mask]] if job.mask in previews else []
        sides += [job.probabilities] if request.computing.probabilities else []
        if isinstance(entry, Finished) and all(map(os.path.isfile, sides)):
            done = found[job.mask] = Result(job, statistics=entry.statistics, skipped=True)
            done.scan, done.mask, done.plan = entry.scan, entry.mask, entry.tiling
            continue
        if not request.overwrite:
            unknown.update(side for side in sides if not manifest.wrote(job, side))
        if isinstance(entry, Finished):
            continue
        if request.overwrite or entry.file == "ours":
            if os.path.lexists(job.mask) and not request.quiet:
                say(f"note: {printable(job.mask)} {entry.reason}: it is made again")
        elif entry.file == "changed":
            fix = "move it away to have it made again, or use --overwrite"
            found[job.mask] = Result(job).fail(SegError("E-OUT-CHANGED", Exit.OUTPUT, job.mask, entry.reason, fix))
        else:
            unknown.add(job.mask)
    return found


def _other_windows(entry: Finished, job: Job, artifact: Artifact, request: Request, at_a_time: int) -> bool:
    """Whether a mask was made with other windows than a bound that the user gives makes now.

    What is free differs from call to call: without a bound the windows of then are as good as those of now.
    """
    if request.computing.max_memory is None:
        return False
    plan = expected_plan(job, artifact, request, at_a_time)
    return plan is None or entry.tiling != tiling_of(plan)


def expected_plan(job: Job, artifact: Artifact, request: Request, at_a_time: int) -> Plan | None:
    """The plan of a scan; None where reading it will say what is wrong."""
    try:
        header = inspect(job, request.reading, artifact.spec)
        return plan_header(header, artifact, request.computing, at_a_time=at_a_time)
    except SegError:
        return None
