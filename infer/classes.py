"""From score planes to class indices: the last step before labels.

Three forms of scores, told apart by their number of channels and by a linear head:

* one channel: the score of class 1 against class 0;
* K channels: one score a class, the largest wins;
* F features with a linear head: scores are the head applied to the features. Blending and resampling are linear too, so
  doing both on F features and applying the head here equals doing them on K logits, with F planes in memory, not K.
"""

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .arrays import module_of

Array = NDArray[np.float32]
CHUNK = 1 << 22  # scores computed at a time when a head is applied: 16 MB


@dataclass(frozen=True)
class Head:
    """The network's last layer: logits = weight @ features + bias.

    Attributes
    ----------
    weight : (K, F) float32.
    bias : (K,) float32.
    """

    weight: Array
    bias: Array

    def logits(self, features: Array) -> Array:
        """(N, F, X, Y, Z) features -> (N, K, X, Y, Z), all at once: for small arrays."""
        found: Array = np.einsum("kf,nfxyz->nkxyz", self.weight, features) + self.bias.reshape(1, -1, 1, 1, 1)
        return found

    def to_text(self) -> str:
        """Printable form for the artifact's metadata."""
        k, f = self.weight.shape
        packed = np.concatenate([self.weight.ravel(), self.bias]).astype("<f4").tobytes()
        return f"{k},{f};{base64.b85encode(packed).decode()}"

    @classmethod
    def from_text(cls, text: str) -> "Head":
        """Inverse of `to_text`. Raises ValueError."""
        head, _, body = text.partition(";")
        k, f = (int(n) for n in head.split(","))
        values = np.frombuffer(base64.b85decode(body), "<f4")
        if min(k, f) < 1 or values.size != k * (f + 1) or not np.isfinite(values).all():
            raise ValueError(f"linear head of {k} classes and {f} features has {values.size} numbers")
        return cls(values[: k * f].reshape(k, f), values[k * f :])


def classes_of(scores: Array, head: Head | None = None) -> NDArray[np.unsignedinteger]:
    """(S, A, B) scores -> (A, B) class indices, uint8 or uint16; ties go to the lower class."""
    if head is None:
        return _largest(scores)
    count = len(head.bias)
    xp = module_of(scores)
    weight, bias = xp.asarray(head.weight), xp.asarray(head.bias)
    out: NDArray[np.unsignedinteger] = xp.empty(scores.shape[1:], np.uint8 if count <= 256 else np.uint16)
    rows = max(1, CHUNK // (count * scores.shape[2]))
    for first in range(0, scores.shape[1], rows):
        part = scores[:, first : first + rows]
        logits = weight @ part.reshape(len(part), -1) + bias[:, None]
        out[first : first + rows] = _largest(logits.reshape(count, *part.shape[1:]))
    return out


def _largest(scores: Array) -> NDArray[np.unsignedinteger]:
    """Running maximum over the classes: three light passes each, several times faster than argmax over a slow axis."""
    if len(scores) == 1:
        positive: NDArray[np.uint8] = (scores[0] > 0).view(np.uint8)
        return positive
    xp = module_of(scores)
    best = scores[0].copy()
    winner: NDArray[np.unsignedinteger] = xp.zeros(best.shape, np.uint8 if len(scores) <= 256 else np.uint16)
    for k, score in enumerate(scores[1:], start=1):
        xp.putmask(winner, score > best, k)
        xp.maximum(best, score, out=best)
    return winner


def probabilities_of(scores: Array, head: Head | None = None, *, blended: bool = False) -> Array:
    """(S, A, B) scores -> (K, A, B) softmax probabilities; `blended`: the scores are probabilities already."""
    if len(scores) == 1 and head is None:
        p = (scores if blended else 0.5 * np.tanh(0.5 * scores)) + np.float32(0.5)
        both: Array = module_of(p).concatenate([1.0 - p, p])
        return both
    if blended:
        return scores
    if head is not None:
        xp = module_of(scores)
        flat = xp.asarray(head.weight) @ scores.reshape(len(scores), -1) + xp.asarray(head.bias)[:, None]
        scores = flat.reshape(len(head.bias), *scores.shape[1:])
    raised: Array = np.exp(scores - scores.max(axis=0))
    raised /= raised.sum(axis=0)
    return raised
