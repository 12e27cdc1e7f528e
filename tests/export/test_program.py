"""seg-export -o model.pt2: the torch engine's program, sealed, proven, without traces of this machine."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from seg.export import program
from seg.export.onnx_ import Parity
from seg.export.program import export_program
from seg.infer.artifact import load
from seg.infer.backends import open_backend
from seg.infer.errors import SegError
from seg.infer.selftest import run_selftest
from seg.infer.spec import ModelSpec, Normalisation
from seg.train.networks import build_network

SPECS = {
    "vnet": ModelSpec("tiny", ("a", "b"), ("MR",), (1, 1, 1), Normalisation(), (16, 16, 16), (16, 16, 16)),
    "unet2d": ModelSpec("flat", ("a", "b"), ("MR",), (1, 1, None), Normalisation(), (32, 32, 1), (16, 16, 1), dims=2),
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEG_CACHE", str(tmp_path / "cache"))


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(name, channels=1, classes=2, width=2, dropout=0.5).eval()


@pytest.mark.parametrize("name", sorted(SPECS))
def test_program(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, spec = tmp_path / "model.pt2", SPECS[name]
    _, parity = export_program(network(name), spec, str(path))
    assert parity.error < 1e-6
    assert load(str(path)).spec.labels == spec.labels
    x = np.random.default_rng(0).standard_normal(
        (3, 1, *(2 * s if s > 1 else 3 for s in spec.stride)), dtype=np.float32
    )
    found, expected = open_backend("torch", str(path), "cpu").run(x), network(name)
    with torch.inference_mode():
        slices = [expected(torch.from_numpy(x[..., z])).numpy() for z in range(3)] if spec.dims == 2 else []
        full = np.stack(slices, axis=-1) if slices else expected(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, full, atol=1e-5)
    run_selftest(str(path))
    assert "torch fp32: error" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "model.pt2", "model.pt2.seal"]


def test_no_trace_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    export_program(network("vnet"), SPECS["vnet"], str(path))
    with zipfile.ZipFile(path) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    traces = ["site-packages", str(Path(program.__file__).parents[1]), str(Path.home()) + "/", str(tmp_path), ".py"]
    assert [trace for trace in traces if trace.encode() in content] == []


def test_unproven_program_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "verify", lambda *_: Parity(0.1, 0.5))
    with pytest.raises(SegError, match="E-EXPORT-PARITY"):
        export_program(network("vnet"), SPECS["vnet"], str(tmp_path / "model.pt2"))
    assert [p.name for p in tmp_path.iterdir()] in ([], ["cache"])
