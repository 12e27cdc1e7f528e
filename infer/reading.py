"""Reading scans of either kind: a NIfTI file, or a DICOM series in a folder, zip file or multi-frame file."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from . import nifti
from .inputs import Job
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
    """The files whose bytes the scan, and so its mask, depends on. Raises OSError."""
    if not job.dicom:
        return nifti.parts(job.scan)
    from .dicom.files import files_below

    return files_below(job.scan)


def read(job: Job, options: ReadOptions, spec: ModelSpec) -> Scan:
    """Read a scan whole. Raises SegError as `nifti.read` and `dicom.read.read`."""
    if job.dicom:
        from .dicom.read import read as read_series

        return read_series(job.scan, _dicom(job, options), spec=spec, max_voxels=options.max_voxels)
    return nifti.read(
        job.scan,
        channels=len(spec.channels),
        max_voxels=options.max_voxels,
        nonfinite=options.nonfinite,
        volume=options.volume,
        prefer=options.prefer,
    )


def inspect(job: Job, options: ReadOptions, spec: ModelSpec) -> NiftiHeader:
    """The header of a scan alone. Raises SegError as `read`."""
    if job.dicom:
        from .dicom.read import inspect as inspect_series

        return inspect_series(job.scan, _dicom(job, options), spec=spec)
    return nifti.inspect(job.scan, prefer=options.prefer)


def _dicom(job: Job, options: ReadOptions) -> "DicomOptions":
    from .dicom.read import DicomOptions

    return DicomOptions(job.series or options.series, options.time_point, options.resample_tilt)
