"""Where a NIfTI header says the voxels are: one documented rule, and refusal where the header contradicts itself.

The sform is used if its code is over 0, else the qform if its code is over 0, else the voxel sizes alone (method 1,
which stores no orientation). World coordinates are RAS+; everything returned is in mm.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from .errors import Exit, SegError
from .volume import Shape3, spacing_of

Form = Literal["sform", "qform", "pixdim"]
Matrix = NDArray[np.float64]

MAX_DISAGREEMENT = 1.0  # voxels between sform and qform at the farthest corner
MAX_SHEAR = 0.1  # voxels from the nearest unsheared grid at the farthest corner
_WORTH_A_NOTE = 0.1  # voxels
_MIN_DETERMINANT = 1e-6  # of the unit axis vectors; 1 when they are orthogonal
_PLAUSIBLE_MM = (0.01, 50.0)  # voxel sizes that can only be mm when the header does not say
_QUATERNION_ROUNDING = 1e-5  # above float32 rounding of b, c, d, below any real fault
_UNITS = {1: ("metre", 1000.0), 2: ("mm", 1.0), 3: ("micron", 0.001)}


@dataclass(frozen=True, eq=False)
class Geometry:
    """Placement of a voxel grid.

    Attributes
    ----------
    affine : (4, 4) float64, voxel index -> mm, RAS+.
    form : the header part it was taken from.
    notes : things accepted but worth reporting.
    """

    affine: Matrix
    form: Form
    notes: tuple[str, ...]


@np.errstate(all="ignore")  # absurd numbers overflow to inf or NaN, which every check below refuses
def geometry_of(path: str, raw: Any, shape: Shape3, prefer: Literal["sform", "qform"] | None = None) -> Geometry:
    """Placement stored in a header.

    Parameters
    ----------
    path : file as the user typed it, for messages.
    raw : nibabel NIfTI-1 or NIfTI-2 header, unchecked.
    shape : (X, Y, Z) in voxels.
    prefer : which of two disagreeing forms to believe; without it they are refused.

    Raises
    ------
    SegError
        E-NII-HEADER (exit 11) for values that are not numbers, E-GEO-SINGULAR, E-GEO-FORMS, E-GEO-SHEAR or
        E-GEO-UNITS (exit 12).
    """
    notes: list[str] = []
    readers: dict[Form, Callable[[], Matrix]] = {}
    if raw["sform_code"] > 0:
        readers["sform"] = lambda: _sform(path, raw)
    if raw["qform_code"] > 0:
        readers["qform"] = lambda: _qform(path, raw, shape, notes)
    if not readers:
        readers["pixdim"] = lambda: _method1(path, raw, shape, notes)
        notes.append("sform_code and qform_code are 0: left and right are not known")
    form: Form = prefer if prefer in readers else next(iter(readers))
    unit, scale = _UNITS.get(int(raw["xyzt_units"]) & 7, ("", 1.0))
    to_mm = np.diag([scale, scale, scale, 1.0])
    affine = to_mm @ readers[form]()
    _refuse_singular(path, affine, form)
    if prefer is None and form == "sform" and "qform" in readers:
        notes.extend(_compare_forms(path, affine, to_mm @ readers["qform"](), shape))
    _refuse_shear(path, affine, shape)
    if form == "sform":
        notes.extend(_compare_pixdim(scale * raw["pixdim"][1:4].astype(np.float64), affine, shape))
    if not unit:
        _refuse_implausible(path, affine, shape)
    elif scale != 1.0:
        notes.append(f"lengths in {unit} were converted to mm")
    return Geometry(affine, form, tuple(dict.fromkeys(notes)))


def corner_shift(affine: Matrix, other: Matrix, shape: Shape3) -> float:
    """Largest distance, in voxels of `affine`, between the places two affines give to a corner voxel's centre."""
    corners = _corners(shape)
    there = np.linalg.solve(affine, other @ corners)
    return float(np.linalg.norm(there[:3] - corners[:3], axis=0).max())


def _corners(shape: Shape3) -> Matrix:
    """(4, 8) homogeneous indices of the corner voxels."""
    last = np.array(shape, dtype=np.float64) - 1
    bits = np.array([[(n >> axis) & 1 for n in range(8)] for axis in range(3)])
    return np.vstack([bits * last[:, None], np.ones((1, 8))])


def _sform(path: str, raw: Any) -> Matrix:
    rows = {name: np.asarray(raw[name], dtype=np.float64) for name in ("srow_x", "srow_y", "srow_z")}
    for name, row in rows.items():
        if not np.isfinite(row).all():
            _bad(path, f"{name} is {row.tolist()}", "finite numbers")
    return np.vstack([*rows.values(), [0.0, 0.0, 0.0, 1.0]])


def _qform(path: str, raw: Any, shape: Shape3, notes: list[str]) -> Matrix:
    names = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
    values = np.array([float(raw[name]) for name in names])
    for name, value in zip(names, values, strict=True):
        if not np.isfinite(value):
            _bad(path, f"{name} is {value}", "a finite number")
    vector = values[:3]
    length = float(vector @ vector)
    if length > 1 + _QUATERNION_ROUNDING:
        _bad(path, f"quatern_b, c, d are {vector.tolist()}, squares adding up to {length:.6g}", "at most 1")
    vector /= max(1.0, float(np.sqrt(length)))
    sign = float(raw["pixdim"][0])
    if not np.isfinite(sign):
        _bad(path, f"pixdim[0] is {sign}", "1 or -1")
    affine = np.eye(4)
    affine[:3, :3] = _rotation(vector) * _zooms(path, raw, shape, notes)
    affine[:3, 2] *= -1.0 if sign < 0 else 1.0
    affine[:3, 3] = values[3:]
    return affine


