from itertools import product
from typing import Any

import numpy as np
import pytest
from tiny import sample

from seg.train.sampling import Crops, Sample, draw

MANY = [sample((20, 24, 18), name, foreground=900) for name in ("a", "bb", "ccc")]


def same(a: Crops, b: Crops) -> bool:
    assert a.label is not None
    assert b.label is not None
    return np.array_equal(a.image, b.image) and np.array_equal(a.label, b.label) and a.ids == b.ids


def test_a_step_does_not_depend_on_what_came_before() -> None:
    options = dict(seed=3, stream=0, foreground=0.5, flips=(0, 1, 2), rotate=True)
    direct = draw(MANY, 4, (16, 16, 16), step=7, **options)  # type: ignore[arg-type]
    for step in range(7):
        draw(MANY, 5, (16, 16, 16), step=step, **options)  # type: ignore[arg-type]
    np.random.default_rng().random()
    assert same(direct, draw(MANY, 4, (16, 16, 16), step=7, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("changed", [{"seed": 4}, {"step": 8}, {"stream": 1}])
def test_seed_step_and_stream_matter(changed: dict[str, int]) -> None:
    base = dict(seed=3, step=7, stream=0)
    assert not same(draw(MANY, 4, (8, 8, 8), **base), draw(MANY, 4, (8, 8, 8), **{**base, **changed}))


def test_a_sample_does_not_depend_on_the_batch() -> None:
    few, many = (draw(MANY, count, (8, 8, 8), seed=0, step=0, stream=0) for count in (2, 5))
    assert np.array_equal(few.image, many.image[:2])


def test_crop_is_a_part_of_the_volume_in_zeros() -> None:
    """An eighth of the window may lie beyond each end: inference sees scans whole, with zeros around them."""
    whole = np.pad(MANY[0].image[0], [(0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(whole, (6, 8, 10))
    for step in range(20):
        crop = draw(MANY[:1], 1, (6, 8, 10), overhang=0.125, seed=0, step=step, stream=0).image[0, 0]
        assert (windows == crop).all(axis=(3, 4, 5)).any()


def test_every_place_is_reached() -> None:
    line = Sample("line", np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1), None)
    seen = {float(draw([line], 1, (3, 1, 1), seed=0, step=s, stream=0).image[0, 0, 0, 0, 0]) for s in range(60)}
    assert seen == {0.0, 1.0, 2.0}
    line = Sample("line", np.arange(1, 21, dtype=np.float32).reshape(1, 20, 1, 1), None)
    inside = {(1, 16), (2, 17), (3, 18), (4, 19), (5, 20)}
    for overhang, beyond in ((0.0, set()), (0.125, {(0, 14), (0, 15), (6, 0), (7, 0)})):
        crops = (draw([line], 1, (16, 1, 1), overhang=overhang, seed=0, step=s, stream=0).image for s in range(99))
        assert {(float(crop[0, 0, 0, 0, 0]), float(crop[0, 0, -1, 0, 0])) for crop in crops} == inside | beyond


def test_small_volumes_are_padded_with_zero() -> None:
    small = Sample("s", np.ones((2, 5, 30, 7), np.float32), np.ones((5, 30, 7), np.uint8))
    places = set()
    for step in range(300):
        crops = draw([small], 1, (7, 16, 7), overhang=0.125, seed=0, step=step, stream=0)
        assert crops.image.shape == (1, 2, 7, 16, 7)
        assert crops.label is not None
        assert crops.label.sum() in (5 * 14 * 7, 5 * 15 * 7, 5 * 16 * 7)
        assert np.array_equal(crops.image[0, 1], crops.label[0])
        places.add(tuple(np.argwhere(crops.label[0])[0]))
    assert places == set(product(range(3), range(3), [0]))  # anywhere inside the window, or an eighth beyond it


def test_slices_and_narrow_windows_do_not_overhang() -> None:
    flat = Sample("s", np.ones((1, 9, 9, 3), np.float32), None)
    for step in range(40):
        assert draw([flat], 1, (7, 7, 1), overhang=0.125, seed=0, step=step, stream=0).image.all()


def test_foreground_is_inside_the_part_that_trains() -> None:
    rare = sample((40, 40, 40), foreground=1)
    places = set()
    for step in range(60):
        options: dict[str, Any] = {"seed": 1, "step": step, "stream": 0, "foreground": 1.0}
        wide = draw([rare], 1, (10, 12, 10), inner=(8, 8, 8), **options)
        plain = draw([rare], 1, (8, 8, 8), **options)
        assert wide.label is not None
        assert np.array_equal(wide.image[:, :, 1:-1, 2:-2, 1:-1], plain.image)
        assert np.count_nonzero(wide.label[0, 1:-1, 2:-2, 1:-1]) == 1
        places.add(tuple(np.argwhere(wide.label[0])[0]))
    assert len(places) > 30


def test_the_border_of_a_volume_trains_as_its_middle_does() -> None:
    line = Sample("line", np.arange(1, 11, dtype=np.float32).reshape(1, 10, 1, 1), None)
    crops = [
        draw([line], 1, (5, 1, 1), inner=(3, 1, 1), seed=0, step=s, stream=0).image[0, 0, :, 0, 0] for s in range(99)
    ]
    assert {tuple(crop[1:-1]) for crop in crops} == {(k, k + 1, k + 2) for k in range(1, 9)}
    assert {crop[0] for crop in crops} == {0, 1, 2, 3, 4, 5, 6, 7}


def test_foreground_is_always_inside_when_asked() -> None:
    rare = sample((40, 40, 40), foreground=1)
    hits = dict.fromkeys((0.0, 1.0), 0)
    for p in hits:
        for step in range(40):
            crops = draw([rare], 1, (8, 8, 8), seed=1, step=step, stream=0, foreground=p)
            assert crops.label is not None
            hits[p] += bool(crops.label.any())
    assert hits[1.0] == 40
    assert hits[0.0] < 10


def test_foreground_is_not_always_in_the_centre() -> None:
    rare = sample((40, 40, 40), foreground=1)
    places = set()
    for step in range(40):
        label = draw([rare], 1, (8, 8, 8), seed=1, step=step, stream=0, foreground=1.0).label
        assert label is not None
        places.add(tuple(np.argwhere(label[0])[0]))
    assert len(places) > 20


def test_no_foreground_is_no_error() -> None:
    crops = draw([sample((9, 9, 9), foreground=0)], 2, (8, 8, 8), seed=0, step=0, stream=0, foreground=1.0)
    assert not crops.image.any()


def test_labels_follow_the_image() -> None:
    seen = set()
    for step in range(40):
        crops = draw(MANY, 3, (12, 12, 8), seed=0, step=step, stream=0, foreground=0.5, flips=(0, 1, 2), rotate=True)
        assert crops.label is not None
        assert np.array_equal(crops.image[:, 0], crops.label)
        seen.add(crops.ids)
    assert len(seen) > 5


def test_flips_and_turns_are_all_used() -> None:
    cube = sample((4, 4, 4), foreground=30)
    assert cube.label is not None
    turned = {np.rot90(cube.label, k, axes=(0, 1)).tobytes() for k in range(4)}
    assert {c.tobytes() for c in labels(cube, rotate=True)} == turned
    flipped = {np.flip(cube.label, axes).tobytes() for axes in [(), (0,), (2,), (0, 2)]}
    assert {c.tobytes() for c in labels(cube, flips=(0, 2))} == flipped


def labels(one: Sample, **options: object) -> list[np.ndarray]:
    found = (draw([one], 1, (4, 4, 4), seed=0, step=s, stream=0, **options).label for s in range(60))  # type: ignore[arg-type]
    return [label[0] for label in found if label is not None]


def test_unlabelled_samples_have_no_label() -> None:
    crops = draw([sample((9, 9, 9), labelled=False)], 2, (8, 8, 8), seed=0, step=0, stream=1)
    assert crops.label is None
    assert crops.image.dtype == np.float32


def test_pseudo_labels_are_cropped_and_turned_like_the_image() -> None:
    rng = np.random.default_rng(0)
    samples = [Sample(name, rng.integers(1, 200, (1, 9, 20, 14)).astype(np.float32), None) for name in ("a", "b")]
    bank = {"a": np.repeat(samples[0].image, 3, axis=0).astype(np.uint8)}
    options: dict[str, Any] = dict(seed=1, step=2, stream=1, flips=(0, 2), rotate=True)
    found = draw(samples, 12, (12, 12, 12), bank=bank, **options)
    assert found.bank is not None
    assert set(found.ids) == {"a", "b"}
    for name, image, prior in zip(found.ids, found.image, found.bank, strict=True):
        expected = image if name == "a" else 0 * image
        assert prior.shape == (3, 12, 12, 12)
        assert all(np.array_equal(channel, expected[0]) for channel in prior)
    plain = draw(samples, 12, (12, 12, 12), **options)
    assert plain.bank is None
    assert np.array_equal(plain.image, found.image)
