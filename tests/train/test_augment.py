import pytest
import torch
from torch import Tensor

from seg.train.augment import WeakAugmentation, _affines, weak_augment, weak_augment_with

NOTHING = WeakAugmentation(rotation=0, scale=0, contrast=0, brightness=0, noise=0, mirror=())
WINDOW = (16, 16, 16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ellipsoid(shape: tuple[int, int, int], count: int = 4) -> Tensor:
    """(count, *shape) 0/1, no symmetry: longest along x, off centre."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape), indexing="ij")
    inside = ((axes[0] - 1) / 8) ** 2 + ((axes[1] + 1) / 5) ** 2 + (axes[2] / 4) ** 2 < 1
    return inside.float().repeat(count, 1, 1, 1)


def dice(a: Tensor, b: Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_zero_ranges_change_nothing() -> None:
    image, label = torch.randn(2, 2, *WINDOW), torch.randint(3, (2, *WINDOW), dtype=torch.uint8)
    out, moved = weak_augment(image, label, WINDOW, NOTHING, generator())
    assert moved is not None
    assert torch.equal(out, image)
    assert torch.equal(moved, label.long())
    assert NOTHING.margin(WINDOW) == WINDOW


def test_margin_is_a_quarter_and_even() -> None:
    assert WeakAugmentation().margin((16, 32, 48)) == (20, 40, 60)
    assert WeakAugmentation(rotation=0).margin((16, 16, 16)) == (20, 20, 20)
    assert WeakAugmentation(scale=0).margin((16, 16, 16)) == (20, 20, 20)


def test_centre_crop_without_movement() -> None:
    image = torch.randn(1, 1, 20, 20, 20)
    spec = WeakAugmentation(rotation=1e-6, scale=0, contrast=0, brightness=0, noise=0)
    out, _ = weak_augment(image, None, WINDOW, spec, generator())
    torch.testing.assert_close(out, image[:, :, 2:18, 2:18, 2:18], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("rotation", "scale"), [(30.0, 0.0), (0.0, 0.3), (20.0, 0.2)])
def test_image_and_label_move_together(rotation: float, scale: float) -> None:
    window = (24, 24, 24)
    spec = WeakAugmentation(rotation=rotation, scale=scale, contrast=0, brightness=0, noise=0)
    label = ellipsoid(spec.margin(window))
    image, moved = weak_augment(label[:, None], label, window, spec, generator(1))
    assert moved is not None
    assert moved.dtype == torch.int64
    still = ellipsoid(window, 1)[0] > 0
    for one, other in zip(image[:, 0] > 0.5, moved > 0, strict=True):
        assert dice(one, other) > 0.9
    assert min(dice(other > 0, still) for other in moved) < 0.9  # it did move


def test_scale_is_the_factor_from_output_to_input() -> None:
    spec = WeakAugmentation(rotation=0, scale=0.3)
    matrix = _affines(200, 3, spec, generator())
    factors = matrix.diagonal(dim1=1, dim2=2)
    assert torch.equal(matrix, torch.diag_embed(factors))
    bound = torch.exp(torch.tensor(0.3 * 1.25))
    assert factors.max() < bound
    assert factors.min() > 1 / bound
    assert factors.max() > 1.25
    assert factors.min() < 0.8


def test_rotations_are_rotations() -> None:
    matrix = _affines(50, 3, WeakAugmentation(rotation=40, scale=0), generator())
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3).expand(50, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(50), atol=1e-5, rtol=0)
    assert not torch.allclose(matrix, torch.eye(3), atol=0.1)


@pytest.mark.parametrize("edges", [(1.0, 1.0, 2.0), (3.0, 1.0, 1.5)])
def test_rotations_of_uneven_voxels_are_rotations_in_mm(edges: tuple[float, ...]) -> None:
    matrix = _affines(50, 3, WeakAugmentation(rotation=40, scale=0), generator(), edges)
    mm = torch.diag(torch.tensor(edges))
    turn = mm @ matrix @ mm.inverse()
    torch.testing.assert_close(turn @ turn.mT, torch.eye(3).expand(50, 3, 3), atol=1e-5, rtol=0)
    assert min(float((turn - torch.eye(3))[:, a, b].abs().max()) for a, b in ((0, 1), (0, 2), (1, 2))) > 0.3


def test_thick_slices_turn_in_their_plane_alone() -> None:
    matrix = _affines(50, 3, WeakAugmentation(rotation=40, scale=0), generator(), (5.0, 1.0, 1.0))
    assert torch.equal(matrix[:, 0], torch.tensor([1.0, 0, 0]).expand(50, 3))
    assert torch.equal(matrix[:, :, 0], torch.tensor([1.0, 0, 0]).expand(50, 3))
    assert float(matrix[:, 1, 2].abs().max()) > 0.3


def test_an_organ_that_fills_the_margin_has_no_background_around_it() -> None:
    spec = WeakAugmentation(rotation=45)
    label = torch.ones(8, *spec.margin(WINDOW), dtype=torch.long)
    _, moved = weak_augment(label[:, None].float(), label, WINDOW, spec, generator())
    assert moved is not None
    assert moved.all()


def test_same_generator_seed_same_output() -> None:
    spec = WeakAugmentation()
    image, label = torch.randn(2, 1, *spec.margin(WINDOW)), torch.ones(2, *spec.margin(WINDOW))
    a, b, c = (weak_augment(image, label, WINDOW, spec, generator(seed))[0] for seed in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_samples_of_a_batch_differ() -> None:
    spec = WeakAugmentation()
    one = torch.randn(1, 1, *spec.margin(WINDOW))
    out, _ = weak_augment(one.repeat(2, 1, 1, 1, 1), None, WINDOW, spec, generator())
    assert not torch.allclose(out[0], out[1], atol=0.1)


def test_intensity_leaves_the_label_alone_and_keeps_the_order() -> None:
    spec = WeakAugmentation(rotation=0, scale=0, contrast=0.3, brightness=0.2, noise=0)
    image = torch.linspace(-3, 3, 16**3).reshape(1, 1, *WINDOW).repeat(8, 1, 1, 1, 1)
    label = torch.randint(2, (8, *WINDOW))
    out, same = weak_augment(image, label, WINDOW, spec, generator())
    assert same is not None
    assert torch.equal(same, label)
    assert (out.flatten(1).diff(dim=1) > -1e-6).all()  # monotone: gain, gamma and offset only
    assert (out.mean(dim=(1, 2, 3, 4)).abs() < 0.2 + 1e-4).all()
    assert out.mean(dim=(1, 2, 3, 4)).std() > 0.02
    spread = (out.amax(dim=(1, 2, 3, 4)) - out.amin(dim=(1, 2, 3, 4))) / 6
    assert spread.max() > 1.1
    assert spread.min() < 0.9


def test_noise_is_bounded() -> None:
    spec = WeakAugmentation(rotation=0, scale=0, contrast=0, brightness=0, noise=0.2)
    out, _ = weak_augment(torch.zeros(40, 1, *WINDOW), None, WINDOW, spec, generator())
    deviation = out.std(dim=(1, 2, 3, 4))
    assert deviation.max() < 0.21
    assert deviation.max() > 0.1
    assert deviation.min() < 0.02


def test_empty_batch() -> None:
    spec = WeakAugmentation()
    out, _ = weak_augment(torch.zeros(0, 1, *spec.margin(WINDOW)), None, WINDOW, spec, generator())
    assert len(out) == 0


def test_maps_move_with_the_image_and_keep_their_values() -> None:
    image = torch.rand(2, 1, 20, 20, 20)
    image[..., 10:] += 3
    spec = WeakAugmentation(contrast=0, noise=0, brightness=0.5)
    moved, _, maps = weak_augment_with(image, None, image.clone(), WINDOW, spec, generator())
    assert maps is not None
    offset = (moved - maps)[..., 4:-4, 4:-4, 4:-4].flatten(1)  # the brightness, where no border acts
    assert float(offset.std(dim=1).max()) < 1e-4
    assert float(offset.abs().mean()) > 0.01
    assert 0 <= float(maps.min()) < float(maps.max()) <= float(image.max()) + 1e-5