def _rotation(vector: Matrix) -> Matrix:
    """(3, 3) rotation of the unit quaternion whose vector part is (b, c, d) and whose scalar part is not negative."""
    b, c, d = vector
    a = np.sqrt(max(0.0, 1.0 - float(vector @ vector)))
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _method1(path: str, raw: Any, shape: Shape3, notes: list[str]) -> Matrix:
    """Voxel sizes only. The standard attaches no orientation; x to the left around the centre is what nibabel takes."""
    zooms = _zooms(path, raw, shape, notes) * [-1.0, 1.0, 1.0]
    affine = np.diag([*zooms, 1.0])
    affine[:3, 3] = -zooms * (np.array(shape) - 1) / 2
    return affine


def _zooms(path: str, raw: Any, shape: Shape3, notes: list[str]) -> Matrix:
    """(3,) voxel sizes in the header's unit, for headers whose placement depends on pixdim."""
    zooms = np.asarray(raw["pixdim"][1:4], dtype=np.float64).copy()
    for axis, zoom in enumerate(zooms):
        name = f"pixdim[{axis + 1}]"
        if np.isfinite(zoom) and zoom != 0:
            if zoom < 0:
                notes.append(f"{name} is {zoom:g}, its sign was ignored")
        elif shape[axis] == 1:
            notes.append(f"{name} is {zoom:g} on an axis of one voxel, taken as 1")
            zooms[axis] = 1.0
        else:
            _bad(path, f"{name} is {zoom:g}", "a voxel size over 0")
    return np.abs(zooms)


def _refuse_singular(path: str, affine: Matrix, form: Form) -> None:
    columns = affine[:3, :3]
    norms = spacing_of(affine)
    determinant = float(np.linalg.det(columns / norms)) if norms.all() else 0.0
    if not abs(determinant) >= _MIN_DETERMINANT:  # NaN neither
        found = f"the {form} puts the voxels in a plane or line (determinant {float(np.linalg.det(columns)):.3g})"
        fix = "restore the geometry from the original scan"
        raise SegError("E-GEO-SINGULAR", Exit.INPUT_REFUSED, path, found, fix, "three independent axes")


def _compare_forms(path: str, sform: Matrix, qform: Matrix, shape: Shape3) -> list[str]:
    shift = corner_shift(sform, qform, shape)
    if shift <= _WORTH_A_NOTE:
        return []
    apart = float(np.linalg.norm(((sform - qform) @ _corners(shape))[:3], axis=0).max())
    found = f"sform and qform differ by {apart:.4g} mm ({shift:.3g} voxels) at a corner"
    if shift <= MAX_DISAGREEMENT:
        return [f"{found}, the sform is used"]
    fix = "choose the right one with --prefer sform or --prefer qform"
    raise SegError("E-GEO-FORMS", Exit.INPUT_REFUSED, path, found, fix, f"at most {MAX_DISAGREEMENT:g} voxel")


def _refuse_shear(path: str, affine: Matrix, shape: Shape3) -> None:
    """Compare with the nearest grid of right angles and the same spacing, turned about the same centre."""
    zooms = spacing_of(affine)
    left, _, right = np.linalg.svd(affine[:3, :3] / zooms)
    straight = affine.copy()
    straight[:3, :3] = (left @ right) * zooms
    centre = (np.array(shape, dtype=np.float64) - 1) / 2
    straight[:3, 3] += (affine[:3, :3] - straight[:3, :3]) @ centre
    shift = corner_shift(affine, straight, shape)
    if not shift <= MAX_SHEAR:  # also if it is NaN
        found = f"the axes are sheared, by {shift:.3g} voxels at a corner"
        fix = "resample the scan to a grid with right angles"
        raise SegError("E-GEO-SHEAR", Exit.INPUT_REFUSED, path, found, fix, f"at most {MAX_SHEAR:g}")


def _compare_pixdim(pixdim: Matrix, affine: Matrix, shape: Shape3) -> list[str]:
    spacing = spacing_of(affine)
    counts = np.array(shape) > 1  # the size of a single voxel's axis is often left out
    if np.allclose(pixdim[counts], spacing[counts], rtol=1e-3, atol=0):
        return []
    stated, used = (", ".join(f"{v:.6g}" for v in values) for values in (pixdim, spacing))
    return [f"pixdim ({stated}) disagrees with the sform's spacing ({used}), the sform is used"]


def _refuse_implausible(path: str, affine: Matrix, shape: Shape3) -> None:
    """Without a stated unit, voxel sizes must be ones that can only be mm."""
    spacing = spacing_of(affine)[np.array(shape) > 1]
    low, high = _PLAUSIBLE_MM
    if spacing.size and not (low <= spacing.min() and spacing.max() <= high):
        found = f"the length unit is not stated and voxel sizes are {', '.join(f'{s:.4g}' for s in spacing)}"
        fix = "set xyzt_units to the unit that was meant"
        raise SegError("E-GEO-UNITS", Exit.INPUT_REFUSED, path, found, fix, f"{low:g} to {high:g} mm")


def _bad(path: str, found: str, expected: str) -> NoReturn:
    fix = "export the scan again from its source"
    raise SegError("E-NII-HEADER", Exit.INPUT_CORRUPT, path, found, fix, expected)
