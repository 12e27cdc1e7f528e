"""One case is read once: what is wrong with its files, or what a planner needs to know of it.

Of a scan only numbers are kept (`CaseFacts`). A caller may store them as JSON and hand them back to spare the reading.
"""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg.infer import nifti
from seg.infer.errors import SegError
from seg.infer.nifti_geometry import corner_shift
from seg.infer.volume import Reorientation, Volume

from .cases import Case, refusal

GRID_TOLERANCE = 0.1  # voxels, at any corner
WHOLE = 1e-5  # a label value this near an integer is one: float32 slopes are that inexact
SAMPLE = 1 << 20  # voxels; quantiles of larger scans are taken on a regular sample
QUANTILES = tuple((i + 0.5) / 100 for i in range(100))  # the outermost are the 0.5 and 99.5 percentile
THUMB = 8  # blocks per axis of the thumbnail
REPAIR = "repair these files or leave them out"


@dataclass(frozen=True)
class Intensity:
    """One channel of one scan, in the scan's own unit.

    Attributes
    ----------
    low, median, high : 0.5, 50 and 99.5 percentile.
    integral : all values are integers, as Hounsfield units are.
    foreground : `QUANTILES` of the voxels with a label above 0; empty without such voxels. `foreground_mean` and
        `foreground_std` belong to them.
    """

    minimum: float
    low: float
    median: float
    high: float
    mean: float
    std: float
    integral: bool
    foreground: tuple[float, ...] = ()
    foreground_mean: float = 0.0
    foreground_std: float = 0.0


@dataclass(frozen=True)
class CaseFacts:
    """What is known of a readable case.

    Attributes
    ----------
    id : of the case.
    shape, spacing : voxels and mm along R, A, S.
    channels : one per channel.
    class_voxels : label value -> number of voxels; empty without a label.
    sha256 : of the float32 intensities in RAS order: equal for recompressed, retyped and reoriented copies.
    thumbnail : base64 int16, THUMB^3 block means of the first channel, for copies that are only nearly equal.
    label_sha256 : of the label values in RAS order, "" without a label.
    size_known : whether the voxel sizes of all channels mean something (see `NiftiHeader`).
    signature : (path, bytes, modification time in ns) of each file read; the facts hold while it does.
    """

    id: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    channels: tuple[Intensity, ...]
    class_voxels: dict[int, int]
    sha256: str
    label_sha256: str
    thumbnail: str
    signature: tuple[tuple[str, int, int], ...]
    size_known: bool = True


def read_facts(case: Case, channels: int) -> tuple[CaseFacts | None, list[SegError]]:
    """Read all files of one case: its facts, or everything that is wrong with it.

    Parameters
    ----------
    channels : that a single file holds; of several files each holds one.
    """
    signature = signature_of(case)
    faults: list[SegError] = []
    volumes: list[Volume] = []
    size_known = True
    for path in [*case.images, *([case.label] if case.label else [])]:
        wanted = channels if len(case.images) == 1 and path != case.label else 1
        try:
            frame = case.frame if path != case.label else None
            scan = nifti.read(path, nonfinite="refuse", channels=wanted, volume=frame)
            volumes.append(scan.volume)
            size_known = size_known and (path == case.label or scan.header.size_known)
        except SegError as error:
            faults.append(_of_channels(error) if error.code == "E-NII-4D" else error)
    if faults or signature is None:
        return None, faults
    first = volumes[0]
    label = volumes.pop() if case.label else None
    for path, volume in zip(case.images[1:], volumes[1:], strict=True):
        faults += _same_grid(path, volume, first, "the first channel")
    counts: dict[int, int] = {}
    if label is not None and case.label:
        faults += _same_grid(case.label, label, first, "its image")
        counts, odd = _class_voxels(case.label, label)
        faults += odd
    if faults:
        return None, faults
    return replace(_facts(case.id, volumes, label, counts, signature), size_known=size_known), []


def _of_channels(error: SegError) -> SegError:
    """How a data set says what the volumes of a 4-D file are: the engine's own hint is a flag of seg-infer."""
    found = f"{error.found}; if these are channels, name them in dataset.json (channel_names)"
    return SegError(error.code, error.exit, error.path, found, error.fix, error.expected)


def signature_of(case: Case) -> tuple[tuple[str, int, int], ...] | None:
    """What `CaseFacts.signature` would be now; None when a file cannot be found."""
    paths = [*case.images, *([case.label] if case.label else [])]
    try:
        return tuple((p, os.stat(p).st_size, os.stat(p).st_mtime_ns) for p in paths)
    except OSError:
        return None  # reading will say what is wrong


def _same_grid(path: str, volume: Volume, other: Volume, name: str) -> list[SegError]:
    """Shape and placement of a file against the case's first image, in stored axis order."""
    if volume.shape != other.shape:
        return [_fault("SHAPE", path, f"shape {volume.shape}, {name} has {other.shape}")]
    worst = corner_shift(other.affine, volume.affine, volume.shape)
    if worst > GRID_TOLERANCE:
        return [_fault("AFFINE", path, f"placed {worst:.2f} voxels away from {name} (limit {GRID_TOLERANCE})")]
    return []


