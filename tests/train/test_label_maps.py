"""Distance maps and connected components on the device, against scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from seg.train.components import _spread, largest_component
from seg.train.distance import FAR, signed_distance_maps, squared_distance
from seg.train.voxels import pick


def blobs(shape: tuple[int, ...], seed: int, share: float = 0.3) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    return noise > np.quantile(noise, 1 - share)


@pytest.mark.parametrize("shape", [(13, 17, 9), (16, 5, 21), (31, 18), (1, 7, 7)])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.95])
def test_squared_distance_is_exact(shape: tuple[int, ...], share: float) -> None:
    masks = np.stack([blobs(shape, seed, share) for seed in range(2)])
    masks[:, *[0] * len(shape)] = True
    found = squared_distance(torch.from_numpy(masks)).numpy()
    expected = np.stack([ndimage.distance_transform_edt(~mask) ** 2 for mask in masks])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_nowhere_is_far() -> None:
    assert squared_distance(torch.zeros(1, 4, 4, 4, dtype=torch.bool)).eq(FAR).all()


def test_signed_maps_are_those_of_sassnet() -> None:
    label = blobs((20, 16, 12), 3).astype(np.int64)
    label[blobs((20, 16, 12), 4, 0.1)] = 2
    found = signed_distance_maps(torch.from_numpy(label)[None], 4)[0].numpy()
    for value in (1, 2):
        inside = label == value
        out, deep = ndimage.distance_transform_edt(~inside), ndimage.distance_transform_edt(inside)
        expected = out / out.max() - deep / deep.max()
        expected[deep == 1] = 0
        np.testing.assert_allclose(found[value - 1], expected, atol=1e-6)
        assert (found[value - 1][inside] <= 0).all()
    assert not found[2].any()  # class 3 is not in the crop


@pytest.mark.parametrize("shape", [(20, 14, 9), (24, 31)])
@pytest.mark.parametrize("way", [largest_component, _spread])
def test_largest_component(shape: tuple[int, ...], way: object) -> None:
    masks = np.stack([blobs(shape, seed, 0.4) for seed in range(3)] + [np.zeros(shape, bool)])
    found = way(torch.from_numpy(masks)).numpy()  # type: ignore[operator]
    for mask, kept in zip(masks, found, strict=True):
        names, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
        sizes = np.bincount(names.ravel())[1:]
        assert int(kept.sum()) == (sizes.max() if len(sizes) else 0)
        assert not (kept & ~mask).any()
        assert len(np.unique(names[kept])) <= 1


def test_pick() -> None:
    mask = torch.zeros(100, dtype=torch.bool)
    mask[[3, 50, 99]] = True
    index, real = pick(mask, 2, torch.Generator().manual_seed(0))
    assert real.all()
    assert mask[index].all()
    index, real = pick(mask, 5, torch.Generator().manual_seed(0))
    assert int(real.sum()) == 3
    assert sorted(index[real].tolist()) == [3, 50, 99]
