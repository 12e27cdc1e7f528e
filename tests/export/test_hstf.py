"""The hybrid network as an artifact: attention with dynamic extents in two engines."""

from pathlib import Path

import onnx
import pytest
import torch

from seg.export.onnx_ import OPSET, export, verify
from seg.infer.artifact import load
from seg.infer.spec import ModelSpec, Normalisation
from seg.train.networks import build_network, hstf
from seg.train.networks.hstf_variants import VARIANTS

LIMITS = {"hstf_instance": 1e-4}  # the exporter's: statistics of few voxels are inexact; of the others a tenth of it
EXTENTS = {3: [(16, 48, 32), (64, 16, 32)], 2: [(16, 48, 1), (64, 32, 3)]}


def spec_for(dims: int) -> ModelSpec:
    return ModelSpec(
        name="hybrid",
        labels=("background", "organ"),
        channels=("MR",),
        spacing=(None, None, None),
        normalisation=Normalisation("zscore"),
        window=(32, 32, 32 if dims == 3 else 1),
        stride=(16, 16, 16 if dims == 3 else 1),
        orientation="RAS" if dims == 3 else "slices",
        dims=dims,
        tiling="window",
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dims"), [("hstf", 3), ("hstf_s", 3), ("hstf2d", 2)])
def test_whole_network(name: str, dims: int, tmp_path: Path) -> None:
    softmax_and_no_resize(artifact_is_torchs_network_at_any_extent(name, dims, tmp_path))


@pytest.mark.parametrize(("name", "dims"), [pytest.param("hstf", 3, marks=pytest.mark.slow), pytest.param("hstf2d", 2)])
def test_network_of_one_block_a_stage(name: str, dims: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter's reasoning about shapes takes long for eight blocks; each is the same."""
    monkeypatch.setattr(hstf, "BLOCKS", 1)
    softmax_and_no_resize(artifact_is_torchs_network_at_any_extent(name, dims, tmp_path))


def softmax_and_no_resize(kinds: set[str]) -> None:
    assert "Softmax" in kinds  # attention as two products and a softmax
    assert "Resize" not in kinds


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_variant_of_one_block_a_stage(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hstf, "BLOCKS", 1)
    kinds = artifact_is_torchs_network_at_any_extent(name, 3, tmp_path)
    assert ("Softmax" in kinds) == (name not in ("hstf_identity", "hstf_conv"))
    assert ("InstanceNormalization" in kinds) == (name == "hstf_instance")
    assert ("Resize" in kinds) == (name == "hstf_nearest")
    assert ("Sin" in kinds) == (name == "hstf_rope")


def artifact_is_torchs_network_at_any_extent(name: str, dims: int, tmp_path: Path) -> set[str]:
    """Operators of the graph."""
    torch.manual_seed(0)
    network = build_network(name, 1, 2, 4, 0.5).train()
    with torch.no_grad():
        for _ in range(5):
            network(torch.randn(2, 1, *[32] * dims))
    path = str(tmp_path / "model.onnx")
    _, parity = export(network, spec_for(dims), path)
    limit = LIMITS.get(name, 1e-5)
    assert 0 < parity.error < limit
    for engine in ("openvino", "onnxruntime"):
        again = verify(network, path, EXTENTS[dims], engine)
        assert again.error < limit
        assert again.labels > 0.999
    model = onnx.load(path)
    assert [o.version for o in model.opset_import if not o.domain] == [OPSET]
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Attention", "Dropout", "ScatterND"}
    assert load(path).spec.cost.bytes > 0
    return kinds
