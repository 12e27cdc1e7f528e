"""The model repository: what a Triton server would read in it, versions, and what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_plans import WINDOW, install, write_plan
from known import plain_spec, write_artifact

from seg.export.cli import app
from seg.export.triton import config, write_model_repository
from seg.infer.artifact import DIGEST_KEY, SPEC_KEY, Artifact, digest_of, load, resolve
from seg.infer.classes import Head
from seg.infer.errors import SegError
from seg.infer.spec import ModelSpec

Model = Callable[..., str]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """model(name="three", **spec) -> path of an artifact with three classes."""

    def make(name: str = "three", **changes: object) -> str:
        spec = plain_spec(name=name, labels=("background", "a", "b"), **changes)
        return write_artifact(tmp_path / "artifact.onnx", spec, (0.5, 1.5))

    return make


def parsed(text: str) -> Any:
    """The text as the server's own message; a field that it does not know is an error."""
    service = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs seg-toolkit[triton]")
    from google.protobuf import text_format

    return text_format.Parse(text, service.ModelConfig())


def test_the_repository(model: Model, tmp_path: Path) -> None:
    path = model(card={"data": 'quotes " and \\ backslashes\nand lines, µm'})
    assert write_model_repository(path, str(tmp_path / "models"), "onnxruntime") == "three"
    home = tmp_path / "models" / "three"
    assert sorted(str(p.relative_to(home)) for p in home.rglob("*")) == ["1", "1/model.onnx", "config.pbtxt"]
    assert (home / "1" / "model.onnx").read_bytes() == Path(path).read_bytes()
    found = parsed((home / "config.pbtxt").read_text())
    assert (found.name, found.backend, found.max_batch_size) == ("three", "onnxruntime", 4)
    assert [(t.name, list(t.dims)) for t in (*found.input, *found.output)] == [
        ("image", [1, -1, -1, -1]),
        ("logits", [3, -1, -1, -1]),
    ]
    assert found.HasField("dynamic_batching")
    assert found.instance_group[0].count == 1
    assert ModelSpec.from_json(found.parameters[SPEC_KEY].string_value) == load(path).spec
    texts = {key: entry.string_value for key, entry in found.parameters.items()}
    assert texts[DIGEST_KEY] == digest_of(texts)


def test_tensors_are_those_of_the_graph(model: Model, tmp_path: Path) -> None:
    """The server's ONNX Runtime checks names, types and shapes against the file."""
    ort = pytest.importorskip("onnxruntime")
    for dims in (2, 3):
        window = (16, 16, 1) if dims == 2 else (16, 16, 16)
        path = model(dims=dims, window=window)
        session = ort.InferenceSession(path)
        found = parsed(config(load(path), "m", "onnxruntime", False))
        for given, declared in (
            (session.get_inputs(), found.input),
            (session.get_outputs(), found.output),
        ):
            assert [t.name for t in given] == [t.name for t in declared]
            for tensor, entry in zip(given, declared, strict=True):
                assert tensor.type == "tensor(float)"
                assert [n if isinstance(n, int) else -1 for n in tensor.shape[1:]] == list(entry.dims)
        assert found.max_batch_size == (4 if dims == 3 else 64)


def test_features_are_offered_with_their_head(model: Model) -> None:
    artifact = load(model())
    head = Head(np.ones((3, 2), np.float32), np.zeros(3, np.float32))
    found = parsed(config(Artifact(artifact.path, artifact.spec, artifact.golden, head), "m", "python", True))
    assert [(t.name, t.dims[0], t.data_type) for t in found.output] == [("logits", 3, 10), ("features", 2, 11)]
    assert Head.from_text(found.parameters["seg.head"].string_value).weight.tolist() == head.weight.tolist()


