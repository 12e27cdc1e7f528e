"""From the facts of the training cases to the numbers a training needs: grid, window, intensities, classes, batch.

Deterministic arithmetic on `CaseFacts`; it opens no file and knows of the device its kind and its memory in bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from seg.infer.errors import Exit
from seg.infer.spec import Normalisation

from .cases import refusal
from .facts import CaseFacts
from .grid import Grid, across_last, median_shape, network_grid, slice_orientation
from .intensities import fixed_normalisation, guess_modality, intensity_range
from .window import (
    CPU_WIDTH,
    CPU_WINDOW,
    MAX_WINDOW_VOXELS,
    Shape3,
    cpu_notes,
    fit_window,
    judge_window,
    times,
    voxel_budget,
)

STRIDE = 16  # four halvings in the network
WIDTH = 16  # channels at full resolution
ITERATIONS = 6000  # UA-MT and its successors train the left atrium for as long
BATCH_LABELED = 4


@dataclass(frozen=True)
class Plan:
    """What will be trained.

    Attributes
    ----------
    dims : 2 (slices) or 3.
    orientation : as in `ModelSpec`.
    modality : "CT" or "MR", guessed from the intensities.
    spacing : mm along the axes of the network's grid; None keeps the scan's own (in 2D: across the slices, and
        everywhere if sizes are not known).
    median_shape : voxels of the median training case on that grid.
    normalisation, window, stride, intensity_range : as in `ModelSpec`.
    labels, label_values : class names and mask values, background first.
    channels : names, in order.
    width : channels of the network at full resolution.
    iterations, batch_labeled : defaults of the training loop.
    cases : number of cases the plan rests on.
    notes : doubts, one line each.
    """

    dims: Literal[2, 3]
    orientation: Literal["RAS", "slices"]
    modality: Literal["CT", "MR"]
    spacing: Grid
    median_shape: Shape3
    normalisation: Normalisation
    window: Shape3
    stride: Shape3
    labels: tuple[str, ...]
    label_values: tuple[int, ...]
    channels: tuple[str, ...]
    intensity_range: tuple[float, float]
    width: int
    iterations: int
    batch_labeled: int
    cases: int
    notes: tuple[str, ...] = ()

    @property
    def _axes(self) -> str:
        return "R x A x S" if self.orientation == "RAS" else "slices as stored"

    def describe(self) -> str:
        """The plan as text for a terminal."""
        norm = self.normalisation
        rule = "each scan to mean 0 and standard deviation 1"
        if norm.kind == "fixed":
            rule = f"clip to [{norm.lower:g}, {norm.upper:g}], then (v - {norm.mean:g}) / {norm.std:g}"
        classes = ", ".join(f"{v} {n}" for v, n in zip(self.label_values, self.labels, strict=True))
        rows = [
            ("cases", str(self.cases)),
            ("modality", f"{self.modality} (guessed), channels {', '.join(self.channels)}"),
            ("classes", classes),
            ("grid", f"{' x '.join('own' if s is None else f'{s:g}' for s in self.spacing)} mm ({self._axes})"),
            ("median shape", f"{times(self.median_shape)} voxels on that grid"),
            ("window", f"{times(self.window)} voxels, {self.dims}D"),
            ("intensities", f"{rule}; seen {self.intensity_range[0]:g} to {self.intensity_range[1]:g}"),
            ("network", f"width {self.width}, extents a multiple of {times(self.stride)}"),
            ("training", f"{self.iterations} iterations, {self.batch_labeled} labelled windows each"),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join(f"{name:<13} {text}" for name, text in rows)


def plan(
    facts: Sequence[CaseFacts],
    label_names: Mapping[int, str] | None,
    *,
    spacing: Grid | None = None,
    window: Shape3 | None = None,
    width: int | None = None,
    iterations: int | None = None,
    memory_bytes: int,
    device: Literal["cpu", "cuda"] = "cuda",
    dims: Literal[2, 3] = 3,
    batch_labeled: int = BATCH_LABELED,
    crops: float | None = None,
    channel_names: Sequence[str] | None = None,
) -> Plan:
    """Decide everything that the user did not.

    Parameters
    ----------
    facts : of the training cases, labelled and unlabelled; validation cases must not shape the plan.
    label_names : value -> name; other values found in labels are called ``class N``.
    spacing, window, width : the user's choice in mm, voxels and channels, or None.
    iterations : the user's choice, or None.
    memory_bytes, device : of the device that trains; on a CPU the plan is small enough to be of use, and says its cost.
    dims, batch_labeled : of the network and the method.
    crops : see `MethodConfig.crops`; the labelled windows by default.

    Raises
    ------
    SegError
        E-DATA-PLAN: an impossible window, spacing or width, too little memory, no class, other channels than declared.
    """
    facts = sorted(facts, key=lambda fact: fact.id)
    values = sorted({0, *(label_names or ()), *(value for fact in facts for value in fact.class_voxels)})
    _judge_choices(facts, values, spacing, width, channel_names, dims)
    orientation = "RAS" if dims == 3 else slice_orientation(facts)
    facts = facts if orientation == "RAS" else [across_last(fact) for fact in facts]
    grid, grid_notes = network_grid(facts, spacing, orientation, dims)
    shape = median_shape(facts, grid)
    stride = (STRIDE, STRIDE, STRIDE if dims == 3 else 1)
    slow = device == "cpu"
    width = width or (CPU_WIDTH[dims] if slow else WIDTH)
    iterations = iterations or ITERATIONS
    budget = min(MAX_WINDOW_VOXELS, voxel_budget(memory_bytes, width))
    if window is None:
        window = _largest_window(facts, grid, shape, stride, min(budget, prod(CPU_WINDOW[dims])) if slow else budget)
    modality, doubts = guess_modality(facts)
    notes = [*grid_notes, *judge_window(window, stride, budget), *doubts]
    notes += cpu_notes(window, width, crops or batch_labeled, iterations) if slow else []
    names = {0: "background", **(label_names or {})}
    number = len(facts[0].channels)
    numbered = [modality] if number == 1 else [f"{modality} {n}" for n in range(number)]
    return Plan(
        dims=dims,
        orientation=orientation,
        modality=modality,
        spacing=grid,
        median_shape=shape,
        normalisation=fixed_normalisation(facts) if modality == "CT" else Normalisation("zscore"),
        window=window,
        stride=stride,
        labels=tuple(names.get(value, f"class {value}") for value in values),
        label_values=tuple(values),
        channels=tuple(channel_names or numbered),
        intensity_range=intensity_range(facts),
        width=width,
        iterations=iterations,
        batch_labeled=batch_labeled,
        cases=len(facts),
        notes=tuple(notes),
    )


def _largest_window(
    facts: Sequence[CaseFacts], grid: Sequence[float | None], shape: Shape3, stride: Shape3, budget: int
) -> Shape3:
    """As much of the median case as the budget allows; one slice where the stride along z is 1."""
    edges = [to or float(np.median([f.spacing[axis] for f in facts])) for axis, to in enumerate(grid)]
    return fit_window((*shape[:2], shape[2] if stride[2] > 1 else 1), edges, stride, budget)


def _judge_choices(
    facts: Sequence[CaseFacts],
    values: Sequence[int],
    spacing: Sequence[float | None] | None,
    width: int | None,
    channel_names: Sequence[str] | None,
    dims: int,
) -> None:
    if dims == 3 and (flat := next((fact for fact in facts if min(fact.shape) == 1), None)):
        found = f"{flat.id} is a single slice, {times(flat.shape)} voxels"
        raise refusal("PLAN", "", found, "use --network unet2d, which takes slices", "volumes")
    if not facts or len(values) < 2:
        raise refusal("PLAN", "", "no class besides the background", "give at least one labelled case")
    number = len(facts[0].channels)
    if channel_names and len(channel_names) != number:
        found = f"{number} channels in {facts[0].id}"
        raise refusal("PLAN", "", found, "correct dataset.json", f"those of dataset.json: {', '.join(channel_names)}")
    if spacing is not None and any(s is not None and not s > 0 for s in spacing):
        raise refusal("PLAN", "", f"spacing {spacing}", "give positive mm", exit=Exit.USAGE)
    if width is not None and width < 1:
        raise refusal("PLAN", "", f"width {width}", "give a positive number of channels", exit=Exit.USAGE)
