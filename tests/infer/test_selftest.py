"""`--selftest`: the golden pair through every engine that is here."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import infer, run

from seg.infer import selftest
from seg.infer.artifact import Artifact, Golden, load, metadata_of
from seg.infer.classes import Head
from seg.infer.errors import SegError
from seg.infer.selftest import golden_error
from seg.infer.triton_server import halved

Model = Callable[..., str]


def with_golden(path: str, golden: Golden | None) -> str:
    """The same model with another golden pair, or none."""
    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata_of(load(path).spec, golden))
    Path(path).write_bytes(model.SerializeToString(deterministic=True))
    return path


def changed(path: str, amount: float) -> str:
    """One golden logit moved by a share of the logits' range."""
    golden = load(path).golden
    assert golden is not None
    logits = golden.logits.copy()
    logits[0, 1, 0, 0, 0] += amount * np.ptp(logits)
    return with_golden(path, Golden(golden.x, logits))


def test_a_good_model(threshold_model: Model) -> None:
    done = infer("--selftest", threshold_model())  # eager: nothing else is required
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert first.startswith("openvino fp32: error ")
    assert first.endswith(" of the logits' range, ok")
    assert done.stderr == ""


def test_a_two_dimensional_model(threshold_model: Model) -> None:
    assert run("--selftest", threshold_model(dims=2, window=(16, 16, 1))) == 0


@pytest.mark.parametrize(("amount", "status"), [(5e-5, 0), (2e-4, 21), (float("nan"), 21)])
def test_the_tolerance(threshold_model: Model, capsys: pytest.CaptureFixture[str], amount: float, status: int) -> None:
    assert run("--selftest", changed(threshold_model(), amount)) == status
    told = capsys.readouterr()
    assert ("WRONG" in told.out) == bool(status)
    assert ("E-SELFTEST" in told.err) == bool(status)


@pytest.mark.parametrize(("sign", "status"), [(1, 0), (-1, 21)])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_head_is_tried_on_the_features(
    threshold_model: Model, capsys: pytest.CaptureFixture[str], sign: int, status: int, dims: int
) -> None:
    """Features are the image here; a head of the other sign gives other logits, though the graph's are right."""
    path = threshold_model(dims=dims, window=(16, 16, 16 if dims == 3 else 1))
    model, artifact = onnx.load(path), load(path)
    weight, bias = (onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    model.graph.node.append(onnx.helper.make_node("Identity", ["image"], ["features"]))
    axes = ["n", 1, *"xyz"[:dims]]
    model.graph.output.append(onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, axes))
    digest = hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()
    spec, head = replace(artifact.spec, graph_sha256=digest), Head(sign * weight.reshape(-1, 1), bias)
    onnx.helper.set_model_props(model, metadata_of(spec, artifact.golden, head))
    Path(path).write_bytes(model.SerializeToString(deterministic=True))
    assert run("--selftest", path) == status
    told = capsys.readouterr()
    lines = [line for line in told.out.splitlines() if line.startswith("openvino")]
    assert [line.split(": ")[0] for line in lines] == ["openvino fp32", "openvino from features fp32"]
    assert lines[0].endswith("ok")
    assert lines[1].endswith("is allowed" if status else "ok")
    assert ("E-SELFTEST" in told.err and "from features" in told.err) == bool(status)


def test_no_golden_pair(threshold_model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    path = with_golden(threshold_model(), None)
    assert run("--selftest", path) == 20
    assert capsys.readouterr().err.startswith(f"seg-infer: error E-MODEL-GOLDEN: {path}: ")


def test_no_such_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--selftest", "nobody") == 20
    assert "E-MODEL-MISSING" in capsys.readouterr().err


class Halved:
    """A server with --triton-half: `logits`, plus an error at one voxel, as float16 distances to the largest one."""

    half = True

    def __init__(self, logits: np.ndarray, error: float) -> None:
        self.logits = logits.copy()
        self.logits[0, 1, 1, 0, 0] += error * np.ptp(logits)

    def run(self, x: np.ndarray) -> np.ndarray:
        return halved(self.logits).astype(np.float32)

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("precision", "error", "good"), [
    ("fp32", 0.0, True), ("fp32", 1e-4, True), ("fp32", 2e-3, False), ("fp32", float("nan"), False),
    ("int8", 0.04, True), ("int8", 0.11, False),
])  # fmt: skip
def test_a_served_model_that_answers_in_half(
    threshold_model: Model, monkeypatch: pytest.MonkeyPatch, precision: str, error: float, good: bool
) -> None:
    """Its distances are compared with distances; float16 rounds them by up to 5e-4 of the range."""
    card = {"precision": precision, "quantisation": {"golden_tolerance": 0.05} if precision == "int8" else {}}
    x = np.zeros((1, 1, 4, 4, 4), np.float16)
    logits = np.random.default_rng(1).normal(3, 8, (1, 3, 4, 4, 4)).astype(np.float32)
    spec = load(threshold_model((0.5, 1.5), card=card)).spec
    artifact = Artifact("triton://localhost:8001/threshold", spec, Golden(x, logits))
    monkeypatch.setattr(selftest, "open_backend", lambda *_, **__: Halved(logits, error))
    if good:
        selftest._test(artifact)
    else:
        with pytest.raises(SegError, match="E-SELFTEST"):
            selftest._test(artifact)


def test_golden_error() -> None:
    expected = np.array([0.0, 4.0], np.float32)
    assert golden_error(expected + np.float32(1), expected) == 0.25
    assert golden_error(np.zeros(2, np.float32), np.zeros(2, np.float32)) == 0
    for bad in (np.zeros(3, np.float32), np.array([0, np.nan], np.float32), np.array([0, np.inf], np.float32)):
        assert golden_error(bad, expected) == float("inf")
