"""Orientation: 48 axis orders and flips of one scan are one scan."""

from itertools import permutations, product

import numpy as np
import pytest
from known import boxes, oblique_affine

from seg.infer.volume import Reorientation, Volume, spacing_of

TURNS = [(axes, flips) for axes in permutations(range(3)) for flips in product((False, True), repeat=3)]


def reordered(axes: tuple[int, ...], flips: tuple[bool, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The boxes stored in another axis order, with the affine that keeps every voxel where it is."""
    turn = Reorientation(axes, flips)  # type: ignore[arg-type]
    voxels = boxes()
    return np.ascontiguousarray(turn.apply(voxels)), turn.affine(oblique_affine(), voxels.shape)


@pytest.mark.parametrize(("axes", "flips"), TURNS)
def test_canonical_form_is_the_same_for_all_orientations(axes: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    voxels, affine = reordered(axes, flips)
    canonical = Volume(voxels[np.newaxis], affine).to_canonical()
    np.testing.assert_array_equal(canonical.voxels[0], boxes())
    np.testing.assert_allclose(canonical.affine, oblique_affine(), atol=1e-12)


@pytest.mark.parametrize(("axes", "flips"), TURNS)
def test_invert_is_the_inverse(axes: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    turn = Reorientation(axes, flips)  # type: ignore[arg-type]
    np.testing.assert_array_equal(turn.invert(turn.apply(boxes())), boxes())


def test_affine_keeps_world_positions() -> None:
    voxels, affine = reordered((2, 0, 1), (True, False, True))
    for value in (2, 3, 4):
        original = np.argwhere(boxes() == value).mean(axis=0)
        moved = np.argwhere(voxels == value).mean(axis=0)
        np.testing.assert_allclose((affine @ [*moved, 1])[:3], (oblique_affine() @ [*original, 1])[:3], atol=1e-9)


def test_spacing_and_scaling() -> None:
    volume = Volume(np.full((1, 2, 2, 2), 3, np.int16), oblique_affine(), slope=2.0, intercept=-1.0)
    np.testing.assert_allclose(volume.spacing, (0.8, 1.1, 2.5))
    np.testing.assert_allclose(spacing_of(np.diag([-2.0, 3.0, 4.0, 1.0])), (2, 3, 4))
    assert volume.intensities().dtype == np.float32
    assert (volume.intensities() == 5.0).all()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(C, X, Y, Z\)"):
        Volume(np.zeros((2, 2, 2)), np.eye(4))
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        Volume(np.zeros((1, 2, 2, 2)), np.eye(3))
