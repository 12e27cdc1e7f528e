"""Convolutions of one volume at a time through oneDNN.

Torch sends the 3D convolutions of a batch of one to a plain kernel of its own when they are small, as all are but the
finest levels of a window; oneDNN takes a third of the time for the same windows (48 x 64 x 48, V-Net of width 8: 41 ms
after 138, one thread).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class SingleVolumes(TorchFunctionMode):
    """While active, float32 `conv3d` of one volume on a CPU is oneDNN's. Not for autocast, which it would evade."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Exchange the one function."""
        if func is torch.conv3d and not kwargs and _suits(args):
            x, weight, bias, stride, padding, dilation, groups = args
            return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)
        return func(*args, **(kwargs or {}))


def _suits(args: tuple[Any, ...]) -> bool:
    """Whether these are a module's seven arguments, on one volume, with numbers for padding."""
    if len(args) != 7 or isinstance(args[4], str) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x: Tensor = args[0]
    return len(x) == 1 and x.device.type == "cpu" and x.dtype == torch.float32
