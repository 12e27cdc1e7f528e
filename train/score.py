"""seg-train --evaluate: a run or an exported model on the labelled cases of a folder."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from seg.infer.artifact import load, resolve
from seg.infer.atomic import refuse_existing
from seg.infer.backends import Backend, engine_for, open_backend
from seg.infer.compute import refuse_other_kind
from seg.infer.errors import Exit, SegError, printable
from seg.infer.machine import available_memory
from seg.infer.spec import ModelSpec

from .cases import Case, Dataset, discover, refusal
from .check import check_dataset
from .config import trained_method
from .device import device_of
from .evaluate import WORST, ModuleBackend, evaluate, free_memory
from .report import write_evaluation
from .run import CONFIG, VALIDATION, refuse_data_folder
from .split import Split, load_split

Which = Literal["val", "test", "all"]


@dataclass(frozen=True)
class Model:
    """What is evaluated.

    Attributes
    ----------
    val : the cases that validated a run, None for an artifact.
    trained : of the cases that a run was trained on, id -> hash of the scan, see `CaseFacts`; None for an artifact.
    memory : bytes that the network may use.
    """

    backend: Backend
    spec: ModelSpec
    val: tuple[str, ...] | None
    trained: dict[str, str] | None
    memory: int


def score(
    model: str,
    data: Sequence[str],
    output: str,
    which: Which = "val",
    *,
    split: str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
    tick: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Evaluate the final weights of a run, or an artifact, and write the figures, the table and the picture.

    Parameters
    ----------
    model : run folder, artifact, or name of a shipped model.
    output : folder to write into; not a run and not among the scans.
    overwrite : replace an evaluation that is there already.
    which : "val": the split's validation cases, or without a split those that validated the run; "test": those of the
        split; "all": every labelled case.
    tick : called with (finished cases, cases).

    Raises
    ------
    SegError : E-OUT-EXISTS without `overwrite`; E-DATA-* when cases are missing, faulty, or not the model's; and what
        loading and computing raise.
    """
    folder = Path(output)
    refuse_data_folder(folder, data)
    if (folder / CONFIG).exists():
        raise SegError("E-RUN-EXISTS", Exit.OUTPUT, output, "is a run", "choose another folder, such as one inside it")
    refuse_existing(str(folder / VALIDATION), overwrite)
    dataset = discover(data)
    opened = _open(model, device, say)
    with closing(opened.backend):
        cases = _choose(dataset, which, split, opened)
        scans = _check(cases, dataset, opened.spec, say)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what, fix = f"cannot be made ({error.strerror})", "choose another folder"
            raise SegError("E-OUT-DIR", Exit.OUTPUT, output, what, fix) from error
        seen = None if opened.trained is None else _trained_on(scans, opened.trained, say)
        done = iter(range(1, len(cases) + 1))
        found = evaluate(
            opened.backend,
            cases,
            opened.spec,
            memory_bytes=opened.memory,
            keep=WORST,
            largest=True,
            tick=lambda: tick(next(done), len(cases)),
        )
    facts = {"model": Path(model).name, "which": which, "trained_on": seen}
    return write_evaluation(folder, found, opened.spec, facts)


def _open(model: str, device: str, say: Callable[[str], None]) -> Model:
    """A run folder, else an artifact."""
    folder = Path(model)
    if not folder.is_dir():
        artifact = load(resolve(model))
        backend = open_backend(engine_for(artifact.path, device), artifact.path, device)
        return Model(backend, artifact.spec, None, None, available_memory())
    method, config, state = trained_method(folder)
    if state["step"] < config["loop"]["iterations"]:
        say(f"warning: the run is unfinished, at step {state['step']} of {config['loop']['iterations']}")
    torch.set_flush_denormal(True)  # as in training: denormals make CPU convolutions ten times slower
    on, split = device_of(device), config["split"]
    used = ("labeled", "unlabeled") if method.config.unlabeled_batch else ("labeled",)
    hashes = config.get("scans", {})  # missing in runs of before they were kept
    trained = {case: hashes.get(case, "") for role in used for case in split[role]}
    backend = ModuleBackend(method.deployed().to(on), on)
    return Model(backend, ModelSpec.from_dict(config["spec"]), tuple(split["val"]), trained, free_memory(on))


