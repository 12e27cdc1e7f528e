"""DICOM in: one series as a scan, read whole or refused.

The slices of a series lie in a folder (at any depth), in a zip file, or in one enhanced multi-frame file. See `select`
for how one of several series is chosen, and `seg-infer --list` for what a folder holds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import Exit, SegError
from ..nibabel_ import header_classes
from ..nifti_header import NiftiHeader
from ..scan import Scan
from ..spec import ModelSpec
from ..volume import Shape3, Volume
from .files import Store, open_store
from .frames import is_multiframe
from .geometry import Placement, place
from .grouping import planes_of
from .select import Candidate, choose, choose_for
from .series import DicomSeries
from .study import SeriesHeaders, Study, scan
from .tilt import Tilt
from .voxels import layouts_of, pixel_bytes, read_voxels, unusual


@dataclass(frozen=True)
class DicomOptions:
    """What the user decides about DICOM inputs.

    Attributes
    ----------
    series : SeriesInstanceUID or number, "auto", or None where there is only one.
    time_point : which of a time series, from 1.
    resample_tilt : bring slices of a tilted gantry onto a straight grid, instead of refusing them.
    """

    series: str | None = None
    time_point: int | None = None
    resample_tilt: bool = False


@dataclass(frozen=True, eq=False)
class _Chosen:
    """One series with its geometry, its files still open."""

    store: Store
    candidate: Candidate
    placement: Placement
    tilt: Tilt | None
    notes: tuple[str, ...]

    @property
    def shape(self) -> Shape3:
        """(columns, rows, slices) of the series."""
        first = self.placement.frames[0]
        return first.columns, first.rows, len(self.placement.frames)


def read(
    path: str, options: DicomOptions = DicomOptions(), *, spec: ModelSpec | None = None, max_voxels: int = 2_000_000_000
) -> Scan:
    """Read one series.

    Parameters
    ----------
    path : folder, zip file or file.
    spec : of the model that `options.series` "auto" chooses for.
    max_voxels : limit, checked before pixels are read.

    Returns
    -------
    Scan
        With its `series`. Voxels are (1, columns, rows, slices) of the stored dtype, or float32 if slices are scaled
        differently; with a tilt, float32 on the straight grid, and `to_source` leads masks back.

    Raises
    ------
    SegError
        Exit 10: E-IN-*, E-DCM-EMPTY. Exit 11: E-DCM-HEADER, E-DCM-TAG, E-DCM-PIXELS, E-DCM-TRUNC, E-DCM-DECODE,
        E-ZIP-DAMAGED. Exit 12: E-DCM-KIND, E-DCM-SERIES, E-DCM-MIXED, E-DCM-UID, E-DCM-GEOMETRY, E-DCM-STACKS,
        E-DCM-DUPLICATE, E-DCM-TIME, E-DCM-MISSING, E-DCM-SPACING, E-DCM-TILT, E-DCM-RESCALE, E-DCM-UNITS,
        E-DCM-COLOUR, E-DCM-CODEC, E-ZIP-REFUSED. Exit 13: E-LIMIT-*. Exit 21: E-DCM-DECODER.
    """
    with _chosen(path, options, spec) as chosen:
        frames, series = chosen.placement.frames, _series(path, chosen)
        layouts = layouts_of(frames)  # before the limit: a size that the file cannot hold is damage
        _check_voxels(path, chosen.shape, max_voxels)
        found = read_voxels(chosen.store, frames, layouts, series.modality)
        notes = (*chosen.notes, *unusual(frames), *found.notes)
        if chosen.tilt is None:
            volume = Volume(found.stored[np.newaxis], series.affine, found.slope, found.intercept)
        else:
            volume = _straight(chosen.tilt, found.stored, found.slope, found.intercept)
        header = _header(path, volume.shape, volume.affine, volume.voxels.dtype, notes, found.slope, found.intercept)
        return Scan(header, volume, series, chosen.tilt.restore if chosen.tilt is not None else None)


def inspect(
    path: str, options: DicomOptions = DicomOptions(), *, spec: ModelSpec | None = None, max_voxels: int = 2_000_000_000
) -> NiftiHeader:
    """Shape, affine and type of one series, from its headers alone. Parameters and errors as of `read`."""
    with _chosen(path, options, spec) as chosen:
        frames = chosen.placement.frames
        dtypes = {layout.dtype for layout in layouts_of(frames).values()}
        _check_voxels(path, chosen.shape, max_voxels)
        plain = len({(frame.slope, frame.intercept) for frame in frames}) == 1 and len(dtypes) == 1
        dtype = dtypes.pop() if plain and chosen.tilt is None else np.dtype(np.float32)
        shape = chosen.shape if chosen.tilt is None else chosen.tilt.shape
        affine = chosen.placement.affine if chosen.tilt is None else chosen.tilt.affine
        return _header(path, shape, affine, dtype, chosen.notes)


def survey(path: str) -> tuple[Study, list[Candidate]]:
    """All series below a path, each with its geometry or what is wrong with it.

    Raises
    ------
    SegError : what makes the whole folder unreadable, see `read`.
    """
    with open_store(path) as store:
        study = scan(store)
        return study, [_candidate(store, one, None) for one in study.series]


def _candidate(store: Store, series: SeriesHeaders, time_point: int | None) -> Candidate:
    try:
        planes = planes_of(store.path, series, lambda header: pixel_bytes(store, header), time_point)
        placement = place(store.path, planes.frames)
    except SegError as error:
        return Candidate(series, None, error)
    return Candidate(series, placement, None, planes.notes)


@contextmanager
def _chosen(path: str, options: DicomOptions, spec: ModelSpec | None) -> Iterator[_Chosen]:
    with open_store(path) as store:
        study = scan(store)
        series = choose(study, options.series)
        if series is not None:
            candidate = _candidate(store, series, options.time_point)
        else:
            assert spec is not None
            candidates = [_candidate(store, one, options.time_point) for one in study.series]
            candidate = choose_for(study, candidates, spec)
        if candidate.placement is None:
            assert candidate.error is not None
            raise candidate.error
        placement, notes = candidate.placement, [*study.notes(), *candidate.notes, *candidate.placement.notes]
        tilt = Tilt.of(placement) if placement.tilt else None
        if tilt is not None:
            if not options.resample_tilt:
                found = f"the gantry was tilted by {tilt.degrees:.1f} degrees: slices are not above each other"
                fix = "use --resample-tilt, or have the series reconstructed again"
                raise SegError("E-DCM-TILT", Exit.INPUT_REFUSED, path, found, fix)
            notes.append(f"a gantry tilt of {tilt.degrees:.1f} degrees was straightened; NIfTI masks are straight too")
        yield _Chosen(store, candidate, placement, tilt, tuple(notes))


def _series(path: str, chosen: _Chosen) -> DicomSeries:
    """The contract with DICOM outputs."""
    frames = chosen.placement.frames
    objects = {id(frame.header): frame.header for frame in frames}
    multi = [is_multiframe(header) for header in objects.values()]
    if any(multi) and len(objects) > 1:
        names = ", ".join(header.label for header in list(objects.values())[:2])
        found = f"one volume is spread over {len(objects)} files of which some are multi-frame: {names}"
        fix = "export the series as single frames, or as one file"
        raise SegError("E-DCM-STACKS", Exit.INPUT_REFUSED, path, found, fix)
    return DicomSeries(
        datasets=tuple(header.dataset for header in objects.values()),
        files=tuple(header.name for header in objects.values()),
        frames=tuple(frame.index for frame in frames),
        affine=chosen.placement.affine,
        shape=chosen.shape,
        modality=chosen.candidate.series.modality,
    )


def _straight(tilt: Tilt, stored: NDArray[np.generic], slope: float, intercept: float) -> Volume:
    """The volume of a tilted series on its straight grid, float32 intensities in stored units."""
    lowest = float(stored.max() if slope < 0 else stored.min())
    return Volume(tilt.straighten(stored, lowest)[np.newaxis], tilt.affine, slope, intercept)


def _check_voxels(path: str, shape: Shape3, limit: int) -> None:
    count = shape[0] * shape[1] * shape[2]
    if count > limit:
        found = f"the headers claim {' x '.join(map(str, shape))} = {count:,} voxels"
        fix = "check the files, or raise the limit with --max-voxels"
        raise SegError("E-LIMIT-VOXELS", Exit.LIMIT, path, found, fix, f"at most {limit:,}")


def _header(
    path: str,
    shape: Shape3,
    affine: NDArray[np.float64],
    dtype: np.dtype[np.generic],
    notes: tuple[str, ...],
    slope: float = 1.0,
    intercept: float = 0.0,
) -> NiftiHeader:
    """The header that NIfTI masks of the series are written like."""
    raw = header_classes()[0]()
    raw.set_data_shape(shape)
    raw.set_xyzt_units("mm")
    raw.set_qform(affine, 1)
    raw.set_sform(affine, 1)
    return NiftiHeader(path, shape, 1, affine, dtype, slope, intercept, notes, raw)
