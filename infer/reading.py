"""Reading scans of all kinds: a NIfTI file, or a DICOM series in a folder, zip file, multi-frame file or PACS."""

import errno
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from . import nifti
from .dicomweb.address import is_address
from .jobs import Job
from .nifti import NiftiHeader
from .scan import Scan
from .spec import ModelSpec

if TYPE_CHECKING:
    from .dicom.read import DicomOptions


@dataclass(frozen=True)
class ReadOptions:
    """What the user decides about odd scans; the names are those of `nifti.read` and `dicom.read.DicomOptions`."""

    max_voxels: int = 2_000_000_000
    nonfinite: Literal["refuse", "zero"] = "refuse"
    volume: int | None = None
    prefer: Literal["sform", "qform"] | None = None
    series: str | None = None
    time_point: int | None = None
    resample_tilt: bool = False


def parts(job: Job) -> list[str]:
    """The files whose bytes the scan, and so its mask, depends on. Raises OSError, also for a scan in a PACS."""
    if not job.dicom:
        return nifti.parts(job.scan)
    if is_address(job.scan):
        raise FileNotFoundError(errno.ENOENT, "the scan is in a PACS")
    from .dicom.files import files_below

    return files_below(job.scan)


def read(job: Job, options: ReadOptions, spec: ModelSpec) -> Scan:
    """Read a scan whole. Raises SegError as `nifti.read`, `dicom.read.read` and `dicomweb.transfer.download`."""
    if job.dicom:
        from .dicom.read import read as read_series

        with _folder_of(job) as path:
            scan = read_series(path, _dicom(job, options), spec=spec, max_voxels=options.max_voxels)
        return replace(scan, header=replace(scan.header, path=job.scan))
    return nifti.read(
        job.scan,
        channels=len(spec.channels),
        max_voxels=options.max_voxels,
        nonfinite=options.nonfinite,
        volume=options.volume,
        prefer=options.prefer,
    )


def inspect(job: Job, options: ReadOptions, spec: ModelSpec) -> NiftiHeader:
    """The header of a scan alone, as reading will find it. Raises SegError as `read`."""
    if job.dicom:
        from .dicom.read import inspect as inspect_series

        with _folder_of(job) as path:
            header = inspect_series(path, _dicom(job, options), spec=spec, max_voxels=options.max_voxels)
        return replace(header, path=job.scan)
    header = nifti.inspect(job.scan, prefer=options.prefer)
    channels = len(spec.channels)
    return nifti.as_read(header, max_voxels=options.max_voxels, volume=options.volume, channels=channels)


def _folder_of(job: Job) -> AbstractContextManager[str]:
    """Where a DICOM scan's files are: where the user says, or, of an address in a PACS, where they are brought."""
    if not is_address(job.scan):
        return nullcontext(job.scan)
    from .dicomweb.fetched import fetched

    return fetched(job.scan)


def _dicom(job: Job, options: ReadOptions) -> "DicomOptions":
    from .dicom.read import DicomOptions

    return DicomOptions(job.series or options.series, options.time_point, options.resample_tilt)
