"""`seg-infer --selftest MODEL`: does this machine compute what the exporting one did?

The artifact carries an input and the logits that the training framework gave for it. Here every engine that is
available runs the input. Where the graph offers its features too, the head must make the same logits of them.
"""

import numpy as np
from numpy.typing import NDArray

from .artifact import Artifact, Golden, load, resolve, shipped_forms, shipped_models
from .backends import ONNX_ENGINES, engine_for, open_backend
from .compute import stored_precision
from .errors import Exit, SegError, printable

TOLERANCE = 1e-4  # of the logits' range, fp32
HALF_ROUNDING = 2.0**-11  # of a number, when it becomes a float16
_ABSENT = ("E-DEVICE", "E-EXTRA")


def run_selftest(model: str) -> None:
    """Print one line per engine and form of the model.

    Parameters
    ----------
    model : name or path.

    Raises
    ------
    SegError : E-MODEL-GOLDEN (exit 20) without a golden pair, E-SELFTEST (21) when an engine is further off than
        `TOLERANCE`, E-DEVICE (21) when there is no engine, E-MODEL-* (20).
    """
    forms = shipped_forms(model) if model in shipped_models() else [resolve(model)]
    for path in forms:
        _test(load(path))


def _test(artifact: Artifact) -> None:
    precision = stored_precision(artifact.spec)
    # int8 engines round ties differently: the exporter measured how far they may be apart.
    tolerance = float(artifact.spec.card.get("quantisation", {}).get("golden_tolerance", TOLERANCE))
    if artifact.golden is None:
        fix = "export the model again with this version's seg-export"
        raise SegError("E-MODEL-GOLDEN", Exit.MODEL, artifact.path, "has no golden pair to test with", fix)
    names = ONNX_ENGINES if engine_for(artifact.path) in ONNX_ENGINES else (engine_for(artifact.path),)
    errors: dict[str, float] = {}
    wrong: dict[str, float] = {}
    for name, output in ((name, output) for name in names for output in outputs_of(artifact)):
        if output == "features" and name not in errors:  # the engine is not here, and said so
            continue
        found = _engine_error(name, artifact, artifact.golden, output)
        if found is None:
            continue
        shown = name if output == "logits" else f"{name} from features"
        errors[shown], half = found
        allowed = 2 * tolerance + HALF_ROUNDING if half else tolerance  # a distance has the errors of two logits
        verdict = "ok"
        if not errors[shown] <= allowed:
            wrong[shown], verdict = allowed, f"WRONG, at most {allowed:g} is allowed"
        print(f"{shown} {precision}: error {errors[shown]:.0e} of the logits' range, {verdict}", flush=True)
    if not errors:
        raise SegError("E-DEVICE", Exit.RUNTIME, "", "no engine runs on this machine", "install seg-toolkit again")
    if wrong:
        worst = max(errors[name] for name in wrong)
        raise SegError(
            "E-SELFTEST",
            Exit.RUNTIME,
            artifact.path,
            f"logits of {' and '.join(wrong)} differ from the exporting framework's by {worst:.0e} of their range",
            "do not use this model on this machine; copy it again, or update the engine",
            f"at most {max(wrong.values()):g}",
        )


def outputs_of(artifact: Artifact) -> tuple[str, ...]:
    """The graph's outputs: the logits, and the features where there is a head for them."""
    return ("logits",) if artifact.head is None else ("logits", "features")


def features_error(artifact: Artifact, golden: Golden, engine: str) -> float:
    """Error of the logits that the head makes of the features in an engine on the CPU; 0 without a head."""
    if artifact.head is None:
        return 0.0
    backend = open_backend(engine, artifact.path, "cpu", output="features")
    try:
        return golden_error(artifact.head.logits(backend.run(golden.x.astype(np.float32))), golden.logits)
    finally:
        backend.close()


def _engine_error(name: str, artifact: Artifact, golden: Golden, output: str) -> tuple[float, bool] | None:
    """Error of one engine and whether it answers in float16 distances, or None after saying that it is not here."""
    try:
        backend = open_backend(name, artifact.path, "auto", output=output)
    except SegError as error:
        if error.code not in _ABSENT:
            raise
        print(f"{name}: not available here ({printable(error.found)})")
        return None
    try:
        logits, half = backend.run(golden.x.astype(np.float32)), getattr(backend, "half", False)
        if output == "features" and artifact.head is not None:
            logits = artifact.head.logits(logits)
        if half and logits.shape == golden.logits.shape:  # of distances to the largest logit, that one is known
            logits = logits - logits.max(axis=1, keepdims=True) + golden.logits.max(axis=1, keepdims=True)
        return golden_error(logits, golden.logits), half
    finally:
        backend.close()


def golden_error(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest difference over the range of `expected`; infinite for another shape or anything that is no number."""
    if logits.shape != expected.shape or not np.isfinite(logits).all() or not np.isfinite(expected).all():
        return float("inf")
    spread = float(np.ptp(expected))
    return float(np.abs(logits - expected).max()) / (spread or 1.0)
