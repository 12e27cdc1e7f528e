"""2D networks on volumes: which axis the slices lie across, how many go at once, and the mask of a plain loop."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import run
from known import plain_spec
from onnx import helper
from small_nets import CHANNELS, convolutions, save

from seg.infer.artifact import SPEC_KEY
from seg.infer.backends import Backend, open_backend
from seg.infer.nifti import inspect
from seg.infer.plan import SLICES, Plan, TilingOptions, choose_tiling, plan_scan
from seg.infer.predict import segment
from seg.infer.preprocess import Grids, forward
from seg.infer.spec import Cost
from seg.infer.volume import Reorientation, Shape3, Volume

SPEC = plain_spec(
    labels=("a", "b", "c"),
    channels=("one", "two"),
    dims=2,
    window=(32, 32, 1),
    stride=(2, 2, 1),
    orientation="slices",
    cost=Cost(45_000.0, 460.0),
)


class Recorded:
    """A backend that keeps the shapes it is given."""

    def __init__(self, inner: Backend) -> None:
        self.inner, self.shapes = inner, list[tuple[int, ...]]()

    def run(self, x: np.ndarray) -> np.ndarray:
        self.shapes.append(x.shape)
        return self.inner.run(x)

    def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def network(tmp_path: Path) -> Recorded:
    """Convolutions in two dimensions, padded and strided: borders and places matter. Two channels, three classes."""
    return Recorded(open_backend("openvino", save(convolutions(2), tmp_path / "net.onnx"), "cpu", threads=1))


def sagittal(across: int) -> np.ndarray:
    """Affine of a sagittal stack: 8 mm to the right along the stored axis `across`, 1.4 mm along the others."""
    affine = np.zeros((4, 4))
    i, j = (axis for axis in range(3) if axis != across)
    affine[0, across], affine[1, i], affine[2, j], affine[3, 3] = 8.0, 1.4, -1.4, 1.0
    return affine


def stack(shape: Shape3, across: int = 2) -> Volume:
    voxels = np.random.default_rng(sum(shape)).standard_normal((CHANNELS, *shape)).astype(np.float32)
    return Volume(voxels, sagittal(across))


def by_hand(network: Recorded, volume: Volume, across: int) -> np.ndarray:
    """One slice at a time; the other axes stay in their stored order."""
    slices = np.moveaxis(volume.voxels, across + 1, -1)
    labels = [network.inner.run(slices[None, ..., [z]]).argmax(axis=1)[0, ..., 0] for z in range(slices.shape[-1])]
    return np.stack(labels, axis=across)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((216, 256, 10), (0, 1, 2)),
        ((10, 216, 256), (1, 2, 0)),
        ((256, 8, 216), (0, 2, 1)),
        ((64, 64, 1), (0, 1, 2)),
        ((1, 64, 64), (1, 2, 0)),
        ((32, 32, 32), (0, 1, 2)),
        ((16, 40, 16), (0, 1, 2)),
    ],
)
def test_slices_lie_across_the_axis_with_the_fewest_voxels(shape: Shape3, axes: tuple[int, ...]) -> None:
    turn = Reorientation.of_slices(shape, (1.4, 1.4, 1.4))
    assert (turn.axes, turn.flips) == (axes, (False, False, False))
    array = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(turn.invert(turn.apply(array)), array)


@pytest.mark.parametrize(
    ("shape", "spacing", "across"),
    [
        ((100, 100, 400), (0.9, 0.9, 2.0), 2),  # more slices than pixels
        ((400, 100, 100), (5.0, 0.9, 1.0), 0),
        ((100, 100, 400), (1.0, 1.0, 1.4), 1),  # not thick
        ((64, 64, 1), (1.0, 2.0, 1.0), 2),  # one slice of oblong pixels
    ],
)
def test_thick_slices_are_known_by_their_voxels(shape: Shape3, spacing: tuple[float, ...], across: int) -> None:
    assert Reorientation.of_slices(shape, spacing).axes[2] == across


def test_the_header_does_not_turn_stored_slices() -> None:
    """The same voxels in any direction are the same network input; in RAS they are not."""
    turned = stack((20, 16, 6))
    plain = replace(turned, affine=np.diag([1.4, 1.4, 8.0, 1.0]))
    np.testing.assert_array_equal(forward(plain, SPEC)[0], forward(turned, SPEC)[0])
    assert Grids.of(turned.shape, turned.affine, SPEC).network == (20, 16, 6)
    assert Grids.of(turned.shape, turned.affine, replace(SPEC, orientation="RAS")).network == (6, 20, 16)


@pytest.mark.parametrize("options", [TilingOptions(), TilingOptions((64, 64, 3)), TilingOptions((64, 64, 100))])
@pytest.mark.parametrize(("shape", "across"), [((20, 16, 13), 2), ((9, 20, 16), 0), ((18, 1, 20), 1), ((20, 16, 8), 2)])
def test_mask_is_that_of_a_loop_over_slices(
    network: Recorded, shape: Shape3, across: int, options: TilingOptions
) -> None:
    if options.window is not None:  # no smaller than the scan, which would be padded
        shape = tuple(n if axis == across else 64 for axis, n in enumerate(shape))  # type: ignore[assignment]
    volume = stack(shape, across)
    found = segment(volume, SPEC, network, options)
    expected = by_hand(network, volume, across)
    assert len(np.unique(expected)) == 3
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("slices", "passes"), [(1, [1]), (8, [8]), (10, [5, 5]), (11, [6, 6]), (40, [8] * 5)])
def test_a_long_scan_is_no_giant_batch(network: Recorded, slices: int, passes: list[int]) -> None:
    segment(stack((64, 64, slices)), SPEC, network)
    assert [shape[4] for shape in network.shapes] == passes
    assert max(passes) <= SLICES


def planned(shape: Shape3, memory: float, **changes: object) -> Plan:
    options = {"memory_bytes": int(memory), "scan_bytes": 2 * int(np.prod(shape)), "channels_out": 3}
    affine = np.diag([1.4, 1.4, 8.0, 1.0])
    return plan_scan(shape, affine, replace(SPEC, **changes), TilingOptions(), **options)  # type: ignore[arg-type]


def test_less_memory_means_fewer_slices_before_smaller_ones() -> None:
    plans = [planned((512, 512, 100), m) for m in (4e9, 1.1e9, 0.8e9, 0.55e9, 0.45e9, 0.4e9)]
    windows = [plan.tiling.window for plan in plans]
    assert windows[0] == (512, 512, 8)
    depths = [window[2] for window in windows]
    assert depths == sorted(depths, reverse=True)
    assert depths[-1] == 1
    assert all(depth == 1 for depth, window in zip(depths, windows, strict=True) if window[:2] != (512, 512))
    assert windows[-1][:2] != (512, 512)
    for plan, memory in zip(plans, (4e9, 1.1e9, 0.8e9, 0.55e9, 0.45e9, 0.4e9), strict=True):
        assert plan.peak_bytes <= memory


def test_memory_does_not_grow_with_the_number_of_slices() -> None:
    short, long = (planned((256, 256, n), 8e9).peak_bytes for n in (80, 800))
    assert long - short == pytest.approx(720 * 256 * 256 * 3, rel=0.02)  # the scan as int16 and the mask


def test_windows_in_the_plane_overlap_and_slices_do_not() -> None:
    tiling = choose_tiling((100, 90, 20), replace(SPEC, tiling="window"), TilingOptions())
    assert tiling.window == (32, 32, 7)
    assert tiling.starts == ((0, 16, 32, 48, 64, 68), (0, 16, 32, 48, 58), (0, 7, 13))
    assert tiling.weighting == "gaussian"


def test_slices_have_four_mirrorings(network: Recorded) -> None:
    volume = stack((20, 16, 5))
    segment(volume, SPEC, network, mirror=(0, 1))
    assert len(network.shapes) == 4
    mirrored = Volume(volume.voxels[:, ::-1], volume.affine)
    found = [segment(v, SPEC, network, mirror=(0, 1)) for v in (volume, mirrored)]
    assert (found[0][::-1] == found[1]).mean() > 0.999


def test_seg_infer_writes_the_mask_of_the_loop(network: Recorded, tmp_path: Path) -> None:
    """From file to file, sagittal stack, two channels; also with a bound on memory."""
    model = helper.make_model(convolutions(2), opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    digest = hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()
    helper.set_model_props(model, {SPEC_KEY: replace(SPEC, graph_sha256=digest).to_json()})
    artifact, scan, mask = (str(tmp_path / name) for name in ("m.onnx", "scan.nii.gz", "mask.nii.gz"))
    Path(artifact).write_bytes(model.SerializeToString(deterministic=True))
    volume = stack((64, 48, 21))
    nib.save(nib.Nifti1Image(np.moveaxis(volume.voxels, 0, 3), volume.affine), scan)
    expected = by_hand(network, volume, 2)
    for words in ([], ["--window", "64,48,2"], ["--max-memory", "400M"]):
        assert run(scan, "-o", mask, "-m", artifact, "-q", "--overwrite", "--precision", "fp32", *words) == 0
        np.testing.assert_array_equal(np.asarray(nib.load(mask).dataobj), expected)


@pytest.mark.parametrize(
    ("size", "unit", "known"), [(1.0, "unknown", False), (1.0, "mm", True), (1.5, "unknown", True)]
)
def test_lost_voxel_sizes_are_told(
    write_scan: Callable[..., str], tmp_path: Path, size: float, unit: str, known: bool
) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([size, size, size, 1.0]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "scan.nii")
    header = inspect(str(tmp_path / "scan.nii"))
    assert header.size_known == known
    assert [note for note in header.notes if "may have been lost" in note] == [] if known else header.notes[-1:]


def test_only_slices_are_taken_as_stored() -> None:
    with pytest.raises(ValueError, match="only a 2D model"):
        plain_spec(orientation="slices")
    with pytest.raises(ValueError, match="unknown orientation"):
        plain_spec(orientation="LPS")
