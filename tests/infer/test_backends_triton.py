"""The client of a Triton server, against a real one: the same masks as here, and one clear line when it is gone."""

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from commands import command, infer, run, voxels
from dicom_files import write_series
from known import boxes, plain_spec, write_artifact
from pydicom import dcmread
from small_nets import windows
from triton_process import TritonProcess, free_ports, reason_to_skip

from seg.export.triton import write_model_repository
from seg.infer.artifact import SPEC_KEY, load, resolve
from seg.infer.backends import open_backend, triton_
from seg.infer.components import keep_largest
from seg.infer.errors import SegError
from seg.infer.triton_server import halved

pytestmark = pytest.mark.skipif(reason_to_skip() is not None, reason=reason_to_skip() or "")

THRESHOLDS = (0.5, 2.5)
SLOW_MODEL = """

import time

from seg.infer.triton_server import TritonPythonModel as Fast


class TritonPythonModel(Fast):
    def execute(self, requests):
        open({started!r}, "a").close()
        time.sleep(2)
        return super().execute(requests)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def artifact(place: Path) -> str:
    """Three classes by two thresholds."""
    spec = plain_spec(name="three", labels=("background", "dim", "bright"))
    return write_artifact(place / "three.onnx", spec, THRESHOLDS)


@pytest.fixture(scope="module")
def server(place: Path, artifact: str) -> Iterator[TritonProcess]:
    """Serves three (float32), half (float16), slow (2 s a call), shipped (the left atrium in int8)."""
    repository = place / "models"
    write_model_repository(artifact, str(repository), "python")
    for name, half in (("half", True), ("slow", False)):
        other = write_artifact(place / f"{name}.onnx", plain_spec(name=name, labels=("b", "d", "l")), THRESHOLDS)
        write_model_repository(other, str(repository), "python", half=half)
    with open(repository / "slow" / "1" / "model.py", "a") as file:
        file.write(SLOW_MODEL.format(started=str(place / "started")))
    write_model_repository(resolve("left-atrium", "int8"), str(repository), "python")
    process = TritonProcess(repository, place)
    process.start()
    yield process
    process.kill()


@pytest.fixture
def scan(write_scan: Callable[..., str]) -> str:
    return write_scan("scan.nii.gz", boxes())


def test_the_mask_is_the_local_one_without_a_model_here(
    server: TritonProcess, artifact: str, scan: str, tmp_path: Path
) -> None:
    """In tiles too: eight windows, several in flight."""
    for number, flags in enumerate(([], ["--window", "8,8,8"])):
        there, here = tmp_path / f"there{number}.nii.gz", tmp_path / f"here{number}.nii.gz"
        done = infer(scan, "-o", str(there), "--triton", server.url, "-m", "three", *flags)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert run(scan, "-o", str(here), "-m", artifact, *flags) == 0
        assert there.read_bytes() == here.read_bytes()
        assert set(np.unique(voxels(there))) == {0, 1, 2}


def test_a_shipped_model_proves_itself_through_the_server(server: TritonProcess, capsys: pytest.CaptureFixture) -> None:  # type: ignore[type-arg]
    assert run("--selftest", f"triton://{server.url}/left-atrium") == 0
    assert capsys.readouterr().out.startswith("triton int8: error ")


def test_so_does_one_that_answers_in_half(server: TritonProcess, capsys: pytest.CaptureFixture) -> None:  # type: ignore[type-arg]
    assert run("--selftest", f"triton://{server.url}/half") == 0
    assert capsys.readouterr().out.startswith("triton fp32: error ")


def test_the_spec_comes_from_the_server(server: TritonProcess, artifact: str) -> None:
    served, local = load(f"triton://{server.url}/three"), load(artifact)
    assert served.spec == local.spec
    assert served.golden is not None
    assert local.golden is not None
    np.testing.assert_array_equal(served.golden.logits, local.golden.logits)
    assert local.sha256 == hashlib.sha256(Path(artifact).read_bytes()).hexdigest()
    assert served.sha256 == hashlib.sha256(served.spec.to_json().encode()).hexdigest()


def test_a_dicom_mask_names_a_served_model(server: TritonProcess, tmp_path: Path) -> None:
    write_series(tmp_path / "series", boxes())
    out = str(tmp_path / "mask.dcm")
    assert run(str(tmp_path / "series"), "-o", out, "--triton", server.url, "-m", "three") == 0
    assert dcmread(out).Modality == "SEG"


@pytest.mark.parametrize("shape", [(1, 1, 4, 6, 8), (3, 1, 5, 4, 3), (7, 1, 16, 16, 16)])
@pytest.mark.parametrize("model", ["three", "half"])
def test_logits_of_every_batch_and_shape(
    server: TritonProcess, artifact: str, model: str, shape: tuple[int, ...]
) -> None:
    """float16 on the wire rounds the input, so its windows have values that float16 has."""
    x = windows(*shape).astype(np.float16).astype(np.float32) * 2
    expected = open_backend("openvino", artifact).run(x)
    backend = open_backend("triton", f"triton://{server.url}/{model}")
    found = backend.run(x)
    backend.close()
    with pytest.raises(RuntimeError, match="closed"):
        backend.run(x)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    if model == "three":
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found - found.max(axis=1, keepdims=True),
                                   expected - expected.max(axis=1, keepdims=True), rtol=1e-3, atol=1e-6)  # fmt: skip


def test_halved_logits_have_the_same_winner() -> None:
    """Also where the runner-up is closer than float16 can tell."""
    logits = np.random.default_rng(0).normal(size=(2, 3, 9, 9, 9)).astype(np.float32)
    logits[0, 2] = np.nextafter(logits[0, 1], np.float32(9))
    half = halved(logits)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half.argmax(axis=1), logits.argmax(axis=1))
    assert ((half == 0).sum(axis=1) == 1).all()


def test_several_servers_share_and_one_may_leave(
    server: TritonProcess, place: Path, artifact: str, scan: str, tmp_path: Path
) -> None:
    """The second address has no server: its windows go to the first. Neither answers: one line."""
    (dead,) = free_ports(1)
    flags = ["--window", "8,8,8", "-m", "three", "--triton", f"127.0.0.1:{dead}"]
    there, here = tmp_path / "there.nii.gz", tmp_path / "here.nii.gz"
    done = infer(scan, "-o", str(there), "--triton", server.url, *flags)
    assert done.returncode == 0, done.stderr
    assert run(scan, "-o", str(here), "-m", artifact, "--window", "8,8,8") == 0
    assert there.read_bytes() == here.read_bytes()
    done = infer(scan, "-o", str(tmp_path / "none.nii.gz"), *flags)
    assert_one_line(done, 21, "E-TRITON", f"127.0.0.1:{dead}")
    assert not (tmp_path / "none.nii.gz").exists()


class Served:
    """A server for `TritonBackend` that is away until it is `there`, and then has a model of a spec and version."""

    def __init__(self, url: str) -> None:
        self.url, self.there, self.spec, self.version = url, True, "one", "1"
        self.client = triton_._Server(url)
        self.client._client = self
        self.config = self.client.config

    def get_model_config(self, model: str, client_timeout: float) -> Any:
        if not self.there:
            raise self.client._grpc.InferenceServerException("gone", "StatusCode.UNAVAILABLE")
        config = self.client._grpc.model_config_pb2.ModelConfig()
        config.input.add(name="x", dims=[1, -1, -1, -1])
        config.output.add(name="logits", dims=[2, -1, -1, -1])
        config.parameters[SPEC_KEY].string_value = self.spec
        return SimpleNamespace(config=config)

    def infer(self, model: str, inputs: Any, outputs: Any, client_timeout: float) -> Any:
        if not self.there:
            raise self.client._grpc.InferenceServerException("gone", "StatusCode.UNAVAILABLE")
        logits, answer = np.zeros((1, 2, 4, 4, 4), np.float32), SimpleNamespace(model_version=self.version)
        return SimpleNamespace(as_numpy=lambda _: logits, get_response=lambda: answer)

    def close(self) -> None:
        pass


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[Served]:
    """The servers that the next backend talks to."""
    made = [Served("a:1"), Served("b:1")]
    waiting = iter([one.client for one in made])
    monkeypatch.setattr(triton_, "_Server", lambda _: next(waiting))
    return made


def test_a_server_that_comes_back_with_another_model_gets_no_windows(two: list[Served]) -> None:
    two[1].there = False
    backend = triton_.TritonBackend("triton://a:1,b:1/m")
    x = np.zeros((4, 1, 4, 4, 4), np.float32)
    assert backend.run(x).shape == (4, 2, 4, 4, 4)
    two[1].there = True
    backend.run(x)
    two[1].there = False
    backend.run(x)
    two[1].there, two[1].spec = True, "another"
    with pytest.raises(SegError, match="serves another m") as refused:
        backend.run(x)
    assert (refused.value.path, refused.value.exit) == ("b:1", 21)
    backend.close()


def test_a_new_version_is_compared_before_its_logits_are_used(two: list[Served]) -> None:
    backend = triton_.TritonBackend("triton://a:1,b:1/m")
    x = np.zeros((4, 1, 4, 4, 4), np.float32)
    backend.run(x)
    two[0].version = "2"  # the same network again
    backend.run(x)
    two[0].version, two[0].spec = "3", "another"
    with pytest.raises(SegError, match="serves another m"):
        backend.run(x)
    backend.close()


def assert_one_line(done: "subprocess.CompletedProcess[str]", status: int, *parts: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(part in done.stderr for part in ("seg-infer: error ", *parts)), done.stderr


@pytest.mark.parametrize(
    ("flags", "status", "parts"),
    [
        (["-m", "nothing"], 20, ["E-MODEL-MISSING: nothing", "half, left-atrium, slow, three"]),
        (["-m", "three", "-d", "cuda:0"], 21, ["E-DEVICE", "the server chooses"]),
        (["-m", "three", "--precision", "bf16"], 21, ["E-PRECISION", "bf16"]),
        (["-m", "three", "--precision", "int8"], 20, ["E-PRECISION", "three"]),
        (["-m", "OTHER"], 20, ["E-MODEL-OTHER", "other.onnx"]),
    ],
)
def test_what_the_server_cannot_do(
    server: TritonProcess, scan: str, tmp_path: Path, flags: list[str], status: int, parts: list[str]
) -> None:
    other = write_artifact(tmp_path / "other.onnx", plain_spec(name="three"), (1.0,))
    flags = [other if flag == "OTHER" else flag for flag in flags]
    done = infer(scan, "-o", str(tmp_path / "mask.nii.gz"), "--triton", server.url, *flags)
    assert_one_line(done, status, *parts)
    assert not (tmp_path / "mask.nii.gz").exists()


def test_a_file_that_is_served(server: TritonProcess, artifact: str, scan: str, tmp_path: Path) -> None:
    """What the file says of masks counts, where the server's copy says otherwise."""
    assert run(scan, "-o", str(tmp_path / "mask.nii.gz"), "--triton", server.url, "-m", artifact) == 0
    spec = replace(load(artifact).spec, largest_component=True)
    solid, masks = write_artifact(tmp_path / "solid.onnx", spec, THRESHOLDS), tmp_path / "solid.nii.gz"
    assert run(scan, "-o", str(masks), "--triton", server.url, "-m", solid) == 0
    found = [np.asarray(nib.load(path).dataobj) for path in (tmp_path / "mask.nii.gz", masks)]
    np.testing.assert_array_equal(found[1], keep_largest(found[0]))
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize("address", ["localhost", "localhost:x", "", "localhost:8001/", "a:1,,b:2"])
def test_an_address_that_is_none(address: str, scan: str, tmp_path: Path) -> None:
    assert_one_line(infer(scan, "-o", str(tmp_path / "m.nii.gz"), "--triton", address), 2, "E-TRITON")


