"""nibabel's header classes, without what nibabel would import for DICOM.

It imports pydicom if that is installed, for one kind of header extension which nobody here reads: half a second that a
NIfTI scan should not pay.
"""

import functools
import sys
from typing import Any


@functools.cache
def header_classes() -> tuple[Any, Any]:
    """Nifti1Header and Nifti2Header; they have no types."""
    hidden = not {"pydicom", "nibabel"} & set(sys.modules)
    if hidden:
        sys.modules["pydicom"] = None  # type: ignore[assignment]  # the import system's word for "not there"
    try:
        from nibabel.nifti1 import Nifti1Header
        from nibabel.nifti2 import Nifti2Header
    finally:
        if hidden:
            del sys.modules["pydicom"]
    return Nifti1Header, Nifti2Header
