"""The scans behind an int8 export: those whose activations set the ranges, and those that tell what rounding costs.

What the run validated on is never calibrated on. The choice depends on the names of the scans alone, so that the same
folder gives the same file. What this does not know: whether the scans are typical. Twelve from one scanner
calibrate for that scanner.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seg.infer.errors import SegError
from seg.infer.preprocess import forward
from seg.infer.spec import ModelSpec
from seg.infer.volume import Shape3
from seg.train.cases import SUFFIXES, Case, discover, refusal
from seg.train.patients import patient_of
from seg.train.prepare import load_volume
from seg.train.split import load_split

TILE_VOXELS = 2_000_000  # network voxels of a scan that calibration runs at once: every activation is held


def cases_in(folder: str) -> list[Case]:
    """The scans of a data folder in any layout that `seg-train` reads, or of a folder of single NIfTI files.

    Raises
    ------
    SegError : E-DATA-* when there is none.
    """
    try:
        return list(discover([folder]).cases)
    except SegError as error:
        if error.code != "E-DATA-LAYOUT":
            raise
        files = {p.name.removesuffix(s): str(p) for s in SUFFIXES for p in Path(folder).glob(f"*{s}")}
        if not files:
            raise
        return [Case(name, (path,), None, patient_of(name), folder) for name, path in sorted(files.items())]


def calibration_cases(folder: str, count: int, validation: Collection[str]) -> list[Case]:
    """`count` scans, evenly spaced over the sorted names, none of them in `validation`.

    Raises
    ------
    SegError : E-DATA-CALIBRATION when nothing is left.
    """
    cases = [case for case in cases_in(folder) if case.id not in validation]
    if not cases:
        found = "no scan besides those that the run validated on"
        raise refusal("CALIBRATION", folder, found, "give a folder with other scans, such as the training folder")
    count = min(count, len(cases))
    return [cases[number * len(cases) // count] for number in range(count)]


def validation_ids(folder: str) -> set[str]:
    """The scans that the folder's own splits.json keeps for validation, by case or by patient; none without one.

    Raises
    ------
    SegError : E-DATA-SPLIT when it cannot be read.
    """
    path = os.path.join(folder, "splits.json")
    kept = set(load_split(path).get("val", [])) if os.path.isfile(path) else set()
    return {case.id for case in cases_in(folder) if case.id in kept or case.patient in kept}


def verification_cases(folder: str, validation: Collection[str]) -> list[Case]:
    """The scans to verify on: labelled ones if there are any, and the run's own validation scans if they are there."""
    cases = cases_in(folder)
    labelled = [case for case in cases if case.label is not None] or cases
    return [case for case in labelled if case.id in validation] or labelled


def network_inputs(cases: Sequence[Case], spec: ModelSpec, most_voxels: int | None = None) -> list[NDArray[np.float32]]:
    """What the network sees of each scan: (1, C, X, Y, Z) float32, preprocessed and padded.

    Of scans with more than `most_voxels` (default: `TILE_VOXELS`) it is the centre.

    Raises
    ------
    SegError : E-DATA-CALIBRATION when a scan has other channels than the model.
    """
    inputs = []
    for case in cases:
        try:
            x, grids = forward(load_volume(case, len(spec.channels)), spec)
        except ValueError as error:
            raise refusal(
                "CALIBRATION", case.images[0], str(error), "give scans of the kind that the model takes"
            ) from None
        tile = _tile(grids.network, spec, most_voxels or TILE_VOXELS)
        for axis, (extent, wanted) in enumerate(zip(grids.network, tile, strict=True), start=1):
            before = (wanted - extent) // 2
            if before < 0:
                x = x.take(range(-before, wanted - before), axis=axis)
            else:
                x = np.pad(x, [(before, wanted - extent - before) if a == axis else (0, 0) for a in range(4)])
        inputs.append(np.ascontiguousarray(x[np.newaxis]))
    return inputs


def _tile(shape: Shape3, spec: ModelSpec, most_voxels: int) -> Shape3:
    """The whole padded grid; the training window where the model needs it; else the longest axis cut until it fits."""
    if spec.tiling == "window":
        return spec.window
    tile = [-(-extent // step) * step for extent, step in zip(shape, spec.stride, strict=True)]
    while np.prod(tile) > most_voxels:
        axis = int(np.argmax(tile))
        if tile[axis] == spec.stride[axis]:
            break
        tile[axis] -= spec.stride[axis]
    x, y, z = tile
    return x, y, z
