"""Synthetic late gadolinium enhanced scans of the left atrium, with labels: data nobody had to be scanned for.

Each phantom is a made-up heart: ellipsoids and tubes in patient coordinates, bent by smooth random fields, painted back
to front, then given the bias field, blur and Rician noise of an MRI interpolated to 0.625 mm. A sketch of anatomy,
good enough to train on and to look at; it knows nothing
of motion or pathology and is no evidence of clinical accuracy.
"""

import argparse
import gzip
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .volume import Shape3, Volume

SPACING_MM = 0.625
WARP_MM = 8.0  # no point is bent further: four standard deviations of `_points`

Field = NDArray[np.float32]
Vector = NDArray[np.float64]  # (3,) mm along R, A, S from the atrium's centre


@dataclass(frozen=True)
class Solid:
    """A shape and its grey: `level` inside, `shell` for `wall` mm around it, in units of the blood's intensity.

    One knot makes an ellipsoid of half axes `semi` mm, more make a tube through the knots of radius ``semi[0]``.
    """

    knots: list[tuple[int, int, int]]  # mm along R, A, S from the atrium's centre
    semi: tuple[float, ...]
    level: float
    wall: float
    shell: float


def atrium_phantom(seed: int) -> tuple[Volume, NDArray[np.uint8]]:
    """A synthetic scan of the left atrium and its label.

    Parameters
    ----------
    seed : non-negative integer; the same seed gives the same phantom.

    Returns
    -------
    scan : Volume of uint8 voxels (1, X, Y, Z), about 180 x 140 x 88 at 0.625 mm, axes along +R, +A, +S.
    label : (X, Y, Z) uint8, 1 in the left atrium with its vein stubs and appendage, 0 elsewhere; one component.

    Raises
    ------
    ValueError : if the seed is negative.
    """
    rng = np.random.default_rng(seed)
    x, y, z = rng.integers((160, 130, 80), (201, 151, 97))
    shape = (int(x), int(y), int(z))
    points = _points(rng, shape)
    atrium, vessels = _atrium(rng, points)
    level = _background(rng, points)
    _paint(rng, level, points, _surroundings(rng))
    # The atrial wall is dark with enhanced patches, as fibrosis shows; beyond the stubs the veins go on unlabelled.
    wall = np.clip(rng.uniform(0.25, 0.55) + 0.35 * _random_field(rng, shape, 14.0), 0.1, 0.85)
    _blend(level, wall, _inside(vessels - np.float32(rng.uniform(1.2, 2.0))))
    _blend(level, 1.0 + 0.03 * _random_field(rng, shape, 6.0), _inside(vessels))
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = np.round(-0.5 * SPACING_MM * np.array(shape) + rng.uniform(-12, 12, 3))
    return Volume(_acquire(rng, level)[np.newaxis], affine), (atrium < 0).astype(np.uint8)


def _points(rng: np.random.Generator, shape: Shape3) -> Field:
    """(3, X, Y, Z) mm along R, A, S from the atrium's centre, bent so that no solid stays regular."""
    offset = rng.uniform((-3, -3, -1), (5, 3, 3))  # a crop is never centred on the atrium
    axes = [(np.arange(n) - n / 2) * SPACING_MM + o for n, o in zip(shape, offset, strict=True)]
    points = np.asarray(np.meshgrid(*axes, indexing="ij"), np.float32)
    for axis in range(3):
        points[axis] += 1.9 * _random_field(rng, shape, 24.0) + 0.7 * _random_field(rng, shape, 10.0)
    return points


def _atrium(rng: np.random.Generator, points: Field) -> tuple[Field, Field]:
    """Signed distances in mm of the labelled atrium, and of the atrium with its veins going on into the lungs."""
    size = rng.uniform(0.9, 1.15)
    body = _ellipsoid(points, np.zeros(3), size * rng.uniform((28, 15, 14), (34, 19, 18)))
    bulge = _ellipsoid(points, rng.uniform((-16, -2, -6), (-6, 6, 2)), size * rng.uniform(13, 19, 3))
    body = _union(body, bulge, 6.0)
    ostia = np.array([(24, -6, 9), (25, -7, -7), (-22, -7, 11), (-24, -8, -5), (26, -7, 1)])
    ends = np.array([(45, -19, 16), (46, -24, -11), (-39, -23, 18), (-42, -25, -9), (46, -20, 3)])
    going_on = body
    for vein in range(rng.choice((3, 4, 5), p=(0.12, 0.68, 0.2))):
        start = size * (ostia[vein] + rng.normal(0, 1.2, 3))
        course = size * (ends[vein] + rng.normal(0, 2.5, 3)) - start
        radius = float(rng.uniform(4.2, 6.2))
        body = _union(body, _tube(points, start, start + rng.uniform(0.45, 0.9) * course, radius, radius), 4.0)
        going_on = _union(going_on, _tube(points, start, start + 2 * course, radius, 0.4 * radius), 4.0)
    root = size * (np.array((-24, 8, 6)) + rng.normal(0, 1.5, 3))
    appendage = _tube(points, root, root + rng.uniform((-12, 8, 0), (-6, 14, 8)), 6.0, float(rng.uniform(4, 6)))
    rough = 0.5 * _random_field(rng, points.shape[1:], 7.0)
    atrium = _union(body, appendage, 3.0) + rough
    return atrium, np.asarray(np.minimum(atrium, going_on + rough))


