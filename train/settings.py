"""What the user asked for: command-line flags over a TOML file over defaults; None leaves it to the plan."""

import tomllib
from dataclasses import dataclass, field, fields, replace
from typing import Any

from seg.infer.errors import Exit, SegError


@dataclass(frozen=True)
class Settings:
    """Everything `seg-train` takes. A TOML file has the same names, and tables [method], [augmentation], [loop].

    Attributes
    ----------
    data : folders of cases, united.
    labeled, split : which cases are labelled (see `cases.choose_split`).
    preset : a named set of the method's values (crossmatch: paper, official, fast).
    spacing : mm along R, A, S. window : voxels.
    labels : names of the classes in the order of their values, background first, where dataset.json does not tell.
    tiling : "free", or "window" for networks that must not see tiles larger than in training.
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
    precision: str = "auto"
    seed: int = 0
    validate_every: int | None = None
    labels: tuple[str, ...] | None = None
    tiling: str = "free"
    license: str | None = None
    method_options: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    loop: dict[str, Any] = field(default_factory=dict)

    def with_file(self, path: str, given: set[str]) -> "Settings":
        """The same settings with the values of a TOML file, except for those `given` on the command line.

        Raises
        ------
        SegError : E-CONFIG when the file cannot be read or has unknown names.
        """
        try:
            with open(path, "rb") as file:
                raw = tomllib.load(file)
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise SegError(
                "E-CONFIG", Exit.USAGE, path, f"cannot be read ({error})", "give a TOML file; README shows one"
            ) from error
        values = {"method_options" if isinstance(v, dict) and k == "method" else k: v for k, v in raw.items()}
        allowed = {f.name for f in fields(self)} - {"data", "output"}
        if unknown := sorted(set(values) - allowed):
            raise SegError(
                "E-CONFIG", Exit.USAGE, path, f"unknown names {', '.join(unknown)}", f"use {', '.join(sorted(allowed))}"
            )
        tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return replace(self, **{k: v for k, v in tuples.items() if k not in given})


def override(defaults: Any, values: dict[str, Any], where: str) -> Any:
    """A frozen dataclass with some fields replaced; lists become tuples.

    Raises
    ------
    SegError : E-CONFIG when a name does not exist.
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
    return replace(defaults, **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
