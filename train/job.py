"""One `seg-train`: read and check the data, plan, train, validate. Everything decided is in the run's config.json."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from seg.infer import __version__
from seg.infer.errors import Exit, SegError, printable
from seg.infer.machine import available_memory
from seg.infer.spec import ModelSpec

from .augment import WeakAugmentation
from .cases import Case, discover
from .check import Checked, check_dataset
from .curves import learning_curves, read_log
from .evaluate import WORST, ModuleBackend, evaluate, free_memory, validate
from .facts import CaseFacts
from .loop import Data, Loop, LoopConfig
from .methods import METHODS, PRESETS, Method, MethodConfig, default_options
from .networks import NETWORKS, build_network
from .plan import Plan, plan
from .prepare import prepare_all
from .report import CURVES, write_evaluation, write_picture
from .run import load_checkpoint, locked, read_config, set_aside, write_json
from .settings import Settings, override
from .split import Split, choose_split
from .window import times

CONFIG = "config.json"


@dataclass(frozen=True)
class Prepared:
    """A job ready to train."""

    config: dict[str, Any]
    spec: ModelSpec
    split: Split
    plan: Plan


def device_of(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:N" -> device.

    Raises
    ------
    SegError : E-DEVICE when it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SegError("E-DEVICE", Exit.RUNTIME, "", "no CUDA device is available", "use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise SegError("E-DEVICE", Exit.USAGE, "", f"no device {name}", "use auto, cpu, cuda or cuda:N") from error


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bf16 where the hardware multiplies it fast (GPUs from Ampere on, CPUs with AMX), else fp32."""
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
        fast = torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def memory_of(device: torch.device) -> int:
    """Bytes the training may take: free device memory, or what this process may still get of the system's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()


def prepare_job(settings: Settings, say: Callable[[str], None], device: torch.device) -> Prepared:
    """Discover, split, check and plan. Prints findings and the plan through `say`.

    Raises
    ------
    SegError : E-DATA-* for anything that makes the training meaningless.
    """
    dataset = discover(settings.data)
    split = choose_split(dataset, settings.labeled, settings.split, settings.seed)
    for note in (*dataset.notes, *split.notes):
        say(f"note: {printable(note)}")
    say(
        f"{len(split.labeled)} labelled, {len(split.unlabeled)} unlabelled, {len(split.val)} validation cases; checking"
    )
    checked = check_dataset(split, dataset.label_names)
    for finding in checked.findings:
        say(printable(f"{finding.severity}: {finding.code} {finding.path}: {finding.message}"))
    checked.stop_on_errors()
    training = [checked.facts[case.id] for case in (*split.labeled, *split.unlabeled) if case.id in checked.facts]
    network: Any = NETWORKS[settings.network]
    decided = plan(
        training,
        _label_names(settings, dataset.label_names),
        spacing=settings.spacing,
        window=settings.window,
        width=settings.width,
        iterations=settings.iterations,
        memory_bytes=memory_of(device),
        device="cuda" if device.type == "cuda" else "cpu",
        dims=network.dims,
        batch_labeled=_method_config(settings).labeled_batch,
        channel_names=dataset.channel_names,
    )
    spec = _spec(settings, decided)
    if settings.augmentation.get("rot90") and spec.window[0] != spec.window[1]:
        found = f"rot90 with a window of {times(spec.window)}"
        raise SegError("E-CONFIG", Exit.USAGE, "", found, "give a --window with X = Y, or leave rot90 out")
    say(decided.describe())
    return Prepared(_config(settings, decided, spec, split, checked), spec, split, decided)


def _label_names(settings: Settings, declared: dict[int, str] | None) -> dict[int, str] | None:
    """Value -> name: the user's names for the declared values (0, 1, 2, ... without a declaration)."""
    if settings.labels is None:
        return declared
    values = sorted(declared) if declared else list(range(len(settings.labels)))
    if len(values) != len(settings.labels):
        raise SegError(
            "E-CONFIG",
            Exit.USAGE,
            "",
            f"{len(settings.labels)} label names for {len(values)} values",
            "name every class, background first",
        )
    return dict(zip(values, settings.labels, strict=True))


def _spec(settings: Settings, decided: Plan) -> ModelSpec:
    return ModelSpec(
        name=settings.name or Path(settings.data[0]).resolve().name,
        labels=decided.labels,
        label_values=decided.label_values,
        channels=decided.channels,
        spacing=decided.spacing,
        normalisation=decided.normalisation,
        window=decided.window,
        stride=decided.stride,
        orientation=decided.orientation,
        dims=decided.dims,
        tiling="window" if settings.tiling == "window" else "free",
        intensity_range=decided.intensity_range,
    )


