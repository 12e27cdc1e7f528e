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

    An int8 network is compiled for each shape on processors without VNNI. For all shapes at once OpenVINO 2026.4 would
    compute transposed convolutions there in float32: 1.7 times the time (V-Net of width 8), and other roundings, so
    that one scan had two masks, a few voxels apart, by what was known when its network was compiled.

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
        except RuntimeError as error:
            raise load_error(path, "OpenVINO", error) from error
        self._path, self._precision, self._config = path, precision, config
        self._dims = len(self._model.input(0).partial_shape)
        quantised = any(node.get_type_name() == "FakeQuantize" for node in self._model.get_ops())
        self._each_shape = quantised and not VNNI & cpu_flags()
        self._requests: dict[tuple[int, ...] | None, Any] = {}  # None: for all shapes
        if shape is not None or not self._each_shape:
            self._compile(None if shape is None else tuple(shape))

    def _compile(self, shape: tuple[int, ...] | None) -> Any:
        """For one shape, or for all; returns what runs it."""
        model = self._model
        try:
            if shape is not None:
                model = model.clone()
                model.reshape(sliced_shape(shape) if self._dims == 4 else shape)
            compiled = _core().compile_model(model, "CPU", self._config)
        except RuntimeError as error:
            raise load_error(self._path, "OpenVINO", error) from error
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if self._precision != "auto" and used != _HINTS[self._precision]:
            raise no_precision("openvino", self._precision, "use --precision fp32")
        # Scratch memory is planned for one, but groups of slices end with a smaller one, scan after scan.
        others = [other for other in self._requests if other is not None] if self._dims == 4 else []
        alike = sorted(other for other in others if other[:4] == (shape or ())[:4])
        self._requests = {other: self._requests[other] for other in alike[-1:]}
        self._requests[shape] = request = compiled.create_infer_request()
        return request

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, X, Y, Z) -> (N, K, X, Y, Z); the result is valid until the next call."""
        if self._model is None:
            raise closed()
        request = self._requests.get(x.shape) or self._requests.get(None)
        if request is None:
            request = self._compile(x.shape if self._each_shape else None)
        given = to_slices(x) if self._dims == 4 else x
        logits: NDArray[np.float32] = request.infer([given], share_inputs=True, share_outputs=True)[0]
        return from_slices(logits, len(x)) if self._dims == 4 else logits

    def close(self) -> None:
        """Release the network."""
        self._requests, self._model = {}, None
