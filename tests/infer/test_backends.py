"""The engines that run on a processor: the same logits from each, and one clear line when they cannot run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from known import threshold_graph
from onnx.reference import ReferenceEvaluator
from small_nets import CHANNELS, convolutions, save, windows

import seg.infer.backends.onnxruntime_ as ort_backend
from seg.infer.backends import BACKENDS, cuda_index, engine_for, from_slices, on_device, open_backend, to_slices
from seg.infer.errors import Exit, SegError

ENGINES = ("openvino", "onnxruntime")


def reference(path: str, x: np.ndarray, output: str = "logits") -> np.ndarray:
    """ONNX's own reference evaluator; slices of a 2D graph one by one."""
    run = ReferenceEvaluator(path).run
    if len(onnx.load(path).graph.input[0].type.tensor_type.shape.dim) == 5:
        return run([output], {"image": x})[0]
    return np.stack([run([output], {"image": x[..., z]})[0] for z in range(x.shape[4])], axis=-1)


@pytest.mark.parametrize("output", ["logits", "features"])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_logits_of_every_batch_and_shape(engine: str, dims: int, output: str, tmp_path: Path) -> None:
    path = save(convolutions(dims), tmp_path / "net.onnx")
    backend = open_backend(engine, path, "cpu", threads=1, output=output)
    for number, shape in enumerate([(1, 4, 6, 8), (2, 8, 4, 6), (3, 4, 6, 8), (1, 2, 2, 2), (2, 4, 4, 1 + dims % 2)]):
        x = windows(shape[0], CHANNELS, *shape[1:], seed=number)
        found = backend.run(x)
        expected = reference(path, x, output)
        assert found.dtype == np.float32
        assert found.shape == expected.shape == (shape[0], 3 if output == "logits" else 5, *shape[1:])
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_openvino_compiled_for_one_shape_takes_all(dims: int, tmp_path: Path) -> None:
    path = save(convolutions(dims), tmp_path / "net.onnx")
    backend = open_backend("openvino", path, "cpu", threads=1, shape=(1, CHANNELS, 4, 6, 8))
    for number, shape in enumerate([(1, 4, 6, 8), (1, 4, 6, 8), (2, 8, 4, 6), (1, 4, 6, 8)]):
        x = windows(shape[0], CHANNELS, *shape[1:], seed=number)
        np.testing.assert_allclose(backend.run(x), reference(path, x), atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_network_with_a_known_answer(engine: str, dims: int, tmp_path: Path) -> None:
    path = save(threshold_graph((0.5, 1.5), dims), tmp_path / "net.onnx")
    x = windows(3, 1, 5, 4, 3) * 2
    classes = open_backend(engine, path, "cpu", threads=1).run(x).argmax(axis=1)
    np.testing.assert_array_equal(classes, (x[:, 0] > 0.5).astype(int) + (x[:, 0] > 1.5))


@pytest.mark.parametrize("engine", ENGINES)
def test_input_that_is_not_contiguous(engine: str, tmp_path: Path) -> None:
    path = save(convolutions(3), tmp_path / "net.onnx")
    x = windows(2, 8, 6, 4, CHANNELS).transpose(0, 4, 3, 2, 1)
    assert not x.flags.c_contiguous
    np.testing.assert_allclose(open_backend(engine, path, threads=1).run(x), reference(path, x), atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_close_then_run(engine: str, tmp_path: Path) -> None:
    backend = open_backend(engine, save(threshold_graph((0.5,), 3), tmp_path / "net.onnx"))
    backend.run(windows(1, 1, 2, 2, 2))
    backend.close()
    backend.close()
    with pytest.raises(RuntimeError, match="the backend is closed"):
        backend.run(windows(1, 1, 2, 2, 2))


@pytest.mark.parametrize("engine", BACKENDS)
def test_cuda_on_a_machine_without_it(engine: str, tmp_path: Path) -> None:
    if engine_has_cuda():
        pytest.skip("this machine has a CUDA device")
    path = save(threshold_graph((0.5,), 3), tmp_path / "net.onnx")
    with pytest.raises(SegError) as caught:
        open_backend(engine, path, "cuda:0")
    assert caught.value.exit == Exit.RUNTIME
    assert caught.value.code == ("E-EXTRA" if engine == "tensorrt" else "E-DEVICE")
    assert "\n" not in str(caught.value)


def engine_has_cuda() -> bool:
    return "CUDAExecutionProvider" in __import__("onnxruntime").get_available_providers()


def test_onnxruntime_never_moves_to_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real provider that can run none of the layers stands in for CUDA: ONNX Runtime's default is the CPU."""
    ort = pytest.importorskip("onnxruntime")
    stand_in = "AzureExecutionProvider"
    if stand_in not in ort.get_available_providers():
        pytest.skip(f"this onnxruntime has no {stand_in}")
    monkeypatch.setattr(ort_backend, "CUDA", stand_in)
    path = save(convolutions(3), tmp_path / "net.onnx")
    silent = ort.InferenceSession(path, providers=[stand_in])
    assert silent.get_providers() == [stand_in, "CPUExecutionProvider"]  # so it would have run
    with pytest.raises(SegError, match=r"E-DEVICE: .*layers would run on the CPU") as caught:
        open_backend("onnxruntime", path, "cuda:0")
    assert caught.value.exit == Exit.RUNTIME


def test_onnxruntime_does_not_try_again_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python class prints and starts over with the CPU when a provider cannot be made, unless told not to."""
    ort = pytest.importorskip("onnxruntime")
    tried: list[Any] = []

    def fail(session: Any, providers: Any, *_: Any) -> None:
        tried.append(providers)
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(ort_backend, "CUDA", "AzureExecutionProvider")
    monkeypatch.setattr(ort.InferenceSession, "_create_inference_session", fail)
    with pytest.raises(SegError, match=r"E-DEVICE: .*the driver is too old"):
        open_backend("onnxruntime", save(convolutions(3), tmp_path / "net.onnx"), "cuda:0")
    assert len(tried) == 1


def test_a_bad_file_is_not_blamed_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_backend, "CUDA", "AzureExecutionProvider")
    (tmp_path / "net.onnx").write_bytes(b"\x08\x0anonsense")
    with pytest.raises(SegError, match="E-MODEL-LOAD"):
        open_backend("onnxruntime", str(tmp_path / "net.onnx"), "cuda:0")


@pytest.mark.parametrize("content", [b"", b"\x08\x0anonsense"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_that_is_no_network(engine: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(SegError, match="E-MODEL-LOAD") as caught:
        open_backend(engine, str(tmp_path / "net.onnx"))
    assert caught.value.exit == Exit.MODEL
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("graph", [threshold_graph((0.5,), 3), convolutions(3)], ids=["one output", "two outputs"])
@pytest.mark.parametrize("engine", ENGINES)
def test_an_output_that_is_not_there(engine: str, graph: onnx.GraphProto, tmp_path: Path) -> None:
    with pytest.raises(SegError, match="E-MODEL-LOAD"):
        open_backend(engine, save(graph, tmp_path / "net.onnx"), output="margins")


@pytest.mark.parametrize(
    ("engine", "package", "device", "extra"),
    [
        ("onnxruntime", "onnxruntime", "cpu", "ort"),
        ("onnxruntime", "onnxruntime", "cuda:0", "gpu"),
        ("tensorrt", "tensorrt", "auto", "gpu"),
        ("torch", "torch", "cpu", "train"),
    ],
)
def test_a_missing_package_is_named(
    engine: str, package: str, device: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SegError) as caught:
        open_backend(engine, "model", device)
    assert caught.value.exit == Exit.RUNTIME
    assert str(caught.value) == (
        f'E-EXTRA: the package {package} is not installed. Fix: pip install "seg-toolkit[{extra}]".'
    )


@pytest.mark.parametrize(
    ("engine", "precision"), [("openvino", "int8"), ("onnxruntime", "bf16"), ("onnxruntime", "fp16"), ("torch", "bf16")]
)
def test_a_precision_the_engine_does_not_have(engine: str, precision: str) -> None:
    with pytest.raises(SegError, match=f"E-PRECISION: .*{precision}") as caught:
        open_backend(engine, "model.onnx", precision=precision)
    assert caught.value.exit == Exit.RUNTIME


def test_openvino_refuses_a_precision_that_it_would_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without bf16: OpenVINO compiles in fp32 and says so only when asked."""
    import openvino as ov

    path = save(threshold_graph((0.5,), 3), tmp_path / "net.onnx")
    compile_model = ov.Core.compile_model

    def without_bf16(core: Any, model: Any, device: str, config: dict[str, Any]) -> Any:
        return compile_model(core, model, device, {**config, "INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(ov.Core, "compile_model", without_bf16)
    open_backend("openvino", path, precision="fp32").close()
    with pytest.raises(SegError, match=r"E-PRECISION: .*bf16"):
        open_backend("openvino", path, precision="bf16")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:x", "", "CPU"])
def test_a_device_that_is_no_device(device: str) -> None:
    for engine in BACKENDS:
        with pytest.raises(SegError, match="E-DEVICE") as caught:
            open_backend(engine, "model", device)
        assert caught.value.exit == Exit.USAGE or engine == "tensorrt"


def test_devices_and_engines() -> None:
    assert [cuda_index(d) for d in ("auto", "cpu", "cuda", "cuda:0", "cuda:12")] == [None, None, 0, 0, 12]
    found = [engine_for(*pair) for pair in [("a.onnx",), ("a.onnx", "cuda:1"), ("a.engine",), ("a.plan",), ("a.pt2",)]]
    assert found == ["openvino", "onnxruntime", "tensorrt", "tensorrt", "torch"]
    with pytest.raises(SegError, match="E-ENGINE: no engine tflite"):
        open_backend("tflite", "a.onnx")


def test_slices_and_back() -> None:
    x = windows(2, 3, 4, 5, 6)
    slices = to_slices(x)
    assert slices.shape == (12, 3, 4, 5)
    assert slices.flags.c_contiguous
    np.testing.assert_array_equal(slices[7], x[1, ..., 1])
    np.testing.assert_array_equal(from_slices(slices, 2), x)
    gaps = windows(4, 3, 5, 4, 1)[:, :, :, ::2]  # one slice a window: a view would do, with gaps
    assert to_slices(gaps).flags.c_contiguous
    np.testing.assert_array_equal(to_slices(gaps), gaps[..., 0])


def test_host_engines_compute_in_numpy(tmp_path: Path) -> None:
    backend = open_backend("openvino", save(threshold_graph((0.5,), 3), tmp_path / "net.onnx"))
    xp, run = on_device(backend)
    assert xp is np
    assert run(windows(1, 1, 2, 2, 2)).shape == (1, 2, 2, 2, 2)


def test_signals_after_an_engine_was_released_elsewhere(tmp_path: Path) -> None:
    """OpenVINO's end frees the stack on which the thread that began it handles signals."""
    path = save(convolutions(3), tmp_path / "net.onnx")
    program = f"""
import os, signal, threading
from seg.infer.backends import open_backend
backends = [open_backend("openvino", {path!r}, "cpu", threads=1)]
thread = threading.Thread(target=lambda: backends.pop().close())
thread.start()
thread.join()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_importing_the_table_imports_no_engine() -> None:
    code = (
        "import sys, seg.infer.backends, seg.infer.machine;"
        "print([m for m in ('openvino', 'onnxruntime', 'torch', 'tensorrt', 'cupy', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
