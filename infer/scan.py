"""A scan as it was read, whatever its files: voxels in space, and what its mask is to be written like."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .volume import Volume

if TYPE_CHECKING:
    from .dicom.series import DicomSeries
    from .nifti_header import NiftiHeader

Labels = NDArray[np.unsignedinteger]


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan with the header its mask will be written like.

    Attributes
    ----------
    header : checked header; its notes include those of reading the voxels. Of a DICOM series, one made for it.
    volume : (C, X, Y, Z) stored values with the scaling to apply, affine in mm, RAS+.
    series : the slices of a DICOM scan.
    restore : of a DICOM scan whose volume is not on the grid of its slices, leads a mask there:
        (X, Y, Z) -> (columns, rows, slices).
    """

    header: "NiftiHeader"
    volume: Volume
    series: "DicomSeries | None" = None
    restore: Callable[[Labels], Labels] | None = None
