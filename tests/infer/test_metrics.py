import sys

import numpy as np
import pytest
from scipy import ndimage

from seg.infer.errors import SegError
from seg.infer.metrics import ClassMetrics, evaluate, overlap, surface_distances

binary = pytest.importorskip("medpy.metric.binary")


def blob(seed, shape, level=0.52, sigma=2.0):
    return ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), sigma) > level


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 5.0)])
@pytest.mark.parametrize(("seed", "shape"), [(0, (20, 24, 18)), (1, (31, 9, 13)), (2, (12, 12, 40))])
def test_same_values_as_medpy(seed, shape, spacing):
    pred, truth = blob(seed, shape), blob(seed + 100, shape, 0.5)
    o, s = overlap(pred, truth), surface_distances(pred, truth, spacing)
    assert o.dice == pytest.approx(binary.dc(pred, truth))
    assert o.jaccard == pytest.approx(binary.jc(pred, truth))
    assert o.precision == pytest.approx(binary.precision(pred, truth))
    assert o.recall == pytest.approx(binary.recall(pred, truth))
    assert s.hd95 == pytest.approx(binary.hd95(pred, truth, spacing))
    assert s.asd == pytest.approx(binary.asd(pred, truth, spacing))
    assert s.assd == pytest.approx(binary.assd(pred, truth, spacing))


@pytest.mark.parametrize("seed", range(3))
def test_same_values_as_scikit_learn(seed):
    from sklearn import metrics as reference

    rng = np.random.default_rng(seed)
    shape, values = (14, 9, 11), (0, 1, 3, 200)
    truth, pred = (np.array(values, np.uint8)[(rng.random(shape) ** 2 * 4).astype(int)] for _ in range(2))
    found = evaluate(pred, truth, values, (1.0, 1.0, 1.0))
    assert list(found) == [1, 3, 200]
    for value, ours in found.items():
        t, p = (truth == value).ravel(), (pred == value).ravel()
        assert ours.dice == pytest.approx(reference.f1_score(t, p))
        assert ours.jaccard == pytest.approx(reference.jaccard_score(t, p))
        assert ours.accuracy == pytest.approx(reference.accuracy_score(t, p))
        assert ours.precision == pytest.approx(reference.precision_score(t, p))
        assert ours.recall == pytest.approx(reference.recall_score(t, p))


@pytest.mark.parametrize("place", [(0, 0, 0), (24, 20, 25)])
def test_cutting_to_the_masks_changes_nothing(place):
    shape, spacing = (30, 26, 31), (1.0, 2.0, 0.5)
    pred, truth = np.zeros(shape, bool), np.zeros(shape, bool)
    pred[tuple(slice(p, p + 5) for p in place)] = True  # touching the image border, where the surface is closed
    truth[12:20, 9:15, 8:23] = True
    s = surface_distances(pred, truth, spacing)
    assert s.hd95 == pytest.approx(binary.hd95(pred, truth, spacing))
    assert s.asd == pytest.approx(binary.asd(pred, truth, spacing))


def test_two_dimensions():
    pred, truth = blob(3, (40, 30)), blob(4, (40, 30))
    assert surface_distances(pred, truth, (1, 2)).hd95 == pytest.approx(binary.hd95(pred, truth, (1, 2)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_of_a_volume_is_two_dimensional(axis):
    pred, truth = blob(3, (40, 30)), blob(4, (40, 30))
    spacing = [1.0, 2.0]
    spacing.insert(axis, 7.0)
    found = surface_distances(np.expand_dims(pred, axis), np.expand_dims(truth, axis), spacing)
    assert found == surface_distances(pred, truth, (1, 2))


def test_by_hand():
    pred, truth = np.zeros((10, 4, 4), np.uint8), np.zeros((10, 4, 4), np.uint8)
    pred[2, 1, 1] = 1
    truth[5, 1, 1] = truth[2, 1, 1] = 1
    assert overlap(pred, truth) == pytest.approx((2 / 3, 1 / 2, 159 / 160, 1.0, 1 / 2))
    s = surface_distances(pred, truth, (1.5, 1.0, 1.0))
    assert s.asd == 0.0  # the predicted voxel lies on the truth
    assert s.assd == pytest.approx((0.0 + 0.0 + 4.5) / 3)  # backwards: 0 and 4.5 mm
    assert s.hd95 == pytest.approx(np.percentile([0.0, 0.0, 4.5], 95))
    assert surface_distances(truth, pred, (1.5, 1.0, 1.0)).asd == pytest.approx(2.25)


@pytest.mark.parametrize("empty", ["pred", "truth"])
def test_one_empty_mask_is_a_complete_failure(empty):
    masks = {"pred": np.ones((3, 4, 12), bool), "truth": np.ones((3, 4, 12), bool)}
    masks[empty][:] = False
    assert overlap(**masks) == (0.0, 0.0, 0.0, 0.0, 0.0)
    assert surface_distances(**masks, spacing_mm=(1, 1, 1)) == pytest.approx((13.0,) * 3)
    assert surface_distances(**masks, spacing_mm=(2, 2, 2)) == pytest.approx((26.0,) * 3)


def test_both_empty_is_perfect():
    nothing = np.zeros((3, 4, 5), bool)
    assert overlap(nothing, nothing) == (1.0,) * 5
    assert surface_distances(nothing, nothing, (1, 1, 1)) == (0.0,) * 3


def test_evaluate_by_class():
    truth = np.zeros((12, 12, 12), np.int16)
    truth[2:6, 2:6, 2:6] = 4
    truth[8:10, 8:10, 8:10] = 2
    pred = np.where(truth == 4, 4, 0)
    found = evaluate(pred, truth, (0, 2, 4, 9), (1.0, 1.0, 1.0))
    diagonal = pytest.approx(12 * 3**0.5)
    assert list(found) == [2, 4, 9]
    perfect = ClassMetrics(1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    assert found[4] == found[9] == perfect
    assert found[2] == ClassMetrics(0.0, 0.0, 1 - 8 / 12**3, 0.0, 0.0, diagonal, diagonal, diagonal)


def test_refusals():
    small, large = np.ones((2, 2, 2), bool), np.ones((1, 2, 2), bool)  # would broadcast
    for call in (
        overlap,
        lambda p, t: surface_distances(p, t, (1, 1, 1)),
        lambda p, t: evaluate(p, t, (1,), (1, 1, 1)),
    ):
        with pytest.raises(ValueError, match="differ in shape"):
            call(small, large)
    with pytest.raises(ValueError, match="one value per axis"):
        surface_distances(small, small, (1, 1))


def test_missing_scipy_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(SegError, match=r"seg-toolkit\[train\]"):
        surface_distances(np.ones((2, 2, 2)), np.ones((2, 2, 2)), (1, 1, 1))
