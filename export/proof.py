"""`--verify DIR`: a model file through every engine that reads it against the fp32 network, before it is kept.

Each scan goes through the network as inference would send it: preprocessed, padded, in one pass. OpenVINO and ONNX
Runtime run all scans; onnx.reference, the specification as slow NumPy, runs the centre of the first one
(`REFERENCE_VOXELS`). Where scans have labels, the Dice of the shipping path is measured with the fp32 network and with
the file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from seg.infer.artifact import Golden, load
from seg.infer.backends import ONNX_ENGINES, Backend, engine_for, from_slices, open_backend, to_slices
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

REFERENCE = "onnx.reference"
PASS_VOXELS = 8_000_000  # network voxels of a scan in one pass: larger scans give their centre
REFERENCE_VOXELS = 1 << 17  # 23 s and 3 GB at width 16; a whole LA scan would take 28 times as much
LIMITS = {  # precision -> largest error over the logits' range, least share of equal labels, most Dice points lost
    "fp32": (1e-5, 0.9999, 0.1),
    "fp16": (5e-3, 0.999, 0.1),
    "int8": (1.0, 0.97, 1.0),
}


@dataclass(frozen=True)
class Proof:
    """One engine on some scans, against the fp32 network: see `LIMITS`.

    Attributes
    ----------
    scans : 0 stands for the golden pair alone.
    error : largest, over the logits' range.
    labels : share of voxels with equal labels, mean over scans.
    dice_fp32, dice : mean over scans and labels, of the fp32 network and of the file; None without labels.
    note : which part of a scan was run, where it was not the whole.
    """

    engine: str
    scans: int
    error: float
    labels: float
    dice_fp32: float | None = None
    dice: float | None = None
    note: str = ""

    def row(self) -> str:
        """A row of the table."""
        dice = [f"{d:.4f}" if d is not None else "-" for d in (self.dice_fp32, self.dice)]
        scans = f"{self.scans}{self.note and f' ({self.note})'}"
        return f"| {self.engine} | {scans} | {self.error:.1e} | {100 * self.labels:.4f} % | {dice[0]} | {dice[1]} |"


class Original:
    """The fp32 network that files are compared with.

    Parameters
    ----------
    name : what messages call it: "torch", or the fp32 file.
    backend : its logits.
    """

    def __init__(self, name: str, backend: Backend) -> None:
        self.name, self.backend = name, backend
        self._dice: dict[str, float] = {}

    @classmethod
    def of(cls, module: nn.Module) -> "Original":
        """A network in torch, float32."""
        return cls("torch", ModuleBackend(module, torch.device("cpu")))

    def dice(self, case: Case, spec: ModelSpec) -> float:
        """Of one labelled scan; computed once."""
        if case.id not in self._dice:
            self._dice[case.id] = _dice(case, spec, self.backend)
        return self._dice[case.id]


def prove(original: Original, path: str, cases: Sequence[Case], say: Callable[[str], None]) -> list[Proof]:
    """Compare a file with the fp32 network on the scans, in every engine that reads it.

    Parameters
    ----------
    path : ONNX artifact, or a program in PyTorch (.pt2).
    say : takes the rows of the table.

    Raises
    ------
    SegError : E-EXPORT-PARITY when an engine is further off than `LIMITS` allow.
    """
    spec = load(path).spec
    say(f"| engine | scans | error / logits' range | labels as {original.name} | Dice {original.name} | Dice |")
    say("|---|---|---|---|---|---|")
    with _opened(path) as engines:
        proofs = _compare(original, engines, spec, cases)
    for proof in proofs:
        say(proof.row())
    if path.endswith(".onnx"):
        proofs.append(_reference(original, path, spec, cases[0]))
        say(proofs[-1].row())
    for proof in proofs:
        _refuse(path, original.name, proof, stored_precision(spec))
    return proofs


def compare_golden(golden: Golden, path: str) -> list[Proof]:
    """A file beside the fp32 network's golden pair, which is noise: its error counts, and labels say little there."""
    proofs = []
    with _opened(path) as engines:
        for engine, backend in engines.items():
            tally = _Tally()
            tally.add(backend.run(golden.x.astype(np.float32)), golden.logits)
            proofs.append(tally.proof(engine, 0))
    return proofs


@dataclass
class _Tally:
    """What an engine did on the scans so far."""

    errors: list[float] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    dice: list[tuple[float, float]] = field(default_factory=list)

    def add(self, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        self.errors.append(golden_error(found, expected))
        self.labels.append(float((found.argmax(1) == expected.argmax(1)).mean()))

    def proof(self, engine: str, scans: int) -> Proof:
        means = [float(m) for m in np.mean(self.dice, axis=0)] if self.dice else [None, None]
        return Proof(engine, scans, max(self.errors), float(np.mean(self.labels)), *means)


def _compare(original: Original, engines: Mapping[str, Backend], spec: ModelSpec, cases: Sequence[Case]) -> list[Proof]:
    """Scan by scan: the fp32 network, which is the slow one, computes each once for all engines."""
    tallies = {name: _Tally() for name in engines}
    for case in cases:
        [x] = network_inputs([case], spec, PASS_VOXELS)
        expected = original.backend.run(x)
        for name, backend in engines.items():
            tallies[name].add(backend.run(x), expected)
        if case.label is not None:
            for name, backend in engines.items():
                tallies[name].dice.append((original.dice(case, spec), _dice(case, spec, backend)))
    return [tally.proof(name, len(cases)) for name, tally in tallies.items()]


def _reference(original: Original, path: str, spec: ModelSpec, case: Case) -> Proof:
    [x] = network_inputs([case], spec, REFERENCE_VOXELS)
    tally = _Tally()
    tally.add(ReferenceBackend(path).run(x), original.backend.run(x))
    found = tally.proof(REFERENCE, 1)
    return replace(found, note=f"{' x '.join(map(str, x.shape[2:]))} voxels of it")


def _dice(case: Case, spec: ModelSpec, backend: Backend) -> float:
    """Mean over the foreground labels, on the scan's own grid."""
    assert case.label is not None
    mask = segment(load_volume(case, len(spec.channels)), spec, backend)
    truth = np.asarray(spec.label_values)[load_label(case.label, spec.label_values)]
    return float(np.mean([overlap(mask == v, truth == v).dice for v in spec.label_values[1:]]))


def _refuse(path: str, name: str, proof: Proof, precision: str) -> None:
    error, labels, points = LIMITS[precision]
    lost = 100 * (proof.dice_fp32 - proof.dice) if proof.dice_fp32 is not None and proof.dice is not None else 0.0
    if proof.error <= error and proof.labels >= labels and lost <= points:
        return
    raise SegError(
        "E-EXPORT-PARITY",
        Exit.MODEL,
        path,
        f"in {proof.engine} it differs from {name} by {proof.error:.2g} of the logits' range and on "
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
def _opened(path: str) -> Iterator[dict[str, Backend]]:
    """Every engine that reads the file, by name, in fp32."""
    names = ONNX_ENGINES if path.endswith(".onnx") else (engine_for(path),)
    with ExitStack() as stack:
        engines = {name: open_backend(name, path, "cpu", precision="fp32") for name in names}
        for backend in engines.values():
            stack.callback(backend.close)
        yield engines
