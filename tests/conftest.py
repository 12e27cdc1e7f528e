"""Phantoms for every test: nothing is downloaded."""

import os
import signal
import socketserver
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: equal results need equal thread counts

import nibabel as nib
import numpy as np
import pytest

WriteCases = Callable[..., Path]


def pytest_configure() -> None:
    """What holds for all tests.

    A shell that starts the tests in the background has them ignore SIGINT, and so would all that they start.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    socketserver.BaseServer.serve_forever.__defaults__ = (0.02,)  # else every server takes half a second to end


def _write_cases(
    folder: Path, count: int, shape: tuple[int, int, int], *, unlabeled: int = 0, classes: int = 2
) -> Path:
    """Write `count` labelled and `unlabeled` further scans, 1 mm, as images/ and labels/; returns the folder.

    Each holds one bright ball per foreground class at a random place, on noise.
    """
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    for number in range(count + unlabeled):
        rng = np.random.default_rng(number)
        label = np.zeros(shape, np.uint8)
        for k in range(1, classes):
            centre = np.array([n * rng.uniform(0.3, 0.7) for n in shape]).reshape(3, 1, 1, 1)
            label[((grid - centre) ** 2).sum(axis=0) < (min(shape) * rng.uniform(0.15, 0.3)) ** 2] = k
        image = (rng.normal(100, 15, shape) + 80.0 * label).astype(np.int16)
        name = f"scan{number:02}.nii.gz"
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "images" / name)
        if number < count:
            nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "labels" / name)
    return folder


@pytest.fixture(scope="session")
def write_cases() -> WriteCases:
    """write_cases(folder, count, shape, unlabeled=0, classes=2) -> folder."""
    return _write_cases
