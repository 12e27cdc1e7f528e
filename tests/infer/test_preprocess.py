"""Preprocessing against plain NumPy, and its inverse."""

import numpy as np
import pytest
from known import boxes, oblique_affine, plain_spec

from seg.infer.errors import SegError
from seg.infer.preprocess import Grids, forward, restore
from seg.infer.resample import linear_matrix
from seg.infer.spec import Normalisation
from seg.infer.volume import Volume


def scan(order: str = "F", dtype: type = np.int16) -> Volume:
    rng = np.random.default_rng(5)
    voxels = np.asarray(rng.integers(-900, 1500, (17, 12, 9)), dtype=dtype, order=order)  # type: ignore[call-overload]
    return Volume(voxels[np.newaxis], oblique_affine(), slope=0.5, intercept=-3.0)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("spacing", [(None, None, None), (1.6, 1.1, 2.0), (0.5, 0.5, 0.5)])
def test_forward_equals_a_plain_implementation(order: str, spacing: tuple[float | None, ...]) -> None:
    volume = scan(order)
    norm = Normalisation("zscore", lower=-400.0, upper=600.0)
    found, grids = forward(volume, plain_spec(spacing=spacing, normalisation=norm))
    values = np.clip(volume.intensities()[0].astype(np.float64), -400, 600)
    matrices = [linear_matrix(n, m) for n, m in zip(values.shape, grids.network, strict=True)]
    expected = (np.einsum("ix,jy,kz,xyz->ijk", *matrices, values) - values.mean()) / values.std()
    assert found.shape == (1, *grids.network)
    np.testing.assert_allclose(found[0], expected, atol=2e-5)


def test_zscore_of_a_large_offset_keeps_its_precision() -> None:
    rng = np.random.default_rng(0)
    values = (40_000 + rng.standard_normal((20, 20, 20))).astype(np.float32)
    found, _ = forward(Volume(values[np.newaxis], np.eye(4)), plain_spec(normalisation=Normalisation("zscore")))
    assert abs(float(found.mean())) < 2e-3
    assert abs(float(found.std()) - 1) < 2e-3


def test_a_constant_scan_becomes_zeros() -> None:
    volume = Volume(np.full((1, 6, 5, 4), -1024, np.int16), np.eye(4))
    found, _ = forward(volume, plain_spec(normalisation=Normalisation("zscore")))
    assert (found == 0).all()


def test_a_mark_that_drowns_all_other_values_is_refused() -> None:
    values = np.random.default_rng(0).normal(100, 20, (1, 6, 5, 4)).astype(np.float32)
    values[0, 0, 0, 0] = np.finfo(np.float32).min
    with pytest.raises(SegError, match="E-INTENSITY") as refused:
        forward(Volume(values, np.eye(4)), plain_spec(normalisation=Normalisation("zscore")))
    assert refused.value.exit == 12


def test_wrong_channel_count_is_refused() -> None:
    with pytest.raises(ValueError, match="2 channels, the model takes 1"):
        forward(Volume(np.zeros((2, 4, 4, 4)), np.eye(4)), plain_spec())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_restore_on_an_equal_grid_is_exact(axis: int) -> None:
    """Reoriented there and back, every voxel's label returns to its place, also with other label values."""
    volume = Volume(boxes()[::-1].transpose(2, 0, 1)[np.newaxis], _affine_of(boxes()[::-1].transpose(2, 0, 1)))
    x, grids = forward(volume, plain_spec())
    scores = np.stack([-np.abs(x[0] - k) for k in range(5)])
    planes = np.moveaxis(scores, axis + 1, 0)
    found = restore(planes, axis, grids, (0, 1, 7, 300, 4))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, np.array([0, 1, 7, 300, 4])[volume.voxels[0]])


def _affine_of(voxels: np.ndarray) -> np.ndarray:
    affine = np.zeros((4, 4))
    affine[1, 1] = affine[2, 0] = 1.0
    affine[0, 2] = -1.0
    affine[3, 3] = 1.0
    return affine


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("classes", [2, 3])
def test_streamed_restore_equals_restoring_the_whole(axis: int, classes: int) -> None:
    """Interpolating all scores at once and taking the argmax is the definition."""
    spec = plain_spec(spacing=(1.3, 2.0, 1.9), labels=tuple("abc"[:classes]))
    grids = Grids.of((17, 12, 9), oblique_affine(), spec)
    scores = np.random.default_rng(2).standard_normal((classes, *grids.network)).astype(np.float32)
    matrices = [linear_matrix(m, n) for n, m in zip(grids.scan, grids.network, strict=True)]
    expected = np.einsum("ix,jy,kz,cxyz->cijk", *matrices, scores.astype(np.float64)).argmax(axis=0)
    given = scores[1:] - scores[:1] if classes == 2 else scores
    found = restore(np.moveaxis(given, axis + 1, 0), axis, grids, tuple(range(classes)))
    assert found.dtype == np.uint8
    assert (found == expected).mean() > 0.9995  # float32 ties


def test_there_and_back_keeps_a_smooth_object() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in (40, 36, 30)], indexing="ij")).astype(np.float32)
    ball = 10.0 - np.sqrt(((grid - np.array([20, 17, 15])[:, None, None, None]) ** 2).sum(axis=0))
    x, grids = forward(Volume(ball[np.newaxis], np.eye(4)), plain_spec(spacing=(1.5, 1.5, 1.5)))
    mask = restore(np.moveaxis(x, 1, 0), 0, grids, (0, 1))
    overlap = 2 * (mask & (ball > 0)).sum() / (mask.sum() + (ball > 0).sum())
    assert overlap > 0.99
