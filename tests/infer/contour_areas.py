"""What is inside a polygon, by counting lines to the right of a point, the slow and plain way."""

import numpy as np


def windings(polygon: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) for each voxel's centre: how many lines lie to its right, and the same with their direction.

    Parameters
    ----------
    polygon : (points, 2) column and row, closed by the line from the last point to the first.
    shape : (rows, columns).
    """
    count, turns = np.zeros(shape, int), np.zeros(shape, int)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        for row in range(shape[0]):
            if (y0 <= row) != (y1 <= row):
                left = np.arange(shape[1]) < x0 + (row - y0) * (x1 - x0) / (y1 - y0)
                count[row] += left
                turns[row] += left * (1 if y1 > y0 else -1)
    return count, turns
