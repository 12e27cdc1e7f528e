"""A Triton Inference Server as the engine: windows go out, logits come back, all geometry stays here.

The model is named `triton://HOST:PORT[,HOST:PORT...]/MODEL`, gRPC ports. What the client must know of it (the spec, the
golden pair, the linear head) are parameters in the model's config.pbtxt, where `seg-export --triton` wrote them, so no
model file is needed on this side. Of several servers, each takes its share of the windows; one that is gone loses its
share to the others, which run the same graph, and when none is left that is an error. What this does not know: the
servers' memory. Numbers travel in the type that the server's model declares, float32 or float16.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifact import GOLDEN_KEY, HEAD_KEY, PREFIX, SPEC_KEY, Artifact, Golden, refuse_changed
from ..classes import Head
from ..errors import Exit, SegError, missing_extra
from ..spec import ModelSpec
from . import TRITON, Precision, closed, cuda_index, from_slices, no_device, no_precision, to_slices

TIMEOUT = 600.0  # seconds for one call; a whole scan on a server without GPU takes minutes
IN_FLIGHT = 2  # calls per server at a time: one travels while one is computed
_LOST = ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED", "StatusCode.CANCELLED")


class TritonBackend:
    """One model on one or several servers.

    Parameters
    ----------
    path : triton://HOST:PORT[,HOST:PORT...]/MODEL.
    device, threads : the server's matter; a device other than "auto" or "cpu" is refused.
    precision : "auto" or "fp32"; another one lies in the model.
    output : the model's output to return.

    Attributes
    ----------
    batch : windows per call that keep all servers busy.
    half : whether logits come as float16 distances to the largest one.

    Raises
    ------
    SegError : E-EXTRA, E-DEVICE, E-PRECISION, E-TRITON, E-MODEL-MISSING.
    """

    def __init__(
        self,
        path: str,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        threads: int = 0,
        output: str = "logits",
    ) -> None:
        if cuda_index(device) is not None:
            raise no_device("triton", device, "the server chooses its devices", "leave out -d")
        if precision not in ("auto", "fp32"):
            raise no_precision("triton", precision, f"serve the model in {precision}")
        urls, self._model = _parsed(path)
        self._servers = [_Server(url) for url in urls]
        known = [(config, server) for server in self._servers if (config := server.config(self._model))]
        if not known:
            raise self._servers[0].gone()
        config = known[0][0]
        self._spec = _parameter(config, SPEC_KEY)
        for other, server in known:
            self._compare(other, server)
        self._input = config.input[0]
        self._output = next((entry for entry in config.output if entry.name == output), None)
        if self._output is None:
            raise SegError("E-MODEL-LOAD", Exit.MODEL, path, f"has no output {output}", "export it with --features")
        self.half = self._output.data_type == self._servers[0].half  # see seg.infer.triton_server.halved
        self._most = max(1, config.max_batch_size)  # windows (or slices) per call
        self.batch = IN_FLIGHT * len(urls)
        self._turn = count()
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(self.batch, "triton")

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, X, Y, Z) -> (N, K, X, Y, Z); raises SegError E-TRITON when no server computes it."""
        if self._pool is None:
            raise closed()
        flat = len(self._input.dims) == 3  # C, X, Y: a 2D network
        given = to_slices(x) if flat else x
        most = self._most if flat else 1  # the server joins windows that wait
        parts = [given[first : first + most] for first in range(0, len(given), most)]
        answers = list(self._pool.map(self._ask, parts, self._turn))
        logits = np.concatenate(answers) if len(answers) > 1 else answers[0]
        return from_slices(logits, len(x)) if flat else logits

    def _compare(self, config: Any, server: "_Server") -> None:
        """Raise SegError, E-TRITON, for a server with another model than the one that was found at first."""
        if _parameter(config, SPEC_KEY) != self._spec:
            found = f"serves another {self._model} than before, or than the other servers"
            raise SegError("E-TRITON", Exit.RUNTIME, server.url, found, "load the same model everywhere, and repeat")
        server.compared = True

    def _is_ours(self, server: "_Server") -> bool:
        """Whether it serves the model that was found at first; asked again after every loss and new version."""
        if not server.compared and (config := server.config(self._model)) is not None:
            self._compare(config, server)
        return server.compared

    def _ask(self, x: NDArray[np.float32], turn: int) -> NDArray[np.float32]:
        """One call, to the server whose turn it is or, where that is gone, to the next one."""
        assert self._output is not None
        shape = (len(x), self._output.dims[0], *x.shape[2:])
        for number in range(len(self._servers)):
            server = self._servers[(turn + number) % len(self._servers)]
            if not self._is_ours(server):
                continue
            logits = server.infer(self._model, self._input, self._output.name, x)
            if logits is None or not self._is_ours(server):
                continue
            if logits.shape != shape:
                raise server.refuses(f"the answer has shape {logits.shape}, expected {shape}")
            return logits.astype(np.float32, copy=False)
        raise server.gone()

    def close(self) -> None:
        """End the connections."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
            for server in self._servers:
                server.close()


def load_served(path: str) -> Artifact:
    """What `artifact.load` returns for a served model: spec, golden pair and head from the server's configuration.

    Raises
    ------
    SegError : E-EXTRA, E-TRITON when no server answers, E-MODEL-MISSING, E-MODEL-FORMAT, E-MODEL-TAMPERED.
    """
    urls, model = _parsed(path)
    servers = [_Server(url) for url in urls]
    try:
        config = next((found for server in servers if (found := server.config(model))), None)
        if config is None:
            raise servers[0].gone()
    finally:
        for server in servers:
            server.close()
    refuse_changed(path, {key: _parameter(config, key) for key in config.parameters if key.startswith(PREFIX)})
    try:
        spec = ModelSpec.from_json(_parameter(config, SPEC_KEY))
        golden, head = _parameter(config, GOLDEN_KEY), _parameter(config, HEAD_KEY)
        return Artifact(
            path, spec, Golden.from_text(golden) if golden else None, Head.from_text(head) if head else None
        )
    except ValueError as error:
        fix = "write the server's model repository with seg-export --triton"
        raise SegError("E-MODEL-FORMAT", Exit.MODEL, path, f"has no model spec ({error})", fix) from error


def model_name(spec: ModelSpec) -> str:
    """Name of a model on a server: the spec's, with what a folder's name and an address can hold."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", spec.name).strip(".-") or "model"


