"""The training window: as much of a scan as fits into the memory, and what it costs on a CPU."""

from collections.abc import Sequence

import numpy as np

from seg.infer.errors import Exit

from .cases import refusal

Shape3 = tuple[int, int, int]

BATCH_SAMPLES = 8  # labelled and unlabelled windows in memory at a time
# Float32 activations kept for the backward pass, per voxel of the window and channel of `WIDTH`. A V-Net of width 16
# has 106 convolution outputs and skip sums per input voxel, 6.6 a channel; normalisation keeps a second copy.
BYTES_PER_VOXEL_AND_CHANNEL = 2 * 4 * 6.6
MEMORY_SHARE = 0.7  # the rest is for weights, optimiser, workspaces and fragmentation
MAX_WINDOW_VOXELS = 128**3  # about nnU-Net's largest usual patch; more costs time before it costs memory
# Multiply-adds of one V-Net pass at width 16: 17.437 G in the encoder, 22.672 G in the decoder at 112 x 112 x 80. The
# 2D U-Net has 45,600 a pixel: the same, as exact as this estimate is.
MACS_PER_VOXEL = (17.437e9 + 22.672e9) / (112 * 112 * 80)
PASSES = 3  # a training step: forward, and backward to the activations and to the weights
CPU_MACS_PER_SECOND = 50e9  # 100 GFLOP/s, a few cores
CPU_WINDOW = {3: (64, 64, 48), 2: (192, 192, 1)}  # by dimensions; about 2 s a step at width 16, 1 s for 12 slices
CPU_WIDTH = {3: 8, 2: 16}


def voxel_budget(memory_bytes: int, width: int) -> int:
    """Voxels of the largest window of which `BATCH_SAMPLES` fit into the memory."""
    return int(MEMORY_SHARE * memory_bytes / (BATCH_SAMPLES * BYTES_PER_VOXEL_AND_CHANNEL * width))


def fit_window(shape: Shape3, edges: Sequence[float], stride: Shape3, budget: int) -> Shape3:
    """The whole median case if it fits, else the physically longest axis is shortened until it does.

    Parameters
    ----------
    shape : median extents in voxels.
    edges : mm per voxel.
    stride : the result is a multiple of it.
    budget : voxels.
    """
    window = [-(-extent // step) * step for extent, step in zip(shape, stride, strict=True)]
    while int(np.prod(window)) > budget:
        longest = [
            (extent * edge, axis)
            for axis, (extent, edge, step) in enumerate(zip(window, edges, stride, strict=True))
            if extent > step
        ]
        if not longest:
            found = f"memory for {budget} voxels a window, {int(np.prod(window))} are the least"
            fix = "use a smaller --width or a device with more memory"
            raise refusal("PLAN", "", found, fix, exit=Exit.LIMIT)
        axis = max(longest, key=lambda entry: (entry[0], -entry[1]))[1]
        window[axis] -= stride[axis]
    x, y, z = window
    return x, y, z


def judge_window(window: Shape3, stride: Shape3, budget: int) -> list[str]:
    """Notes on a window that can be trained on; E-DATA-PLAN for one that cannot."""
    if len(window) != 3 or any(w < 1 or w % s for w, s in zip(window, stride, strict=True)):
        raise refusal("PLAN", "", f"window {window}", "round it up", f"a multiple of {times(stride)}", exit=Exit.USAGE)
    if stride[2] == 1 and window[2] != 1:
        raise refusal("PLAN", "", f"window {window}", "give 1 along z", "one slice in 2D", exit=Exit.USAGE)
    voxels = int(np.prod(window))
    return [f"the window has {voxels} voxels, {budget} were advised"] if voxels > budget else []


def cpu_step_seconds(window: Shape3, width: int, batch: float) -> float:
    """Estimated seconds of one training step on a CPU. Good to a factor of two or so: processors differ by more."""
    forward = MACS_PER_VOXEL * float(np.prod(window)) * (width / 16) ** 2
    return forward * PASSES * batch / CPU_MACS_PER_SECOND


def cpu_notes(window: Shape3, width: int, batch: float, iterations: int) -> list[str]:
    """What a training costs on a CPU, and which flags make it cheaper."""
    seconds = cpu_step_seconds(window, width, batch)
    hours = seconds * iterations / 3600
    cost = f"{_rough(seconds)} s a step, {_rough(hours)} h for {iterations} iterations"
    notes = [f"on a CPU about {cost} (estimate)"]
    dims = 3 if window[2] > 1 else 2
    faster = ["a coarser --spacing"]
    if np.prod(window) > np.prod(CPU_WINDOW[dims]):
        faster.append(f"--window {','.join(map(str, CPU_WINDOW[dims]))}")
    if width > CPU_WIDTH[dims]:
        faster.append(f"--width {CPU_WIDTH[dims]}")
    if len(faster) > 1:
        notes.append(f"{', '.join(faster[:-1])} and {faster[-1]} make it faster")
    return notes


def times(extents: Sequence[int]) -> str:
    """``64 x 64 x 48``."""
    return " x ".join(str(extent) for extent in extents)


def _rough(value: float) -> str:
    """Two digits before the point or in all."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
