import numpy as np
import pytest
from PIL import Image

from seg.infer.errors import SegError
from seg.infer.preview import CAPTION, FILL, GAP, HEIGHT, PALETTE, preview_png, render
from seg.infer.volume import Reorientation, Volume

LABELS = ("background", "box", "plate")
SHAPE, SPACING = (40, 50, 20), (1.0, 1.0, 3.0)
TOP = GAP // 2 + CAPTION  # first row of the planes
WIDTHS = (288, 240, 300)  # 40/50, 40/60 and 50/60 of 360 px


@pytest.fixture
def scan():
    """RAS scan and mask: a box in the right anterior superior octant, and a plate around the centre."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(90, 110, SHAPE).astype(np.int16)
    voxels[:, :, 0] = 0  # a dark feet end and a bright head end fix the grey window
    voxels[:, :, -1] = 200
    mask = np.zeros(SHAPE, np.uint8)
    mask[28:36, 30:44, 9:16] = 1
    mask[6:26, 24:26, 8:14] = 2
    return Volume(voxels[np.newaxis], np.diag([*SPACING, 1.0])), mask


def turned(volume, mask):
    """The same scan stored in another axis order and direction (LSP-like)."""
    axes, flips = (2, 0, 1), (slice(None, None, -1), slice(None), slice(None, None, -1))
    turn = np.zeros((4, 4))
    for new, (old, flip) in enumerate(zip(axes, (True, False, True), strict=True)):
        turn[old, new] = -1 if flip else 1
        turn[old, 3] = SHAPE[old] - 1 if flip else 0
    turn[3, 3] = 1
    voxels = np.ascontiguousarray(volume.voxels[0].transpose(axes)[flips])
    return Volume(voxels[np.newaxis], volume.affine @ turn), np.ascontiguousarray(mask.transpose(axes)[flips])


def at(picture, panel, right_to_left, top_to_bottom):
    """Colour at a place given as fractions of a plane."""
    left = GAP + sum(WIDTHS[:panel]) + GAP * panel
    place = int(left + right_to_left * WIDTHS[panel]), int(TOP + top_to_bottom * HEIGHT)
    return np.array(picture.getpixel(place), float)


def assert_tinted(colour, k):
    """The colour is a grey with label k's tint in it: undoing the tint leaves equal channels."""
    opacity = FILL / 255
    grey = (colour - opacity * np.array(PALETTE[k])) / (1 - opacity)
    assert np.ptp(grey) < 4
    assert np.ptp(colour) > 20


def assert_grey(colour):
    assert np.ptp(colour) == 0


@pytest.mark.parametrize("orient", [lambda v, m: (v, m), turned], ids=["RAS", "turned"])
def test_colours_lie_where_the_labels_are(tmp_path, scan, orient):
    volume, mask = orient(*scan)
    path = tmp_path / "look.png"
    preview_png(volume, mask, LABELS, str(path))
    with Image.open(path) as picture:
        picture.load()
        assert picture.mode == "RGB"
        assert picture.width == sum(WIDTHS) + 4 * GAP
        # Axial: the box is right (picture left) and anterior (up).
        assert_tinted(at(picture, 0, 1 - 32 / 40, 1 - 37 / 50), 0)
        assert_grey(at(picture, 0, 32 / 40, 1 - 37 / 50))
        assert_grey(at(picture, 0, 1 - 32 / 40, 37 / 50))
        assert_tinted(at(picture, 0, 1 - 16 / 40, 1 - 25 / 50), 1)
        # Coronal: right is picture left, superior is up; bright head, dark feet.
        assert_tinted(at(picture, 1, 1 - 32 / 40, 1 - 14.5 / 20), 0)
        assert_grey(at(picture, 1, 1 - 32 / 40, 14.5 / 20))
        assert at(picture, 1, 0.1, 0.01).mean() > 220
        assert at(picture, 1, 0.1, 0.99).mean() < 35
        # Sagittal: anterior is picture left.
        assert_tinted(at(picture, 2, 1 - 37 / 50, 1 - 12.5 / 20), 0)
        assert_grey(at(picture, 2, 37 / 50, 1 - 12.5 / 20))


def test_orientation_of_storage_does_not_show(scan):
    assert Reorientation.to_ras(turned(*scan)[0].affine) != Reorientation.to_ras(scan[0].affine)
    np.testing.assert_array_equal(np.asarray(render(*scan, LABELS)), np.asarray(render(*turned(*scan), LABELS)))


def test_contour_is_pure_and_outlines_the_area(scan):
    picture = np.asarray(render(*scan, LABELS))
    axial = picture[TOP : TOP + HEIGHT, GAP : GAP + WIDTHS[0]]
    line = np.all(np.abs(axial.astype(int) - PALETTE[0]) < 3, axis=2)
    rows, columns = np.flatnonzero(line.any(1)), np.flatnonzero(line.any(0))
    # Edges of the box: voxels 30..43 of 50 in A, 28..35 of 40 in R, at 7.2 px per voxel.
    assert [rows[0], rows[-1] + 1] == pytest.approx([HEIGHT - 44 * 7.2, HEIGHT - 30 * 7.2], abs=2.5)
    assert [columns[0], columns[-1] + 1] == pytest.approx([WIDTHS[0] - 36 * 7.2, WIDTHS[0] - 28 * 7.2], abs=2.5)
    assert not line[HEIGHT - int(37 * 7.2), WIDTHS[0] - int(32 * 7.2)]


