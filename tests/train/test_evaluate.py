"""Scans whose intensities are the prediction: a network that only thresholds makes every figure known."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from known import plain_spec
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from seg.infer.errors import SegError
from seg.infer.spec import ModelSpec
from seg.train.cases import Case, discover
from seg.train.evaluate import Evaluation, evaluate, length_unit
from seg.train.report import case_table, worst_cases, write_evaluation

binary = pytest.importorskip("medpy.metric.binary")

SHAPE, SPACING = (21, 17, 13), (0.8, 1.1, 2.5)
SPEC = plain_spec(labels=("background", "core", "rim"), label_values=(0, 2, 7), stride=(4, 4, 4))
DIAGONAL = float(np.linalg.norm(np.array(SHAPE) * SPACING))


class Thresholds:
    """Class k where k - 0.5 < x < k + 0.5."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self.shapes.append(x.shape)
        return np.concatenate([-((x - k) ** 2) for k in range(3)], axis=1)

    def close(self) -> None:
        """Nothing is held."""


def blobs(seed: int) -> NDArray[np.uint8]:
    """Class indices: some core, some rim."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).random(SHAPE), 2.0)
    return np.digitize(field, np.quantile(field, [0.8, 0.93])).astype(np.uint8)


def write(
    folder: Path,
    pairs: dict[str, tuple[NDArray[Any], NDArray[Any]]],
    *,
    unit: str | None = "mm",
    spacing: Any = SPACING,
) -> tuple[Case, ...]:
    """Cases from (predicted, true) class indices; labels hold the values of `SPEC`."""
    affine = np.diag([*spacing, 1.0])
    for name, (predicted, truth) in pairs.items():
        labels = np.array(SPEC.label_values, np.uint8)[truth]
        for part, array in (("images", predicted.astype(np.float32)), ("labels", labels)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            image = nib.Nifti1Image(array, affine)
            if unit:
                image.header.set_xyzt_units(unit)
            nib.save(image, folder / part / f"{name}.nii.gz")
    return discover([str(folder)]).cases


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, ...]:
    """One perfect case, one with errors, one where the rim is missed altogether."""
    truth = blobs(1)
    missed = np.where(truth == 2, 0, truth)
    return write(
        tmp_path_factory.mktemp("three"),
        {"good": (truth, truth), "poor": (blobs(2), blobs(3)), "missed": (missed, truth)},
    )


@pytest.fixture(scope="module")
def evaluation(three: tuple[Case, ...]) -> Evaluation:
    return evaluate(Thresholds(), three, SPEC, keep=2)


def test_figures_are_those_of_medpy_on_the_scans_own_grid(evaluation: Evaluation) -> None:
    for value, label in ((1, "core"), (2, "rim")):
        found = evaluation.result["cases"]["poor"][label]
        pred, truth = blobs(2) == value, blobs(3) == value
        assert found["dice"] == pytest.approx(binary.dc(pred, truth))
        assert found["jaccard"] == pytest.approx(binary.jc(pred, truth))
        assert found["precision"] == pytest.approx(binary.precision(pred, truth))
        assert found["recall"] == pytest.approx(binary.recall(pred, truth))
        assert found["accuracy"] == pytest.approx((pred == truth).mean())
        assert found["hd95"] == pytest.approx(binary.hd95(pred, truth, SPACING))
        assert found["asd"] == pytest.approx(binary.asd(pred, truth, SPACING))


def test_an_empty_prediction_is_a_failure_and_not_a_distance_of_zero(evaluation: Evaluation) -> None:
    cases = evaluation.result["cases"]
    assert cases["good"]["rim"]["dice"] == 1.0
    assert cases["good"]["rim"]["hd95"] == 0.0
    assert cases["missed"]["rim"]["dice"] == 0.0
    assert cases["missed"]["rim"]["hd95"] == pytest.approx(DIAGONAL)
    mean = evaluation.result["mean"]
    assert mean["rim"]["hd95"] == pytest.approx((DIAGONAL + cases["poor"]["rim"]["hd95"]) / 3)
    assert mean["foreground"]["dice"] == pytest.approx((mean["core"]["dice"] + mean["rim"]["dice"]) / 2)


def test_the_largest_components_are_scored_too(tmp_path: Path) -> None:
    """The largest part is the truth: perfect with it alone, as without for the class that is in one piece."""
    truth = np.zeros(SHAPE, np.uint8)
    truth[2:8, 2:8, 2:8], truth[12:18, 9:15, 3:9] = 1, 2
    found = truth.copy()
    found[18:20, 1:3, 1:3] = 1
    result = evaluate(Thresholds(), write(tmp_path, {"a": (found, truth)}), SPEC, largest=True).result
    core = 2 * 216 / (2 * 216 + 8)
    assert result["mean"]["core"]["dice"] == pytest.approx(core)
    kept = result["largest_component"]
    assert {label: mean["dice"] for label, mean in kept["mean"].items()} == {"core": 1.0, "rim": 1.0, "foreground": 1.0}
    assert kept["cases"]["a"]["rim"] == result["cases"]["a"]["rim"]
    solid = replace(SPEC, largest_component=True)  # of a model that keeps them the first figures have all, too
    again = evaluate(Thresholds(), discover([str(tmp_path)]).cases, solid, largest=True).result
    assert again["mean"] == result["mean"]
    assert (kept["default"], again["largest_component"]["default"]) == (False, True)


def test_the_worst_cases_are_kept_the_worst_first(evaluation: Evaluation, three: tuple[Case, ...]) -> None:
    assert [worst.case.id for worst in evaluation.worst] == ["poor", "missed"]
    poor = evaluation.worst[0]
    assert np.array_equal(poor.mask, np.array(SPEC.label_values)[blobs(2)])
    cases = evaluation.result["cases"]["poor"]
    assert poor.dice == pytest.approx((cases["core"]["dice"] + cases["rim"]["dice"]) / 2)
    assert evaluate(Thresholds(), three, SPEC).worst == ()


def test_a_scan_that_does_not_fit_is_cut_into_tiles(three: tuple[Case, ...], evaluation: Evaluation) -> None:
    whole, tiled = Thresholds(), Thresholds()
    evaluate(whole, three[:1], SPEC)
    assert len(whole.shapes) == 1
    result = evaluate(tiled, three, SPEC, memory_bytes=232_000_000).result
    assert len(tiled.shapes) > 3
    assert np.prod(tiled.shapes[0]) < np.prod(whole.shapes[0])
    assert result == evaluation.result
    with pytest.raises(SegError, match="E-LIMIT-MEMORY") as caught:
        evaluate(tiled, three, SPEC, memory_bytes=1000)
    assert caught.value.path == three[0].images[0]
    assert "--" not in caught.value.fix  # the flags of seg-infer


def test_cases_without_label_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, {"a": (blobs(1), blobs(1)), "b": (blobs(2), blobs(2))})
    (tmp_path / "labels" / "b.nii.gz").unlink()
    cases = discover([str(tmp_path)]).cases
    done: list[None] = []
    result = evaluate(Thresholds(), cases, SPEC, tick=lambda: done.append(None)).result
    assert list(result["cases"]) == ["a"]
    assert len(done) == 1
    assert evaluate(Thresholds(), [], SPEC).result["mean"] == {}


@pytest.mark.parametrize(
    ("unit", "spacing", "expected"),
    [("mm", (1, 1, 1), "mm"), (None, (1, 1, 1), "voxel"), (None, (1, 1, 5), "mm"), ("mm", SPACING, "mm")],
)
def test_distances_name_their_unit(tmp_path: Path, unit: str | None, spacing: Any, expected: str) -> None:
    cases = write(tmp_path, {"a": (blobs(1), blobs(2))}, unit=unit, spacing=spacing)
    assert length_unit(cases[0].images[0]) == expected
    result = evaluate(Thresholds(), cases, SPEC).result
    assert result["unit"] == expected
    pred, truth = blobs(1) == 2, blobs(2) == 2
    assert result["cases"]["a"]["rim"]["hd95"] == pytest.approx(binary.hd95(pred, truth, spacing))


def test_files(tmp_path: Path, evaluation: Evaluation) -> None:
    result = write_evaluation(tmp_path, evaluation, SPEC, {"step": 5})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["validation.csv", "validation.json", "worst-cases.png"]
    assert json.loads((tmp_path / "validation.json").read_text()) == result
    assert result["step"] == 5
    rows = list(csv.DictReader(io.StringIO((tmp_path / "validation.csv").read_text())))
    assert [(row["case"], row["class"]) for row in rows[:2]] == [("good", "core"), ("good", "rim")]
    assert len(rows) == 6
    for row in rows:
        metrics = result["cases"][row["case"]][row["class"]]
        assert {name: float(row[name]) for name in metrics} == metrics
        assert row["distances_in"] == "mm"
    assert case_table({"cases": {}, "unit": "mm"}) == ""


def colours(picture: Image.Image) -> set[tuple[int, ...]]:
    return {colour for _, colour in picture.getcolors(1 << 24) or []}  # type: ignore[misc]


def test_the_picture_shows_prediction_and_truth(evaluation: Evaluation) -> None:
    picture = worst_cases(evaluation, SPEC)
    single = worst_cases(Evaluation(evaluation.result, evaluation.worst[:1]), SPEC)
    assert single.width <= picture.width
    assert 1.8 * single.height < picture.height
    assert {(255, 255, 255), (230, 159, 0), (86, 180, 233)} <= colours(picture)


@pytest.mark.parametrize("shape", [(40, 30, 1), (40, 30, 4)])
def test_slices(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """A 2D model: slices are stacked, and a picture of thin stacks is still one."""
    spec: ModelSpec = plain_spec(labels=SPEC.labels, label_values=SPEC.label_values, dims=2, window=(16, 16, 1))
    truth = np.zeros(shape, np.uint8)
    truth[5:20, 5:20], truth[22:30, 5:20] = 1, 2
    cases = write(tmp_path, {"a": (np.roll(truth, 3, axis=0), truth)}, spacing=(1.5, 1.5, 8.0))
    found = evaluate(Thresholds(), cases, spec, keep=1)
    assert found.result["cases"]["a"]["core"]["dice"] == pytest.approx(12 / 15)
    picture = worst_cases(found, spec)
    assert (255, 255, 255) in colours(picture)
    slices = 1 if shape[2] == 1 else 3
    assert picture.width == slices * (480 + 14) + 14  # 40 x 30 voxels, 360 px high
