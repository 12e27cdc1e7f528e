"""BraTS, LiTS and ACDC in the folders that their users get, by phantoms of the same names."""

import json
from pathlib import Path

import numpy as np
import pytest
from builders import save, split_of

from seg.infer.errors import SegError
from seg.infer.spec import ModelSpec
from seg.train import training
from seg.train.cases import discover
from seg.train.check import check_dataset
from seg.train.layouts import BRATS_LABELS, LITS_LABELS, MODALITIES
from seg.train.plan import plan
from seg.train.prepare import load_label, prepare
from seg.train.settings import Settings

SHAPE = (20, 18, 17)


def blocks(values: tuple[int, ...], seed: int) -> np.ndarray:
    """A corner block of each value."""
    label = np.zeros(SHAPE, np.uint8)
    for n, value in enumerate(values):
        label[4 * n + seed % 2 : 4 * n + 4, 2 * seed : 2 * seed + 6, 3:9] = value
    return label


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 20, SHAPE).round().astype(np.int16)


def brats(root: Path, cases: int = 4) -> Path:
    for n in range(cases):
        name = f"BraTS20_Training_{n + 1:03}"
        for m, modality in enumerate(MODALITIES):
            save(root / "HGG" / name / f"{name}_{modality}.nii.gz", noise(10 * n + m), np.eye(4))
        save(root / "HGG" / name / f"{name}_seg.nii.gz", blocks((1, 2, 4), n), np.eye(4))
    return root


def lits(root: Path) -> Path:
    for n in range(4):
        save(
            root / f"Batch {n % 2 + 1}" / f"volume-{n}.nii",
            np.where(blocks((1, 2), n) > 0, noise(n), -1000).astype(np.int16),
            np.eye(4),
        )
        if n:
            save(root / f"Batch {n % 2 + 1}" / f"segmentation-{n}.nii", blocks((1, 2), n), np.eye(4))
    return root


def acdc(root: Path, last: str = "12") -> Path:
    for n in (1, 2):
        place = root / "training" / f"patient{n:03}"
        save(place / f"patient{n:03}_4d.nii.gz", np.stack([noise(n)] * 3, axis=-1), np.eye(4))
        for frame in (1, 12):
            save(place / f"patient{n:03}_frame{frame:02}.nii.gz", noise(n + frame), np.eye(4))
            save(place / f"patient{n:03}_frame{frame:02}_gt.nii.gz", blocks((1, 2, 3), n), np.eye(4))
        (place / "Info.cfg").write_text(f"ED: 1\nES: {last}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\n")
    return root


def test_brats_has_four_channels_and_keeps_its_values(tmp_path: Path) -> None:
    found = discover([str(brats(tmp_path / "data"))])
    assert [case.id for case in found.cases] == [f"BraTS20_Training_{n:03}" for n in range(1, 5)]
    assert [Path(p).name.split("_")[-1] for p in found.cases[0].images] == [f"{m}.nii.gz" for m in MODALITIES]
    assert found.channel_names == MODALITIES
    assert found.label_names == BRATS_LABELS
    settings = Settings((str(tmp_path / "data"),), str(tmp_path / "run"), iterations=1, window=(16, 16, 16), width=1,
                        device="cpu", validate_every=0, method_options={"labeled_batch": 2})  # fmt: skip
    result = training.train(settings, resume=False, say=lambda _: None)
    assert set(result["mean"]) == {*list(BRATS_LABELS.values())[1:], "foreground"}
    assert {"accuracy", "precision", "recall", "dice"} <= result["mean"]["foreground"].keys()
    spec = ModelSpec.from_dict(json.loads((tmp_path / "run" / "config.json").read_text())["spec"])
    assert spec.label_values == (0, 1, 2, 4)
    sample = prepare(found.cases[0], spec)
    assert sample.image.shape == (4, *SHAPE)
    assert sample.label is not None
    assert sorted(np.unique(sample.label)) == [0, 1, 2, 3]  # 4 is the network's class 3
    assert found.cases[0].label is not None
    assert np.array_equal(sample.label == 3, load_label(found.cases[0].label, (0, 1, 2, 4)) == 3)


def test_a_missing_modality_is_named(tmp_path: Path) -> None:
    brats(tmp_path, 2)
    (tmp_path / "HGG" / "BraTS20_Training_002" / "BraTS20_Training_002_t2.nii.gz").unlink()
    with pytest.raises(SegError, match="BraTS20_Training_002 has no t2") as caught:
        discover([str(tmp_path)])
    assert caught.value.code == "E-DATA-CASES"


def test_lits_is_ct_with_liver_and_tumour(tmp_path: Path) -> None:
    found = discover([str(lits(tmp_path))])
    assert [(case.id, case.label is not None) for case in found.cases] == [
        ("volume-0", False),
        ("volume-1", True),
        ("volume-2", True),
        ("volume-3", True),
    ]
    assert all(Path(c.label).name == f"segmentation-{c.id[-1]}.nii" for c in found.cases if c.label)
    assert (found.label_names, found.channel_names) == (LITS_LABELS, ("CT",))
    (tmp_path / "splits.json").write_text(json.dumps({"labeled2": ["volume-1", "volume-2"], "train": ["volume-0"],
                                                      "val": ["volume-3"]}))  # fmt: skip
    checked = check_dataset(split_of(tmp_path), found.label_names)
    assert not [finding for finding in checked.findings if finding.severity == "error"]
    decided = plan(list(checked.facts.values()), found.label_names, memory_bytes=1 << 33, window=(16, 16, 16))
    assert (decided.modality, decided.normalisation.kind) == ("CT", "fixed")
    assert decided.normalisation.lower > -500  # the window is that of the organ, not of the air around it


def test_acdc_takes_the_frames_that_info_names(tmp_path: Path) -> None:
    found = discover([str(acdc(tmp_path))])
    assert [case.id for case in found.cases] == [f"patient{n:03}_frame{f:02}" for n in (1, 2) for f in (1, 12)]
    assert {case.patient for case in found.cases} == {"patient001", "patient002"}
    assert all(case.label == case.images[0].replace(".nii.gz", "_gt.nii.gz") for case in found.cases)
    assert found.label_names is not None
    assert len(found.label_names) == 4


@pytest.mark.parametrize(("last", "code"), [("13", "E-DATA-CASES"), ("none", "E-DATA-INFO")])
def test_an_info_that_is_wrong_is_one_line(tmp_path: Path, last: str, code: str) -> None:
    with pytest.raises(SegError) as caught:
        discover([str(acdc(tmp_path, last))])
    assert caught.value.code == code


def test_other_folders_are_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(SegError) as caught:
        discover([str(tmp_path)])
    assert caught.value.code == "E-DATA-LAYOUT"
