"""What one `seg-train` will do: its data read, split and checked, and the plan. The run's config.json has all of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from seg.infer.errors import Exit, SegError, printable
from seg.infer.spec import ModelSpec

from .cache import packed_bytes
from .cases import Case, Dataset, discover
from .check import check_dataset
from .config import Engine, config_of, label_names, method_config, refuse_names, spec_of
from .device import memory_of
from .facts import CaseFacts
from .networks import NETWORKS
from .plan import Plan, plan
from .settings import Settings
from .split import Split, choose_split
from .teacher import Teacher
from .window import times


@dataclass(frozen=True)
class Prepared:
    """A job ready to train.

    Attributes
    ----------
    cache_bytes : memory of the volumes.
    hidden : unlabelled cases whose label is there and not used: reports of pseudo-labels compare with it.
    """

    config: dict[str, Any]
    spec: ModelSpec
    split: Split
    plan: Plan
    cache_bytes: int
    hidden: dict[str, Case]


def prepare_job(
    settings: Settings, say: Callable[[str], None], engine: Engine, teacher: Teacher | None = None
) -> Prepared:
    """Discover, split, check and plan. Prints findings and the plan through `say`.

    With a `teacher`, grid, intensities, classes and, unless given, the window are the teacher's.

    Raises
    ------
    SegError : E-DATA-* for anything that makes the training meaningless.
    """
    dataset = discover(settings.data, settings.cine)
    split = choose_split(dataset, settings.labeled, settings.split, settings.seed)
    for note in (*dataset.notes, *split.notes):
        say(f"note: {printable(note)}")
    say(
        f"{len(split.labeled)} labelled, {len(split.unlabeled)} unlabelled, {len(split.val)} validation cases; checking"
    )
    method = method_config(settings)
    if settings.distill is None and not split.unlabeled and method.unlabeled_batch:
        say(f"warning: no unlabelled scans: {settings.method} takes the labelled ones in their place")
    channels = len(dataset.channel_names or ()) or 1
    checked = check_dataset(split, dataset.label_names, channels=channels)
    if settings.labels is not None and dataset.label_names is None:
        values = {0}.union(*(fact.class_voxels for fact in checked.facts.values()))
        declared = label_names(settings, dict.fromkeys(values, ""))
        dataset = replace(dataset, label_names=declared)
        checked = check_dataset(split, declared, channels=channels, declared="named in labels", cached=checked.facts)
    for finding in checked.findings:
        say(printable(str(finding)))
    checked.stop_on_errors()
    training = [checked.facts[case.id] for case in (*split.labeled, *split.unlabeled) if case.id in checked.facts]
    decided = _decide(settings, training, dataset, engine.device, teacher)
    refuse_names(decided.labels)
    spec = spec_of(settings, decided)
    if settings.augmentation.get("rot90") and spec.window[0] != spec.window[1]:
        found = f"rot90 with a window of {times(spec.window)}"
        raise SegError("E-CONFIG", Exit.USAGE, "", found, "give a --window with X = Y, or leave rot90 out")
    if method.labeled_batch * prod(spec.window) == prod(spec.stride):
        found = f"one window of {times(spec.window)} a step, a single voxel where the network is coarsest"
        raise SegError("E-CONFIG", Exit.USAGE, "", found, "give a larger --window, or --set labeled_batch=2")
    say(decided.describe())
    config = config_of(settings, decided, spec, split, checked.facts, engine)
    if teacher is not None:
        teacher.refuse(spec)
        config["teacher"] = teacher.describe()
    names = {case.id for case in split.unlabeled}
    hidden = {case.id: case for case in dataset.cases if case.label and case.id in names}
    return Prepared(config, spec, split, decided, packed_bytes(training, spec), hidden)


def _decide(
    settings: Settings,
    training: Sequence[CaseFacts],
    dataset: Dataset,
    device: torch.device,
    teacher: Teacher | None,
) -> Plan:
    """The plan; a teacher's grid, intensities and classes are its student's, and half its width unless asked."""
    network: Any = NETWORKS[settings.network]
    taught = None if teacher is None else teacher.spec
    names = dataset.label_names if taught is None else dict(zip(taught.label_values, taught.labels, strict=True))
    method = method_config(settings)
    half = None if teacher is None or teacher.width is None else max(1, teacher.width // 2)
    decided = plan(
        training,
        label_names(settings, names),
        spacing=settings.spacing if taught is None else taught.spacing,
        window=settings.window or (None if taught is None else taught.window),
        width=settings.width or half,
        iterations=settings.iterations,
        memory_bytes=memory_of(device),
        device="cuda" if device.type == "cuda" else "cpu",
        dims=network.dims,
        batch_labeled=method.labeled_batch,
        crops=method.crops,
        channel_names=dataset.channel_names,
    )
    return decided if taught is None else replace(decided, normalisation=taught.normalisation)
