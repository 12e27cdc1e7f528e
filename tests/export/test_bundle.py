"""The MONAI bundle: run by MONAI itself without seg-toolkit, it gives the masks that seg-infer gives."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from known import oblique_affine, plain_spec, write_artifact

from seg.export.bundle import write_bundle
from seg.export.cli import app
from seg.infer.artifact import load, resolve
from seg.infer.backends import open_backend
from seg.infer.nifti import read
from seg.infer.phantom import main as write_phantoms
from seg.infer.predict import segment
from seg.infer.resample import linear_matrix
from seg.infer.spec import ModelSpec, Normalisation
from seg.infer.volume import Reorientation

pytest.importorskip("monai", reason="no MONAI: pip install 'monai[fire,ignite]'")

WITHOUT_SEG = "import runpy, sys; sys.modules['seg'] = None; runpy.run_module('monai.bundle', run_name='__main__')"


def run_bundle(bundle: Path, scans: Path, masks: Path) -> None:
    """`python -m monai.bundle run` in a process that cannot import this project, from a folder of its own."""
    command = [sys.executable, "-c", WITHOUT_SEG, "run"]
    for name, value in (
        ("config_file", bundle / "configs" / "inference.json"),
        ("meta_file", bundle / "configs" / "metadata.json"),
        ("bundle_root", bundle),
        ("dataset_dir", scans),
        ("output_dir", masks),
    ):
        command += [f"--{name}", str(value)]
    masks.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=masks, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def ours(path: str, scan: Path) -> np.ndarray:
    artifact = load(path)
    return segment(read(str(scan)).volume, artifact.spec, open_backend("openvino", path, threads=1))


def save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_slope_inter(1, 0)
    nib.save(image, path)


def assert_equal_masks(path: str, scans: Path, masks: Path, least: float) -> None:
    for scan in sorted(scans.iterdir()):
        found = nib.load(masks / scan.name.replace(".nii.gz", "_seg.nii.gz"))
        np.testing.assert_allclose(found.affine, nib.load(scan).affine, atol=1e-5)
        mask, expected = np.asarray(found.dataobj), ours(path, scan)
        assert mask.dtype == expected.dtype
        assert 0 < (expected > 0).mean() < 0.9
        assert (mask == expected).mean() >= least, scan.name


def test_the_left_atrium_model_in_monai(tmp_path: Path) -> None:
    """Resampled to half the resolution, in two orientations, one pass over the whole scan."""
    path, scans = resolve("left-atrium", "fp32"), tmp_path / "scans"
    write_phantoms([str(tmp_path / "phantoms"), "--count", "1"])
    phantom = nib.load(next((tmp_path / "phantoms" / "images").iterdir()))
    voxels = np.asarray(phantom.dataobj)
    save(scans / "plain.nii.gz", voxels, phantom.affine)
    turned = np.ascontiguousarray(voxels[::-1, :, ::-1].transpose(2, 0, 1))
    affine = phantom.affine @ np.diag([-1.0, 1, -1, 1]) @ np.eye(4)[:, [2, 0, 1, 3]]
    save(scans / "turned.nii.gz", turned, affine)
    write_bundle(path, str(tmp_path / "bundle"))
    run_bundle(tmp_path / "bundle", scans, tmp_path / "masks")
    assert_equal_masks(path, scans, tmp_path / "masks", 0.999)


@pytest.mark.parametrize(
    "changes",
    [
        dict(
            normalisation=Normalisation("fixed", -100.0, 300.0, 50.0, 80.0), spacing=(2.0, 1.5, None), stride=(4, 4, 4)
        ),
        dict(normalisation=Normalisation("zscore", -100.0, 300.0), label_values=(0, 300, 7)),
        dict(spacing=(0.4, 0.9, 3.0), tiling="window", normalisation=Normalisation("zscore")),
        dict(dims=2, window=(16, 16, 1), stride=(4, 4, 1), normalisation=Normalisation("zscore")),
        dict(dims=2, window=(16, 16, 1), stride=(4, 4, 1), orientation="slices", spacing=(1.6, 0.7, None)),
        dict(largest_component=True, label_values=(0, 300, 7), normalisation=Normalisation("zscore")),
    ],
    ids=["fixed", "values", "windows", "2D", "slices", "largest"],
)
def test_every_kind_of_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    """In this process, to be quick; an oblique scan, intensities beyond the limits, smooth along every axis."""
    spec = plain_spec(labels=("background", "a", "b"), **changes)
    path = write_artifact(tmp_path / "model.onnx", spec, (0.3, 1.2))
    rng = np.random.default_rng(5)
    voxels = rng.normal(60, 120, (6, 5, 4)).repeat(5, 0).repeat(4, 1).repeat(4, 2)
    affine = oblique_affine()
    if spec.orientation == "slices":  # across the first axis, and those in the plane are swapped
        voxels, affine = voxels.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]]
    save(tmp_path / "scans" / "scan.nii.gz", voxels.astype(np.int16), affine)
    write_bundle(path, str(tmp_path / "bundle"))
    workflow = in_process(tmp_path, monkeypatch)
    workflow.run()
    assert_equal_masks(path, tmp_path / "scans", tmp_path / "masks", 0.999)


def in_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The bundle as MONAI's workflow object; its `scripts` are not those of another bundle."""
    from monai.bundle import ConfigWorkflow

    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [*sys.path])
    bundle = folder / "bundle"
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(bundle),
        dataset_dir=str(folder / "scans"),
        output_dir=str(folder / "masks"),
    )
    workflow.initialize()
    return workflow