def _parsed(path: str) -> tuple[Sequence[str], str]:
    """(HOST:PORT, ...), MODEL. Raises SegError E-TRITON (exit 2)."""
    hosts, _, model = path.removeprefix(TRITON).partition("/")
    urls = hosts.split(",")
    if (
        not model
        or "/" in model
        or not all(name and port.isdigit() for name, _, port in (u.rpartition(":") for u in urls))
    ):
        fix = "write HOST:PORT, or several with commas between them; the usual port is 8001"
        raise SegError("E-TRITON", Exit.USAGE, path, "is no address of a served model", fix)
    return urls, model


def _parameter(config: Any, name: str) -> str:
    """A parameter of config.pbtxt, "" when it is not there."""
    return str(config.parameters[name].string_value) if name in config.parameters else ""


class _Server:
    """One server, and its failures in one line. A lost connection is told by None, everything else raises."""

    def __init__(self, url: str) -> None:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the library tells lost connections on stderr itself
        try:
            from tritonclient import grpc
        except ImportError as error:
            raise missing_extra("tritonclient", "triton") from error
        self.url, self._grpc, self._said = url, grpc, "it does not answer"
        self.half = grpc.model_config_pb2.TYPE_FP16
        self.compared, self._version = False, ""  # whether the model there is known to be the right one
        self._client: Any = grpc.InferenceServerClient(url)

    def config(self, model: str) -> Any:
        """The model's configuration, or None without a server."""
        try:
            return self._client.get_model_config(model, client_timeout=TIMEOUT).config
        except self._grpc.InferenceServerException as error:
            if self._lost(error):
                return None
            fix = f"serve it, or choose one of: {', '.join(self._models()) or 'none'}"
            raise SegError("E-MODEL-MISSING", Exit.MODEL, model, f"is not served by {self.url}", fix) from error

    def infer(self, model: str, source: Any, target: str, x: NDArray[np.float32]) -> NDArray[Any] | None:
        """One call; None when the server was lost."""
        grpc, half = self._grpc, source.data_type == self.half
        given = grpc.InferInput(source.name, x.shape, "FP16" if half else "FP32")
        given.set_data_from_numpy(np.ascontiguousarray(x, np.float16 if half else np.float32))
        wanted = grpc.InferRequestedOutput(target)
        try:
            answer = self._client.infer(model, [given], outputs=[wanted], client_timeout=TIMEOUT)
        except self._grpc.InferenceServerException as error:
            if self._lost(error):
                self.compared = False
                return None
            raise self.refuses(error.message()) from error
        version = answer.get_response().model_version
        if version != self._version:
            self.compared, self._version = False, version
        logits: NDArray[Any] = answer.as_numpy(target)
        return logits

    def refuses(self, said: str) -> SegError:
        """The error for a server that is there and does not compute."""
        line = (said.strip().splitlines() or ["no reason given"])[-1]
        fix = "see the server's log; where its memory is too small, give a smaller --window"
        return SegError("E-TRITON", Exit.RUNTIME, self.url, f"the server refused: {line}", fix)

    def gone(self) -> SegError:
        """The error for servers that are not there, or not any more."""
        fix = "start it and repeat the command; with a folder of masks, --continue does the rest"
        return SegError("E-TRITON", Exit.RUNTIME, self.url, f"no Triton server answers ({self._said})", fix)

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def _lost(self, error: Any) -> bool:
        if error.status() in _LOST:
            self._said = (error.message().strip().splitlines() or [self._said])[0]
            return True
        return False

    def _models(self) -> list[str]:
        try:
            return sorted(entry.name for entry in self._client.get_model_repository_index().models)
        except self._grpc.InferenceServerException:
            return []
