"""Fixtures of the inference tests."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from known import oblique_affine, plain_spec, write_artifact


@pytest.fixture
def threshold_model(tmp_path: Path) -> Callable[..., str]:
    """Path of an artifact that labels voxels above 0.5 (or above each of `thresholds`)."""

    def make(thresholds: tuple[float, ...] = (0.5,), **changes: object) -> str:
        labels = ("background", *(f"class {k}" for k in range(1, len(thresholds) + 1)))
        return write_artifact(tmp_path / "threshold.onnx", plain_spec(labels=labels, **changes), thresholds)

    return make


@pytest.fixture
def write_scan(tmp_path: Path) -> Callable[..., str]:
    """Write voxels as NIfTI into the test's folder; returns the path."""

    def write(name: str, voxels: np.ndarray, affine: np.ndarray | None = None) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, oblique_affine() if affine is None else affine), path)
        return str(path)

    return write
