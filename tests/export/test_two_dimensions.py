"""A network of slices, from a run to a mask: exported, proven in two engines, quantised, and run on volumes."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from seg.export.calibration import calibration_cases
from seg.export.cost import macs_per_voxel
from seg.export.int8 import quantise
from seg.export.onnx_ import GOLDEN_EXTENT, export, verify
from seg.infer.artifact import load
from seg.infer.backends import open_backend
from seg.infer.predict import segment
from seg.infer.selftest import golden_error
from seg.infer.spec import ModelSpec, Normalisation
from seg.infer.volume import Volume
from seg.train.evaluate import ModuleBackend
from seg.train.losses import supervised_loss
from seg.train.networks.unet import UNet2d

SPEC = ModelSpec(
    name="discs",
    labels=("background", "disc", "ring"),
    channels=("MR",),
    spacing=(None, None, None),
    normalisation=Normalisation("zscore"),
    window=(48, 48, 1),
    stride=(16, 16, 1),
    orientation="slices",
    dims=2,
)


def stack(seed: int, slices: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """(40, 36, slices) int16 image and uint8 label: a bright disc in a grey ring, elsewhere on every slice."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(40.0), np.arange(36.0), indexing="ij")
    centre = rng.uniform(12, 24, (2, slices))
    distance = np.hypot(x[..., None] - centre[0], y[..., None] - centre[1])
    label = np.select([distance < 5, distance < 9], [1, 2]).astype(np.uint8)
    return (rng.normal(100, 10, label.shape) + np.array([0, 150, 60])[label]).astype(np.int16), label


@pytest.fixture(scope="module")
def network() -> UNet2d:
    """Trained for a few seconds, so that labels mean something; channels last, as the training leaves it."""
    torch.manual_seed(0)
    module = UNet2d(classes=3, width=4, dropout=0.0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(module.parameters(), 0.01)
    pairs = [stack(seed) for seed in range(3)]
    image = torch.from_numpy(np.concatenate([p[0] for p in pairs], 2)).float().permute(2, 0, 1)[:, None, 4:36, 2:34]
    label = torch.from_numpy(np.concatenate([p[1] for p in pairs], 2)).long().permute(2, 0, 1)[:, 4:36, 2:34]
    image = (image - image.mean()) / image.std()
    for step in range(60):
        optimiser.param_groups[0]["lr"] = 0.01 * (1 - step / 60)
        optimiser.zero_grad()
        torch.autograd.backward(supervised_loss(module(image), label))
        optimiser.step()
    return module.eval()


@pytest.fixture(scope="module")
def artifact(network: UNet2d, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("two") / "model.onnx")
    _, parity = export(network, SPEC, path)
    assert 0 < parity.error < 1e-5
    assert parity.labels > 0.999
    return path


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_parity_in_both_engines(network: UNet2d, artifact: str, engine: str) -> None:
    """Extents and the number of slices are dynamic."""
    parity = verify(network, artifact, [(16, 16, 1), (48, 64, 7), (32, 16, 2)], engine)
    assert parity.error < 1e-5
    assert parity.labels > 0.999


def test_golden_pair_is_a_slice(artifact: str) -> None:
    golden = load(artifact).golden
    assert golden is not None
    assert golden.x.shape == (1, 1, GOLDEN_EXTENT * 16, GOLDEN_EXTENT * 16, 1)
    backend = open_backend("openvino", artifact, "cpu", threads=1)
    assert golden_error(backend.run(golden.x.astype(np.float32)), golden.logits) < 1e-5


def test_cost_is_counted_per_pixel(artifact: str) -> None:
    """This U-Net has 2.99 G multiply-adds on 256 x 256 pixels in the papers' tables."""
    assert macs_per_voxel(UNet2d(classes=4, width=16).eval(), SPEC) * 256**2 == pytest.approx(2.99e9, rel=0.03)
    # at least the first skip and the upsampled map beside it, joined: 2 x (4 + 4) channels of float32
    assert 64 < load(artifact).spec.cost.bytes < 500


def test_the_mask_is_torchs(network: UNet2d, artifact: str) -> None:
    image, label = stack(7, slices=21)
    volume = Volume(image[None], np.diag([1.4, 1.4, 8.0, 1.0]))
    found = segment(volume, SPEC, open_backend("openvino", artifact, "cpu", threads=1))
    expected = segment(volume, SPEC, ModuleBackend(network, torch.device("cpu")))
    assert (found == expected).mean() > 0.9999
    assert 2 * ((found > 0) & (label > 0)).sum() / ((found > 0).sum() + (label > 0).sum()) > 0.9


def test_int8_masks_are_those_of_fp32(artifact: str, tmp_path: Path) -> None:
    for number in range(4):
        for part, voxels in zip(("images", "labels"), stack(10 + number), strict=True):
            (tmp_path / part).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(voxels, np.diag([1.4, 1.4, 8.0, 1.0])), tmp_path / part / f"p{number}.nii.gz")
    cases = calibration_cases(str(tmp_path), 4, ())
    spec, quality = quantise(artifact, str(tmp_path / "int8.onnx"), cases)
    assert quality.acceptable
    assert spec.dims == 2
    assert load(str(tmp_path / "int8.onnx")).spec == spec
    assert json.loads(spec.to_json())["card"]["quantisation"]["overlap"] > 0.95
    golden = load(str(tmp_path / "int8.onnx")).golden
    assert golden is not None
    found = open_backend("onnxruntime", str(tmp_path / "int8.onnx"), "cpu", threads=1).run(golden.x.astype(np.float32))
    assert golden_error(found, golden.logits) < 0.05
