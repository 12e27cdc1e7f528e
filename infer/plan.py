"""The plan: tiles, memory and time of a scan, decided from its header before anything is allocated.

The networks are convolutional, so the fastest way is the whole scan in one pass. The plan takes it when it fits into
the memory that may be used; else it cuts the grid into as few equal tiles as fit. 2D networks take whole slices, a few
at a time. Memory is estimated from the artifact's own cost per voxel, seconds from its multiply-adds and a rate for the
processor: estimates, printed as such.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import Exit, SegError
from .machine import cpu_flags
from .preprocess import Grids
from .spec import ModelSpec
from .stitch import Tiling, window_starts
from .volume import Shape3

BASE_BYTES = 160_000_000  # interpreter, libraries, compiled network without its weights' copies
SLACK = 1.15  # allocator and threads' scratch
TILE_OVERLAP = 0.25
SLICES = 8  # at a time through a 2D network: enough to keep many processors busy, in little memory
# Multiply-adds per second and thread, measured with V-Nets of width 8 and 16; read from the processor's flags.
RATES = {
    "fp32": {"avx512f": 30e9, "avx2": 14e9},
    "fp16": {"avx512f": 30e9, "avx2": 14e9},
    "bf16": {"amx_bf16": 120e9},
    "int8": {"avx512_vnni": 120e9, "avx2": 40e9},
}
SLOW = 4e9
START_SECONDS = 0.15  # what an engine does when it sees a shape for the first time


@dataclass(frozen=True)
class TilingOptions:
    """What the user may ask of the tiling; None leaves it to the plan.

    Attributes
    ----------
    window : tile in voxels of the network grid, rounded up to the network's stride; Z is slices at a time in 2D.
    overlap : share of the window that neighbouring tiles have in common, 0 <= overlap < 1.
    step : distance of neighbouring windows in voxels per axis; wins over `overlap`.
    weighting, blend : see `Tiling`.
    """

    window: Shape3 | None = None
    overlap: float | None = None
    step: Shape3 | None = None
    weighting: Literal["uniform", "gaussian"] = "gaussian"
    blend: Literal["logit", "probability"] = "logit"


# The evaluation of UA-MT and its successors, CrossMatch among them: code/test_util.py, test_single_case.
PROTOCOLS = {
    "crossmatch": TilingOptions((112, 112, 80), step=(18, 18, 4), weighting="uniform", blend="probability"),
}


@dataclass(frozen=True)
class Plan:
    """What will be done with one scan.

    Attributes
    ----------
    grids : scan and network grid in voxels.
    tiling : where windows stand.
    peak_bytes : estimated peak memory of the process.
    seconds : estimated time of the network.
    """

    grids: Grids
    tiling: Tiling
    peak_bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For --report."""
        return {
            "scan_voxels": list(self.grids.scan),
            "network_voxels": list(self.grids.network),
            "window": list(self.tiling.window),
            "windows": self.tiling.windows,
            "weighting": self.tiling.weighting,
            "blend": self.tiling.blend,
            "estimated_peak_bytes": self.peak_bytes,
            "estimated_seconds": round(self.seconds, 3),
        }

    def describe(self) -> str:
        """One line for --dry-run."""
        tiling = self.tiling
        how = "one pass" if tiling.windows == 1 else f"{tiling.windows} windows of {_times(tiling.window)}"
        return (
            f"scan {_times(self.grids.scan)}, network grid {_times(self.grids.network)} voxels: {how}, "
            f"about {self.seconds:.1f} s and {self.peak_bytes / 1e9:.2f} GB"
        )


def plan_scan(
    shape: Shape3,
    affine: NDArray[np.float64],
    spec: ModelSpec,
    options: TilingOptions,
    *,
    memory_bytes: int,
    scan_bytes: int,
    channels_out: int,
    features: bool = False,
    precision: str = "fp32",
    threads: int = 1,
    passes: int = 1,
) -> Plan:
    """Plan one scan.

    Parameters
    ----------
    shape, affine : of the scan, voxels and voxel -> mm (RAS).
    memory_bytes : what the process may use in all.
    scan_bytes : stored voxels in memory.
    passes : runs over the grid; 2 to 8 with mirroring.
    channels_out : planes the network returns per voxel: classes, or with `features` the inputs of its linear head.

    Raises
    ------
    SegError : E-LIMIT-MEMORY when even the smallest tile does not fit.
    """
    grids = Grids.of(shape, affine, spec)
    planes = 1 if channels_out == 2 and not features else channels_out

    def peak(tiling: Tiling) -> int:
        tile, slab = int(np.prod(tiling.window)), tile_share(tiling)
        ring = 0 if tiling.windows == 1 else slab * planes * 4
        labels = int(np.prod(shape)) * (1 if max(spec.label_values) < 256 else 2)
        layer = 4 * planes * 4 * int(np.prod(grids.scan)) // grids.scan[tiling.axis]
        activations = (spec.cost.bytes + 4 * (channels_out + 1)) * tile
        inputs = 4 * len(spec.channels) * (slab + tile)
        if passes > 1:  # a mirrored window, and the sum of what comes out
            inputs += 4 * (len(spec.channels) + channels_out) * tile
        return int(BASE_BYTES + scan_bytes + labels + layer + SLACK * (inputs + ring + activations))

    tiling = choose_tiling(grids.network, spec, options)
    while peak(tiling) > memory_bytes:
        smaller = _shrunk(tiling, grids.network, spec, options)
        if smaller is None:
            raise SegError(
                "E-LIMIT-MEMORY",
                Exit.LIMIT,
                "",
                f"needs about {peak(tiling) / 1e9:.2f} GB with the smallest tiles",
                "raise --max-memory, give a smaller --window, or use a machine with more memory",
                f"at most {memory_bytes / 1e9:.2f} GB",
            )
        tiling = smaller
    work = passes * tiling.windows * float(np.prod(tiling.window)) * spec.cost.macs
    return Plan(grids, tiling, peak(tiling), START_SECONDS + work / (rate(precision) * threads))


