"""The streaming stitch against the obvious implementation: whole arrays of sums and weights."""

import numpy as np
import pytest

from seg.infer.stitch import Tiling, profile, stream, window_starts


def network(classes: int):  # type: ignore[no-untyped-def]
    """A position-dependent stand-in: the same voxel gets other logits in other windows."""

    def run(x: np.ndarray) -> np.ndarray:
        ramp = np.linspace(-1, 1, x.shape[2], dtype=np.float32)[:, None, None]
        ramp = ramp + np.linspace(0, 2, x.shape[4], dtype=np.float32)
        return np.concatenate([np.sin((k + 1) * x[:, :1]) + 0.3 * k * ramp for k in range(classes)], axis=1)

    return run


def planes(x: np.ndarray, axis: int):  # type: ignore[no-untyped-def]
    """The layers of (C, X, Y, Z) along an axis."""
    return iter(np.moveaxis(x, axis + 1, 0))


def naive(x: np.ndarray, tiling: Tiling, classes: int) -> np.ndarray:
    """(K, X, Y, Z) float64 weighted mean over all windows."""
    total, weights = np.zeros((classes, *tiling.shape)), np.zeros(tiling.shape)
    p = [profile(w, tiling.weighting).astype(np.float64) for w in tiling.window]
    weight = np.einsum("i,j,k->ijk", *p)
    for a in tiling.starts[0]:
        for b in tiling.starts[1]:
            for c in tiling.starts[2]:
                place = tuple(slice(s, s + w) for s, w in zip((a, b, c), tiling.window, strict=True))
                logits = network(classes)(x[(slice(None), *place)][np.newaxis])[0].astype(np.float64)
                if tiling.blend == "probability":
                    logits = np.exp(logits) / np.exp(logits).sum(axis=0)
                total[(slice(None), *place)] += weight * logits
                weights[place] += weight
    return total / weights


@pytest.mark.parametrize("weighting", ["uniform", "gaussian"])
@pytest.mark.parametrize("blend", ["logit", "probability"])
@pytest.mark.parametrize("classes", [1, 2, 3, 17, 117])
@pytest.mark.parametrize(
    ("shape", "window", "step", "batch"),
    [
        ((31, 20, 17), (8, 8, 8), (4, 4, 4), 1),
        ((9, 23, 40), (9, 7, 5), (9, 3, 5), 4),
        ((16, 16, 50), (16, 16, 13), (16, 16, 6), 2),
        ((12, 11, 10), (12, 11, 10), (1, 1, 1), 1),
        ((13, 8, 8), (5, 8, 8), (5, 8, 8), 3),
    ],
)
def test_equals_the_naive_sum(  # type: ignore[no-untyped-def]
    shape, window, step, batch, classes: int, blend, weighting
) -> None:
    x = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    starts = tuple(window_starts(n, w, s) for n, w, s in zip(shape, window, step, strict=True))
    tiling = Tiling(shape, window, starts, weighting, blend)
    layers = np.stack([layer.copy() for layer in stream(planes(x, tiling.axis), tiling, network(classes), batch)])
    found = np.moveaxis(layers, 0, tiling.axis + 1)
    expected = naive(x, tiling, classes)
    if classes == 2:
        assert found.shape[0] == 1
        half = 0.5 if blend == "probability" else 0.0
        expected = expected[1:] - half if blend == "probability" else expected[1:] - expected[:1]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_starts_cover_and_end_flush() -> None:
    assert window_starts(20, 8, 5) == (0, 5, 10, 12)
    assert window_starts(16, 8, 8) == (0, 8)
    assert window_starts(8, 8, 3) == (0,)
    with pytest.raises(ValueError, match="window <= extent"):
        window_starts(7, 8, 1)


def test_the_ring_is_one_window_deep() -> None:
    """Streaming along the axis that the window covers least keeps the buffer smallest."""
    tiling = Tiling((64, 64, 640), (64, 64, 64), ((0,), (0,), tuple(range(0, 577, 32))))
    assert tiling.axis == 2
    assert tiling.windows == 19


def test_no_more_than_one_window_is_asked_ahead() -> None:
    """Layers come out before the next group of windows is computed."""
    x = np.zeros((1, 4, 4, 32), np.float32)
    calls = 0

    def run(tiles: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return np.concatenate([tiles, tiles], axis=1)

    layers = stream(planes(x, 2), Tiling((4, 4, 32), (4, 4, 8), ((0,), (0,), (0, 8, 16, 24))), run)
    for number in range(32):
        next(layers)
        assert calls == number // 8 + 1