def test_monai_finds_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its properties, and a network that does what the metadata say."""
    from monai.bundle import verify_net_in_out

    write_bundle(resolve("hippocampus", "fp32"), str(tmp_path / "bundle"))
    workflow = in_process(tmp_path, monkeypatch)
    assert workflow.check_properties() in (None, [])
    configs = tmp_path / "bundle" / "configs"
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        device="cpu",
        p=1,
        n=2,
        bundle_root=str(tmp_path / "bundle"),
    )
    content = json.loads((configs / "metadata.json").read_text())
    assert content["network_data_format"]["outputs"]["pred"]["num_channels"] == 3
    assert ModelSpec.from_dict(content["seg_spec"]) == load(resolve("hippocampus", "fp32")).spec
    assert (tmp_path / "bundle" / "LICENSE").read_text().startswith("CC-BY-SA 4.0")


@pytest.mark.parametrize("extents", [(7, 7), (9, 4), (30, 11), (5, 13), (6, 12), (1, 3), (40, 5)])
def test_the_sampling_is_that_of_inference(extents: tuple[int, int]) -> None:
    """Where the triangle reaches beyond the end it is cut off there and repeats the end here; elsewhere they agree."""
    import torch

    from seg.export.bundle_model import resampled

    n, m = extents
    x = np.random.default_rng(n).normal(size=(2, 3, n, 4)).astype(np.float32)
    found = resampled(torch.from_numpy(x), (3, m, 4)).numpy()
    expected = np.einsum("mn,cxnz->cxmz", linear_matrix(n, m), x)
    inside = slice(1, m - 1) if m < n else slice(0, m)
    assert expected[:, :, inside].size
    np.testing.assert_allclose(found[:, :, inside], expected[:, :, inside], atol=1e-5)
    assert np.abs(found - expected).max() < 1


@pytest.mark.parametrize(
    ("shape", "mm"),
    [
        ((5, 30, 20), (8, 1, 1)),
        ((30, 5, 20), (1, 1, 1)),
        ((9, 9, 9), (1, 1, 1)),
        ((4, 30, 20), (1, 1.4, 8)),
        ((30, 20, 1), (8, 1, 1)),
    ],
    ids=["thick", "fewest", "last of equals", "thick, not fewest", "one slice"],
)
def test_slices_come_last_as_in_seg_infer(shape: tuple[int, int, int], mm: tuple[float, float, float]) -> None:
    import torch
    from monai.data import MetaTensor

    from seg.export.bundle_model import SlicesLastd

    voxels = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    image = MetaTensor(torch.from_numpy(voxels)[None], affine=torch.diag(torch.tensor([*mm, 1.0], dtype=torch.float64)))
    turn, move = Reorientation.of_slices(shape, mm), SlicesLastd("image")
    turned = move({"image": image})
    np.testing.assert_array_equal(turned["image"][0], turn.apply(voxels))
    np.testing.assert_array_equal(turned["image"].affine, turn.affine(image.affine.numpy(), shape))
    back = move.inverse(turned)["image"]
    np.testing.assert_array_equal(back[0], voxels)
    np.testing.assert_array_equal(back.affine, image.affine)


def test_the_command_that_is_printed_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it stands there, from another folder, with a space in the bundle's name; scans and masks are put in."""
    bundle, masks = tmp_path / "my bundle", tmp_path / "masks"
    with pytest.raises(SystemExit):
        app(["hippocampus", "--bundle", f"{bundle}/"])
    said = capsys.readouterr().err
    assert f"{bundle}/docs/README.md" in said.replace("//", "/")
    command = shlex.split(next(line for line in said.splitlines() if line.startswith("next: ")).removeprefix("next: "))
    assert command[:4] == ["python", "-m", "monai.bundle", "run"]
    voxels = np.random.default_rng(0).normal(300, 50, (20, 24, 20)).astype(np.float32)
    save(tmp_path / "scans" / "a.nii.gz", voxels, np.eye(4))
    places = {"SCANS": str(tmp_path / "scans"), "MASKS": str(masks)}
    masks.mkdir()
    done = subprocess.run(
        [sys.executable, *(places.get(word, word) for word in command[1:])],
        capture_output=True,
        text=True,
        check=False,
        cwd=masks,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (masks / "a_seg.nii.gz").is_file()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def seg_export(*arguments: object) -> int:
        with pytest.raises(SystemExit) as caught:
            app([str(a) for a in arguments])
        return int(caught.value.code or 0)

    bundle = tmp_path / "bundle"
    assert seg_export("hippocampus", "--bundle", bundle) == 0
    assert (bundle / "models" / "model.onnx").read_bytes() == Path(resolve("hippocampus", "fp32")).read_bytes()
    assert seg_export("hippocampus", "--bundle", bundle) == 30
    assert "E-OUT-EXISTS" in capsys.readouterr().err
    assert seg_export("hippocampus", "--bundle", bundle, "--overwrite") == 0
    assert seg_export("hippocampus", "--bundle", tmp_path / "none" / "bundle") == 30
    assert seg_export("hippocampus", "--bundle", bundle, "--triton", tmp_path / "t") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
