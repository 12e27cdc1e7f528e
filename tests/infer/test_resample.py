"""Linear resampling: exact on linear ramps, exact identity, no aliasing, field of view kept."""

import numpy as np
import pytest

from seg.infer.resample import linear_matrix, linear_taps, resample_plane, resampled_extent


@pytest.mark.parametrize("n", [1, 2, 7, 64])
@pytest.mark.parametrize("m", [1, 2, 5, 16, 64, 131])
def test_rows_sum_to_one_and_taps_equal_the_matrix(n: int, m: int) -> None:
    matrix = linear_matrix(n, m)
    index, weight = linear_taps(n, m)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, rtol=1e-6)
    values = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    np.testing.assert_allclose(matrix @ values, (values[index] * weight).sum(axis=1), rtol=1e-4, atol=1e-6)


def test_identity_is_exact() -> None:
    np.testing.assert_array_equal(linear_matrix(9, 9), np.eye(9, dtype=np.float32))


@pytest.mark.parametrize(("n", "m", "tolerance"), [(10, 23, 1e-5), (10, 20, 1e-5), (30, 12, 0.02), (30, 10, 1e-5)])
def test_a_ramp_stays_the_same_ramp(n: int, m: int, tolerance: float) -> None:
    """Away from the edges, where positions are known in closed form. A sampled triangle of a width that is no whole
    number of samples is a hundredth of a voxel off; all others are exact."""
    found = linear_matrix(n, m) @ np.arange(n, dtype=np.float32)
    expected = (np.arange(m) + 0.5) * n / m - 0.5
    inside = (expected >= n / m) & (expected <= n - 1 - n / m)
    np.testing.assert_allclose(found[inside], expected[inside], atol=tolerance)


def test_shrinking_averages_instead_of_picking() -> None:
    """A checkerboard of the finest period becomes its mean."""
    values = np.tile([0.0, 1.0], 32).astype(np.float32)
    np.testing.assert_allclose((linear_matrix(64, 16) @ values)[1:-1], 0.5, atol=1e-6)


def test_plane_equals_both_matrices() -> None:
    plane = np.random.default_rng(1).standard_normal((3, 8, 11)).astype(np.float32)
    expected = np.einsum("ia,kab,jb->kij", linear_matrix(8, 13), plane, linear_matrix(11, 5))
    np.testing.assert_allclose(resample_plane(plane, (13, 5)), expected, rtol=1e-4, atol=1e-5)


def test_extent() -> None:
    assert resampled_extent(88, 0.625, 1.25) == 44
    assert resampled_extent(88, 0.625, None) == 88
    assert resampled_extent(1, 0.1, 5.0) == 1