def test_an_error_inside_the_server_is_one_line(server: TritonProcess, artifact: str) -> None:
    backend = open_backend("triton", f"triton://{server.url}/three")
    with pytest.raises(SegError, match=r"E-TRITON: .*the server refused: .*expected.*\[-1,1,-1,-1,-1\]") as caught:
        backend.run(windows(1, 2, 4, 4, 4))
    assert caught.value.exit == 21
    backend.close()


def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tritonclient", None)
    with pytest.raises(SegError, match=r'E-EXTRA: .*tritonclient.*pip install "seg-toolkit\[triton\]"'):
        load("triton://localhost:8001/three")


def test_killed_in_a_scan_then_continued(
    server: TritonProcess, place: Path, tmp_path: Path, write_scan: Callable[..., str]
) -> None:
    """No mask of the scan in work, and --continue makes what is missing."""
    for number in range(3):
        write_scan(f"scans/{number}.nii.gz", np.roll(boxes(), number, axis=0))
    masks, started = tmp_path / "masks", place / "started"
    started.unlink(missing_ok=True)
    line = [str(tmp_path / "scans"), "-o", str(masks), "--triton", server.url, "-m", "slow"]
    process = subprocess.Popen(command(*line), stderr=subprocess.PIPE, text=True)
    wait_for(masks / "0.nii.gz")
    started.unlink()
    wait_for(started)  # the second scan is in work, or the third where the second began before its mark was removed
    server.kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 40, said
    errors = [text for text in said.splitlines() if text.startswith("seg-infer: error ")]
    made = sorted(path.name for path in masks.glob("*.nii.gz"))
    assert made in (["0.nii.gz"], ["0.nii.gz", "1.nii.gz"])
    assert len(errors) == 3 - len(made)
    assert all("E-TRITON" in text and "--continue" in text for text in errors), said
    assert "Traceback" not in said

    first = os.stat(masks / "0.nii.gz").st_mtime_ns
    server.start()
    done = infer(*line, "--continue", "--report", str(tmp_path / "report.json"))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in masks.glob("*.nii.gz")) == ["0.nii.gz", "1.nii.gz", "2.nii.gz"]
    assert os.stat(masks / "0.nii.gz").st_mtime_ns == first
    assert f"{len(made)} skipped" in done.stderr
    json.loads((tmp_path / "report.json").read_text())


def test_stopped_by_the_user_while_the_server_computes(
    server: TritonProcess, scan: str, tmp_path: Path, place: Path
) -> None:
    started, mask = place / "started", tmp_path / "mask.nii.gz"
    started.unlink(missing_ok=True)
    line = command(scan, "-o", str(mask), "--triton", server.url, "-m", "slow")
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    wait_for(started)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert not mask.exists()


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} does not appear"
        time.sleep(0.02)
