"""One file from a run: what `seg-export RUN -o MODEL` does. Nothing heavy is imported before the target is checked."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import typer

from seg.infer.console import say

if TYPE_CHECKING:
    from torch import nn

    from seg.infer.spec import ModelSpec

    from .onnx_ import Parity


OF_RUNS = "--card, --features, --largest-component"


@dataclass(frozen=True)
class Options:
    """What an export takes: entries of the card, what the model does, form, and folders of scans."""

    card: str | None
    largest_component: bool
    features: bool
    precision: Literal["fp32", "fp16", "int8"]
    calibration: str | None
    scans: int
    verify: str | None

    @property
    def of_runs(self) -> bool:
        """Whether anything is asked that only a run can be given."""
        return bool(self.card or self.features or self.largest_component)

    def card_entries(self) -> dict[str, str]:
        """The user's entries of the card. Raises SegError E-CONFIG."""
        from .card import card_entries

        return card_entries(self.card) if self.card is not None else {}


def export_run(run: str, output: str, options: Options, overwrite: bool, quiet: bool, kept: bool = True) -> None:
    """Write `output`, .onnx or .pt2, from the run; a file that is not kept is told under the run's name.

    Raises
    ------
    SegError : E-OUT-*, E-CONFIG, E-RUN-*, E-DATA-*, E-EXPORT-*.
    """
    from pathlib import Path

    from seg.infer.errors import Exit, SegError
    from seg.infer.outputs import refuse_unwritable

    if not output.endswith((".onnx", ".pt2")):
        fix = "end the name in .onnx, .engine, .plan or .pt2"
        raise SegError("E-OUT-SUFFIX", Exit.USAGE, output, "its suffix names no form of a model", fix)
    if output.endswith(".pt2") and (options.features or options.precision != "fp32" or options.verify):
        raise typer.BadParameter("a .pt2 program is fp32, with the logits alone, and is proven by itself")
    refuse_unwritable(output, overwrite)
    entries = options.card_entries()

    from .run import load_run, remark

    module, spec = load_run(Path(run), entries, largest_component=options.largest_component)
    if not quiet and (text := remark(spec)):
        say(f"note: {text}")
    if output.endswith(".pt2"):
        from .program import export_program

        _, parity = export_program(module, spec, output)
        _tell(output, output, parity, quiet)
        return
    prove = _prover(module, run, options, quiet)
    if options.precision == "int8":
        _export_int8(module, spec, run, output, options, prove, quiet, kept)
        return
    from .onnx_ import export

    half = options.precision == "fp16"
    _, parity = export(module, spec, output, features=options.features, half=half, prove=prove)
    _tell(output, output if kept else run, parity, quiet)


def _tell(output: str, name: str, parity: "Parity", quiet: bool) -> None:
    if not quiet:
        say(
            f"{name}: {os.path.getsize(output) / 1e6:.1f} MB, differs from torch by {parity.error:.1e} "
            f"of the logits' range, labels equal on {100 * parity.labels:.4f} %"
        )
        if name == output:
            _tell_next(output)


def _tell_next(output: str) -> None:
    say(f"next: seg-infer scan.nii.gz -o mask.nii.gz -m {output}")


def _prover(module: "nn.Module", run: str, options: Options, quiet: bool) -> "Callable[[str], None]":
    """What proves a finished file on the scans of --verify; nothing without."""
    if options.verify is None:
        return lambda _: None
    from pathlib import Path

    from seg.train.run import read_config

    from .calibration import verification_cases
    from .proof import Original, prove

    cases = verification_cases(options.verify, set(read_config(Path(run))["split"]["val"]))

    original = Original.of(module)

    def proved(path: str) -> None:
        prove(original, path, cases, (lambda _: None) if quiet else say)

    return proved


def _export_int8(
    module: "nn.Module",
    spec: "ModelSpec",
    run: str,
    output: str,
    options: Options,
    prove: "Callable[[str], None]",
    quiet: bool,
    kept: bool,
) -> None:
    import tempfile
    from pathlib import Path

    from seg.train.run import read_config

    from .calibration import calibration_cases, verification_cases
    from .int8 import quantise
    from .onnx_ import export

    assert options.calibration is not None
    validation = set(read_config(Path(run))["split"]["val"])
    calibration = calibration_cases(options.calibration, options.scans, validation)
    verification = verification_cases(options.verify, validation) if options.verify is not None else []
    with tempfile.TemporaryDirectory(prefix="seg-export-") as folder:
        fp32 = os.path.join(folder, "fp32.onnx")
        export(module, spec, fp32, features=options.features)
        before = os.path.getsize(fp32)
        quantise(fp32, output, calibration, verification, (lambda _: None) if quiet else say, prove)
    if not quiet:
        size = os.path.getsize(output)
        say(
            f"{output if kept else run}: {size / 1e6:.1f} MB, {100 * size / before:.0f} % of fp32; "
            f"calibrated on {len(calibration)} scans"
        )
        if kept:
            _tell_next(output)


@contextmanager
def artifact_of(source: str, options: Options, quiet: bool) -> Iterator[str]:
    """Path of the artifact that SOURCE is, or of one that is exported from the run that it is."""
    import tempfile

    from seg.infer.artifact import load, resolve
    from seg.infer.compute import stored_precision

    if os.path.isdir(source):
        with tempfile.TemporaryDirectory(prefix="seg-export-") as folder:
            path = os.path.join(folder, "model.onnx")
            export_run(source, path, options, overwrite=False, quiet=quiet, kept=False)
            yield path
        return
    if options.of_runs or options.verify:
        raise typer.BadParameter(f"{OF_RUNS} and --verify are for runs; this model is exported already")
    path = resolve(source, options.precision)
    if options.precision != "fp32" and (found := stored_precision(load(path).spec)) != options.precision:
        raise typer.BadParameter(f"{source} is exported already, in {found}: --precision is for runs")
    yield path
