"""ONNX Runtime: the CPU, and CUDA devices.

By default ONNX Runtime moves what it cannot run on CUDA to the CPU, even the whole network, and says so at most in a
log line. Here that is an error, in three ways: the provider must be in the installed package, no layer may land on the
CPU (`session.disable_cpu_ep_fallback`), and the session must name the provider afterwards.
"""

import contextlib
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import missing_extra
from ..machine import usable_threads
from . import Precision, closed, cuda_index, from_slices, load_error, no_device, no_precision, to_slices
from .cupy_ import cupy_on

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_REFUSED_CPU = "assigned to the default CPU EP"  # ONNX Runtime's words
_FILE_ERRORS = {"NoSuchFile", "InvalidProtobuf", "InvalidGraph", "NotImplemented"}


class OnnxRuntimeBackend:
    """One session. On CUDA `xp` is CuPy, and `device_run` neither copies to the host nor waits for more than it needs.

    Parameters
    ----------
    path : ONNX file.
    device : "auto" and "cpu" are the CPU; "cuda:N".
    precision : "fp32"; "auto" also allows TF32 on CUDA. Other precisions lie in the file.
    threads : for the CPU; 0 takes all that this process may use.
    output : the graph's output to return; what only other outputs need is not computed.

    Raises
    ------
    SegError : E-EXTRA, E-DEVICE, E-PRECISION, E-MODEL-LOAD.
    """

    def __init__(
        self,
        path: str,
        *,
        device: str = "auto",
        precision: Precision = "fp32",
        threads: int = 0,
        output: str = "logits",
    ) -> None:
        self._index = cuda_index(device)
        if precision not in ("auto", "fp32"):
            raise no_precision("onnxruntime", precision, f"export the model in {precision}, or use fp32")
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise missing_extra("onnxruntime", "ort" if self._index is None else "gpu") from error
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors are raised as well
        options.inter_op_num_threads = 1
        options.intra_op_num_threads = threads or usable_threads()
        wanted: Any = CPU if self._index is None else (CUDA, _cuda_options(self._index, precision))
        if self._index is not None:
            _prepare_cuda(ort, device)
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        self._session: Any = _session(ort, path, options, wanted, device)
        if output not in (found.name for found in self._session.get_outputs()):
            raise load_error(path, "ONNX Runtime", f"the graph has no output {output}")
        entry = self._session.get_inputs()[0]
        self._input, self._dims, self._output = entry.name, len(entry.shape), output
        self._channels = next(found.shape[1] for found in self._session.get_outputs() if found.name == output)
        self._logits: NDArray[np.float32] = np.empty(0, np.float32)
        if self._index is not None:
            self.xp: Any = cupy_on(self._index, "onnxruntime")
            self.device: Any = self.xp.cuda.Device(self._index)

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, X, Y, Z) -> (N, K, X, Y, Z); the result is valid until the next call."""
        if self._session is None:
            raise closed()
        given = to_slices(x) if self._dims == 4 else np.ascontiguousarray(x)
        shape = (len(given), self._channels, *given.shape[2:])
        if self._logits.shape != shape:
            self._logits = np.empty(shape, np.float32)
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._input, given)
        binding.bind_output(self._output, "cpu", 0, np.float32, shape, self._logits.ctypes.data)
        self._session.run_with_iobinding(binding)
        return from_slices(self._logits, len(x)) if self._dims == 4 else self._logits

    def device_run(self, x: Any) -> Any:
        """`run` on CuPy arrays of this backend's device; CUDA only."""
        if self._session is None:
            raise closed()
        with self.device:
            given = to_slices(x) if self._dims == 4 else self.xp.ascontiguousarray(x)
            logits = self.xp.empty((len(given), self._channels, *given.shape[2:]), np.float32)
            self.xp.cuda.get_current_stream().synchronize()  # ONNX Runtime computes on a stream of its own
            binding = self._session.io_binding()
            binding.bind_input(self._input, "cuda", self._index, np.float32, given.shape, given.data.ptr)
            binding.bind_output(self._output, "cuda", self._index, np.float32, logits.shape, logits.data.ptr)
            self._session.run_with_iobinding(binding)  # returns when the logits are there
        return from_slices(logits, len(x)) if self._dims == 4 else logits

    def close(self) -> None:
        """Release the session and its memory."""
        self._session = None
        self._logits = np.empty(0, np.float32)


def _cuda_options(index: int, precision: str) -> dict[str, str]:
    return {
        "device_id": str(index),
        "cudnn_conv_algo_search": "HEURISTIC",  # the default tries every algorithm for each new shape
        "use_tf32": "1" if precision == "auto" else "0",
    }


def _prepare_cuda(ort: Any, device: str) -> None:
    """Refuse a package without CUDA; let one with it find CUDA libraries that were installed as wheels."""
    if CUDA not in ort.get_available_providers():
        fix = 'use -d cpu, or pip uninstall onnxruntime and pip install "seg-toolkit[gpu]"'
        raise no_device("onnxruntime", device, "the installed package is the one for processors", fix)
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
        ort.preload_dlls()


def _session(ort: Any, path: str, options: Any, wanted: Any, device: str) -> Any:
    name = wanted if isinstance(wanted, str) else wanted[0]
    try:
        # Without enable_fallback=0 a failed provider is replaced by the CPU after a print.
        session = ort.InferenceSession(path, options, providers=[wanted], enable_fallback=0)
    except Exception as error:  # its exceptions have no common base of their own
        if name == CPU or type(error).__name__ in _FILE_ERRORS:
            raise load_error(path, "ONNX Runtime", error) from error
        if _REFUSED_CPU in str(error):
            reason, fix = "some of the network's layers would run on the CPU", "use -d cpu"
        else:
            reason, fix = str(error).strip().splitlines()[-1], "use -d cpu, or check the driver with nvidia-smi"
        raise no_device("onnxruntime", device, reason, fix) from error
    if session.get_providers()[0] != name:
        raise no_device("onnxruntime", device, f"it chose {session.get_providers()[0]}", "use -d cpu")
    return session
