"""CuPy: arrays that stay on a CUDA device, for the engines that run there."""

from typing import Any

from ..errors import missing_extra
from . import no_device


def cupy_on(index: int, engine: str) -> Any:
    """The module cupy, once device `index` is known to exist.

    Raises
    ------
    SegError : E-EXTRA without CuPy, E-DEVICE without a driver or that device.
    """
    try:
        import cupy
    except ImportError as error:
        raise missing_extra("cupy", "gpu") from error
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise no_device(engine, f"cuda:{index}", reason, "use -d cpu, or install the NVIDIA driver") from error
    if index >= count:
        found = f"the machine has {count} CUDA device" + ("" if count == 1 else "s")
        raise no_device(engine, f"cuda:{index}", found, "use -d cpu, or a device that is there")
    return cupy
