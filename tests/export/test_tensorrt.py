"""From an artifact to an engine, on a FAKE GPU: keys, rebuilding, refusals. It says nothing of real TensorRT."""

import subprocess
import sys
from pathlib import Path

import fake_cuda
import fake_plans
import fake_tensorrt
import pytest
from known import plain_spec, write_artifact

from seg.export import tensorrt_
from seg.export.plan_build import BuildOptions
from seg.export.tensorrt_ import engine_of, export_engine
from seg.infer.artifact import load
from seg.infer.backends.engine_file import sidecar
from seg.infer.errors import SegError

OPTIONS = BuildOptions(batches=(1, 2, 2), window=(6, 5, 4))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> fake_cuda.Gpu:
    found = fake_plans.install(monkeypatch, tmp_path)
    modules = (sys.modules["tensorrt"], sys.modules["cupy"])
    monkeypatch.setattr(tensorrt_, "tensorrt_here", lambda: modules)
    monkeypatch.setattr(tensorrt_, "build_plan", lambda *_: fake_tensorrt.fake_plan((2, 1, 6, 5, 4), 2))
    return found


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake network is not the artifact's: here parity is taken for granted."""
    monkeypatch.setattr(tensorrt_, "parity", lambda *_: 0.0)


@pytest.fixture
def artifact(tmp_path: Path) -> str:
    return write_artifact(tmp_path / "model.onnx", plain_spec(), (0.5,))


def keeping_the_largest(artifact: str) -> str:
    """The same graph whose masks keep the largest part of each class alone."""
    return write_artifact(Path(artifact).with_name("solid.onnx"), plain_spec(largest_component=True), (0.5,))


def test_built_kept_and_rebuilt(gpu: fake_cuda.Gpu, exact: None, artifact: str, tmp_path: Path) -> None:
    path, said = str(tmp_path / "model.engine"), list[str]()
    assert export_engine(artifact, path, OPTIONS, said.append) == "built"
    first = Path(path).stat().st_mtime_ns, Path(sidecar(path)).read_bytes()
    assert export_engine(artifact, path, OPTIONS, said.append) == "kept"
    assert (Path(path).stat().st_mtime_ns, Path(sidecar(path)).read_bytes()) == first
    other = BuildOptions(batches=(1, 1, 2), window=(6, 5, 4))
    assert export_engine(artifact, path, other, said.append) == "rebuilt"
    assert any("it was built for best 2, here it is 1" in line for line in said)
    assert export_engine(keeping_the_largest(artifact), path, other, said.append) == "rebuilt"
    assert any("its model is described otherwise" in line for line in said)
    assert load(path).spec.largest_component
    engine = engine_of(path)
    assert engine is not None
    key = engine.key
    found = (key.driver, key.tensorrt, key.precision, key.profile)
    assert found == (
        "13.0",
        fake_tensorrt.VERSION,
        "fp32",
        (2, 1, 6, 5, 4),
    )


@pytest.mark.parametrize("field", ["driver", "tensorrt", "gpu", "compute_capability", "onnx_sha256"])
def test_another_machine_or_model_is_another_key(
    gpu: fake_cuda.Gpu, exact: None, artifact: str, tmp_path: Path, field: str
) -> None:
    same = {"onnx_sha256": load(artifact).spec.graph_sha256, "best": 2}
    fake_plans.write_plan(tmp_path, **{**same, field: "of another"})
    said = list[str]()
    assert export_engine(artifact, str(tmp_path / "model.engine"), OPTIONS, said.append) == "rebuilt"
    assert f"it was built for {field.replace('_', ' ')} of another, here it is" in said[0]


def test_a_file_of_somebody_else_is_kept(gpu: fake_cuda.Gpu, exact: None, artifact: str, tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(b"a plan of somebody else")
    with pytest.raises(SegError, match="E-OUT-EXISTS"):
        export_engine(artifact, str(path), OPTIONS, lambda _: None)
    assert path.read_bytes() == b"a plan of somebody else"
    assert export_engine(artifact, str(path), OPTIONS, lambda _: None, overwrite=True) == "built"


def test_an_engine_that_disagrees_is_not_kept(gpu: fake_cuda.Gpu, artifact: str, tmp_path: Path) -> None:
    """The fake network computes something else: the real comparison runs, and refuses."""
    with pytest.raises(SegError, match=r"E-EXPORT-PARITY: .*differs from its artifact"):
        export_engine(artifact, str(tmp_path / "model.engine"), OPTIONS, lambda _: None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "model.onnx"]


def test_without_tensorrt_one_line_and_21(tmp_path: Path) -> None:
    """Before torch is loaded."""
    pytest.importorskip("openvino")
    code = (
        "import sys\n"
        "from seg.export.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(status)\n"
    )
    command = [sys.executable, "-c", code, "left-atrium", "--trt", "-o", str(tmp_path / "m.engine")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        pytest.skip("this machine has TensorRT and a GPU")
    assert done.returncode == 21, done.stderr
    assert done.stderr.startswith("seg-export: error E-TRT-HERE: a TensorRT engine cannot be built here: missing ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["left-atrium.onnx", "left-atrium.int8.onnx"])
def test_a_shipped_model_on_a_real_gpu(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from seg.infer.artifact import MODELS

    try:
        tensorrt_.tensorrt_here()
    except SegError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("SEG_CACHE", str(tmp_path / "cache"))
    path = str(tmp_path / "m.engine")
    options = BuildOptions(timing_cache=str(tmp_path / "timings"))
    assert export_engine(str(MODELS / form), path, options, lambda _: None) == "built"  # parity gate inside
    assert export_engine(str(MODELS / form), path, options, lambda _: None) == "kept"
