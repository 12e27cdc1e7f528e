"""The model inside a Triton Inference Server, for its Python backend: our artifact on our own engine.

`seg-export --triton` writes a `model.py` that imports this class; the Python of the server needs seg-toolkit. On a CPU
instance the engine is OpenVINO, on a GPU instance ONNX Runtime with CUDA. Requests that Triton's dynamic batching has
joined run as one batch while their windows are small; whole scans run one after another, for their memory's sake.
"""

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .artifact import SPEC_KEY, load
from .backends import Backend, engine_for, open_backend

LOGITS = "logits"
LEAST = np.float16(-6e-8)  # the float16 next to zero


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the artifact of this version. Raises ValueError when the configuration belongs to another one."""
        config = json.loads(args["model_config"])
        path = str(Path(args["model_repository"]) / args["model_version"] / "model.onnx")
        self._artifact = load(path)
        if config["parameters"][SPEC_KEY]["string_value"] != self._artifact.spec.to_json():
            raise ValueError(f"config.pbtxt does not describe {path}: write the repository again with seg-export")
        gpu = args["model_instance_kind"] == "GPU"
        self._device = f"cuda:{args['model_instance_device_id']}" if gpu else "cpu"
        self._half = any(e["data_type"] == "TYPE_FP16" for e in config["output"] if e["name"] == LOGITS)
        self._engines: dict[str, Backend] = {LOGITS: self._open(LOGITS)}

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request."""
        responses: list[Any] = []
        for group in self._groups(requests):
            responses += self._answers(group)
        return responses

    def finalize(self) -> None:
        """Release the network."""
        for engine in self._engines.values():
            engine.close()

    def _open(self, output: str) -> Backend:
        engine = engine_for(self._artifact.path, self._device)
        return open_backend(engine, self._artifact.path, self._device, precision="fp32", output=output)

    def _groups(self, requests: list[Any]) -> list[list[Any]]:
        """Requests that run together: neighbours with the same output and the same small window."""
        groups: list[list[Any]] = []
        keys: list[Any] = []
        small = prod(self._artifact.spec.window)
        for request in requests:
            shape = _image(request).shape[1:]
            key = (shape, tuple(request.requested_output_names())) if prod(shape[1:]) <= small else None
            if key is None or not keys or key != keys[-1]:
                groups.append([])
                keys.append(key)
            groups[-1].append(request)
        return groups

    def _answers(self, requests: list[Any]) -> list[Any]:
        import triton_python_backend_utils as pb

        try:
            images = [_image(request) for request in requests]
            x = np.concatenate(images) if len(images) > 1 else images[0]
            answers: list[list[Any]] = [[] for _ in requests]
            for name in requests[0].requested_output_names():
                if name not in self._engines:
                    self._engines[name] = self._open(name)
                logits = self._engines[name].run(np.ascontiguousarray(x, np.float32))
                sent = halved(logits) if self._half and name == LOGITS else logits
                parts = np.split(sent, np.cumsum([len(image) for image in images])[:-1])
                for answer, part in zip(answers, parts, strict=True):
                    answer.append(pb.Tensor.from_dlpack(name, np.ascontiguousarray(part)))
            return [pb.InferenceResponse(output_tensors=answer) for answer in answers]
        except Exception as error:  # whatever it is, the client gets it as one line, and the server lives on
            failure = pb.TritonError(f"{type(error).__name__}: {error}")
            return [pb.InferenceResponse(output_tensors=[], error=failure) for _ in requests]


def _image(request: Any) -> NDArray[Any]:
    """(N, C, X, Y, Z) float32 or float16. DLPack: stubs built for NumPy 1 misread the arrays of NumPy 2."""
    image: NDArray[Any] = np.from_dlpack(request.inputs()[0])
    return image


def halved(logits: NDArray[np.float32]) -> NDArray[np.float16]:
    """(N, K, ...) logits as float16 distances to the largest one, which softmax and argmax do not tell from them.

    The winner has 0 and nobody else has, however close: labels are those of the float32 logits.
    """
    distance = logits - logits.max(axis=1, keepdims=True)
    half: NDArray[np.float16] = distance.astype(np.float16)
    half[(half == 0) & (distance < 0)] = LEAST
    return half
