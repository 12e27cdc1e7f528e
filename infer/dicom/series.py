"""The contract between DICOM input and DICOM output: one volume's worth of frames of one series."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..volume import Shape3

if TYPE_CHECKING:
    from pydicom import Dataset


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """One volume's worth of frames of one series, sorted along the slice normal (increasing).

    Voxel arrays that belong to it are (columns, rows, slices): ``array[i, j, k]`` is ``pixel_array[j, i]`` of slice k.

    Attributes
    ----------
    datasets : headers without pixel data, one per slice in slice order; of an enhanced multi-frame image exactly one.
    files : where each dataset's pixels are (path, or zip file and member), as many as datasets.
    frames : 1-based frame number of each slice in slice order; all 1 for single-frame images.
    affine : (4, 4) float64, voxel (column, row, slice) -> mm, RAS+ (DICOM itself is LPS).
    shape : (columns, rows, slices).
    modality : as the header has it, "CT" or "MR".
    """

    datasets: "tuple[Dataset, ...]"
    files: tuple[str, ...]
    frames: tuple[int, ...]
    affine: NDArray[np.float64]
    shape: Shape3
    modality: str
