"""config.json: everything a run's result depends on. The same config on the same machine gives the same weights."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from seg.infer import __version__
from seg.infer.errors import Exit, SegError
from seg.infer.spec import Cost, ModelSpec

from .augment import WeakAugmentation
from .facts import CaseFacts
from .loop import LoopConfig
from .methods import METHODS, PRESETS, Method, MethodConfig, default_options
from .networks import NETWORKS, build_network
from .plan import WIDTH, Plan
from .processes import Processes
from .ranges import refuse_out_of_range
from .run import CONFIG, load_checkpoint, read_config
from .settings import Settings, override
from .split import Split
from .step import Compiled

_AT_THE_TOP = "set it at the top of the file or with its flag"
_PRECISIONS: dict[str, Literal["fp32", "bf16"]] = {"float32": "fp32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Engine:
    """How the numbers are computed; it changes them in the last digits, or in what is drawn at random."""

    device: torch.device
    precision: torch.dtype
    compiled: Compiled
    processes: Processes

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready. The device is left out: a run may go on elsewhere, which the user sees and decides."""
        return {
            "precision": str(self.precision).removeprefix("torch."),
            "compile": self.compiled,
            "processes": self.processes.size,
        }


def config_of(
    settings: Settings, decided: Plan, spec: ModelSpec, split: Split, facts: dict[str, CaseFacts], engine: Engine
) -> dict[str, Any]:
    """The content of config.json."""
    iterations = decided.iterations
    every = settings.validate_every if settings.validate_every is not None else max(1, iterations // 10)
    loop = LoopConfig(iterations, spec.window, settings.seed, validate_every=every)
    return {
        "version": __version__,
        "data": _data_digest(split, facts),
        "split": {role: [case.id for case in getattr(split, role)] for role in ("labeled", "unlabeled", "val")},
        "scans": {case.id: facts[case.id].sha256 for case in (*split.labeled, *split.unlabeled)},
        "spec": json.loads(spec.to_json()),
        "network": {"name": settings.network, "width": decided.width},
        "method": {
            "name": settings.method,
            "preset": settings.preset,
            "options": asdict(method_config(settings)),
        },
        "augmentation": asdict(override(WeakAugmentation(), settings.augmentation, "augmentation")),
        "loop": asdict(override(loop, settings.loop, "loop")),
        "engine": engine.as_dict(),
        "license": settings.license,
    }


def label_names(settings: Settings, declared: dict[int, str] | None) -> dict[int, str] | None:
    """Value -> name: the user's names for the declared values, or for those that the labels have."""
    if settings.labels is None:
        return declared
    values = sorted(declared or {0})
    if len(values) != len(settings.labels):
        found = f"{len(settings.labels)} label names for the values {', '.join(map(str, values))}"
        raise SegError("E-CONFIG", Exit.USAGE, "", found, "name every class, background first")
    return dict(zip(values, settings.labels, strict=True))


def refuse_names(labels: Sequence[str]) -> None:
    """Raise SegError, E-CONFIG, for names of classes that a result could not keep apart."""
    fix = "give each class a name of its own, in dataset.json or with labels in the --config file"
    if twice := sorted({name for name in labels if labels.count(name) > 1}):
        raise SegError("E-CONFIG", Exit.USAGE, "", f"two classes named {twice[0]!r}", fix)
    if "foreground" in labels and len(labels) > 2:
        found = 'a class named "foreground" beside others, which is the name of their mean'
        raise SegError("E-CONFIG", Exit.USAGE, "", found, fix)


def spec_of(settings: Settings, decided: Plan) -> ModelSpec:
    """The network's contract, from the plan and the user's choices."""
    network: Any = NETWORKS[settings.network]
    wider = max(1.0, decided.width / WIDTH)  # than what the default cost is of; an export measures its own
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
        tiling=settings.tiling or network.tiling,
        intensity_range=decided.intensity_range,
        cost=Cost(Cost.macs * wider**2, Cost.bytes * wider),
    )


