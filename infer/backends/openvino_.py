"""OpenVINO on the CPU: the default engine. Reads the ONNX file directly; the weights are memory-mapped.

Its compile cache is not used: of 0.18 s to read and compile a 10 MB model it saves 0.08 s, and a cached blob is
executed without a check of who wrote it.
"""

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..machine import cpu_flags, usable_threads
from . import Precision, closed, cuda_index, from_slices, load_error, no_device, no_precision, sliced_shape, to_slices
from .quantisers import fuse_quantisers

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
VNNI = {"avx512_vnni", "avx_vnni"}


def _openvino() -> Any:
    """The package without its model converter, which imports a telemetry client and takes most of the import's time."""
    converter = "openvino.tools.ovc"
    skipped = converter not in sys.modules
    if skipped:
        sys.modules[converter] = None  # type: ignore[assignment]  # the package allows for its absence
    try:
        import openvino
    finally:
        if skipped:
            del sys.modules[converter]
    return openvino


@cache
def _core() -> Any:
    """One for the process, and never released.

    OpenVINO gives the thread that begins it a stack for signals, and its end frees that stack. When it ends in another
    thread, the next Ctrl-C is a segmentation fault.
    """
    return _openvino().Core()


class OpenVinoBackend:
    """One compiled network. Input shapes may change between calls; each new shape costs a re-plan inside OpenVINO.

    Compiled for a shape known beforehand, the first scan takes 0.2 to 0.3 s less (a V-Net of width 16). Another shape
    is still right: it costs a second compilation, after which all shapes are taken.

    An int8 network is compiled for all shapes from the start where the processor has no VNNI: there OpenVINO 2026.4
    rounds otherwise for a known shape, and one scan would have two masks, a few voxels apart, by what was known of it.

    Parameters
    ----------
    path : ONNX file.
    device : "auto" or "cpu".
    precision : "fp32" exact; "bf16" and "fp16" on CPUs that have them; "auto" leaves it to OpenVINO (bf16 where AMX
        exists).
    threads : 0 takes all that this process may use.
    output : the graph's output to return; what only other outputs need is not computed.
    shape : (N, C, X, Y, Z) that is expected.

    Raises
    ------
    SegError : E-DEVICE, E-PRECISION, E-MODEL-LOAD.
    """

    def __init__(
        self,
        path: str,
        *,
        device: str = "auto",
        precision: Precision = "fp32",
        threads: int = 0,
        output: str = "logits",
        shape: Sequence[int] | None = None,
    ) -> None:
        if cuda_index(device) is not None:
            raise no_device("openvino", device, "it is used for processors only", "use -d cpu")
        if precision not in ("auto", *_HINTS):
            raise no_precision("openvino", precision, "export the model in int8, or use fp32")
        ov = _openvino()
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads or usable_threads()}
        if precision != "auto":
            config["INFERENCE_PRECISION_HINT"] = _HINTS[precision]
        try:
            self._model = _core().read_model(path)
            if len(self._model.outputs) > 1:
                self._model = ov.Model([self._model.output(output)], self._model.get_parameters())
            elif output not in self._model.output(0).names:
                raise RuntimeError(f"the graph has no output {output}")
            fuse_quantisers(self._model, ov.opset13)
            if not VNNI & cpu_flags() and any(op.get_type_name() == "FakeQuantize" for op in self._model.get_ops()):
                shape = None
            self._config = config
            self._dims = len(self._model.input(0).partial_shape)
            compiled = self._compile(None if shape is None else tuple(shape))
        except RuntimeError as error:
            raise load_error(path, "OpenVINO", error) from error
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if precision != "auto" and used != _HINTS[precision]:
            raise no_precision("openvino", precision, "use --precision fp32")

    def _compile(self, shape: tuple[int, ...] | None) -> Any:
        """For one shape, or for all."""
        model, self._shape = self._model, shape
        if shape is not None:
            model = model.clone()
            model.reshape(sliced_shape(shape) if self._dims == 4 else shape)
        compiled = _core().compile_model(model, "CPU", self._config)
        self._request: Any = compiled.create_infer_request()
        return compiled

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, X, Y, Z) -> (N, K, X, Y, Z); the result is valid until the next call."""
        if self._request is None:
            raise closed()
        if self._shape not in (None, x.shape):
            self._compile(None)
        given = to_slices(x) if self._dims == 4 else x
        logits: NDArray[np.float32] = self._request.infer([given], share_inputs=True, share_outputs=True)[0]
        return from_slices(logits, len(x)) if self._dims == 4 else logits

    def close(self) -> None:
        """Release the network."""
        self._request = self._model = None
