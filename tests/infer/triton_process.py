"""A real Triton Inference Server for tests: the binary in the wheel nvidia-pytriton, with its Python backend.

The wheel asks for NumPy 1, which it does not need here: pip install --no-deps nvidia-pytriton.
"""

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import seg

STARTS_IN = 90.0  # seconds, on a busy machine


def reason_to_skip() -> str | None:
    """Why no server can be started here, or None."""
    if find_spec("tritonclient") is None:
        return "no Triton client: pip install 'seg-toolkit[triton]'"
    if find_spec("pytriton") is None:
        return "no Triton server: pip install --no-deps nvidia-pytriton"
    if not _stub().exists():
        return f"nvidia-pytriton has no stub for Python {sys.version_info.major}.{sys.version_info.minor}"
    return None


def _package() -> Path:
    spec = find_spec("pytriton")
    assert spec is not None and spec.origin is not None  # noqa: PT018
    return Path(spec.origin).parent / "tritonserver"


def _stub() -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return _package() / "python_backend_stubs" / version / "triton_python_backend_stub"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class TritonProcess:
    """One server on 127.0.0.1, in a process group of its own. `url` is its gRPC address."""

    def __init__(self, repository: Path, workplace: Path) -> None:
        self._repository, self._workplace = repository, workplace
        self.http, self.grpc = free_ports(2)
        self.url = f"127.0.0.1:{self.grpc}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until its models are loaded."""
        backends = self._workplace / "backends" / "python"
        backends.mkdir(parents=True, exist_ok=True)
        for file in (*(_package() / "backends" / "python").glob("*.*"), _stub()):
            if not (backends / file.name).exists():
                (backends / file.name).symlink_to(file)
        for model in self._repository.glob("*/*/model.py"):
            _import_from_here(model)
        libraries = [sysconfig.get_config_var("LIBDIR"), str(_package().parents[1] / "nvidia_pytriton.libs")]
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        }
        command = [str(_package() / "bin" / "tritonserver"), "--model-repository", str(self._repository)]
        command += ["--backend-directory", str(backends.parent), "--allow-metrics", "false"]
        for name, port in (("http", self.http), ("grpc", self.grpc)):
            command += [f"--{name}-address", "127.0.0.1", f"--{name}-port", str(port)]
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=self._workplace
            )
        self._await_ready()

    @property
    def log(self) -> Path:
        return self._workplace / "tritonserver.log"

    def _await_ready(self) -> None:
        end = time.monotonic() + STARTS_IN
        while time.monotonic() < end:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/health/ready", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.1)
        raise AssertionError(f"not ready after {STARTS_IN} s\n{self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """End the server and its models' processes at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def _import_from_here(model: Path) -> None:
    """The Python backend ignores PYTHONPATH: a `seg` that only this process sees is put into the model's file."""
    folders = [str(Path(place).parent) for place in seg.__path__ if os.path.isdir(place)]
    text = model.read_text()
    if folders and "sys.path" not in text:
        model.write_text(f"import sys\n\nsys.path[:0] = {folders!r}\n{text}")