def test_label_values_choose_the_class_and_the_legend(scan):
    volume, mask = scan
    renamed = np.where(mask == 2, 4, mask)
    expected = np.asarray(render(volume, mask, LABELS))
    np.testing.assert_array_equal(np.asarray(render(volume, renamed, LABELS, (0, 1, 4))), expected)
    swatch = tuple(expected[GAP + CAPTION + HEIGHT + 15, GAP + 7])
    assert swatch == PALETTE[0]


def test_legend_breaks_into_rows(scan):
    few = render(*scan, LABELS)
    many = render(*scan, ("background", *(f"structure number {k}" for k in range(20))))
    assert many.width == few.width
    assert many.height > few.height + 60


def test_empty_mask_shows_the_centre_in_grey(scan):
    volume, mask = scan
    picture = np.asarray(render(volume, np.zeros_like(mask), LABELS)).astype(int)
    planes = picture[TOP : TOP + HEIGHT, GAP : GAP + WIDTHS[0]]
    assert np.ptp(planes[40:-40, 40:-40], axis=2).max() == 0
    assert planes[40:-40, 40:-40].std() > 2


def test_scattered_mask_gets_planes_that_hold_some_of_it():
    mask = np.zeros((30, 30, 30), np.uint8)
    mask[2:6, 2:6, 2:6] = mask[25:29, 25:29, 25:29] = 1  # the centre of mass is outside both
    picture = np.asarray(render(Volume(mask[np.newaxis], np.eye(4)), mask, LABELS)).astype(int)
    axial = picture[TOP : TOP + HEIGHT, GAP : GAP + HEIGHT]
    assert (np.ptp(axial[30:-30, 30:-30], axis=2) > 60).sum() > 500


def test_wide_slabs_and_constant_or_invalid_voxels_still_render():
    voxels = np.full((1, 64, 64, 2), np.nan, np.float32)
    picture = render(Volume(voxels, np.eye(4)), np.zeros((64, 64, 2), np.uint8), ("b", "a"))
    assert picture.width == 360 + 2 * 1080 + 4 * GAP
    voxels[:] = 7
    assert render(Volume(voxels, np.eye(4)), np.zeros((64, 64, 2), np.uint8), ("b", "a")).size == picture.size


def test_refusals(tmp_path, scan):
    volume, mask = scan
    with pytest.raises(ValueError, match="expected the scan's"):
        render(volume, mask[:-1], LABELS)
    with pytest.raises(ValueError, match="value 2"):
        render(volume, mask, LABELS[:2])
    path = tmp_path / "there.png"
    path.write_bytes(b"kept")
    with pytest.raises(SegError, match="E-OUT-EXISTS"):
        preview_png(volume, mask, LABELS, str(path), overwrite=False)
    assert path.read_bytes() == b"kept"


def test_beside_a_truth_the_planes_go_through_the_largest_error(scan):
    """The truth's second box stands elsewhere: white outlines there, none where mask and truth agree."""
    volume, mask = scan
    truth = mask.copy()
    truth[2:10, 4:12, 2:6] = 1  # left posterior inferior, not found
    picture = render(volume, mask, LABELS, truth=truth)
    white = np.argwhere((np.asarray(picture) == 255).all(axis=-1))
    white = white[white[:, 0] < TOP + HEIGHT]  # not the legend's
    x = (white[:, 1] - GAP) / WIDTHS[0]
    y = (white[:, 0] - TOP) / HEIGHT
    axial = (x > 0) & (x < 1) & (y > 0.02) & (y < 0.98)  # without the letters at the edge
    assert axial.any()
    for value, low, high in ((x[axial], 1 - 10 / 40, 1 - 2 / 40), (y[axial], 1 - 12 / 50, 1 - 4 / 50)):
        inside = value[(value > 0.06) & (value < 0.94)]
        assert inside.min() == pytest.approx(low, abs=0.03)
        assert inside.max() == pytest.approx(high, abs=0.03)
    same = render(volume, mask, LABELS, truth=mask)
    assert not (np.asarray(same)[TOP + 40 : TOP + HEIGHT - 40, GAP + 40 : GAP + WIDTHS[0] - 40] == 255).all(-1).any()
    assert render(volume, mask, LABELS).size == same.size


def test_a_truth_of_another_shape_is_refused(scan):
    volume, mask = scan
    with pytest.raises(ValueError, match="truth has shape"):
        render(volume, mask, LABELS, truth=mask[1:])


def test_a_single_slice_has_one_plane(scan):
    volume, mask = scan
    slab = Volume(volume.voxels[..., 10:11], volume.affine)
    assert render(slab, mask[..., 10:11], LABELS).width == WIDTHS[0] + 2 * GAP


def test_the_worst_slices_of_a_2d_model(scan):
    """Three planes across one axis, in order, each with an error; the planes are named by where they lie."""
    volume, mask = scan
    truth = mask.copy()
    for index, voxels in ((3, 5), (11, 9), (17, 7), (5, 1)):
        truth[:voxels, 0, index] = 1
    picture = np.asarray(render(volume, mask, LABELS, truth=truth, slices=2))
    assert picture.shape[1] == 3 * WIDTHS[0] + 4 * GAP
    planes = [picture[TOP : TOP + HEIGHT, GAP + k * (WIDTHS[0] + GAP) :][:, : WIDTHS[0]] for k in range(3)]
    bottom = [(plane[-20:, WIDTHS[0] // 2 + 40 :] == 255).all(-1).sum() for plane in planes]  # y = 0, small x
    assert 0 < bottom[0] < bottom[2] < bottom[1]  # 5, 7 and 9 voxels
    turned_volume, turned_mask = turned(volume, mask)
    _, turned_truth = turned(volume, truth)
    same = render(turned_volume, turned_mask, LABELS, truth=turned_truth, slices=0)  # z is stored first
    assert np.array_equal(np.asarray(same), picture)
