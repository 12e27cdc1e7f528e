"""Class indices from score planes: equal to argmax, for one channel, many, and features with a head."""

import numpy as np
import pytest

from seg.infer import classes
from seg.infer.classes import Head, classes_of, probabilities_of

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("count", [2, 3, 14, 117, 300])
def test_largest_equals_argmax(count: int) -> None:
    scores = RNG.standard_normal((count, 13, 11)).astype(np.float32)
    scores[:, 3, :] = scores[0, 3, :]  # ties go to the lower class
    found = classes_of(scores)
    assert found.dtype == (np.uint8 if count <= 256 else np.uint16)
    np.testing.assert_array_equal(found, scores.argmax(axis=0))


def test_one_channel_is_a_sign() -> None:
    scores = np.array([[[-1.0, 0.0, 2.0]]], np.float32)
    np.testing.assert_array_equal(classes_of(scores), [[0, 0, 1]])


@pytest.mark.parametrize("chunk", [1, 1000, 1 << 22])
def test_head_equals_the_logits_it_makes(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "CHUNK", chunk)
    head = Head(RNG.standard_normal((117, 8)).astype(np.float32), RNG.standard_normal(117).astype(np.float32))
    features = RNG.standard_normal((8, 17, 9)).astype(np.float32)
    logits = np.einsum("kf,fab->kab", head.weight, features) + head.bias[:, None, None]
    np.testing.assert_array_equal(classes_of(features, head), logits.argmax(axis=0))
    p = probabilities_of(features, head)
    np.testing.assert_allclose(p.sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_array_equal(p.argmax(axis=0), logits.argmax(axis=0))


def test_probabilities_of_two_classes() -> None:
    margin = np.array([[[-2.0, 0.0, 3.0]]], np.float32)
    expected = 1 / (1 + np.exp(-margin[0]))
    np.testing.assert_allclose(probabilities_of(margin)[1], expected, rtol=1e-6)
    np.testing.assert_allclose(probabilities_of(expected[None] - 0.5, blended=True)[1], expected, rtol=1e-6)


def test_sure_background_overflows_nowhere() -> None:
    with np.errstate(over="raise", invalid="raise"):
        p = probabilities_of(np.array([[[-800.0, 0.0, 800.0]]], np.float32))
    np.testing.assert_allclose(p[1, 0], [0, 0.5, 1], atol=1e-6)


def test_head_text_round_trip() -> None:
    head = Head(RNG.standard_normal((3, 2)).astype(np.float32), RNG.standard_normal(3).astype(np.float32))
    again = Head.from_text(head.to_text())
    np.testing.assert_array_equal(again.weight, head.weight)
    np.testing.assert_array_equal(again.bias, head.bias)
    with pytest.raises(ValueError, match="numbers"):
        Head.from_text(head.to_text().replace("3,2;", "4,2;"))