def _class_voxels(path: str, label: Volume) -> tuple[dict[int, int], list[SegError]]:
    """Voxels per label value, and what is wrong with the values in themselves."""
    stored = label.voxels
    if stored.dtype.kind == "f" and np.array_equal(whole := np.rint(stored), stored) and np.abs(whole).max() < 2**31:
        stored = whole.astype(np.int64)
    low = stored.min()
    if stored.dtype.kind in "iu" and int(stored.max()) - int(low) < 1 << 16:
        bins = np.bincount(stored.ravel(order="K").astype(np.int64) - int(low))
        values, counts = np.flatnonzero(bins) + int(low), bins[bins > 0]
    else:
        values, counts = np.unique(stored, return_counts=True)
    exact = values * label.slope + label.intercept
    rounded = np.rint(exact)
    found: list[SegError] = []
    if (odd := np.abs(exact - rounded) > WHOLE).any():
        text = tally(dict(zip(exact[odd].tolist(), counts[odd].tolist(), strict=True)))
        found.append(_fault("LABEL-FLOAT", path, f"{odd.sum()} values are not integers ({text})"))
    classes = dict(zip(rounded.astype(np.int64).tolist(), counts.tolist(), strict=True))
    if negative := {value: count for value, count in classes.items() if value < 0}:
        found.append(_fault("LABEL-NEGATIVE", path, f"negative values ({tally(negative)})"))
    return classes, found


def _fault(code: str, path: str, found: str) -> SegError:
    return refusal(code, path, found, REPAIR)


def tally(counts: Mapping[Any, int]) -> str:
    """``255: 1200 voxels, ...``, at most eight values."""
    shown = [f"{value:g}: {count} voxels" for value, count in sorted(counts.items())[:8]]
    return ", ".join(shown) + (f", and {len(counts) - 8} more values" if len(counts) > 8 else "")


def _facts(
    case_id: str,
    images: Sequence[Volume],
    label: Volume | None,
    counts: dict[int, int],
    signature: tuple[tuple[str, int, int], ...],
) -> CaseFacts:
    turn = Reorientation.to_ras(images[0].affine)
    x, y, z = (images[0].shape[axis] for axis in turn.axes)
    r, a, s = (float(images[0].spacing[axis]) for axis in turn.axes)
    inside, label_digest = None, ""
    if label is not None:
        classes = np.rint(label.intensities()[0]).astype("<i4")
        inside = classes > 0
        label_digest = hashlib.sha256(turn.apply(classes).ravel(order="F").data).hexdigest()
    digest = hashlib.sha256(repr((x, y, z)).encode())
    channels: list[Intensity] = []
    thumbnail = b""
    with np.errstate(over="ignore", invalid="ignore"):  # `check` refuses a deviation that is no number
        for values in (channel for volume in images for channel in volume.intensities()):
            channels.append(_intensity(values, inside))
            upright = turn.apply(values)
            digest.update(upright.ravel(order="F").data)
            thumbnail = thumbnail or _thumbnail(upright)
    text = base64.b64encode(thumbnail).decode()
    hashes = (digest.hexdigest(), label_digest, text)
    return CaseFacts(case_id, (x, y, z), (r, a, s), tuple(channels), counts, *hashes, signature)


def _intensity(values: NDArray[np.float32], inside: NDArray[np.bool_] | None) -> Intensity:
    """Statistics of one channel (X, Y, Z); `inside` is the foreground on the same grid."""
    flat = values.ravel(order="F")
    sample = flat[:: -(-flat.size // SAMPLE) | 1]
    low, median, high = np.percentile(sample, (0.5, 50.0, 99.5)).tolist()
    mean = float(flat.mean(dtype=np.float64))
    std = float(np.sqrt(np.square(flat - np.float32(mean)).mean(dtype=np.float64)))
    whole = bool((sample == np.rint(sample)).all())
    numbers = (float(flat.min()), low, median, high, mean, std, whole)
    if inside is None or not (chosen := flat[inside.ravel(order="F")]).size:
        return Intensity(*numbers)
    fore = np.quantile(chosen[:: -(-chosen.size // SAMPLE) | 1], QUANTILES)
    return Intensity(*numbers, tuple(fore.tolist()), float(chosen.mean(dtype=np.float64)), float(chosen.std()))


def _thumbnail(values: NDArray[Any]) -> bytes:
    """(X, Y, Z) -> THUMB^3 int16 block means, centred and scaled: the contrast and the unit of a copy do not matter."""
    blocks = values
    for axis, extent in enumerate(values.shape):
        edges = np.linspace(0, extent, THUMB + 1).astype(int)
        starts = np.minimum(edges[:-1], extent - 1)
        shape = [-1 if other == axis else 1 for other in range(3)]
        blocks = np.add.reduceat(blocks, starts, axis=axis) / np.maximum(np.diff(edges), 1).reshape(shape)
    centred = blocks - blocks.mean()
    scaled: NDArray[Any] = np.rint(centred * (32767.0 / max(float(np.abs(centred).max()), 1e-30)))
    return scaled.astype("<i2").tobytes()
