import numpy as np
import pytest
from scipy import ndimage

from seg.infer.phantom import SPACING_MM, _blur, _random_field, atrium_phantom, main


@pytest.fixture(scope="module")
def phantoms():
    return {seed: atrium_phantom(seed) for seed in (0, 2)}


def test_a_seed_is_a_phantom(phantoms):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    scan, label = atrium_phantom(2)
    again, label_again = phantoms[2]
    np.testing.assert_array_equal(scan.voxels, again.voxels)
    np.testing.assert_array_equal(scan.affine, again.affine)
    np.testing.assert_array_equal(label, label_again)
    assert phantoms[0][0].shape != scan.shape
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("seed", [0, 2])
def test_geometry_and_dtype(phantoms, seed):
    scan, label = phantoms[seed]
    assert scan.voxels.dtype == label.dtype == np.uint8
    assert scan.voxels.shape == (1, *label.shape)
    assert all(low <= n <= high for n, low, high in zip(label.shape, (160, 130, 80), (200, 150, 96), strict=True))
    np.testing.assert_allclose(scan.affine[:3, :3], np.eye(3) * SPACING_MM)  # RAS


@pytest.mark.parametrize("seed", [0, 2])
def test_the_atrium_is_one_piece_of_human_size_near_the_middle(phantoms, seed):
    _, label = phantoms[seed]
    assert set(np.unique(label)) == {0, 1}
    assert ndimage.label(label)[1] == 1
    assert 25 < label.sum() * SPACING_MM**3 / 1000 < 100  # ml
    centre = np.argwhere(label).mean(0) / label.shape
    assert np.all(np.abs(centre - 0.5) < 0.12)


@pytest.mark.parametrize("seed", [0, 2])
def test_intensities_are_those_of_an_enhanced_scan(phantoms, seed):
    scan, label = phantoms[seed]
    voxels = scan.voxels[0].astype(float)
    atrium = voxels[label == 1]
    score = (atrium.mean() - voxels.mean()) / voxels.std()
    assert 0.5 < score < 1.9  # bright, but neither alone nor brightest
    assert 0.08 < atrium.std() / atrium.mean() < 0.3
    shell = ndimage.binary_dilation(label, iterations=3) & (label == 0)
    assert voxels[shell].mean() < 0.85 * atrium.mean()  # a wall that shows
    other_blood = (ndimage.gaussian_filter(voxels, 2) > 0.85 * atrium.mean()) & ~ndimage.binary_dilation(
        label, iterations=8
    )
    assert other_blood.mean() > 0.05  # chambers and vessels that only their place tells from the atrium
    assert np.percentile(voxels, 5) < 0.25 * atrium.mean()  # lungs


def test_the_aorta_descends_on_the_left_behind_the_atrium(phantoms):
    scan, label = phantoms[0]
    smooth = ndimage.gaussian_filter(scan.voxels[0].astype(float), 2)
    bright = smooth[:, :, 10:-10].min(2) > 0.6 * smooth[label == 1].mean()  # tubes along the body's axis
    x, y, _ = (int(v) for v in np.argwhere(label).mean(0))
    left, right = bright[:x, : y - 25].sum(), bright[x:, : y - 25].sum()  # RAS: left is low x, behind is low y
    assert left > 150
    assert right < left / 4  # the vertebrae are darker


def test_negative_seed():
    with pytest.raises(ValueError, match="non-negative"):
        atrium_phantom(-1)


def test_random_field_is_smooth_on_its_scale():
    field = _random_field(np.random.default_rng(0), (80, 70, 60), 10.0)  # 16 voxels
    assert field.shape == (80, 70, 60)
    assert abs(field.std() - 1) < 1e-3
    assert np.abs(np.diff(field, axis=0)).max() < 0.35


def test_blur_matches_scipy():
    noise = np.random.default_rng(0).random((20, 18, 9), dtype=np.float32)
    expected = ndimage.gaussian_filter(noise, (0.8, 1.0, 1.3), mode="nearest", radius=(2, 3, 4))
    np.testing.assert_allclose(_blur(noise, (0.8, 1.0, 1.3)), expected, atol=1e-6)


def test_command_writes_pairs(tmp_path, phantoms):
    nib = pytest.importorskip("nibabel")
    main([str(tmp_path), "--count", "1", "--first-seed", "2"])
    written = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.gz"))
    assert written == ["images/phantom_002.nii.gz", "labels/phantom_002.nii.gz"]
    scan, label = phantoms[2]
    image = nib.load(tmp_path / written[0])
    np.testing.assert_array_equal(np.asarray(image.dataobj), scan.voxels[0])
    np.testing.assert_allclose(image.affine, scan.affine)
    assert image.get_data_dtype() == np.uint8
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / written[1]).dataobj), label)
