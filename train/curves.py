"""The learning curves of a run: metrics.jsonl as a picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .chart import Panel, Series, chart

if TYPE_CHECKING:
    from PIL import Image

POINTS = 150  # of a loss curve; more are averaged in groups, since the loss of one batch is mostly noise


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; one that a kill cut off ends it. Empty when there is no file."""
    entries: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:
                break
    return entries


def learning_curves(log: Sequence[Mapping[str, Any]]) -> "Image.Image | None":
    """Every loss term, and below it the validation Dice where the run has validated; None when nothing was logged.

    Parameters
    ----------
    log : entries {"step", "lr", name of a loss: value, ...} and {"step", "dice": {label: value}}.
    """
    losses = [entry for entry in log if "lr" in entry]
    checks = [entry for entry in log if "dice" in entry]
    reach = (0, max((entry["step"] + 1 for entry in log), default=0))
    panels = []
    if losses:
        names = [name for name in losses[-1] if name not in ("step", "lr")]
        lines = [_smooth(losses, name) for name in names]
        panels.append(Panel("Loss, each term with its weight", "step", lines, reach=reach))
    if checks:
        steps = [entry["step"] + 1 for entry in checks]
        labels = list(checks[-1]["dice"])
        if len(labels) == 2:
            labels.remove("foreground")  # the mean of one class
        lines = [Series(label, steps, [entry["dice"][label] for entry in checks]) for label in labels]
        panels.append(Panel("Dice of the validation cases", "step", lines, reach=reach))
    return chart(panels) if panels else None


def _smooth(entries: Sequence[Mapping[str, Any]], name: str) -> Series:
    """One loss term, averaged over groups of entries."""
    size = -(-len(entries) // POINTS)
    groups = [entries[start : start + size] for start in range(0, len(entries), size)]
    steps = [sum(entry["step"] + 1 for entry in group) / len(group) for group in groups]
    values = [sum(entry.get(name, 0.0) for entry in group) / len(group) for group in groups]
    return Series(name, steps, values)
