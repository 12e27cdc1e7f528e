"""What the user asked for: command-line flags over a TOML file over defaults; None leaves it to the plan."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from seg.infer.errors import Exit, SegError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Settings:
    """Everything `seg-train` takes. A TOML file has the same names, and tables [method], [augmentation], [loop].

    [method] may hold the method's `name` and `preset` beside its settings.

    Attributes
    ----------
    data : folders of cases, united.
    labeled, split : which cases are labelled (see `cases.choose_split`).
    preset : a named set of the method's values (crossmatch: paper, official, fast); or method = "crossmatch:paper".
    compile : through torch.compile; "graphs": on a GPU as CUDA graphs, too.
    spacing : mm along R, A, S. window : voxels.
    labels : names of the classes in the order of their values, background first, where dataset.json does not tell.
    tiling : "free", or "window" for networks that must not see tiles larger than in training; None: the network's.
    distill : the teacher, a run or an artifact; makes the method "distill".
    cine : of ACDC, all frames of the 4-D cines without a label are unlabelled cases.
    license : under which the weights may be used, for the model card.
    validate_every : steps between validations; 0 validates at the end alone, None plans it.
    method_options, augmentation, loop : overrides of `Method.Config`, `WeakAugmentation`, `LoopConfig` by field name.
    """

    data: tuple[str, ...]
    output: str
    name: str | None = None
    method: str = "supervised"
    preset: str | None = None
    network: str = "vnet"
    labeled: int | None = None
    split: str | None = None
    iterations: int | None = None
    spacing: tuple[float, float, float] | None = None
    window: tuple[int, int, int] | None = None
    width: int | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0
    validate_every: int | None = None
    compile: bool | Literal["graphs"] = False
    labels: tuple[str, ...] | None = None
    tiling: Literal["free", "window"] | None = None
    distill: str | None = None
    cine: bool = False
    license: str | None = None
    method_options: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    loop: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name, colon, preset = self.method.partition(":")
        if colon:
            if self.preset not in (None, preset):
                found = f"presets {preset} and {self.preset}"
                raise SegError("E-CONFIG", Exit.USAGE, "", found, "give one of them")
            object.__setattr__(self, "method", name)
            object.__setattr__(self, "preset", preset)
        if self.distill is not None and self.method == "supervised":  # the default
            object.__setattr__(self, "method", "distill")

    def with_file(self, path: str, given: set[str]) -> "Settings":
        """The same settings with the values of a TOML file, except for those `given` on the command line.

        Raises
        ------
        SegError : E-CONFIG when the file cannot be read or has unknown names.
        """
        try:
            with open(path, "rb") as file:
                raw = tomllib.load(file)
        except (OSError, ValueError) as error:  # TOML's own error and that of another encoding among them
            raise SegError(
                "E-CONFIG",
                Exit.USAGE,
                path,
                f"cannot be read ({error})",
                "give a TOML file such as those in benchmarks/recipes",
            ) from error
        values = dict(raw)
        if isinstance(table := raw.get("method"), dict):
            del values["method"]
            values |= {top: table[name] for name, top in _IN_METHOD.items() if name in table}
            values["method_options"] = {k: v for k, v in table.items() if k not in _IN_METHOD}
        allowed = {f.name for f in fields(self)} - {"data", "output"}
        if unknown := sorted(set(values) - allowed):
            raise SegError(
                "E-CONFIG", Exit.USAGE, path, f"unknown names {', '.join(unknown)}", f"use {', '.join(sorted(allowed))}"
            )
        return override(self, {k: v for k, v in values.items() if k not in given}, path)

    def with_options(self, words: Sequence[str]) -> "Settings":
        """The same settings with NAME=VALUE of the method, TABLE.NAME=VALUE of [augmentation] or [loop].

        Values are TOML, or else text: ``eta=0.1``, ``rounds=[0.5, 0.8]``, ``distance=dice``.

        Raises
        ------
        SegError : E-CONFIG for a word that is no such pair; names are checked where the tables are used.
        """
        method, augmentation, loop = (dict(table) for table in (self.method_options, self.augmentation, self.loop))
        tables = {"": method, "augmentation": augmentation, "loop": loop}
        for word in words:
            name, equals, text = word.partition("=")
            table, _, key = name.strip().rpartition(".")
            if not (equals and key and table in tables):
                fix = "write NAME=VALUE for the method, augmentation.NAME=VALUE or loop.NAME=VALUE"
                raise SegError("E-CONFIG", Exit.USAGE, "", f"--set {word}", fix)
            tables[table][key] = _toml_value(text)
        return replace(self, method_options=method, augmentation=augmentation, loop=loop)

    def checked(self) -> "Settings":
        """The same settings. Raises SegError, E-CONFIG, when a value has the wrong type or is out of range."""
        override(self, {f.name: getattr(self, f.name) for f in fields(self)}, "flags")
        for name, least in (("iterations", 1), ("width", 1), ("seed", 0), ("validate_every", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value < 1 << 63:
                raise SegError("E-CONFIG", Exit.USAGE, "", f"{name} {value}", "correct the value", f"at least {least}")
        if (self.method == "distill") != (self.distill is not None):
            found = f"method {self.method} {'without' if self.distill is None else 'with'} a teacher"
            raise SegError("E-CONFIG", Exit.USAGE, "", found, "give --distill TEACHER, and no other --method")
        return self


_IN_METHOD = {"name": "method", "preset": "preset"}  # [method] entries that are settings of their own


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


S = TypeVar("S", bound="DataclassInstance")


def override(defaults: S, values: dict[str, Any], where: str) -> S:
    """A frozen dataclass with some fields replaced; lists become tuples.

    Raises
    ------
    SegError : E-CONFIG when a name does not exist or a value does not fit it.
    """
    allowed = {f.name for f in fields(defaults)}
    if unknown := sorted(set(values) - allowed):
        raise SegError(
            "E-CONFIG",
            Exit.USAGE,
            "",
            f"unknown names in [{where}]: {', '.join(unknown)}",
            f"use {', '.join(sorted(allowed))}",
        )
    hints = get_type_hints(type(defaults))
    changes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for name, value in changes.items():
        if not _fits(value, hints[name]):
            found, kind = f"[{where}] {name} is {value!r}", _described(hints[name])
            raise SegError("E-CONFIG", Exit.USAGE, "", found, "correct the value", kind)
    return replace(defaults, **changes)


def _described(hint: Any) -> str:
    """The annotation in words: int | None, or "one of auto, fp32, bf16"."""
    args = [arg for arg in get_args(hint) if arg is not type(None)]
    if get_origin(hint) in (UnionType, Union) and len(args) == 1 and get_origin(args[0]) is Literal:
        return _described(args[0])
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _fits(value: object, hint: Any) -> bool:
    """Whether a value read from TOML or a flag has the annotated type: scalars, Literal, tuple, dict and unions."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (UnionType, Union):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if isinstance(value, bool):  # is an int to isinstance
        return hint is bool
    if origin is tuple and isinstance(value, tuple):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    return isinstance(value, (int, float) if hint is float else origin or hint)
