"""seg-export --verify on whole scans: three engines against torch, and that a wrong file is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from seg.export import proof
from seg.export.onnx_ import export
from seg.export.proof import Original, Proof, prove
from seg.infer.errors import SegError
from seg.infer.spec import ModelSpec, Normalisation
from seg.train.cases import discover
from seg.train.networks.vnet import VNet

pytestmark = pytest.mark.usefixtures("converted_once")

SPEC = ModelSpec(
    "tiny", ("background", "left", "right"), ("MR",), (None, None, None), Normalisation(), (16, 16, 16), (16, 16, 16)
)


def network() -> VNet:
    torch.manual_seed(3)
    return VNet(classes=3, width=2).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, write_cases: Callable[..., Path]) -> tuple[str, list[object]]:
    """The artifact, and two labelled scans."""
    folder = tmp_path_factory.mktemp("proof")
    path = str(folder / "m.onnx")
    export(network(), SPEC, path)
    data = write_cases(folder / "data", 2, (20, 16, 16), unlabeled=0, classes=3)
    return path, list(discover([str(data)]).cases)


def test_three_engines_agree_with_torch(made: tuple[str, list[object]]) -> None:
    path, cases = made
    rows: list[str] = []
    proofs = prove(Original.of(network()), path, cases, rows.append)  # type: ignore[arg-type]
    assert [(p.engine, p.scans) for p in proofs] == [("openvino", 2), ("onnxruntime", 2), ("onnx.reference", 1)]
    for found in proofs:
        assert 0 <= found.error < 1e-5
        assert found.labels > 0.999
    assert proofs[0].dice is not None
    assert proofs[0].dice == pytest.approx(proofs[0].dice_fp32, abs=1e-3)
    assert len(rows) == 5


def test_another_network_is_refused(made: tuple[str, list[object]]) -> None:
    torch.manual_seed(4)
    other = Original.of(VNet(classes=3, width=2).eval())
    with pytest.raises(SegError, match=r"E-EXPORT-PARITY: .*differs from torch"):
        prove(other, made[0], made[1], lambda _: None)  # type: ignore[arg-type]


def test_the_slow_engine_sees_the_centre_of_a_large_scan(
    made: tuple[str, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "REFERENCE_VOXELS", 16 * 16 * 16)
    seen: list[tuple[int, ...]] = []
    run = proof.ReferenceBackend.run
    monkeypatch.setattr(proof.ReferenceBackend, "run", lambda self, x: (seen.append(x.shape), run(self, x))[1])
    rows: list[str] = []
    prove(Original.of(network()), made[0], made[1], rows.append)  # type: ignore[arg-type]
    assert seen == [(1, 1, 16, 16, 16)]
    assert rows[-1].startswith("| onnx.reference | 1 (16 x 16 x 16 voxels of it) | ")
    assert rows[2].startswith("| openvino | 2 | ")


def test_the_fp32_network_runs_once_a_scan(made: tuple[str, list[object]]) -> None:
    """Twice with a label: the Dice is that of the shipping path. It is the slow one, and serves all engines."""
    original, calls = Original.of(network()), 0
    run = original.backend.run

    def counted(x: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return run(x)

    original.backend.run = counted  # type: ignore[method-assign]
    prove(original, made[0], made[1], lambda _: None)  # type: ignore[arg-type]
    assert calls == 2 * 2 + 1
    prove(original, made[0], made[1], lambda _: None)  # type: ignore[arg-type]
    assert calls == 2 * 2 + 1 + 2 + 1


def test_a_file_that_is_refused_is_not_kept(made: tuple[str, list[object]], tmp_path: Path) -> None:
    def refuse(path: str) -> None:
        assert Path(path).exists()
        raise SegError("E-EXPORT-PARITY", 20, path, "no", "none")  # type: ignore[arg-type]

    with pytest.raises(SegError, match="E-EXPORT-PARITY"):
        export(network(), SPEC, str(tmp_path / "m.onnx"), prove=refuse)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("found", "precision", "fine"),
    [
        (Proof("e", 1, 9e-6, 1.0), "fp32", True),
        (Proof("e", 1, 2e-5, 1.0), "fp32", False),
        (Proof("e", 1, 0.0, 0.9998), "fp32", False),
        (Proof("e", 1, float("nan"), 1.0), "fp32", False),
        (Proof("e", 1, 1e-3, 0.9998), "fp16", True),
        (Proof("e", 1, 1e-3, 0.9998, 0.9, 0.89), "fp16", False),
        (Proof("e", 1, 0.1, 0.98, 0.9, 0.895), "int8", True),
        (Proof("e", 1, 0.1, 0.96), "int8", False),
    ],
)
def test_limits(found: Proof, precision: str, fine: bool) -> None:
    if fine:
        proof._refuse("m.onnx", "torch", found, precision)
        return
    with pytest.raises(SegError, match="E-EXPORT-PARITY"):
        proof._refuse("m.onnx", "torch", found, precision)


def test_slices_in_the_reference_engine(tmp_path: Path) -> None:
    from known import plain_spec, write_artifact

    spec = plain_spec(dims=2, window=(16, 16, 1))
    path = write_artifact(tmp_path / "m.onnx", spec, (0.5,))
    x = np.random.default_rng(0).standard_normal((2, 1, 4, 3, 5), dtype=np.float32)
    from seg.infer.backends import open_backend

    expected = open_backend("openvino", path, "cpu").run(x)
    np.testing.assert_allclose(proof.ReferenceBackend(path).run(x), expected, atol=1e-6)
