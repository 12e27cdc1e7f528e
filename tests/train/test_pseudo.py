import numpy as np
import pytest

from seg.train import pseudo
from seg.train.pseudo import Rules


def box(*corners: tuple[int, int], value: int = 1) -> np.ndarray:
    found = np.zeros((12, 12, 12), np.uint8)
    for low, high in corners:
        found[low:high, low:high, low:high] = value
    return found


def test_agreement_is_dice() -> None:
    a, b = box((0, 4)), box((2, 4))
    assert pseudo.agreement(a, b, 2) == pytest.approx(2 * 8 / (64 + 8))
    assert pseudo.agreement(a * 0, b * 0, 2) == 1
    assert pseudo.agreement(a, a * 2, 3) == 0


def test_churn_counts_foreground() -> None:
    assert pseudo.churn(box((0, 4)), box((2, 4))) == pytest.approx(56 / 64)
    assert pseudo.churn(box(), box()) == 0


def test_quality_is_stability_and_agreement_between_scales() -> None:
    now, half = box((0, 4)), box((2, 4))
    part = pseudo.agreement(now, half, 2)
    assert pseudo.quality(now, [now, half], [now], 2) == pytest.approx(((1 + part) / 2 + 1) / 2)
    assert pseudo.quality(now, [], [half], 2) == pytest.approx(part)


@pytest.mark.parametrize(("cleaning", "small", "large"), [("largest", 0, 1), ("lesions", 0, 1), ("off", 1, 1)])
def test_cleaning_takes_weight_and_no_label(cleaning: str, small: int, large: int) -> None:
    labels = box((0, 4), (8, 10))
    trust = pseudo.trusted(labels, 2, cleaning)
    assert (trust[9, 9, 9], trust[1, 1, 1], trust[6, 6, 6]) == (small, large, 1)


def test_lesions_keep_every_large_one() -> None:
    assert pseudo.trusted(box((0, 4), (7, 11)), 2, "lesions").all()
    assert not pseudo.trusted(box((0, 5), (7, 11)), 2, "largest").all()


def test_volumes_are_held_against_the_labelled_ones() -> None:
    assert pseudo.plausible(box((0, 4)), [64.0], 3)
    assert not pseudo.plausible(box((0, 2)), [64.0], 3)
    assert pseudo.plausible(box((0, 2)), [64.0], 0)
    assert pseudo.plausible(box(), [0.0], 3)


def test_curriculum_takes_the_best() -> None:
    scores = {"a": 0.5, "b": 0.9, "c": 0.9, "d": 0.1}
    assert pseudo.chosen(scores, 0.5) == ["b", "c"]
    assert pseudo.chosen(scores, 0.75) == ["a", "b", "c"]
    assert pseudo.chosen({}, 0.5) == []
    rules = Rules((1, 2, 3))
    assert [rules.share(n) for n in (1, 2, 3, 4)] == [0.5, 0.75, 1.0, 1.0]