def method_config(settings: Settings) -> MethodConfig:
    """The method's defaults, then the preset's values, then the user's."""
    presets = PRESETS.get(settings.method, {})
    if settings.preset and settings.preset not in presets:
        fix = f"use one of: {', '.join(presets)}" if presets else "leave it out"
        raise SegError("E-CONFIG", Exit.USAGE, "", f"{settings.method} has no preset {settings.preset}", fix)
    if strayed := sorted(settings.method_options.keys() & {f.name for f in fields(Settings)}):
        raise SegError("E-CONFIG", Exit.USAGE, "", f"{settings.method} has no {strayed[0]}", _AT_THE_TOP)
    network: Any = NETWORKS[settings.network]
    for table, of in (("augmentation", WeakAugmentation), ("loop", LoopConfig)):
        if strayed := sorted(settings.method_options.keys() & {f.name for f in fields(of)}):
            found, fix = f"{settings.method} has no {strayed[0]}", f"that is {table}.{strayed[0]}"
            raise SegError("E-CONFIG", Exit.USAGE, "", found, f"{fix}, or in [{table}] of a file")
    options = default_options(settings.method, settings.preset, network.dims) | settings.method_options
    return override(METHODS[settings.method].Config(), options, "method")


def as_begun(settings: Settings, folder: Path) -> Settings:
    """What the command leaves open as the run has it: a plan depends on the machine, a run may go on on another one."""
    if not (folder / CONFIG).exists():
        return settings  # refused when the folder is looked at
    run = read_config(folder)
    return replace(
        settings,
        window=settings.window or ModelSpec.from_dict(run["spec"]).window,
        width=settings.width or run["network"]["width"],
        precision=_PRECISIONS[run["engine"]["precision"]] if settings.precision == "auto" else settings.precision,
    )


def own_part(options: MethodConfig, processes: Processes) -> MethodConfig:
    """The method's settings with this process's part of every batch. Raises SegError, E-CONFIG, for an odd one."""
    shares: dict[str, Any] = {**processes.portions(options.shared())}
    options.check(processes.size)
    return replace(options, **shares)


def refuse_bad_options(settings: Settings, processes: Processes) -> None:
    """Before the data are read: minutes of checking should not end in a misspelled option."""
    options = method_config(settings)
    refuse_out_of_range(options, "method")
    own_part(options, processes)
    refuse_out_of_range(override(WeakAugmentation(), settings.augmentation, "augmentation"), "augmentation")
    if fixed := {"iterations", "window", "seed", "validate_every"} & settings.loop.keys():
        found = f"[loop] {', '.join(sorted(fixed))}"
        raise SegError("E-CONFIG", Exit.USAGE, "", found, _AT_THE_TOP)
    refuse_out_of_range(override(LoopConfig(1, (1, 1, 1)), settings.loop, "loop"), "loop")


def _data_digest(split: Split, facts: dict[str, CaseFacts]) -> str:
    """One hash over the voxels and labels of all training cases."""
    digest = hashlib.sha256()
    for case in (*split.labeled, *split.unlabeled):
        fact = facts[case.id]
        digest.update(f"{case.id}:{fact.sha256}:{fact.label_sha256};".encode(errors="surrogateescape"))
    return digest.hexdigest()


def build_method(config: dict[str, Any], processes: Processes | None = None) -> Method:
    """The method with its network, as config.json describes it, freshly initialised from the run's seed.

    Parameters
    ----------
    processes : the method gets this process's part of every batch.
    """
    spec, network = ModelSpec.from_dict(config["spec"]), config["network"]
    cls = METHODS[config["method"]["name"]]
    options = override(cls.Config(), config["method"]["options"], "method")
    if processes is not None:
        options = own_part(options, processes)
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


def refuse_changes(folder: Path, config: dict[str, Any]) -> None:
    """Field by field: what differs between this command and the run. Of the scans, "data" says whether they do."""
    before, now = (_flat({**tree, "scans": {}}) for tree in (read_config(folder), json.loads(json.dumps(config))))
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
