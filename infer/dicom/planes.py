"""A mask as DICOM planes: slices first, rows, then columns, each voxel the index of its class."""

import numpy as np
from numpy.typing import NDArray

from ..volume import Shape3


def class_planes(
    labels: NDArray[np.integer], label_values: tuple[int, ...], shape: Shape3
) -> NDArray[np.unsignedinteger]:
    """(columns, rows, slices) label values -> (slices, rows, columns) class indices, uint8 or uint16 in C order.

    Only the box that holds the mask is copied: turning the axes of a large array costs more than all the rest.

    Parameters
    ----------
    label_values : value of each class, the background's 0 first.
    shape : of the series.

    Raises
    ------
    ValueError : wrong shape, or a value that is no class's.
    """
    if labels.shape != shape:
        raise ValueError(f"mask has shape {labels.shape}, expected the series' {shape}")
    classes = np.full(max(label_values) + 1, -1)  # value -> class
    classes[list(label_values)] = np.arange(len(label_values))
    planes = np.zeros(shape[::-1], np.uint8 if len(label_values) <= 256 else np.uint16)
    box = tuple(_extent(np.any(labels, axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    part = labels[box]
    if part.size and (part.min() < 0 or part.max() >= len(classes)):
        raise ValueError(f"mask holds values from {part.min()} to {part.max()}, expected {label_values}")
    if not np.array_equal(classes, np.arange(len(label_values))):
        part = classes[part]
        if part.size and part.min() < 0:
            raise ValueError(f"mask holds values that are none of {label_values}")
    planes[box[::-1]] = part.T
    return planes


def _extent(occupied: NDArray[np.bool_]) -> slice:
    """From the first to the last that is occupied."""
    found = np.flatnonzero(occupied)
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)
