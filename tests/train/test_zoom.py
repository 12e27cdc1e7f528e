import pytest
import torch

from seg.train.zoom import Zoom

STRIDE = (16, 16, 16)


def ramp(shape: tuple[int, ...]) -> torch.Tensor:
    """Voxel coordinates as channels."""
    return torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))[None]


@pytest.mark.parametrize("factor", [0.8, 0.57, 1.5])
@pytest.mark.parametrize("window", [(32, 48, 32), (112, 112, 80), (16, 64, 16)])
def test_views_fit_the_stride_and_cost_no_more_than_the_window(window: tuple[int, ...], factor: float) -> None:
    for u in (0.0, 0.99):
        zoom = Zoom.draw(factor, window, STRIDE, (u, u, u))
        assert all(n % 16 == 0 and n <= w for n, w in zip(zoom.shape, window, strict=True))
        if factor > 1:
            assert all(s >= 0 and s + e <= w for s, e, w in zip(zoom.start, zoom.extent, window, strict=True))


def test_a_coordinate_stays_where_it_was() -> None:
    zoom = Zoom.draw(0.8, (48, 48, 48), STRIDE, (0.5, 0.0, 0.9))
    seen = zoom.sample(ramp((48, 48, 48)))[0]
    for axis in range(3):
        line = seen[axis].movedim(axis, 0)[:, 8, 8]
        expected = zoom.start[axis] + (torch.arange(zoom.shape[axis]) + 0.5) / 0.8 - 0.5
        torch.testing.assert_close(line[2:-2], expected[2:-2], atol=1e-3, rtol=0)


def test_outside_of_the_window_does_not_count() -> None:
    zoom = Zoom.draw(0.5, (16, 16), (16, 16), (0.0, 0.5))  # 32 voxels would be seen
    inside = zoom.inside()
    assert inside.shape == (16, 16)
    assert int(inside.sum()) == 8 * 8
    seen = zoom.sample(torch.ones(1, 1, 16, 16))[0, 0]
    assert bool((seen[inside == 0] < 0.6).all())


def test_a_magnified_view_goes_back() -> None:
    zoom = Zoom.draw(1.5, (48, 48, 48), STRIDE, (0.3, 0.3, 0.3))
    x = ramp((48, 48, 48))
    back, cut = zoom.back(zoom.sample(x)), zoom.cut(x)
    assert back.shape == cut.shape
    torch.testing.assert_close(back[..., 2:-2, 2:-2, 2:-2], cut[..., 2:-2, 2:-2, 2:-2], atol=0.05, rtol=0)


def test_labels_and_images_move_alike() -> None:
    y = (ramp((32, 48, 32))[:, 0] > 15).long()
    zoom = Zoom.draw(0.7, (32, 48, 32), STRIDE, (0.5, 0.5, 0.5))
    image = zoom.image(y[:, None].float())[:, 0]
    label = zoom.label(y)
    inside = zoom.inside() > 0
    assert (((image > 0.5) == (label > 0)) | ~inside).float().mean() > 0.97
