"""Where and in what numbers a training computes: device, precision, memory layout, memory that is free.

Measured with V-Net on CPUs (benchmarks/iteration.py): in float32 channels-last took 0.55 to 0.7 of the default layout's
time, in bf16 the default layout was as fast or faster. cuDNN's bf16 kernels are channels-last ones.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from seg.infer.errors import Exit, SegError
from seg.infer.machine import available_memory

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


def device_of(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:N" -> device. Under torchrun "auto" and "cuda" are the process's own GPU.

    Raises
    ------
    SegError : E-DEVICE when it is not there.
    """
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if name == "auto":
        return torch.device(own if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SegError("E-DEVICE", Exit.RUNTIME, "", "no CUDA device is available", "use --device cpu")
    try:
        device = torch.device(own if name == "cuda" else name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SegError("E-DEVICE", Exit.USAGE, "", f"no device {name}", "use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise SegError("E-DEVICE", Exit.RUNTIME, "", f"no device {device}", "use one that is there", f"one of {count}")
    return device


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bf16 where the hardware multiplies it fast (GPUs from Ampere on, CPUs with AMX), else fp32."""
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
        fast = torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[name]


def memory_of(device: torch.device) -> int:
    """Bytes the training may take: free device memory, or this process's share of what may still be had."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def memory_told(path: str) -> Iterator[None]:
    """Where memory does not suffice for a step or a scan: E-LIMIT-MEMORY, with what would need less."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; that of a CPU has no type of its own
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        fix = "take a smaller --window, --width or batch (--set labeled_batch=2), or --precision bf16"
        raise SegError("E-LIMIT-MEMORY", Exit.LIMIT, path, "the device's memory does not suffice", fix) from error


def channels_last(device: torch.device, precision: torch.dtype) -> bool:
    """Whether convolutions are faster with the channels as the last axis in memory."""
    return device.type == "cuda" or precision == torch.float32


class ShallowConv3d(nn.Conv3d):
    """Leaves autocast where the volume's first extent is smaller than the kernel's.

    There oneDNN's bf16 gradient of the weights (jit_bf16:avx512_core in torch 2.13) reads memory that nobody wrote: a
    kernel of 3 at the coarsest level of a window of 32 voxels. It is wrong without a sign of it, or NaN.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, X, Y, Z) -> as nn.Conv3d, in float32 where bf16 is not safe."""
        if input.shape[2] >= self.kernel_size[0] or not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


def arrange(module: nn.Module, device: torch.device, precision: torch.dtype) -> None:
    """Move a module to its device, its weights in the faster layout. Activations follow the weights.

    In bf16 on a CPU 3D convolutions become `ShallowConv3d`; names of parameters stay.
    """
    module.to(device)
    if device.type == "cpu" and precision == torch.bfloat16:
        for part in module.modules():
            if type(part) is nn.Conv3d:
                part.__class__ = ShallowConv3d
    if channels_last(device, precision):
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        for parameter in module.parameters():
            if parameter.dim() in formats:
                parameter.data = parameter.data.to(memory_format=formats[parameter.dim()])


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors instead of giving it back to the kernel.

    Every large tensor of a step is otherwise mapped, filled with zeros page by page and unmapped again. Does nothing
    with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_TOP_PAD, 64 << 20)