def _background(rng: np.random.Generator, points: Field) -> Field:
    """Lungs with vessels, and the mediastinum: connective tissue with streaks of fat."""
    shape = points.shape[1:]
    speckle = _random_field(rng, shape, 4.0)
    level = np.asarray(rng.uniform(0.09, 0.2) + 0.03 * speckle + 0.5 * np.clip(speckle - 1.2, 0, 1.2))
    # Where a random field crosses zero is a sheet: drawn thin and bright, it reads as fat along a fascia.
    sheet = np.exp(-((_random_field(rng, shape, 11.0) / 0.14) ** 2)) * np.clip(_random_field(rng, shape, 16.0), 0, 1)
    tissue = rng.uniform(0.26, 0.52) + 0.1 * speckle + rng.uniform(0.6, 1.1) * sheet
    bag = _ellipsoid(points, np.array((-2, 6, -4)), rng.uniform((46, 40, 52), (56, 48, 64)))
    _blend(level, tissue, _inside(bag, 3.0))
    return level


def _surroundings(rng: np.random.Generator) -> list[Solid]:
    """Everything but the atrium, back to front."""
    ranges = ((0.9, 1.08), (0.42, 0.62), (0.8, 1.4), (0.12, 0.24), (0.55, 1.0), (0.2, 0.4))
    blood, muscle, fat, dark, liver, marrow = (float(rng.uniform(*limits)) for limits in ranges)
    # From the right lung to the fork, down the trunk and back, on to the left lung: one wall around all of it.
    pulmonary_artery = [(34, -4, 27), (-18, 25, 27), (-14, 38, -4), (-18, 25, 27), (-33, -14, 33)]
    return [
        Solid([(66, 22, -52)], (46, 52, 46), liver, 1.5, dark),
        Solid([(19, -48, -60), (17, -47, 60)], (16.5,), marrow, 1.5, 0.7 * fat),  # vertebrae
        Solid([(19, -74, -60), (17, -73, 60)], (7.0,), 0.45, 3.0, dark),  # spinal canal
        Solid([(7, -27, -60), (2, -26, 60)], (4.0,), muscle, 1.5, dark),  # oesophagus
        Solid([(-9, -33, -60), (-13, -34, 60)], (11.5,), blood, 1.6, muscle),  # descending aorta
        Solid([(-33, 34, -24)], (22, 26, 25), blood, 8.0, muscle),  # left ventricle
        Solid([(4, 46, -20)], (26, 13, 22), blood, 3.0, muscle),  # right ventricle
        Solid([(-26, 14, -2), (-38, 22, -8)], (2.5,), fat, 0.8, fat),  # atrioventricular groove
        Solid([(27, 31, -14)], (21, 17, 28), blood, 1.8, dark),  # right atrium
        Solid([(29, 17, -4), (27, 15, 60)], (8.0,), blood, 1.4, dark),  # superior vena cava
        Solid(pulmonary_artery, (9.0,), blood, 1.5, dark),
        Solid([(-3, 26, -10), (8, 34, 60)], (12.5,), blood, 1.6, dark),  # ascending aorta
    ]


def _paint(rng: np.random.Generator, level: Field, points: Field, solids: list[Solid]) -> None:
    """Draw the solids into `level`, in place, each slightly moved and resized and only within its bounding box."""
    axes = [points[axis].mean(tuple({0, 1, 2} - {axis})) for axis in range(3)]
    for solid in solids:
        knots = np.array(solid.knots) + rng.normal(0, 1.5, 3)
        semi = np.array(solid.semi) * rng.uniform(0.92, 1.1, len(solid.semi))
        reach = semi + solid.wall + WARP_MM
        low, high = knots.min(0) - reach, knots.max(0) + reach
        box = tuple(slice(*np.searchsorted(axis, (a, b))) for axis, a, b in zip(axes, low, high, strict=True))
        local = points[:, *box]
        tubes = [_tube(local, a, b, semi[0], semi[0]) for a, b in pairwise(knots)]
        distance = np.minimum.reduce(tubes or [_ellipsoid(local, knots[0], semi)])
        for paint, wall in ((solid.shell, solid.wall), (solid.level, 0.0)):
            _blend(level[box], paint, _inside(distance - np.float32(wall)))


def _acquire(rng: np.random.Generator, level: Field) -> NDArray[np.uint8]:
    """What a scanner makes of the levels: bias field, point spread, Rician noise, 8 bits."""
    shape = level.shape
    signal = _blur(level, (0.8, 0.8, 1.3)) * np.exp(rng.uniform(0.07, 0.16) * _random_field(rng, shape, 45.0))
    grain = (0.85, 0.85, 1.3)  # voxels: interpolation from the acquired grid correlates the noise
    real, imaginary = (_blur(rng.standard_normal(shape, dtype=np.float32), grain) for _ in range(2))
    scale = rng.uniform(0.06, 0.17) / float(real.std())
    magnitude = np.hypot(signal + scale * real, scale * imaginary)
    return np.asarray(np.clip(np.rint(magnitude * rng.uniform(55, 110)), 0, 255), np.uint8)


