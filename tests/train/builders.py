"""Data folders, scans and facts for the tests of this folder."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from seg.train.cases import discover
from seg.train.check import Checked, check_dataset
from seg.train.facts import CaseFacts, Intensity
from seg.train.split import Split, choose_split

DATA = Path(os.environ.get("SEG_DATA") or Path(__file__).parents[3] / "shared" / "data")


def touch(root: Path, *names: str) -> str:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return str(root)


def pairs(root: Path, *ids: str, unlabeled: tuple[str, ...] = ()) -> str:
    touch(root, *(f"images/{i}.nii.gz" for i in (*ids, *unlabeled)), *(f"labels/{i}.nii.gz" for i in ids))
    return str(root)


def write_json(root: Path, name: str, content: object) -> str:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


# Folders of five scans with labels


SHAPE = (24, 20, 16)
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])
IDS = ("p1", "p2", "p3", "p4", "p5")
SPLIT = {"labeled2": ["p1", "p2"], "unlabeled": ["p3"], "train": ["p4"], "val": ["p5"]}


def save(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def scan(seed: int) -> NDArray[np.float32]:
    """Blocks of different grey, so that no two seeds look alike."""
    rng = np.random.default_rng(seed)
    blocks = rng.normal(100, 30, [-(-n // 4) for n in SHAPE])
    fine = np.kron(blocks, np.ones((4, 4, 4)))[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return (fine + rng.normal(0, 3, SHAPE)).astype(np.float32)


def mask() -> NDArray[np.uint8]:
    label = np.zeros(SHAPE, np.uint8)
    label[4:8, 4:8, 4:8] = 1
    label[10:12, 4:8, 4:8] = 2
    return label


def five_cases(root: Path) -> Path:
    """Clean, with a split of all roles."""
    for seed, case in enumerate(IDS):
        save(root / "images" / f"{case}.nii.gz", scan(seed))
        save(root / "labels" / f"{case}.nii.gz", mask())
    (root / "splits.json").write_text(json.dumps(SPLIT))
    return root


def split_of(folder: Path) -> Split:
    return choose_split(discover([str(folder)]), 2, None, 0)


def check(folder: Path, names: dict[int, str] | None = None) -> Checked:
    return check_dataset(split_of(folder), names)


def image_of(folder: Path, case: str) -> Path:
    return folder / "images" / f"{case}.nii.gz"


def label_of(folder: Path, case: str) -> Path:
    return folder / "labels" / f"{case}.nii.gz"


def relabel(folder: Path, case: str, array: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE) -> None:
    save(label_of(folder, case), array, affine)


def shifted(axis: int, voxels: float) -> NDArray[np.float64]:
    affine = AFFINE.copy()
    affine[:3, 3] += affine[:3, axis] * voxels
    return affine


def values(old: int, new: float, dtype: type = np.float32, case: str = "p1") -> Callable[[Path], None]:
    def fault(folder: Path) -> None:
        label = mask().astype(dtype)
        label[label == old] = new
        relabel(folder, case, label)

    return fault


# Facts written by hand


MR = Intensity(minimum=0, low=2, median=50, high=200, mean=60, std=30, integral=True)


def fact(
    name: str = "p1",
    shape: tuple[int, int, int] = (64, 64, 64),
    spacing: tuple[float, float, float] = (1, 1, 1),
    channel: Intensity = MR,
    classes: int = 2,
) -> CaseFacts:
    return CaseFacts(name, shape, spacing, (channel,), dict.fromkeys(range(classes), 100), "", "", "", ())
