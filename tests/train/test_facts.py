"""The numbers kept of a scan, against numpy, and what must not change them."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from builders import AFFINE, SHAPE, check, five_cases, image_of, mask, relabel, save, scan

from seg.train.facts import QUANTILES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return five_cases(tmp_path)


def test_facts_against_numpy(folder: Path) -> None:
    facts = check(folder).facts["p1"]
    array, inside = scan(0), mask() > 0
    (channel,) = facts.channels
    assert (facts.shape, facts.spacing) == (SHAPE, (1.0, 1.5, 2.0))
    expected = [array.min(), *np.percentile(array, (0.5, 50, 99.5)), array.mean(), array.std()]
    found = [channel.minimum, channel.low, channel.median, channel.high, channel.mean, channel.std]
    assert found == pytest.approx(expected, rel=1e-5)
    assert channel.foreground == pytest.approx(np.quantile(array[inside], QUANTILES), rel=1e-5)
    fore = (channel.foreground_mean, channel.foreground_std)
    assert fore == pytest.approx((array[inside].mean(), array[inside].std()), rel=1e-5)
    assert not channel.integral


def test_shape_and_spacing_are_along_the_patient_axes(folder: Path) -> None:
    save(image_of(folder, "p3"), np.transpose(scan(2), (2, 0, 1)), AFFINE[:, [2, 0, 1, 3]])
    facts = check(folder).facts["p3"]
    assert (facts.shape, facts.spacing) == (SHAPE, (1.0, 1.5, 2.0))


def test_whole_numbers_in_any_type_pass(folder: Path) -> None:
    relabel(folder, "p1", mask().astype(np.float32))
    relabel(folder, "p2", mask().astype(np.int16))
    result = check(folder)
    assert result.findings == ()
    assert result.facts["p1"].class_voxels == {0: int((mask() == 0).sum()), 1: 64, 2: 32}


def test_hash_ignores_storage(folder: Path) -> None:
    array = np.rint(scan(0)).astype(np.int16)
    save(image_of(folder, "p1"), array)
    before = check(folder).facts["p1"]
    turned = nib.as_closest_canonical(nib.Nifti1Image(array[::-1, :, :], AFFINE @ np.diag([-1.0, 1, 1, 1])))
    assert np.array_equal(np.asarray(turned.dataobj), array)
    save(image_of(folder, "p1"), array[::-1].astype(np.float32), np.diag([-1.0, 1.5, 2, 1]))
    relabel(folder, "p1", mask()[::-1], np.diag([-1.0, 1.5, 2, 1]))
    after = check(folder).facts["p1"]
    for name in ("sha256", "label_sha256", "thumbnail", "class_voxels"):
        assert getattr(after, name) == getattr(before, name)
    relabel(folder, "p1", mask(), np.diag([-1.0, 1.5, 2, 1]))
    moved = check(folder).facts["p1"]
    assert (moved.sha256, moved.class_voxels) == (before.sha256, before.class_voxels)
    assert moved.label_sha256 != before.label_sha256
    array[0, 0, 0] += 1
    save(image_of(folder, "p1"), array[::-1], np.diag([-1.0, 1.5, 2, 1]))
    assert check(folder).facts["p1"].sha256 != before.sha256
