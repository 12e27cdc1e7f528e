"""What an int8 graph costs against its fp32 graph: masks compared on whole scans, through the path that ships."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seg.infer.backends import Backend, open_backend
from seg.infer.errors import Exit, SegError
from seg.infer.metrics import overlap
from seg.infer.predict import segment
from seg.infer.spec import ModelSpec
from seg.train.cases import Case
from seg.train.prepare import load_label, load_volume

LEAST_AGREEMENT = 0.97  # of voxels, with the fp32 masks
LEAST_OVERLAP = 0.95  # Dice with the fp32 masks, mean over classes: agreement is high for any mask of a small organ
MOST_LOSS = 1.0  # Dice points against the truth: more is refused
GOOD_LOSS = 0.3  # Dice points: more makes the next candidate be tried

Mask = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Quality:
    """What an int8 graph costs, measured on whole scans through the inference path that ships.

    Attributes
    ----------
    agreement : share of voxels that have the label of the fp32 mask.
    overlap : Dice of the int8 and the fp32 mask, mean over scans and classes.
    dice_fp32, dice_int8 : mean Dice against the truth of each label; empty without labels.
    """

    agreement: float
    overlap: float
    dice_fp32: dict[str, float]
    dice_int8: dict[str, float]

    @property
    def loss(self) -> float | None:
        """Dice points lost against the truth, mean over labels; negative where int8 is better."""
        if not self.dice_fp32:
            return None
        return 100 * float(np.mean([self.dice_fp32[k] - self.dice_int8[k] for k in self.dice_fp32]))

    @property
    def good(self) -> bool:
        """No reason to keep a layer in float."""
        return self.acceptable and (self.loss is None or self.loss <= GOOD_LOSS)

    @property
    def acceptable(self) -> bool:
        """Fit to be kept."""
        close = self.agreement >= LEAST_AGREEMENT and self.overlap >= LEAST_OVERLAP
        return close and (self.loss is None or self.loss <= MOST_LOSS)

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better."""
        return -(self.loss or 0.0), self.overlap


def judge(backend: Backend, cases: Sequence[Case], fp32: Sequence[Mask], spec: ModelSpec) -> Quality:
    """Quality of the graph that a backend has open, beside the `fp32` masks of the same cases."""
    values = spec.label_values[1:]
    agreement, close = [], []
    before, after = [], []
    for case, reference in zip(cases, fp32, strict=True):
        mask = mask_of(case, spec, backend)
        agreement.append(float((mask == reference).mean()))
        close.append([overlap(mask == v, reference == v).dice for v in values])
        if case.label is not None:
            truth = np.asarray(spec.label_values)[load_label(case.label, spec.label_values)]
            before.append([overlap(reference == v, truth == v).dice for v in values])
            after.append([overlap(mask == v, truth == v).dice for v in values])
    dice = [dict(zip(spec.labels[1:], np.mean(d, 0).tolist(), strict=True)) if d else {} for d in (before, after)]
    return Quality(float(np.mean(agreement)), float(np.mean(close)), *dice)


def mask_of(case: Case, spec: ModelSpec, backend: Backend) -> Mask:
    """The mask of a scan on its own grid: the one call of the product's inference path."""
    return segment(load_volume(case, len(spec.channels)), spec, backend)


@contextlib.contextmanager
def opened(path: str) -> Iterator[Backend]:
    """A file in OpenVINO, for a while."""
    backend = open_backend("openvino", path, "cpu")
    try:
        yield backend
    finally:
        backend.close()


def row(layers: Sequence[str], size: float, quality: Quality) -> str:
    """A line of the table of candidates."""

    def mean(dice: dict[str, float]) -> str:
        return f"{np.mean(list(dice.values())):.4f}" if dice else "-"

    lost = "-" if quality.loss is None else f"{quality.loss:.2f}"
    cells = (
        ", ".join(layers) or "none",
        f"{100 * size:.0f} %",
        f"{100 * quality.agreement:.2f} %",
        f"{quality.overlap:.4f}",
        mean(quality.dice_fp32),
        mean(quality.dice_int8),
        lost,
    )
    return f"| {' | '.join(cells)} |"


def refusal(path: str, quality: Quality) -> SegError:
    """Why there is no file at `path`."""
    kept = f"in int8 {100 * quality.agreement:.2f} % of the voxels keep their label, Dice to fp32 {quality.overlap:.3f}"
    lost = "" if quality.loss is None else f", and the Dice falls by {quality.loss:.2f} points"
    return SegError(
        "E-EXPORT-INT8",
        Exit.MODEL,
        path,
        kept + lost,
        "calibrate on more typical scans, or export in fp32",
        f"{100 * LEAST_AGREEMENT:.0f} %, {LEAST_OVERLAP} and at most {MOST_LOSS:g}",
    )
