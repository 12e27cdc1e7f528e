"""A whole scan through a stand-in network: the papers' protocol, features with a head, mirrorings, probabilities."""

import numpy as np
import pytest
from known import oblique_affine, plain_spec

from seg.infer.classes import Head
from seg.infer.errors import SegError
from seg.infer.plan import PROTOCOLS, TilingOptions
from seg.infer.predict import segment
from seg.infer.volume import Volume

RNG = np.random.default_rng(3)


class Local:
    """Logits that depend on the voxel's neighbours and on its place in the window, as a padded network's do."""

    def __init__(self, classes: int) -> None:
        self.weights = np.random.default_rng(classes).standard_normal((classes, 4)).astype(np.float32)

    def features(self, x: np.ndarray) -> np.ndarray:
        edge = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (1, 1)))
        shifted = [edge[:, :, 2:, 1:-1, 1:-1], edge[:, :, 1:-1, :-2, 1:-1], edge[:, :, 1:-1, 1:-1, 2:]]
        return np.concatenate([x, *shifted], axis=1)

    def run(self, x: np.ndarray) -> np.ndarray:
        return np.einsum("kf,nfxyz->nkxyz", self.weights, self.features(x)).astype(np.float32)

    def close(self) -> None:
        """Nothing to release."""


class Features(Local):
    """The same network without its last layer."""

    def run(self, x: np.ndarray) -> np.ndarray:
        return self.features(x).astype(np.float32)


def scan(shape: tuple[int, int, int] = (30, 26, 22)) -> Volume:
    return Volume(RNG.standard_normal((1, *shape)).astype(np.float32), oblique_affine())


def test_protocol_gives_the_labels_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The official loop, one window at a time: summed softmax over a count, argmax. Scaled down by 8."""
    small = TilingOptions((14, 14, 10), step=(2, 2, 1), weighting="uniform", blend="probability")
    monkeypatch.setitem(PROTOCOLS, "crossmatch", small)
    volume, network = scan(), Local(2)
    x = volume.voxels.astype(np.float64)
    score, count = np.zeros((2, *volume.shape)), np.zeros(volume.shape)
    n, w, s = volume.shape, (14, 14, 10), (2, 2, 1)
    for i in range(-(-(n[0] - w[0]) // s[0]) + 1):
        for j in range(-(-(n[1] - w[1]) // s[1]) + 1):
            for k in range(-(-(n[2] - w[2]) // s[2]) + 1):
                at = [min(step * m, a - b) for step, m, a, b in zip(s, (i, j, k), n, w, strict=True)]
                place = tuple(slice(a, a + b) for a, b in zip(at, w, strict=True))
                logits = network.run(x[(slice(None), *place)][np.newaxis].astype(np.float32))[0].astype(np.float64)
                p = np.exp(logits) / np.exp(logits).sum(axis=0)
                score[(slice(None), *place)] += p
                count[place] += 1
    expected = (score / count).argmax(axis=0)
    found = segment(volume, plain_spec(), network, PROTOCOLS["crossmatch"])
    assert 0.2 < expected.mean() < 0.8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("classes", [2, 3, 117])
@pytest.mark.parametrize("spacing", [(None, None, None), (1.3, 0.7, 2.0)])
def test_blending_features_equals_blending_logits(classes: int, spacing: tuple[float | None, ...]) -> None:
    volume, options = scan(), TilingOptions((16, 12, 10), 0.4)
    spec = plain_spec(labels=tuple(f"c{k}" for k in range(classes)), spacing=spacing)
    by_logits = segment(volume, spec, Local(classes), options)
    head = Head(Local(classes).weights, np.zeros(classes, np.float32))
    by_features = segment(volume, spec, Features(classes), options, head=head)
    assert (by_logits == by_features).mean() > 0.9999
    assert len(np.unique(by_logits)) > min(classes, 20) // 2


def test_mirrorings_average_what_direction_changes() -> None:
    """After averaging, mirroring the scan mirrors the mask; without, it does not."""
    volume, spec = scan(), plain_spec()
    mirrored = Volume(volume.voxels[:, ::-1].copy(), volume.affine)
    plain = [segment(v, spec, Local(2)) for v in (volume, mirrored)]
    assert (plain[0][::-1] != plain[1]).any()
    averaged = [segment(v, spec, Local(2), mirror=(0, 1, 2)) for v in (volume, mirrored)]
    assert (averaged[0][::-1] == averaged[1]).mean() > 0.9999
    other = [segment(v, spec, Local(2), mirror=(1, 2)) for v in (volume, mirrored)]
    assert (other[0][::-1] != other[1]).any()


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("blend", ["logit", "probability"])
def test_probabilities_agree_with_the_labels(classes: int, blend: str) -> None:
    volume = scan()
    spec = plain_spec(labels=tuple(f"c{k}" for k in range(classes)))
    maps = np.zeros((*volume.shape, classes - 1), np.uint8)
    options = TilingOptions((16, 16, 16), 0.5, blend=blend)  # type: ignore[arg-type]
    labels = segment(volume, spec, Local(classes), options, probabilities=maps)
    background = 255.0 - maps.sum(axis=3)
    winner = np.concatenate([background[..., None], maps], axis=3).argmax(axis=3)
    sure = np.abs(np.diff(np.sort(np.concatenate([background[..., None], maps], axis=3), axis=3)[..., -2:])[..., 0]) > 4
    assert sure.mean() > 0.8
    np.testing.assert_array_equal(winner[sure], labels[sure])


def test_nan_in_the_network_is_an_error() -> None:
    class Broken(Local):
        def run(self, x: np.ndarray) -> np.ndarray:
            logits = super().run(x)
            logits[0, 1, 3, 3, 3] = np.nan
            return logits

    with pytest.raises(SegError, match="E-NONFINITE"):
        segment(scan(), plain_spec(), Broken(2))