def _choose(dataset: Dataset, which: Which, split: str | None, model: Model) -> list[Case]:
    """The labelled cases asked for, by id.

    Raises
    ------
    SegError : E-DATA-SPLIT when nothing says which cases are meant, or one is not there or has no label.
    """
    if which == "all":
        wanted = [case.id for case in dataset.cases if case.label]
    else:
        files = dataset.split_files
        if split is None and len(files) > 1 and (which == "test" or model.val is None):
            raise refusal("SPLIT", files[1], f"there is another one, {files[0]}", "say which with --split FILE")
        path = split or (files[0] if len(files) == 1 else None)
        ids = load_split(path).get(which) if path else None
        if ids is None and which == "val" and split is None:
            ids = list(model.val) if model.val is not None else None
        if not ids:
            found = f"no {which} cases are named in {path}" if path else f"no split says which cases are {which}"
            raise refusal("SPLIT", path or "", found, "name them with --split FILE, or use --cases all")
        wanted = ids
    by_key = {key: [c for c in dataset.cases if key in (c.id, c.patient)] for key in wanted}
    missing = [key for key, cases in by_key.items() if not any(case.label for case in cases)]
    if missing or not wanted:
        found = f"no labelled case {', '.join(missing[:5])}" if missing else "no labelled case"
        raise refusal("SPLIT", dataset.cases[0].source, found, "give the folder that holds them, with labels")
    return sorted({case for cases in by_key.values() for case in cases if case.label}, key=lambda case: case.id)


def _check(cases: Sequence[Case], dataset: Dataset, spec: ModelSpec, say: Callable[[str], None]) -> dict[str, str]:
    """Read every case before the first one is computed: faults, and what is not of this model's kind.

    Returns
    -------
    Case id -> hash of its scan.

    Raises
    ------
    SegError : E-DATA-CHECK; E-DATA-LABELS when the data set declares other values than the model's; E-CHANNELS;
        E-GEO-2D for a single slice where the model takes volumes.
    """
    names = dict(zip(spec.label_values, spec.labels, strict=True))
    if dataset.label_names and {0, *dataset.label_names} != set(names):
        found = f"declares the values {sorted({0, *dataset.label_names})}"
        raise refusal("LABELS", "dataset.json", found, "give data with the model's classes", f"{sorted(names)}")
    checked = check_dataset(Split((), (), tuple(cases)), names, channels=len(spec.channels), declared="of the model")
    for finding in checked.findings:
        say(printable(str(finding)))
    checked.stop_on_errors()
    for case in cases:
        fact = checked.facts[case.id]
        refuse_other_kind(spec, case.images[0], len(fact.channels), fact.shape)
    for value in spec.label_values[1:]:
        if not any(fact.class_voxels.get(value) for fact in checked.facts.values()):
            say(f"warning: {names[value]} is in no label; where the model finds none either, it counts as perfect")
    return {case.id: checked.facts[case.id].sha256 for case in cases}


def _trained_on(scans: dict[str, str], trained: dict[str, str], say: Callable[[str], None]) -> int:
    """How many cases are scans that the run was trained on, whatever their names; they are named, and so are namesakes.

    Parameters
    ----------
    scans, trained : case id -> hash of its scan, "" where none was kept.
    """
    known = set(trained.values())
    seen = [case for case, scan in scans.items() if scan in known]
    named = [case for case in scans if case in trained and case not in seen]
    of = f"of the {len(scans)} cases"
    for cases, what in ((seen, "were trained on"), (named, "have the names of training cases")):
        if cases:
            say(f"warning: {len(cases)} {of} {what}: {', '.join(cases[:5])}")
    return len(seen)
