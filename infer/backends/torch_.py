"""PyTorch: runs a program that `torch.export` saved (.pt2). Optional, for comparison and for odd layers.

A .pt2 file is code: loading it unpickles and evaluates what is inside. So only sealed files are loaded (see `seal`);
the seal lies beside the file, as `model.pt2.seal`.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifact import GOLDEN_KEY, SPEC_KEY, Artifact, Golden
from ..atomic import atomic_text
from ..errors import Exit, SegError, missing_extra
from ..machine import usable_threads
from ..spec import ModelSpec
from . import Precision, closed, cuda_index, from_slices, load_error, no_device, no_precision, to_slices
from .seal import refuse_unsealed, seal, unsealed

_LARGEST_TEXT = 1 << 27  # bytes of the spec or the golden pair


class TorchBackend:
    """One exported program: (N, C, X, Y, Z) or (N, C, X, Y) -> logits.

    Parameters
    ----------
    path : .pt2 file with its seal beside it.
    device : "auto" and "cpu" are the CPU; "cuda:N".
    precision : "fp32", "auto"; other precisions lie in the program.
    threads : for the whole process; 0 takes all that it may use.
    output : "logits" only.

    Raises
    ------
    SegError : E-EXTRA, E-DEVICE, E-PRECISION, E-UNSEALED, E-MODEL-LOAD.
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
        index = cuda_index(device)
        if precision not in ("auto", "fp32"):
            raise no_precision("torch", precision, f"export the model in {precision}, or use fp32")
        if output != "logits":
            raise load_error(path, "PyTorch", f"the program has no output {output}")
        try:
            import torch
            from torch.export.passes import move_to_device_pass
        except ImportError as error:
            raise missing_extra("torch", "train") from error
        if index is not None and (not torch.cuda.is_available() or index >= torch.cuda.device_count()):
            raise no_device("torch", device, "PyTorch sees no such device", "use -d cpu")
        data = _read(path)
        refuse_unsealed(path, _seal_text(path), data)
        self._device = "cpu" if index is None else f"cuda:{index}"
        torch.set_num_threads(threads or usable_threads())
        if index is not None:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "auto"
        try:
            program = torch.export.load(io.BytesIO(data))
            entry = program.graph_signature.user_inputs[0]
            self._dims = next(n.meta["val"].ndim for n in program.graph.nodes if n.name == entry)
            if index is not None:
                program = move_to_device_pass(program, self._device)
            # Guards are off: PyTorch takes an extent of one stride for special, and refuses what it computes rightly.
            self._module: Any = program.module(check_guards=False)
        except Exception as error:  # whatever a damaged program raises
            raise load_error(path, "PyTorch", error) from error
        self._torch: Any = torch

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, X, Y, Z) -> (N, K, X, Y, Z)."""
        if self._module is None:
            raise closed()
        given = to_slices(x) if self._dims == 4 else np.ascontiguousarray(x)
        with self._torch.inference_mode():
            logits: NDArray[np.float32] = self._module(self._torch.from_numpy(given).to(self._device)).cpu().numpy()
        return from_slices(logits, len(x)) if self._dims == 4 else logits

    def close(self) -> None:
        """Release the program."""
        self._module = None


def seal_pt2(path: str) -> None:
    """Seal a .pt2 file that was just written here."""
    atomic_text(f"{path}.seal", seal(_read(path)) + "\n")


def load_pt2(path: str) -> Artifact:
    """What `artifact.load` returns for a .pt2 file: spec and golden pair from its extra files, without PyTorch.

    Raises
    ------
    SegError : E-MODEL-MISSING, E-UNSEALED, E-MODEL-FORMAT.
    """
    data = _read(path)
    refuse_unsealed(path, _seal_text(path), data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            texts = {
                info.filename.rpartition("/extra/")[2]: archive.read(info).decode()
                for info in archive.infolist()
                if "/extra/" in info.filename and info.file_size <= _LARGEST_TEXT
            }
        golden = Golden.from_text(texts[GOLDEN_KEY]) if GOLDEN_KEY in texts else None
        return Artifact(path, ModelSpec.from_json(texts[SPEC_KEY]), golden)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise SegError(
            "E-MODEL-FORMAT", Exit.MODEL, path, "no model spec inside", "give a .pt2 file that seg-export wrote"
        ) from error


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SegError(
            "E-MODEL-MISSING", Exit.MODEL, path, f"cannot be read ({error.strerror})", "check the path"
        ) from error


def _seal_text(path: str) -> str:
    try:
        return Path(f"{path}.seal").read_text().strip()
    except (OSError, ValueError) as error:
        raise unsealed(path, f"has no readable {path}.seal") from error