def tile_share(tiling: Tiling) -> int:
    """Voxels of the slab of layers in work: one window's depth of the whole cross-section."""
    return int(np.prod(tiling.shape)) // tiling.shape[tiling.axis] * tiling.window[tiling.axis]


def choose_tiling(shape: Shape3, spec: ModelSpec, options: TilingOptions) -> Tiling:
    """The tiling for a network grid of `shape` voxels without regard to memory.

    A given window is used as it is, and a spec that allows only its training window uses that; else one pass. A 2D
    network takes whole slices, some at a time.
    """
    if options.window is not None:
        return _tiled(shape, _multiple(options.window, spec.stride), spec, options, 0.5)
    window, overlap = (spec.window, 0.5) if spec.tiling == "window" else (_multiple(shape, spec.stride), TILE_OVERLAP)
    if spec.dims == 2:
        window = (*window[:2], _part(shape[2], _part(shape[2], SLICES)))
    return _tiled(shape, window, spec, options, overlap)


def _tiled(shape: Shape3, window: Shape3, spec: ModelSpec, options: TilingOptions, overlap: float) -> Tiling:
    overlap = overlap if options.overlap is None else options.overlap
    if spec.dims == 2:
        window = (*window[:2], min(window[2], shape[2]))
    padded = _axes(max, shape, window)
    steps = [round(n * (1.0 - overlap)) for n in window] if options.step is None else list(options.step)
    if spec.dims == 2:
        steps[2] = window[2]  # no slice knows of another
    x, y, z = (window_starts(n, w, min(max(1, step), w)) for n, w, step in zip(padded, window, steps, strict=True))
    whole = spec.dims == 2 and len(x) == len(y) == 1  # what overlaps is the same slice, computed twice
    return Tiling(padded, window, (x, y, z), "uniform" if whole else options.weighting, options.blend)


def _part(extent: int, parts: int) -> int:
    """The least extent of which `parts` cover `extent`."""
    return -(-extent // parts)


def _shrunk(tiling: Tiling, shape: Shape3, spec: ModelSpec, options: TilingOptions) -> Tiling | None:
    """Fewer slices at a time, or one tile more along the longest axis of the window, or None when neither can be."""
    if options.window is not None:
        return None
    window, stride = list(tiling.window), spec.stride
    if spec.dims == 2 and window[2] > 1:
        slices = _part(shape[2], len(tiling.starts[2]) + 1)
        return _tiled(shape, (window[0], window[1], min(slices, window[2] - 1)), spec, options, TILE_OVERLAP)
    if spec.tiling == "window":
        return None
    axes = [a for a in range(3) if window[a] > max(stride[a], spec.window[a] // 2)]
    if not axes:
        return None
    axis = max(axes, key=lambda a: window[a])
    overlap = TILE_OVERLAP if options.overlap is None else options.overlap
    tiles = len(tiling.starts[axis]) + 1
    extent = shape[axis] / (tiles - (tiles - 1) * overlap)
    even = -(-int(np.ceil(extent)) // stride[axis]) * stride[axis]
    window[axis] = max(stride[axis], min(even, window[axis] - stride[axis]))
    return _tiled(shape, (window[0], window[1], window[2]), spec, options, TILE_OVERLAP)


def rate(precision: str) -> float:
    """Multiply-adds per second and thread of this processor, from its flags; a cautious guess where unknown."""
    flags = cpu_flags()
    return next((speed for flag, speed in RATES.get(precision, {}).items() if flag in flags), SLOW)


def _multiple(shape: Shape3, strides: Shape3) -> Shape3:
    x, y, z = (-(-n // s) * s for n, s in zip(shape, strides, strict=True))
    return x, y, z


def _axes(pick: Any, a: Shape3, b: Shape3) -> Shape3:
    x, y, z = (pick(m, n) for m, n in zip(a, b, strict=True))
    return x, y, z


def _times(extents: Shape3) -> str:
    return " x ".join(map(str, extents))
