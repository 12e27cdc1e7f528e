"""One `seg-train` from its settings to its validation: take the run folder, prepare, train or resume, evaluate."""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seg.infer.console import Terminated
from seg.infer.errors import Exit, SegError
from seg.infer.machine import available_memory

from .augment import WeakAugmentation
from .cache import Store, packed
from .cases import Case
from .config import Engine, as_begun, build_method, refuse_bad_options, refuse_changes, trained_method
from .curves import learning_curves, read_log
from .device import device_of, memory_told, precision_of
from .evaluate import WORST, ModuleBackend, evaluate, free_memory, validate
from .job import Prepared, prepare_job
from .loader import Data
from .loop import Loop, LoopConfig
from .methods import Distill
from .prepare import prepare, prepare_all
from .processes import Processes, join, left_at_the_end, refused_by_a_peer
from .refinement import Refinement, Truth
from .report import CURVES, write_evaluation, write_picture
from .run import (
    CONFIG,
    METRICS,
    PLAN,
    VALIDATION,
    VOLUMES,
    clear,
    load_checkpoint,
    locked,
    refuse_folder,
    refuse_run,
    set_aside,
    write_json,
    write_text,
)
from .sampling import Sample
from .settings import Settings, override
from .teacher import Teacher

CACHE_SHARE = 0.5  # of the free memory, above which the volumes become files


def train(
    settings: Settings,
    *,
    resume: bool,
    say: Callable[[str], None],
    report: Callable[[int, int, dict[str, float], float], None] = lambda *_: None,
) -> dict[str, Any]:
    """Run the whole job; returns the final validation. Under torchrun every process calls this.

    Parameters
    ----------
    report : called with (step, iterations, losses, steps per second).

    Raises
    ------
    SegError : E-DEVICE for a device that is not there, or graphs on a CPU; E-OUT-SAME and E-RUN-EXISTS when the folder
        is no place for a new run; E-RUN-NONE when there is none to resume; E-RUN-CONFIG when settings or data are not
        the run's; E-PEER when another process of the training ended; and all that preparing and training raise.
    """
    folder = Path(settings.output)
    device = device_of(settings.device)
    processes = join(device)
    if settings.compile == "graphs" and device.type != "cuda":
        raise SegError("E-DEVICE", Exit.USAGE, "", "CUDA graphs on a CPU", "leave --graphs out, or use --compile")
    if not processes.first:
        say, report = (lambda _: None), (lambda *_: None)
    with (
        left_at_the_end(processes),
        ExitStack() as held,
        refused_by_a_peer(processes, str(folder)),
        memory_told(str(folder)),
    ):
        if resume:
            settings = processes.share(partial(as_begun, settings, folder))
        engine = Engine(device, precision_of(settings.precision, device), settings.compile, processes)
        teacher = _load_teacher(settings, device, engine.precision)
        job = processes.share(partial(_begin, settings, folder, resume, engine, say, held, teacher))
        began = time.monotonic()
        loop = _loop(job, folder, engine, report)
        if teacher is not None:
            assert isinstance(loop.method, Distill)
            loop.method.teacher = teacher.logits
        if resume:
            _resume(loop, folder, say)
        how = {False: "", True: ", compiled", "graphs": ", CUDA graphs"}[engine.compiled]
        numbers = job.config["engine"]["precision"] + how
        where = f"{processes.size} processes, {device.type}" if processes.size > 1 else str(device)
        say(f"training on {where} in {numbers}, from step {loop.step}")
        loop.run()
        return processes.share(partial(_finish, job, folder, loop, began))


def _load_teacher(settings: Settings, device: torch.device, precision: torch.dtype) -> Teacher | None:
    """A run folder, an artifact, or the name of a shipped model."""
    path = settings.distill
    if path is None:
        return None
    if Path(path).is_dir():
        method, config, _ = trained_method(Path(path))
        teacher = Teacher.of_run(path, method.deployed(), config, device, precision)
    else:
        teacher = Teacher.of_artifact(path, device)
    if settings.spacing not in (None, teacher.spec.spacing):
        found, expected = f"spacing {settings.spacing}", f"the teacher's, {teacher.spec.spacing}"
        raise SegError("E-TEACHER", Exit.USAGE, path, found, "leave --spacing to the teacher", expected)
    return teacher


def _begin(
    settings: Settings,
    folder: Path,
    resume: bool,
    engine: Engine,
    say: Callable[[str], None],
    held: ExitStack,
    teacher: Teacher | None,
) -> Prepared:
    """Take the run folder until `held` is left, prepare the job, and write or compare its config."""
    refuse_bad_options(settings, engine.processes)
    refuse_folder(folder, settings.data, resume)
    held.enter_context(locked(folder))
    if not resume:
        refuse_run(folder)  # it may have begun since
    job = prepare_job(settings, say, engine, teacher)
    if resume:
        refuse_changes(folder, job.config)
    else:
        clear(folder)
        write_json(folder / CONFIG, job.config)
        write_text(folder / PLAN, job.plan.describe() + "\n")
    volumes = folder / VOLUMES
    shutil.rmtree(volumes, ignore_errors=True)  # of a run that was killed
    held.callback(shutil.rmtree, volumes, ignore_errors=True)
    return job


