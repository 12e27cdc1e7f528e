"""CUDA engines on a real device: equal to the CPU. Skipped, with the reason, where there is none.

Each test skips on its own: ONNX Runtime and native TensorRT need packages that do not share an environment.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known import plain_spec
from small_nets import CHANNELS, convolutions, save, windows

from seg.infer.backends import on_device, open_backend
from seg.infer.backends.cupy_ import cupy_on
from seg.infer.backends.engine_file import EngineKey, write_engine
from seg.infer.backends.tensorrt_ import key_here
from seg.infer.errors import SegError

pytestmark = pytest.mark.gpu
WINDOW, BATCH = (16, 12, 8), 2


@pytest.fixture
def cupy() -> Any:
    try:
        return cupy_on(0, "test")
    except SegError as error:
        pytest.skip(str(error))


@pytest.fixture
def model(tmp_path: Path) -> str:
    """Two outputs would need a plan for each: this graph keeps the logits only."""
    graph = convolutions(3)
    del graph.output[1]
    return save(graph, tmp_path / "net.onnx")


def expected(model: str, x: np.ndarray) -> np.ndarray:
    return open_backend("openvino", model, "cpu", threads=1).run(x)


def test_onnxruntime_on_cuda(model: str, cupy: Any) -> None:
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("the installed onnxruntime is the one for processors")
    backend = open_backend("onnxruntime", model, "cuda:0")
    xp, run = on_device(backend)
    assert xp is cupy
    for n, shape in ((1, WINDOW), (3, (8, 20, 14)), (2, WINDOW)):
        x = windows(n, CHANNELS, *shape, seed=n)
        np.testing.assert_allclose(backend.run(x), expected(model, x), atol=1e-4)
        with cupy.cuda.Stream(non_blocking=True):
            np.testing.assert_allclose(run(cupy.asarray(x)).get(), expected(model, x), atol=1e-4)
    backend.close()


def test_onnxruntime_with_a_device_that_is_not_there(model: str, cupy: Any) -> None:
    with pytest.raises(SegError, match="E-DEVICE"):
        open_backend("onnxruntime", model, "cuda:99")


@pytest.fixture
def plan(model: str, cupy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A sealed plan of `model`, built here in fp32 without TF32."""
    trt = pytest.importorskip("tensorrt", reason="the package tensorrt is not installed")
    monkeypatch.setenv("SEG_CACHE", str(tmp_path / "cache"))
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse(Path(model).read_bytes()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    largest = (BATCH, CHANNELS, *WINDOW)
    profile.set_shape("image", (1, CHANNELS, *WINDOW), largest, largest)
    config.add_optimization_profile(profile)
    serialised = builder.build_serialized_network(network, config)
    assert serialised is not None
    key = EngineKey(
        onnx_sha256=hashlib.sha256(Path(model).read_bytes()).hexdigest(),
        profile=largest,
        precision="fp32",
        **key_here(trt, cupy, 0),
    )
    path = str(tmp_path / "net.engine")
    write_engine(path, bytes(serialised), key, plain_spec())
    return path


@pytest.mark.parametrize("graphs", [False, True], ids=["enqueue", "CUDA graph"])
def test_tensorrt(model: str, plan: str, cupy: Any, graphs: bool) -> None:
    """Host and device path, batches that fill the plan and that do not, repeated so that graphs are replayed."""
    backend = open_backend("tensorrt", plan, "cuda:0", precision="fp32", graphs=graphs)
    _, run = on_device(backend)
    for number, n in enumerate((1, 2, 3, 5, 2, 5, 1)):
        x = windows(n, CHANNELS, *WINDOW, seed=number)
        np.testing.assert_allclose(backend.run(x), expected(model, x), atol=1e-4)
        with cupy.cuda.Stream(non_blocking=True):
            np.testing.assert_allclose(run(cupy.asarray(x)).get(), expected(model, x), atol=1e-4)
    backend.close()


def test_torch_on_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    from seg.infer.backends.torch_ import seal_pt2

    monkeypatch.setenv("SEG_CACHE", str(tmp_path / "cache"))
    module = torch.nn.Conv3d(CHANNELS, 3, 3, padding=1).eval()
    path = str(tmp_path / "net.pt2")
    torch.export.save(torch.export.export(module, (torch.zeros((1, CHANNELS, *WINDOW)),)), path)
    seal_pt2(path)
    x = windows(1, CHANNELS, *WINDOW)
    with torch.inference_mode():
        reference = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(open_backend("torch", path, "cuda:0").run(x), reference, atol=1e-4)
