"""Complete series become jobs, jobs become results: one at a time, in one thread, with the models kept loaded."""

import os
import shutil
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom import dcmwrite
from pydicom.uid import generate_uid

from ..errors import Exit, SegError, lacks_memory, printable
from . import log
from .arrivals import Arrivals
from .config import Config, Rule
from .metrics import Metrics
from .objects import Facts, read_facts
from .queue import Complete, Job, Queue, Verdict
from .segmenter import Segmenter, inputs_digest

if TYPE_CHECKING:
    from pydicom import Dataset

FINAL = (Exit.INPUT_MISSING, Exit.INPUT_CORRUPT, Exit.INPUT_REFUSED, Exit.LIMIT, Exit.MODEL)  # of the same again
NO_MEMORY = "E-LIMIT-MEMORY"  # what is free depends on others: not final
OUTAGE_GROWTH = 6  # of the waits where something is full, away or in use: five runs take 80 minutes
LONGEST_MESSAGE = 300
KNOWN_DAYS = 90  # a series sent again within them is known to be done
TIDY_SECONDS = 5.0


class Worker:
    """What happens between the last object of a series and its result."""

    def __init__(
        self,
        config: Config,
        queue: Queue,
        segmenter: Segmenter,
        arrivals: Arrivals,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._queue, self._segmenter = config, queue, segmenter
        self._arrivals, self._metrics, self._clock = arrivals, metrics, clock
        self._tidied = float("-inf")
        shutil.rmtree(self._folder.parent, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        return self._queue.files.parent / "work" / "series"

    def step(self) -> bool:
        """Do what is to be done next. False: there is nothing."""
        self._arrivals.sweep()
        for series in self._queue.complete(self._config.waits, self._clock()):
            self._settle(series)
        job = self._queue.claim(self._clock())
        if job is not None:
            self._run(job)
        if self._clock() - self._tidied > TIDY_SECONDS:
            self._tidied = now = self._clock()
            self._queue.drop_cut(2 * (self._config.waits.network + self._config.waits.quiet))
            self._queue.forget(now - 3600 * self._config.keep_hours, now - 86400 * KNOWN_DAYS)
        return job is not None

    # Which job

    def _settle(self, series: Complete) -> None:
        """Each peer that sent it gets a result, but one receiver not two."""
        verdicts = {made.receiver: made for made in (self._judge(series, sender) for sender in series.senders)}
        for verdict in self._queue.settle(series, list(verdicts.values()), self._clock()):
            log.event(
                "series-complete",
                series=series.name,
                count=len(series.digests),
                state=verdict.state,
                model=verdict.model,
                code=verdict.code,
            )

    def _judge(self, series: Complete, sender: str) -> Verdict:
        """What is to become of a series that a peer sent."""
        receiver = self._config.receiver(sender)
        to = receiver.aet if receiver else ""
        count, unknown = len(series.digests), inputs_digest(series.digests, "")
        try:
            rule = fitting_rule(self._config.rules, self._facts(series))
            if rule is None:
                return Verdict("ignored", unknown, to)
            inputs = inputs_digest(series.digests, self._segmenter.identity(rule.model))
        except SegError as error:
            return Verdict("failed", unknown, to, "", error.code, brief(error))
        if series.expected is not None and count < series.expected:
            message = f"{count} of {series.expected} objects came. Fix: send the whole series again."
            return Verdict("failed", inputs, to, rule.model, "E-SERVE-INCOMPLETE", message)
        if series.missing and not self._queue.finished(inputs, to):
            message = f"{series.missing} of {count} objects were deleted already. Fix: send the whole series again."
            return Verdict("failed", inputs, to, rule.model, "E-SERVE-PARTLY", message)
        if receiver is None or not receiver.port:
            message = "the sender listens nowhere. Fix: give its [[peer]] a port, or name a receiver with send_to."
            return Verdict("failed", inputs, to, rule.model, "E-SERVE-RECEIVER", message)
        return Verdict("ready", inputs, to, rule.model)

    def _facts(self, series: Complete) -> Facts:
        """Of its first object. A file that is gone or damaged since it was received is this series' failure alone."""
        try:
            return read_facts(self._queue.path(series.files[0]))
        except Exception as error:
            found = f"a received object cannot be read ({log.place(error)})"
            fix = "check the disk, send the series again"
            raise SegError("E-SERVE-READ", Exit.INPUT_MISSING, "", found, fix) from error

    # The job

    def _run(self, job: Job) -> None:
        """Segment one series. Whatever goes wrong is this job's failure alone."""
        began = time.perf_counter()
        try:
            results = self._segment(job)
            self._queue.finish(job, results, self._clock())
            seconds = time.perf_counter() - began
            self._metrics.seconds.observe(seconds)
            log.event("segmented", job=job.id, series=job.series, model=job.model, seconds=round(seconds, 3))
            return
        except SegError as error:
            code, message, final = error.code, brief(error), error.exit in FINAL and error.code != NO_MEMORY
            growth = OUTAGE_GROWTH
        except Exception as error:  # whatever a series makes the code do, the next one is served
            code, message, final, growth = "E-INTERNAL", log.place(error), False, 2
            if lacks_memory(error):
                code, message, growth = NO_MEMORY, "out of memory", OUTAGE_GROWTH
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        if final or job.runs >= self._config.limits.runs:
            self._queue.fail(job, code, message, self._clock())
        else:
            wait = min(3600.0, self._config.waits.retry * growth**job.runs)
            self._queue.again(job, code, message, self._clock() + wait)
        log.event("segmentation-failed", job=job.id, series=job.series, model=job.model, runs=job.runs, code=code)

    def _segment(self, job: Job) -> list[Path]:
        """Files of the results, on the disk, not yet in the queue."""
        self._folder.mkdir(mode=0o700, parents=True)
        for number, file in enumerate(job.files):
            os.link(self._queue.path(file), self._folder / f"{number}.dcm")
        datasets = self._segmenter.segment(self._folder, job.model)
        return [self._write(dataset, job, number) for number, dataset in enumerate(datasets)]

    def _write(self, dataset: "Dataset", job: Job, number: int) -> Path:
        """One result. Its UIDs depend on inputs and model alone: to store it twice is to store it once."""
        dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[job.inputs, "series"])
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[job.inputs, str(number)])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.preamble = bytes(128)
        path = self._queue.incoming / f"result-{job.id}-{number}"
        with open(path, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            dcmwrite(file, dataset, enforce_file_format=True)
            file.flush()
            os.fsync(file.fileno())
        return path


def fitting_rule(rules: tuple[Rule, ...], facts: Facts) -> Rule | None:
    """The first rule whose patterns all fit."""

    def fits(pattern: str, text: str) -> bool:
        return not pattern or fnmatchcase(text.lower(), pattern.lower())

    for rule in rules:
        if (
            fits(rule.modality, facts.modality)
            and fits(rule.description, facts.description)
            and fits(rule.body_part, facts.body_part)
        ):
            return rule
    return None


def brief(error: SegError) -> str:
    """What to show of an error: not the path, which says nothing here."""
    expected = f", expected {error.expected}" if error.expected else ""
    return printable(f"{error.found}{expected}. Fix: {error.fix}.")[:LONGEST_MESSAGE]
