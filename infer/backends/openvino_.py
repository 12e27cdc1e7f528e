"""OpenVINO on the CPU: the default engine. Reads the ONNX file directly; the weights are memory-mapped."""

import os
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import Exit, SegError
from . import from_slices, to_slices

Precision = Literal["auto", "fp32", "bf16"]


class OpenVinoBackend:
    """One compiled network. Input shapes may change between calls; each new shape costs a re-plan inside OpenVINO.

    Parameters
    ----------
    path : ONNX file.
    precision : "fp32" exact; "bf16" on CPUs that have it; "auto" leaves it to OpenVINO (bf16 where AMX exists).
    threads : 0 takes all that this process may use.
    """

    def __init__(self, path: str, *, precision: Precision = "fp32", threads: int = 0) -> None:
        import openvino as ov

        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads or len(os.sched_getaffinity(0)),
        }
        if precision != "auto":
            config["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "bf16": "bf16"}[precision]
        try:
            core = ov.Core()
            model = core.read_model(path)
            compiled = core.compile_model(model, "CPU", config)
        except RuntimeError as error:
            raise SegError(
                "E-MODEL-LOAD",
                Exit.MODEL,
                path,
                f"OpenVINO cannot load it ({str(error).strip().splitlines()[-1]})",
                "export the model again with this version's seg-export",
            ) from error
        self._dims = len(model.input(0).partial_shape)
        self._request: Any = compiled.create_infer_request()

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, X, Y, Z) -> (N, K, X, Y, Z); the result is valid until the next call."""
        given = to_slices(x) if self._dims == 4 else x
        logits: NDArray[np.float32] = self._request.infer([given], share_inputs=True, share_outputs=True)[0]
        return from_slices(logits, len(x)) if self._dims == 4 else logits

    def close(self) -> None:
        """Release the network."""
        self._request = None
