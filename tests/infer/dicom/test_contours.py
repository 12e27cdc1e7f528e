"""Outlines: each voxel of the area, and no other, has its centre inside, however a reader decides what inside is."""

import numpy as np
import pytest
from contour_areas import windings

pytest.importorskip("contourpy")

from seg.infer.dicom.contours import outlines


def ring() -> np.ndarray:
    """A square with a hole, in which lies a square with a hole."""
    area = np.zeros((12, 13), bool)
    area[1:11, 2:12] = True
    area[3:9, 4:10] = False
    area[4:8, 5:9] = True
    area[5:7, 6:8] = False
    return area


def test_random_areas() -> None:
    """Parts that touch at a corner, holes in holes, single voxels, areas at the border, and full and empty slices."""
    rng = np.random.default_rng(0)
    for _ in range(150):
        area = rng.random(tuple(rng.integers(1, 13, 2))) < rng.uniform(0, 1.1)
        polygons = outlines(area)
        found = [windings(polygon, area.shape) for polygon in polygons]
        counted = sum((count for count, _ in found), np.zeros(area.shape, int))
        turned = sum((turns for _, turns in found), np.zeros(area.shape, int))
        np.testing.assert_array_equal(counted % 2 == 1, area)  # all contours of a slice, exclusive or
        np.testing.assert_array_equal(turned != 0, area)  # the same, by turns
        each = sum((count % 2 for count, _ in found), np.zeros(area.shape, int))
        np.testing.assert_array_equal(each, area)  # one by one and added up
        assert all(len(polygon) >= 4 for polygon in polygons)


def test_a_hole_is_part_of_its_outline() -> None:
    outer, inner = sorted(outlines(ring()), key=len, reverse=True)
    for polygon, area in ((outer, ring() & ~disc(4)), (inner, disc(4))):
        np.testing.assert_array_equal(windings(polygon, area.shape)[0] % 2 == 1, area)


def disc(first: int) -> np.ndarray:
    """The inner part of `ring`."""
    inside = np.zeros((12, 13), bool)
    inside[first:8, 5:9] = ring()[first:8, 5:9]
    return inside


def test_points_where_the_line_goes_straight_on_are_left_out() -> None:
    area = np.zeros((400, 500), bool)
    area[10:390, 20:480] = True
    (polygon,) = outlines(area)
    assert sorted(map(tuple, polygon.tolist())) == sorted(
        [(19.5, 10), (20, 9.5), (479, 9.5), (479.5, 10), (479.5, 389), (479, 389.5), (20, 389.5), (19.5, 389)]
    )


def test_many_holes_take_time_in_proportion() -> None:
    """Noise in a whole slice has thousands; one that compared each with all would not come back."""
    area = np.random.default_rng(1).random((256, 256)) < 0.9
    polygons = outlines(area)
    holes = sum(len(polygon) for polygon in polygons)
    assert holes > 20_000
