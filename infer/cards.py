"""Model cards as text, for `seg-infer --models`."""

import os
from typing import Any

from .artifact import DEFAULT_MODEL, load, shipped_forms, shipped_models
from .compute import stored_precision
from .spec import ModelSpec


def model_table() -> str:
    """The shipped models, one paragraph each."""
    return "\n\n".join(_model(shipped_forms(name)) for name in shipped_models())


def _model(forms: list[str]) -> str:
    """The card of the fp32 form, and a line for each other one."""
    lines = [card_text(load(forms[0]).spec)]
    for path in forms[1:]:
        spec = load(path).spec
        dice = spec.card.get("quantisation", {}).get("dice_int8", {})
        text = f"{os.path.getsize(path) / 1e6:.1f} MB, the default on CPUs"
        text += "".join(f", {label} Dice {value:.3f}" for label, value in dice.items())
        lines.append(f"  {stored_precision(spec):<16} {text}")
    return "\n".join(lines)


def card_text(spec: ModelSpec) -> str:
    """What a user should know of a model, from its own metadata."""
    card: dict[str, Any] = spec.card
    training, validation = card.get("training", {}), card.get("validation", {})
    mean, unit = validation.get("mean", {}), validation.get("unit", "mm")
    rows = [
        ("classes", ", ".join(f"{v} {n}" for v, n in zip(spec.label_values, spec.labels, strict=True))),
        ("input", f"{', '.join(spec.channels)}; {_grid(spec)}"),
        ("masks", "the largest part of each class alone" if spec.largest_component else None),
        ("data", card.get("data")),
        ("licence", card.get("license")),
        ("training", _training(training) if training else None),
        *((f"{label}", _figures(m, unit)) for label, m in mean.items()),
        ("limits", card.get("limits")),
        ("note", card.get("notice")),
    ]
    title = spec.name + (" (default)" if spec.name == DEFAULT_MODEL else "")
    return "\n".join([title, *(f"  {name:<16} {text}" for name, text in rows if text)])


def _grid(spec: ModelSpec) -> str:
    slices = "slices as they are stored" if spec.orientation == "slices" else "axial slices" if spec.dims == 2 else ""
    spacing = " x ".join("own" if s is None else f"{s:g}" for s in spec.spacing)
    grid = f"network grid {spacing} mm" if any(spec.spacing) else "on the scan's own grid"
    return f"{slices}, {grid}" if slices else grid


def _training(training: dict[str, Any]) -> str:
    return (
        f"{training.get('method')}, {training.get('network')} width {training.get('width')}, "
        f"{training.get('labeled')} labelled and {training.get('unlabeled')} unlabelled scans, "
        f"{training.get('iterations')} iterations"
    )


def _figures(mean: dict[str, float], unit: str) -> str:
    return (
        f"Dice {mean['dice']:.3f}, Jaccard {mean['jaccard']:.3f}, "
        f"95HD {mean['hd95']:.2f} {unit}, ASD {mean['asd']:.2f} {unit}"
    )
