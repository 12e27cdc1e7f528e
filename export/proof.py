"""`--verify DIR`: an ONNX file through every engine that reads it against torch, on whole scans, before it is kept.

Each scan goes through the network as inference would send it: preprocessed, padded, in one pass. OpenVINO and ONNX
Runtime run all scans; onnx.reference, the specification as slow NumPy, runs the first. Where scans have labels, the
Dice of the shipping path is measured with torch and with the file.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from seg.infer.artifact import load
from seg.infer.backends import Backend, from_slices, open_backend, to_slices
from seg.infer.compute import stored_precision
from seg.infer.errors import Exit, SegError
from seg.infer.metrics import overlap
from seg.infer.predict import segment
from seg.infer.selftest import golden_error
from seg.infer.spec import ModelSpec
from seg.train.cases import Case
from seg.train.evaluate import ModuleBackend
from seg.train.prepare import load_label, load_volume

from .calibration import network_inputs

ENGINES = ("openvino", "onnxruntime", "onnx.reference")
REFERENCE_SCANS = 1
LIMITS = {  # precision -> largest error over the logits' range, least share of equal labels, most Dice points lost
    "fp32": (1e-5, 0.9999, 0.1),
    "fp16": (5e-3, 0.999, 0.1),
    "int8": (1.0, 0.97, 1.0),
}


@dataclass(frozen=True)
class Proof:
    """One engine on some scans, against torch: see `LIMITS`. Dice is the mean over scans and labels, or None."""

    engine: str
    scans: int
    error: float
    labels: float
    dice_torch: float | None = None
    dice: float | None = None

    def row(self) -> str:
        """A row of the table."""
        dice = [f"{d:.4f}" if d is not None else "-" for d in (self.dice_torch, self.dice)]
        return (
            f"| {self.engine} | {self.scans} | {self.error:.1e} | {100 * self.labels:.4f} % | {dice[0]} | {dice[1]} |"
        )


HEADER = (
    "| engine | scans | error / logits' range | labels as torch | Dice torch | Dice |",
    "|---|---|---|---|---|---|",
)


def prove(module: nn.Module, path: str, cases: Sequence[Case], say: Callable[[str], None]) -> list[Proof]:
    """Compare the file with torch on the scans.

    Parameters
    ----------
    module : the network the file was made from, float32.
    path : ONNX artifact.
    say : takes the rows of the table.

    Raises
    ------
    SegError : E-EXPORT-PARITY when an engine is further off than `LIMITS` allow.
    """
    spec = load(path).spec
    original = ModuleBackend(module, torch.device("cpu"))
    for row in HEADER:
        say(row)
    proofs = []
    for engine in ENGINES:
        chosen = cases[:REFERENCE_SCANS] if engine == "onnx.reference" else cases
        with _opened(engine, path) as backend:
            proofs.append(_compare(engine, backend, original, spec, chosen))
        say(proofs[-1].row())
    for proof in proofs:
        _refuse(path, proof, stored_precision(spec))
    return proofs


def _compare(engine: str, backend: Backend, original: Backend, spec: ModelSpec, cases: Sequence[Case]) -> Proof:
    errors, equal = [], []
    dice: list[tuple[float, float]] = []
    for case in cases:
        [x] = network_inputs([case], spec)
        expected, found = original.run(x), backend.run(x)
        errors.append(golden_error(found, expected))
        equal.append(float((found.argmax(1) == expected.argmax(1)).mean()))
        if case.label is not None and engine != "onnx.reference":
            dice.append((_dice(case, spec, original), _dice(case, spec, backend)))
    means = [float(m) for m in np.mean(dice, axis=0)] if dice else [None, None]
    return Proof(engine, len(cases), max(errors), float(np.mean(equal)), *means)


def _dice(case: Case, spec: ModelSpec, backend: Backend) -> float:
    """Mean over the foreground labels, on the scan's own grid."""
    assert case.label is not None
    mask = segment(load_volume(case), spec, backend)
    truth = np.asarray(spec.label_values)[load_label(case.label, spec.label_values)]
    return float(np.mean([overlap(mask == v, truth == v).dice for v in spec.label_values[1:]]))


def _refuse(path: str, proof: Proof, precision: str) -> None:
    error, labels, points = LIMITS[precision]
    lost = 100 * (proof.dice_torch - proof.dice) if proof.dice_torch is not None and proof.dice is not None else 0.0
    if proof.error <= error and proof.labels >= labels and lost <= points:
        return
    raise SegError(
        "E-EXPORT-PARITY",
        Exit.MODEL,
        path,
        f"in {proof.engine} it differs from torch by {proof.error:.2g} of the logits' range and on "
        f"{100 * (1 - proof.labels):.4f} % of the labels, and loses {lost:.2f} points of Dice",
        "export in fp32, or report this with the run's config.json",
        f"at most {error:g}, {100 * (1 - labels):.4g} % and {points:g}",
    )


class ReferenceBackend:
    """onnx.reference behind the backend contract."""

    def __init__(self, path: str) -> None:
        from onnx.reference import ReferenceEvaluator

        self._evaluator: Any = ReferenceEvaluator(path)
        self._dims = len(onnx.load(path).graph.input[0].type.tensor_type.shape.dim)

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, X, Y, Z) -> (N, K, X, Y, Z)."""
        given = to_slices(x) if self._dims == 4 else x
        logits: NDArray[np.float32] = np.asarray(self._evaluator.run(["logits"], {"image": given})[0])
        return from_slices(logits, len(x)) if self._dims == 4 else logits

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def _opened(engine: str, path: str) -> Iterator[Backend]:
    if engine == "onnx.reference":
        yield ReferenceBackend(path)
        return
    backend = open_backend(engine, path, "cpu", precision="fp32")
    try:
        yield backend
    finally:
        backend.close()