def _ellipsoid(points: Field, centre: Vector, semi: Vector) -> Field:
    """Signed distance in mm to an ellipsoid, first order: exact at the surface, which is where it matters."""
    c, r = (v.astype(np.float32)[:, None, None, None] for v in (centre, semi))
    near, slope = (np.linalg.norm((points - c) / length, axis=0) for length in (r, r * r))
    return np.asarray(near * (near - 1) / np.maximum(slope, 1e-6))


def _tube(points: Field, start: Vector, end: Vector, first: float, last: float) -> Field:
    """Signed distance in mm to a round-ended tube whose radius goes from `first` to `last` mm."""
    along = (end - start).astype(np.float32)
    offset = points - start.astype(np.float32)[:, None, None, None]
    t = np.clip(np.einsum("ixyz,i->xyz", offset, along) / (along @ along), 0, 1)
    offset -= along[:, None, None, None] * t
    return np.asarray(np.linalg.norm(offset, axis=0) - (np.float32(first) + np.float32(last - first) * t))


def _union(a: Field, b: Field, fillet: float) -> Field:
    """Union of two signed distances with a rounded seam of `fillet` mm."""
    h = np.clip(np.float32(fillet) - np.abs(a - b), 0, None)
    return np.asarray(np.minimum(a, b) - h * h / np.float32(4 * fillet))


def _inside(distance: Field, edge: float = 0.7) -> Field:
    """1 inside, 0 outside, a ramp of `edge` mm between: the partial volume of a voxel."""
    return np.asarray(np.clip(np.float32(0.5) - distance / np.float32(edge), 0, 1))


def _blend(level: Field, paint: Field | float, share: Field) -> None:
    """Mix `paint` into `level`, in place."""
    level += (paint - level) * share


def _random_field(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> Field:
    """(X, Y, Z) smooth noise, mean about 0, variance 1, structures of `scale` mm: cubic B-splines on a coarse grid."""
    step = scale / SPACING_MM
    field = rng.standard_normal([int(n / step) + 4 for n in shape], dtype=np.float32)
    for axis, n in enumerate(shape):
        knot, t = np.divmod(np.arange(n, dtype=np.float32) / np.float32(step), 1)
        weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        column = [-1 if a == axis else 1 for a in range(3)]
        taps = [np.take(field, knot.astype(int) + k, axis) * (w / 6).reshape(column) for k, w in enumerate(weights)]
        field = taps[0] + taps[1] + taps[2] + taps[3]
    return np.asarray(field / field.std())


def _blur(array: Field, sigma: tuple[float, float, float]) -> Field:
    """Gaussian blur, sigma in voxels per axis, edges repeated."""
    for axis, s in enumerate(sigma):
        radius = int(3 * s + 0.5)
        taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / s) ** 2)
        padded = np.pad(array, [(radius, radius) if a == axis else (0, 0) for a in range(3)], mode="edge")
        views = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis)
        array = np.zeros_like(array)
        for k, tap in enumerate((taps / taps.sum()).astype(np.float32)):
            array += tap * views[..., k]
    return array


def write_dataset(folder: Path, count: int, first_seed: int = 0) -> None:
    """Write `count` phantoms as ``images/phantom_NNN.nii.gz`` and ``labels/phantom_NNN.nii.gz``; NNN is the seed.

    Raises OSError if the folder cannot be written, ValueError for a negative seed.
    """
    for seed in range(first_seed, first_seed + count):
        scan, label = atrium_phantom(seed)
        for kind, voxels in (("images", scan.voxels[0]), ("labels", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write_nifti(folder / kind / f"phantom_{seed:03d}.nii.gz", voxels, scan.affine)


def write_nifti(path: Path, voxels: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    """Write (X, Y, Z) voxels with an affine in mm, RAS+."""
    import nibabel as nib

    nib.save(_image(voxels, affine), path)


def nifti_gz(voxels: NDArray[np.generic], affine: NDArray[np.float64]) -> bytes:
    """The content of a .nii.gz file of them."""
    return gzip.compress(_image(voxels, affine).to_bytes(), 1, mtime=0)


def _image(voxels: NDArray[np.generic], affine: NDArray[np.float64]) -> Any:
    import nibabel as nib

    image = nib.Nifti1Image(voxels, affine)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    return image


def main(arguments: list[str] | None = None) -> None:
    """``python -m seg.infer.phantom FOLDER --count N [--first-seed S]``."""
    parser = argparse.ArgumentParser(prog="python -m seg.infer.phantom", description="Write synthetic atrium scans.")
    parser.add_argument("folder", type=Path, help="receives images/ and labels/")
    parser.add_argument("--count", type=int, default=10, help="number of scans (default 10)")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first scan (default 0)")
    write_dataset(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
