"""What pseudo-labels of whole scans are worth: cleaning, quality without ground truth, acceptance, curriculum.

Pure functions on arrays of the network's grid; `refinement` keeps the files. Design: HSTF's refinement (PLR), which the
paper names without rules; these follow ST++ (stability over checkpoints) and what its proposal marks as own choices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]
LESION_VOXELS = 50  # smaller components of lesions do not count


@dataclass(frozen=True)
class Rules:
    """How pseudo-labels are made and kept.

    Attributes
    ----------
    steps : steps before which they are made anew.
    scales : at which every scan is predicted; probabilities are averaged.
    memory : share of the old probabilities in the new ones.
    cleaning : "largest" component of each class, components of "lesions" from 50 voxels on, or "off".
    curriculum : share of the scans, by quality, whose pseudo-labels are used after each round.
    tolerance : new pseudo-labels may be this much worse.
    volume_bound : a class's volume must lie within this factor of the labelled median; 0 does not ask.
    enough : median change below which no further round is made.
    """

    steps: tuple[int, ...]
    scales: tuple[float, ...] = (1.0, 0.75)
    memory: float = 0.3
    cleaning: Literal["largest", "lesions", "off"] = "largest"
    curriculum: tuple[float, ...] = (0.5, 0.75, 1.0)
    tolerance: float = 0.02
    volume_bound: float = 3.0
    enough: float = 0.02

    def share(self, round_: int) -> float:
        """Of the scans used after a round, which counts from 1."""
        return self.curriculum[min(round_, len(self.curriculum)) - 1]


def agreement(a: Labels, b: Labels, classes: int) -> float:
    """Mean Dice of two label maps over the foreground classes that either has; 1 if none has any."""
    found = []
    for k in range(1, classes):
        p, t = a == k, b == k
        size = int(p.sum()) + int(t.sum())
        if size:
            found.append(2 * int((p & t).sum()) / size)
    return float(np.mean(found)) if found else 1.0


def churn(old: Labels, new: Labels) -> float:
    """Share of changed voxels among those that either calls foreground."""
    either = (old > 0) | (new > 0)
    return float((old != new)[either].mean()) if either.any() else 0.0


def quality(now: Labels, earlier: Sequence[Labels], scaled: Sequence[Labels], classes: int) -> float:
    """Half the agreement with earlier states of the teacher, half that between scales; whichever there is."""
    parts = [np.mean([agreement(now, other, classes) for other in others]) for others in (earlier, scaled) if others]
    return float(np.mean(parts)) if parts else 1.0


def trusted(labels: Labels, classes: int, cleaning: str) -> NDArray[np.bool_]:
    """False at voxels that cleaning would change: they lose their weight, not their label."""
    kept = np.ones(labels.shape, bool)
    if cleaning == "off":
        return kept
    import cc3d

    for k in range(1, classes):
        mask = labels == k
        if not mask.any():
            continue
        if cleaning == "largest":
            left = cc3d.largest_k(mask, k=1, connectivity=26, delta=0) > 0
        else:
            left = cc3d.dust(mask, threshold=LESION_VOXELS, connectivity=26) > 0
        kept &= ~mask | left
    return kept


def components(labels: Labels) -> int:
    """Connected components of the foreground."""
    import cc3d

    return int(cc3d.connected_components(labels > 0, connectivity=26, return_N=True)[1])


def plausible(labels: Labels, medians: Sequence[float], bound: float) -> bool:
    """Whether each class's volume is within `bound` times the labelled median; a median of 0 asks nothing."""
    if not bound:
        return True
    return all(m == 0 or m / bound <= int((labels == k).sum()) <= m * bound for k, m in enumerate(medians, start=1))


def packed(probability: NDArray[np.float32], trust: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(K, X, Y, Z) and (X, Y, Z) -> (K + 1, X, Y, Z) of 255ths."""
    return np.concatenate([np.rint(255 * probability), 255.0 * trust[None]]).astype(np.uint8)


def entropy(probability: NDArray[np.float32]) -> float:
    """Mean over the voxels, 1 is complete ignorance."""
    p = np.clip(probability, 1e-6, 1)
    return float(-(p * np.log(p)).sum(axis=0).mean() / np.log(len(p)))


def chosen(scores: Mapping[str, float], share: float) -> list[str]:
    """The best cases, at least one; by name where equal."""
    order = sorted(scores, key=lambda case: (-scores[case], case))
    return sorted(order[: max(1, round(share * len(order)))]) if order else []