def _config(settings: Settings, decided: Plan, spec: ModelSpec, split: Split, checked: Checked) -> dict[str, Any]:
    """Everything the result depends on; two runs with the same config and machine give the same weights."""
    iterations = decided.iterations
    every = settings.validate_every if settings.validate_every is not None else max(1, iterations // 10)
    loop = LoopConfig(iterations, spec.window, settings.seed, validate_every=every)
    return {
        "version": __version__,
        "data": _data_digest(split, checked.facts),
        "split": {role: [case.id for case in getattr(split, role)] for role in ("labeled", "unlabeled", "val")},
        "spec": json.loads(spec.to_json()),
        "network": {"name": settings.network, "width": decided.width},
        "method": {
            "name": settings.method,
            "preset": settings.preset,
            "options": asdict(_method_config(settings)),
        },
        "augmentation": asdict(override(WeakAugmentation(), settings.augmentation, "augmentation")),
        "loop": asdict(override(loop, settings.loop, "loop")),
        "precision": settings.precision,
        "license": settings.license,
    }


def _method_config(settings: Settings) -> MethodConfig:
    """The method's defaults, then the preset's values, then the user's."""
    presets = PRESETS.get(settings.method, {})
    if settings.preset and settings.preset not in presets:
        known = ", ".join(presets) or "none"
        raise SegError(
            "E-CONFIG", Exit.USAGE, "", f"{settings.method} has no preset {settings.preset}", f"use one of: {known}"
        )
    network: Any = NETWORKS[settings.network]
    options = default_options(settings.method, settings.preset, network.dims) | settings.method_options
    return override(METHODS[settings.method].Config(), options, "method")


def _refuse_bad_options(settings: Settings) -> None:
    """Before the data are read: minutes of checking should not end in a misspelled option."""
    _method_config(settings)
    override(WeakAugmentation(), settings.augmentation, "augmentation")
    if fixed := {"iterations", "window", "seed", "validate_every"} & settings.loop.keys():
        found = f"[loop] {', '.join(sorted(fixed))}"
        raise SegError("E-CONFIG", Exit.USAGE, "", found, "set it at the top of the file or with its flag")
    override(LoopConfig(1, (1, 1, 1)), settings.loop, "loop")


def _data_digest(split: Split, facts: dict[str, CaseFacts]) -> str:
    """One hash over the voxels and labels of all training cases."""
    digest = hashlib.sha256()
    for case in (*split.labeled, *split.unlabeled):
        fact = facts[case.id]
        digest.update(f"{case.id}:{fact.sha256}:{fact.label_sha256};".encode())
    return digest.hexdigest()


def build_method(config: dict[str, Any]) -> Method:
    """The method with its network, as config.json describes it, freshly initialised from the run's seed."""
    spec, network = ModelSpec.from_dict(config["spec"]), config["network"]
    cls = METHODS[config["method"]["name"]]
    options = override(cls.Config(), config["method"]["options"], "method")
    torch.manual_seed(config["loop"]["seed"])
    net = build_network(network["name"], len(spec.channels), len(spec.labels), network["width"], options.dropout)
    return cls(net, options, config["loop"]["iterations"])


def trained_method(folder: Path) -> tuple[Method, dict[str, Any], dict[str, Any]]:
    """The method of a run with its newest weights, the config, and the checkpoint (for `seg-export`)."""
    config = read_config(folder)
    state, _ = load_checkpoint(folder)
    method = build_method(config)
    method.load_state_dict(state["method"])
    return method, config, state


def train(
    settings: Settings,
    *,
    resume: bool,
    say: Callable[[str], None],
    report: Callable[[int, int, dict[str, float], float], None] = lambda *_: None,
) -> dict[str, Any]:
    """Run the whole job; returns the final validation.

    Parameters
    ----------
    report : called with (step, iterations, losses, steps per second).

    Raises
    ------
    SegError : E-OUT-SAME and E-RUN-EXISTS when the folder is no place for a new run; E-RUN-NONE when there is none to
        resume; E-RUN-CONFIG when the settings or data differ from the run's; and all that preparing and training raise.
    """
    folder = Path(settings.output)
    _refuse_bad_options(settings)
    device = device_of(settings.device)
    precision = precision_of(settings.precision, device)
    _refuse_folder(folder, settings.data, resume)
    with locked(folder):
        if not resume:
            _refuse_run(folder)  # it may have begun since
        elif settings.window is None:
            # The planned window depends on the memory that was free then.
            settings = replace(settings, window=ModelSpec.from_dict(read_config(folder)["spec"]).window)
        job = prepare_job(settings, say, device)
        if resume:
            _refuse_changes(folder, job.config)
        else:
            write_json(folder / CONFIG, job.config)
            (folder / "plan.txt").write_text(job.plan.describe() + "\n")
        began = time.monotonic()
        loop = _loop(job, folder, device, precision, report)
        if resume:
            _resume(loop, folder, say)
        say(f"training on {device} in {str(precision).removeprefix('torch.')}, from step {loop.step}")
        loop.run()
        backend = ModuleBackend(loop.method.deployed(), device)
        evaluation = evaluate(backend, job.split.val, job.spec, memory_bytes=free_memory(device), keep=WORST)
        facts = {"step": loop.step, "seconds": round(time.monotonic() - began, 1)}
        result = write_evaluation(folder, evaluation, job.spec, facts)
        _draw_curves(folder, result)
        return result


def _draw_curves(folder: Path, result: dict[str, Any]) -> None:
    """The losses, and the Dice of every validation where there were some before the last."""
    log = read_log(folder / "metrics.jsonl")
    if any("dice" in entry for entry in log):
        log.append({"step": result["step"] - 1, "dice": {k: m["dice"] for k, m in result["mean"].items()}})
    if picture := learning_curves(log):
        write_picture(folder / CURVES, picture)


def refuse_data_folder(folder: Path, data: Sequence[str]) -> None:
    """E-OUT-SAME for an output among the scans, or around them."""
    run = folder.resolve()
    for source in map(Path, data):
        scans = source.resolve()
        if run == scans or scans in run.parents or run in scans.parents:
            where = "is" if run == scans else "is inside" if scans in run.parents else "contains"
            found, fix = f"{where} the data folder {source}", "choose a folder beside it"
            raise SegError("E-OUT-SAME", Exit.OUTPUT, str(folder), found, fix)


def _refuse_folder(folder: Path, data: Sequence[str], resume: bool) -> None:
    """Before anything is written: a run among the scans, over other files, or continued from nothing."""
    refuse_data_folder(folder, data)
    if not resume:
        _refuse_run(folder)
        with suppress(OSError):  # absent is fine, and `locked` tells the rest
            if any(not path.name.startswith(".") for path in folder.iterdir()):
                found, fix = "holds other files and no run", "choose an empty or a new folder"
                raise SegError("E-RUN-EXISTS", Exit.OUTPUT, str(folder), found, fix)
    elif not (folder / CONFIG).exists():
        raise SegError("E-RUN-NONE", Exit.MODEL, str(folder), "nothing to resume", "train without --resume")


def _refuse_run(folder: Path) -> None:
    if (folder / CONFIG).exists():
        fix = "continue it with --resume, or choose another folder"
        raise SegError("E-RUN-EXISTS", Exit.OUTPUT, str(folder), "a run is here already", fix)


def _resume(loop: Loop, folder: Path, say: Callable[[str], None]) -> None:
    try:
        state, note = load_checkpoint(folder)
    except SegError as error:
        if error.found == "no checkpoint here":  # killed before the first one: step 0 is the same state
            loop.restore({**loop.state(), "step": 0})
            return
        raise
    if note:
        say(f"warning: {note}")
        set_aside(folder)
    loop.restore(state)


def _loop(
    job: Prepared,
    folder: Path,
    device: torch.device,
    precision: torch.dtype,
    report: Callable[[int, int, dict[str, float], float], None],
) -> Loop:
    config = job.config
    loop_config = override(LoopConfig(1, job.spec.window), config["loop"], "loop")
    method = build_method(config)
    unlabeled: tuple[Case, ...] = job.split.unlabeled if method.config.unlabeled_batch else ()
    labeled = prepare_all(job.split.labeled, job.spec)
    # Labelled scans are unlabelled ones too: the papers draw the unlabelled half from the rest alone, so do we, unless
    # there is no rest.
    data = Data(labeled, prepare_all(unlabeled, job.spec) if unlabeled else labeled)

    def check(network: torch.nn.Module, step: int) -> dict[str, Any]:
        result = validate(network, job.split.val, job.spec, device, precision) | {"step": step}
        write_json(folder / "validation.json", result)
        return result

    return Loop(
        method,
        data,
        loop_config,
        override(WeakAugmentation(), config["augmentation"], "augmentation"),
        folder,
        device,
        precision,
        validate=check,
        report=lambda step, losses, rate: report(step, loop_config.iterations, losses, rate),
    )


def _refuse_changes(folder: Path, config: dict[str, Any]) -> None:
    """Field by field: what differs between this command and the run."""
    before, now = _flat(read_config(folder)), _flat(json.loads(json.dumps(config)))
    changed = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
    if changed:
        what = "; ".join(f"{k} was {before.get(k)}, now {now.get(k)}" for k in changed[:5])
        raise SegError(
            "E-RUN-CONFIG",
            Exit.INPUT_REFUSED,
            str(folder),
            f"this is not the run that was started: {what}",
            "give the same data and flags, or choose another folder",
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
