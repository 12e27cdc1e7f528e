"""Every network with every main method: trained on phantoms, exported, and run on a scan without torch."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from seg.export.onnx_ import export
from seg.export.run import load_run
from seg.infer.artifact import load
from seg.infer.backends import open_backend
from seg.infer.nifti import read
from seg.infer.predict import segment
from seg.train import training
from seg.train.networks import hstf
from seg.train.settings import Settings

NETWORKS = ("vnet", "unet2d", "hstf", "hstf2d")
METHODS = ("supervised", "crossmatch", "hstf", "hstf_crossmatch")
SHAPE = (20, 18, 17)
QUICK = [("vnet", "crossmatch"), ("vnet", "hstf_crossmatch"), ("unet2d", "supervised")]  # each takes an export
PAIRS = [
    pytest.param(network, method, marks=[] if (network, method) in QUICK else [pytest.mark.slow])
    for network in NETWORKS
    for method in METHODS
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_cases: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("combinations")
    write_cases(folder, 4, SHAPE, unlabeled=1)
    split = {"labeled2": ["scan00", "scan01"], "unlabeled": ["scan02", "scan04"], "val": ["scan03"]}
    (folder / "splits.json").write_text(json.dumps(split))
    return folder


@pytest.mark.parametrize(("network", "method"), PAIRS)
def test_from_scans_to_a_mask(
    network: str, method: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hstf, "BLOCKS", 1)
    flat = network.endswith("2d")
    run, path = tmp_path / "run", str(tmp_path / "model.onnx")
    options = {} if method == "supervised" else {"unlabeled_batch": 2}
    settings = Settings(
        (str(data),), str(run), network=network, method=method, labeled=2, iterations=5,
        window=(16, 16, 1 if flat else 16), width=2, device="cpu", precision="fp32", validate_every=0,
        method_options={"labeled_batch": 2, **options},
    )  # fmt: skip
    training.train(settings, resume=False, say=lambda _: None)
    assert (run / "refinement" / "round-3.json").exists() == method.startswith("hstf")
    module, spec = load_run(run)
    export(module, spec, path)
    artifact = load(path)
    assert artifact.spec.tiling == ("window" if network.startswith("hstf") else "free")
    volume = read(str(data / "images" / "scan03.nii.gz")).volume
    mask = segment(volume, artifact.spec, open_backend("openvino", path, "cpu", threads=1))
    assert mask.shape == SHAPE == nib.load(data / "labels" / "scan03.nii.gz").shape
    assert set(np.unique(mask)) <= {0, 1}