def test_a_second_export_is_the_next_version(model: Model, tmp_path: Path) -> None:
    folder = str(tmp_path / "models")
    write_model_repository(model(), folder, "python")
    before = everything(tmp_path / "models")
    with pytest.raises(SegError, match=r"E-OUT-EXISTS: .*config\.pbtxt"):
        write_model_repository(model(), folder, "python")
    assert everything(tmp_path / "models") == before
    newer = model(spacing=(1.0, 1.0, 1.0))
    write_model_repository(newer, folder, "python", overwrite=True)
    home = tmp_path / "models" / "three"
    assert sorted(p.name for p in home.iterdir()) == ["1", "2", "config.pbtxt"]
    assert (home / "2" / "model.onnx").read_bytes() == Path(newer).read_bytes()
    found = parsed((home / "config.pbtxt").read_text())
    assert found.version_policy.latest.num_versions == 1
    assert json.loads(found.parameters[SPEC_KEY].string_value)["spacing"] == [1.0, 1.0, 1.0]


def everything(root: Path) -> list[tuple[str, bytes]]:
    return sorted((str(path), path.read_bytes() if path.is_file() else b"") for path in root.rglob("*"))


@pytest.mark.parametrize(
    ("name", "served"), [("left atrium", "left-atrium"), ("../../x", "x"), ("a/b", "a-b"), ("ü", "model")]
)
def test_names_are_folders_and_addresses(model: Model, tmp_path: Path, name: str, served: str) -> None:
    assert write_model_repository(model(name), str(tmp_path / "models"), "python") == served
    assert [p.name for p in (tmp_path / "models").iterdir()] == [served]


def test_a_plan_goes_to_tensorrt_with_its_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path)
    path = write_plan(tmp_path, (2, 1, *WINDOW))
    write_model_repository(path, str(tmp_path / "models"), "tensorrt")
    home = tmp_path / "models" / "threshold"
    assert (home / "1" / "model.plan").read_bytes() == Path(path).read_bytes()
    found = parsed((home / "config.pbtxt").read_text())
    assert found.max_batch_size == 2
    assert list(found.input[0].dims) == [1, *WINDOW]
    assert ModelSpec.from_json(found.parameters[SPEC_KEY].string_value).window == WINDOW
    with pytest.raises(SegError, match="E-TRITON-BACKEND"):
        write_model_repository(path, str(tmp_path / "other"), "python")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("backend", "half"), [("tensorrt", False), ("onnxruntime", True)])
def test_a_backend_that_cannot(model: Model, tmp_path: Path, backend: Any, half: bool) -> None:
    with pytest.raises(SegError, match="E-TRITON-BACKEND") as caught:
        write_model_repository(model(), str(tmp_path / "models"), backend, half=half)
    assert caught.value.exit == 2
    assert not (tmp_path / "models").exists()


def seg_export(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        app([str(a) for a in arguments])
    return int(caught.value.code or 0)


def test_at_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = tmp_path / "models"
    assert seg_export("hippocampus", "--triton", models, "--triton-backend", "python") == 0
    assert "-m hippocampus --triton localhost:8001" in capsys.readouterr().err
    assert (models / "hippocampus" / "1" / "model.onnx").read_bytes() == Path(resolve("hippocampus")).read_bytes()
    assert seg_export("hippocampus", "--triton", models) == 30
    assert seg_export("nobody", "--triton", models) == 20
    for flags in ([], ["-o", "x.onnx", "--triton", models], ["--triton", models, "--features"]):
        assert seg_export("hippocampus", *flags) == 2
    assert [p.name for p in models.iterdir()] == ["hippocampus"]


def test_the_file_for_the_python_backend_needs_no_torch(model: Model, tmp_path: Path) -> None:
    write_model_repository(model(), str(tmp_path / "models"), "python")
    code = (
        "import sys, runpy\n"
        f"found = runpy.run_path({str(tmp_path / 'models' / 'three' / '1' / 'model.py')!r})\n"
        "assert callable(found['TritonPythonModel'].execute)\n"
        "assert not {'torch', 'onnx', 'scipy', 'tritonclient'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
