"""Writing the mask of a scan in the form that was asked for: NIfTI, DICOM SEG of either kind, or DICOM RTSTRUCT."""

import os
from datetime import datetime
from typing import TYPE_CHECKING

from .artifact import Artifact
from .dicomweb.address import is_address, parse_address
from .errors import Exit, SegError
from .jobs import Form
from .manifest import FileState
from .nifti_write import mask_sha256
from .nifti_write import write_mask as write_nifti
from .scan import Labels, Scan

if TYPE_CHECKING:
    from pydicom import Dataset

    from .dicom.segmentation import Kind


def write_mask(path: str, mask: Labels, scan: Scan, artifact: Artifact, form: Form, *, overwrite: bool) -> None:
    """Write a mask, whole or not at all.

    Parameters
    ----------
    path : file, or the address of a PACS with a name behind it that is not used.
    mask : (X, Y, Z) label values on the grid of ``scan.volume``. DICOM forms lie on the slices of ``scan.series``.

    Raises
    ------
    SegError : E-OUT-*, E-WEB-*, exit 30.
    """
    if form == "nifti":
        write_nifti(path, mask, scan.header, overwrite=overwrite)
        return
    assert scan.series is not None
    dataset = mask_dataset(mask, scan, artifact, form)
    if is_address(path):
        from .dicomweb.transfer import store

        store(parse_address(os.path.dirname(path)), [dataset])
        return
    from .dicom.derived import save

    save(path, dataset, scan.series, overwrite=overwrite)


def keep_unless_equal(path: str, mask: Labels, scan: Scan, artifact: Artifact, form: Form) -> None:
    """A file without a record is ours if it is what would be written now; else it is somebody's work.

    A DICOM object holds its time of making: it is made again for the time that the file tells.

    Raises
    ------
    SegError : E-OUT-EXISTS, exit 30.
    """
    if not os.access(path, os.R_OK):  # a link to nothing, too
        same = False
    elif form == "nifti":
        same = FileState.of([path]).sha256 == mask_sha256(path, mask, scan.header)
    else:
        from .dicom.derived import created, digest

        made = created(path)
        again = None if made is None else mask_dataset(mask, scan, artifact, form, made)
        same = again is not None and FileState.of([path]).sha256 == digest(again)
    if not same:
        found, fix = "is there, and is not the mask of this run", "move it away, or use --overwrite"
        raise SegError("E-OUT-EXISTS", Exit.OUTPUT, path, found, fix)


def mask_dataset(
    mask: Labels, scan: Scan, artifact: Artifact, form: Form, created: datetime | None = None
) -> "Dataset":
    """A mask of a DICOM scan as a DICOM object. Parameters as of `write_mask`; `form` is not "nifti".

    Parameters
    ----------
    created : local time that it tells; now, if not given.
    """
    from .dicom.rtstruct import rtstruct_dataset
    from .dicom.segmentation import segmentation_dataset

    assert scan.series is not None
    labels = mask if scan.restore is None else scan.restore(mask)
    model_sha256 = artifact.sha256
    if form == "rtstruct":
        return rtstruct_dataset(scan.series, labels, artifact.spec, model_sha256=model_sha256, created=created)
    kind: Kind = "LABELMAP" if form == "labelmap" else "BINARY"
    return segmentation_dataset(
        scan.series, labels, artifact.spec, model_sha256=model_sha256, kind=kind, created=created
    )


def about_codes(artifact: Artifact, form: Form) -> tuple[str, ...]:
    """A note on labels that a DICOM object cannot name as others would."""
    if form == "nifti":
        return ()
    from .dicom.codes import uncoded

    labels = ", ".join(uncoded(artifact.spec))
    return (f"no standard code is known for {labels}: a private one stands in the DICOM object",) if labels else ()
