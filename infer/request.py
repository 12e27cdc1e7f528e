"""What a call of seg-infer asks for, and what of it masks and reports depend on."""

from dataclasses import asdict, dataclass, field
from typing import Any

from .compute import ComputeOptions, largest_component
from .jobs import Form
from .reading import ReadOptions
from .spec import ModelSpec


@dataclass(frozen=True)
class Request:
    """The arguments of seg-infer, parsed; see its --help."""

    scans: list[str]
    output: str
    lists: list[str] = field(default_factory=list)
    model: str | None = None
    triton: list[str] = field(default_factory=list)
    device: str = "auto"
    computing: ComputeOptions = field(default_factory=ComputeOptions)
    reading: ReadOptions = field(default_factory=ReadOptions)
    form: Form | None = None
    statistics: str | None = None
    preview: str | None = None
    report: str | None = None
    overwrite: bool = False
    resume: bool = False
    dry_run: bool = False
    quiet: bool = False
    debug: bool = False

    def mask_options(self, engine: str, spec: ModelSpec, form: Form = "nifti") -> dict[str, Any]:
        """What can change a mask's file besides the model: `resume` trusts a mask only under equal ones."""
        reading = asdict(self.reading) | {"series": hidden_series(self.reading.series)}
        del reading["max_voxels"]  # it refuses a scan or changes nothing
        for name in ("series", "time_point", "resample_tilt"):  # what is not about DICOM has records without them
            if not reading[name]:
                del reading[name]
        computing = asdict(self.computing) | {"largest_component": largest_component(spec, self.computing)}
        del computing["threads"]  # their number changes the last bits of sums at most
        del computing["max_memory"]  # it decides the windows, which records have for themselves
        forms = {} if form == "nifti" else {"form": form}  # all DICOM forms have the same name
        return {"engine": engine, **computing, **reading, **forms}

    def told(self) -> dict[str, Any]:
        """The arguments as reports have them, without the UID of a series."""
        options = asdict(self)
        options["reading"]["series"] = hidden_series(self.reading.series)
        return options


def hidden_series(series: str | None) -> str | None:
    """--series as records and reports have it: a UID as a keyed hash."""
    if series is None or "." not in series:
        return series
    from .dicom.listing import pseudonym

    return pseudonym(series)
