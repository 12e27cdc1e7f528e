import itertools

import numpy as np
import pytest
import scipy.ndimage
import torch

from seg.train import strong
from seg.train.strong import bias_field, cutmix_boxes, gaussian_blur, strong_view

SHAPE = torch.Size((10, 12, 14))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_bias_field_is_the_exponential_of_twenty_monomials() -> None:
    field = bias_field(2, SHAPE, generator(4)).numpy()
    coefficients = torch.rand(2, 4, 4, 4, generator=generator(4)).numpy() - 0.5  # uniform in +-0.5
    powers = [p for p in itertools.product(range(4), repeat=3) if sum(p) <= 3]
    assert len(powers) == 20
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    for b in range(2):
        log = sum(coefficients[b, i, j, k] * x**i * y**j * z**k for i, j, k in powers)
        np.testing.assert_allclose(field[b], np.exp(log), rtol=1e-5)


@pytest.mark.parametrize("sigma", [(0.1, 0.6, 2.0), (1.0, 1.3, 0.4)])
def test_blur_is_scipys(sigma: tuple[float, float, float]) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 2, *SHAPE)
    out = gaussian_blur(image, torch.tensor([sigma, (0.5, 0.5, 0.5)]))
    for channel in range(2):
        expected = scipy.ndimage.gaussian_filter(image[0, channel].numpy(), sigma, mode="reflect", truncate=4)
        np.testing.assert_allclose(out[0, channel].numpy(), expected, atol=1e-4)
    expected = scipy.ndimage.gaussian_filter(image[1, 0].numpy(), 0.5, mode="reflect", truncate=4)
    np.testing.assert_allclose(out[1, 0].numpy(), expected, atol=1e-4)


def test_blur_of_a_constant_is_the_constant() -> None:
    out = gaussian_blur(torch.full((1, 1, 9, 9, 9), 3.0), torch.full((1, 3), 2.0))
    torch.testing.assert_close(out, torch.full_like(out, 3.0))


def boxes(count: int = 4000) -> torch.Tensor:
    return cutmix_boxes(count, torch.Size((16, 20, 12)), generator())


def test_half_of_the_samples_have_a_box() -> None:
    share = boxes().flatten(1).any(dim=1).float().mean()
    assert 0.47 < share < 0.53


def test_a_box_is_one_box() -> None:
    for inside in boxes(60):
        if inside.any():
            at = inside.nonzero()
            extent = at.amax(dim=0) - at.amin(dim=0) + 1
            assert int(extent.prod()) == int(inside.sum())


def test_box_volumes_are_those_drawn() -> None:
    full = boxes()
    fraction = full[full.flatten(1).any(dim=1)].float().mean(dim=(1, 2, 3))
    assert 0.19 < fraction.mean() < 0.22  # uniform in [0.02, 0.4] has mean 0.21
    assert fraction.min() > 0.005  # edges are rounded to voxels
    assert fraction.max() < 0.5
    quarters = torch.histc(fraction, 4, 0.02, 0.4) / len(fraction)
    assert (quarters - 0.25).abs().max() < 0.06


def test_boxes_reach_all_borders() -> None:
    covered = boxes().float().mean(dim=0)
    assert covered.min() > 0
    torch.testing.assert_close(covered, covered.flip(0, 1, 2), atol=0.05, rtol=0)


def test_strong_view_differs_but_not_always() -> None:
    u = torch.randn(200, 1, 6, 6, 6)
    view = strong_view(u, generator())
    same = (view == u).flatten(1).all(dim=1).float().mean()
    assert 0.04 < same < 0.17  # 0.2 * 0.5 have neither jitter nor blur
    assert torch.equal(view, strong_view(u, generator()))
    assert torch.isfinite(view).all()


def test_jitter_keeps_the_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strong, "BLUR_P", 0.0)
    u = torch.randn(20, 1, 6, 6, 6)
    view = strong_view(u, generator())
    assert torch.equal(view.sign(), u.sign())
    assert not torch.equal(view, u)


def test_strong_view_is_float32_under_autocast() -> None:
    u = torch.randn(8, 1, 8, 8, 8)
    expected = strong_view(u, generator())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(strong_view(u, generator()), expected)