def _finish(job: Prepared, folder: Path, loop: Loop, began: float) -> dict[str, Any]:
    backend = ModuleBackend(loop.method.deployed(), loop.device)
    memory = free_memory(loop.device)
    try:
        evaluation = evaluate(backend, job.split.val, job.spec, memory_bytes=memory, keep=WORST, largest=True)
    except (KeyboardInterrupt, Terminated) as stop:
        name = "SIGINT" if isinstance(stop, KeyboardInterrupt) else "SIGTERM"
        found = f"stopped by {name} in the evaluation; the training is finished and saved"
        raise SegError("E-STOPPED", Exit[name], str(folder), found, "evaluate with --resume") from None
    facts = {"step": loop.step, "seconds": round(time.monotonic() - began, 1)}
    result = write_evaluation(folder, evaluation, job.spec, facts)
    _draw_curves(folder, result)
    return result


def _draw_curves(folder: Path, result: dict[str, Any]) -> None:
    """The losses, and the Dice of every validation where there were some before the last."""
    log = read_log(folder / METRICS)
    if any("dice" in entry for entry in log):
        log.append({"step": result["step"] - 1, "dice": {k: m["dice"] for k, m in result["mean"].items()}})
    if picture := learning_curves(log):
        write_picture(folder / CURVES, picture)


def _resume(loop: Loop, folder: Path, say: Callable[[str], None]) -> None:
    try:
        state, note = load_checkpoint(folder)
    except SegError as error:
        if error.found == "no checkpoint here":  # killed before the first one: step 0 is the same state
            loop.restore({**loop.state(), "step": 0})
            return
        raise
    loop.processes.any(False)  # all have read it
    if note and loop.processes.first:
        say(f"warning: {note}")
        set_aside(folder)
    loop.restore(state)


def edges_of(spacing: Sequence[float | None]) -> tuple[float, ...]:
    """Edges of a voxel for `Data`: mm where the grid has them along x and y; of slices that along z does not count.

    A scan's own spacing (None) is nearly the same along x and y.
    """
    return (1.0, 1.0, 1.0) if None in spacing[:2] else tuple(edge or 1.0 for edge in spacing)


def _loop(
    job: Prepared,
    folder: Path,
    engine: Engine,
    report: Callable[[int, int, dict[str, float], float], None],
) -> Loop:
    config = job.config
    loop_config = override(LoopConfig(1, job.spec.window), config["loop"], "loop")
    method = build_method(config, engine.processes)
    cases = [job.split.labeled, job.split.unlabeled if method.config.unlabeled_batch else ()]
    # Labelled scans are unlabelled ones too: the papers draw the unlabelled half from the rest alone, so do we, unless
    # there is no rest.
    labeled, unlabeled = _volumes(job, cases, folder / VOLUMES, engine.processes)

    def check(network: torch.nn.Module, step: int) -> dict[str, Any]:
        result = validate(network, job.split.val, job.spec, engine.device, engine.precision) | {"step": step}
        write_json(folder / VALIDATION, result)
        return result

    data, rules = Data(labeled, unlabeled or labeled, edges_of(job.spec.spacing)), method.rules()
    common = (engine.device, engine.precision, engine.processes, _truth(job))
    refinement = None
    if rules is not None:
        refinement = Refinement(method, rules, data.labeled, data.unlabeled, job.spec, folder, *common)
    return Loop(
        method,
        data,
        loop_config,
        override(WeakAugmentation(), config["augmentation"], "augmentation"),
        folder,
        engine.device,
        engine.precision,
        compiled=engine.compiled,
        processes=engine.processes,
        refinement=refinement,
        validate=check,
        report=lambda step, losses, rate: report(step, loop_config.iterations, losses, rate),
    )


def _truth(job: Prepared) -> Truth:
    """Labels that exist and are not used, on the network's grid; None where they are not what the model has."""

    def truth(case: str) -> NDArray[np.uint8] | None:
        if case not in job.hidden:
            return None
        try:
            return prepare(job.hidden[case], job.spec).label
        except (SegError, IndexError, ValueError):  # nobody has checked this label
            return None

    return truth


def _volumes(job: Prepared, cases: Sequence[Sequence[Case]], folder: Path, processes: Processes) -> list[list[Sample]]:
    """The prepared cases: in memory, or in files where they are too large or several processes use them."""
    if processes.size == 1 and job.cache_bytes < CACHE_SHARE * available_memory():
        return [prepare_all(some, job.spec, packed) for some in cases]
    store = Store(folder)
    processes.share(lambda: [len(prepare_all(some, job.spec, store.put)) for some in cases])
    return [[store.get(case.id) for case in some] for some in cases]
