import json
import tracemalloc

import numpy as np
import pytest

from seg.infer import statistics
from seg.infer.statistics import mask_statistics, plane_counts

LABELS, VALUES = ("background", "core", "edge", "missing"), (0, 1, 4, 2)
# 2 x 3 x 5 mm voxels, axes along -R, +A, +S, first voxel at (100, -50, 7) mm
AFFINE = np.array([[-2.0, 0, 0, 100], [0, 3, 0, -50], [0, 0, 5, 7], [0, 0, 0, 1]])


@pytest.fixture
def mask():
    m = np.zeros((6, 5, 4), np.uint8)
    m[1:3, 1:4, 2] = 1  # 6 voxels
    m[4, 0, 1] = m[4, 2, 1] = 4
    return m


def test_by_hand(mask):
    found = mask_statistics(mask, AFFINE, LABELS, VALUES)
    assert list(found) == ["core", "edge", "missing"]
    assert found["core"] == {
        "label": 1,
        "voxels": 6,
        "volume_mm3": pytest.approx(180.0),
        "volume_ml": pytest.approx(0.18),
        "empty": False,
        "touches_border": False,
        "bounding_box": [[1, 2], [1, 3], [2, 2]],
        "centroid_ras_mm": pytest.approx([97.0, -44.0, 17.0]),
    }
    assert found["edge"]["touches_border"] is True
    assert found["edge"]["voxels"] == 2
    assert found["edge"]["bounding_box"] == [[4, 4], [0, 2], [1, 1]]
    assert found["edge"]["centroid_ras_mm"] == pytest.approx([92.0, -47.0, 12.0])


def test_empty_class_is_flagged(mask):
    missing = mask_statistics(mask, AFFINE, LABELS, VALUES)["missing"]
    assert missing["empty"] is True
    assert missing["voxels"] == missing["volume_ml"] == 0
    assert missing["bounding_box"] is missing["centroid_ras_mm"] is None
    assert missing["touches_border"] is False


def test_json_ready(mask):
    found = mask_statistics(mask, AFFINE, LABELS, VALUES)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("corner", [(0, 2, 2), (5, 2, 2), (2, 0, 2), (2, 4, 2), (2, 2, 0), (2, 2, 3)])
def test_each_face_is_a_border(corner):
    mask = np.zeros((6, 5, 4), np.uint8)
    mask[2, 2, 2] = 1
    assert not mask_statistics(mask, AFFINE, ("b", "a"), (0, 1))["a"]["touches_border"]
    mask[corner] = 1
    assert mask_statistics(mask, AFFINE, ("b", "a"), (0, 1))["a"]["touches_border"]


def test_oblique_voxels_keep_their_volume(mask):
    c, s = np.cos(0.4), np.sin(0.4)
    turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert mask_statistics(mask, turn @ AFFINE, LABELS, VALUES)["core"]["volume_mm3"] == pytest.approx(180.0)


@pytest.mark.parametrize("slab", [1, 50, 1 << 22])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_counts_equal_the_naive_ones_in_any_memory_order(monkeypatch, slab, axes):
    monkeypatch.setattr(statistics, "SLAB_VOXELS", slab)
    stored = np.random.default_rng(0).choice([0, 0, 0, 7, 3, 900], (9, 7, 8)).astype(np.int16)
    mask = stored.transpose(axes)[::-1, :, ::-1]
    counts = plane_counts(mask, (7, 3, 900))
    for row, value in enumerate((7, 3, 900)):
        for axis in range(3):
            naive = [(np.take(mask, i, axis) == value).sum() for i in range(mask.shape[axis])]
            np.testing.assert_array_equal(counts[axis][row], naive)


def test_a_dense_mask_takes_a_few_slabs_of_memory():
    mask = np.ones((64, 256, 256), np.uint8)
    tracemalloc.start()
    try:
        plane_counts(mask, (1,))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_boolean_mask():
    assert mask_statistics(np.ones((2, 3, 4), bool), np.eye(4), ("b", "a"), (0, 1))["a"]["voxels"] == 24


def test_refusals(mask):
    with pytest.raises(ValueError, match="value 4"):
        mask_statistics(mask, AFFINE, ("b", "core"), (0, 1))
    with pytest.raises(ValueError, match="value 1, expected 0 or one of"):
        mask_statistics(mask, AFFINE, ("b",), (0,))
    with pytest.raises(ValueError, match="float32"):
        mask_statistics(mask.astype(np.float32), AFFINE, LABELS, VALUES)
    with pytest.raises(ValueError, match="shape"):
        mask_statistics(mask[0], AFFINE, LABELS, VALUES)
