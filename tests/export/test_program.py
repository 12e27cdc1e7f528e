"""seg-export -o model.pt2: the torch engine's program, sealed, proven, without traces of this machine."""

import getpass
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from seg.export import program
from seg.export.onnx_ import Parity
from seg.export.program import export_program
from seg.infer.artifact import GOLDEN_KEY, load
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
    least = np.ones((1, 1, *spec.stride), np.float32)  # an extent of one stride, which torch.export takes for special
    with torch.inference_mode():
        given = torch.from_numpy(least[..., 0] if spec.dims == 2 else least)
        full = expected(given).numpy().reshape(1, 2, *spec.stride)
    np.testing.assert_allclose(open_backend("torch", str(path), "cpu").run(least), full, atol=1e-5)
    run_selftest(str(path))
    assert "torch fp32: error" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "model.pt2", "model.pt2.seal"]


def test_no_trace_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    export_program(network("vnet"), SPECS["vnet"], str(path))
    with zipfile.ZipFile(path) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 0, 0, 0, 0, 0)}
        content = b"".join(archive.read(n) for n in archive.namelist() if not n.endswith(GOLDEN_KEY))
    traces = ["site-packages", str(Path(program.__file__).parents[1]), str(Path.home()) + "/", str(tmp_path), ".py"]
    traces += [name for name in (getpass.getuser(), socket.gethostname()) if len(name) > 3]
    assert [trace for trace in traces if trace.encode() in content] == []


SAME = """
import sys, torch
from pathlib import Path
from seg.export.program import export_program
from seg.infer.spec import ModelSpec
torch.set_num_threads(2)
folder = Path(sys.argv[1])
spec = ModelSpec.from_json((folder / "spec.json").read_text())
export_program(torch.load(folder / "network.pt", weights_only=False), spec, sys.argv[2])
"""


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    """With another order of sets, which the seed of hashing gives, and another number of threads."""
    torch.save(network("vnet"), tmp_path / "network.pt")
    (tmp_path / "spec.json").write_text(SPECS["vnet"].to_json())
    here, there = tmp_path / "here.pt2", tmp_path / "there.pt2"
    command = [sys.executable, "-c", SAME, tmp_path, there]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "3"}, timeout=200)
    export_program(network("vnet"), SPECS["vnet"], str(here))
    assert here.read_bytes() == there.read_bytes()


def test_the_order_of_the_constraints_is_that_of_their_names() -> None:
    constraints = {"s9": 1, "16*s40": 2, "s40": 3}
    program._in_order(constraints)
    assert list(constraints.items()) == [("16*s40", 2), ("s40", 3), ("s9", 1)]


def test_unproven_program_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "verify", lambda *_: Parity(0.1, 0.5))
    with pytest.raises(SegError, match="E-EXPORT-PARITY"):
        export_program(network("vnet"), SPECS["vnet"], str(tmp_path / "model.pt2"))
    assert [p.name for p in tmp_path.iterdir()] in ([], ["cache"])
