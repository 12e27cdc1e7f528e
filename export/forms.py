"""`seg-export SOURCE --all DIR`: every form of a model that can be made here, each proven before it is there.

    DIR/NAME.onnx               fp32: from the run, or the artifact as it is
    DIR/NAME.fp16.onnx          from the fp32 form
    DIR/NAME.int8.onnx          the one beside the artifact, else from the fp32 form and calibration scans
    DIR/NAME.pt2                a PyTorch program, from the run
    DIR/NAME.engine             for the GPU of this machine, from the fp32 form
    DIR/triton/NAME, DIR/bundle of the fp32 form

NAME is the model's, as `--inspect` tells it.
All are compared with the fp32 network: on scans where some are given, else on the golden pair.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from seg.infer.atomic import refuse_existing
from seg.infer.errors import SegError, printable
from seg.infer.outputs import make_folder, refuse_unwritable
from seg.train.cases import Case

from .bundle import refuse_bundle, write_bundle
from .derived import write_copy, write_half
from .onnx_ import export
from .plan_build import BuildOptions
from .program import export_program
from .proof import Original, Proof, compare_golden, prove
from .source import Source, int8_beside
from .tensorrt_ import export_engine
from .triton import write_model_repository

ABSENT = ("E-TRT-HERE", "E-EXTRA", "E-DEVICE")  # what this machine lacks, as against what went wrong
FILES = (".onnx", ".fp16.onnx", ".int8.onnx", ".pt2", ".pt2.seal", ".engine")

Say = Callable[[str], None]
Prove = Callable[[str], None]
Make = Callable[[str, Prove], object]


@dataclass(frozen=True)
class Scans:
    """Scans to calibrate int8 on and to prove the forms on; either may be empty."""

    calibration: Sequence[Case] = ()
    verification: Sequence[Case] = ()


@dataclass(frozen=True)
class Form:
    """One form: its name in the folder, bytes (None where it was not made), proofs by engine, and a remark."""

    name: str
    size: int | None
    proofs: Sequence[Proof] = ()
    remark: str = ""


class NotMade(Exception):
    """A form that cannot be made from what is given; the message is the reason."""


def refuse_outputs(folder: str, name: str, overwrite: bool) -> None:
    """Check before any work that all forms can be written; makes the folder. Raises SegError E-OUT-*."""
    make_folder(folder)
    for suffix in FILES:
        refuse_unwritable(os.path.join(folder, name + suffix), overwrite)
    refuse_existing(os.path.join(folder, "triton", name, "config.pbtxt"), overwrite)
    refuse_bundle(os.path.join(folder, "bundle"), overwrite)


def make_all(
    source: Source, folder: str, scans: Scans, say: Say = lambda _: None, *, features: bool = False
) -> list[Form]:
    """Make all forms, replacing those that are there, and tell a table of them.

    Parameters
    ----------
    folder : as `refuse_outputs` left it.
    features : of a run, offer the features too (see `head`).

    Raises
    ------
    SegError : the first failure, once every other form was tried and told; fp32's own at once.
    """
    forms, failures = list[Form](), list[SegError]()
    original = source.original()
    for name, make in _makers(source, folder, scans, say, features).items():
        target, proofs = os.path.join(folder, name), list[Proof]()
        if scans.verification:
            say(f"{name}:")
        try:
            make(target, _prover(source, original, target, scans.verification, proofs, say))
            forms.append(Form(name, _size(target), proofs))
            continue
        except NotMade as reason:
            remark = f"not made: {reason}"
        except SegError as error:
            if not forms:  # all others are made from it
                raise
            remark = f"{'not made' if error.code in ABSENT else 'failed'}: {error.found}"
            if error.code not in ABSENT:
                failures.append(error)
        if not source.is_made_from(target):
            _remove(target)
        forms.append(Form(name, None, remark=printable(remark)))
        say(f"{name}: {forms[-1].remark}")
    for line in table(forms, original.name, len(scans.verification)):
        say(line)
    if failures:
        raise failures[0]
    return forms


def _makers(source: Source, folder: str, scans: Scans, say: Say, features: bool) -> dict[str, Make]:
    """Name in the folder -> what writes it there, given the path and what proves it; fp32 comes first."""
    fp32 = os.path.join(folder, f"{source.name}.onnx")

    def full(path: str, prove: Prove) -> None:
        if source.module is not None:
            export(source.module, source.spec, path, features=features, prove=prove)
        else:
            write_copy(source.path or "", path, prove)

    def program(path: str, prove: Prove) -> None:
        if source.module is None:
            raise NotMade("an exported file holds no PyTorch module; give the run")
        export_program(source.module, source.spec, path, prove)

    def triton(path: str, _: Prove) -> None:
        write_model_repository(fp32, path, "onnxruntime", overwrite=True)

    return {
        f"{source.name}.onnx": full,
        f"{source.name}.fp16.onnx": lambda path, prove: write_half(fp32, path, prove),
        f"{source.name}.int8.onnx": lambda path, prove: write_int8(source.path, fp32, path, scans, say, prove),
        f"{source.name}.pt2": program,
        f"{source.name}.engine": lambda path, _: export_engine(fp32, path, BuildOptions(), say, overwrite=True),
        "triton": triton,
        "bundle": lambda path, _: write_bundle(fp32, path, overwrite=True),
    }


def write_int8(source: str | None, fp32: str, path: str, scans: Scans, say: Say, prove: Prove = lambda _: None) -> None:
    """The int8 form: the one beside `source`, an artifact, as it is; else of `fp32`, calibrated on the scans.

    Raises
    ------
    NotMade : there is neither such a file nor a scan.
    SegError : E-EXPORT-*, E-EXTRA, E-OUT-*.
    """
    beside = int8_beside(source) if source is not None else None
    if beside is not None:
        say(f"{beside}: taken as it is")
        write_copy(beside, path, prove)
        return
    if not scans.calibration:
        raise NotMade("it needs scans: --calibration DIR")
    from .int8 import quantise

    say(f"{path}: ranges from {len(scans.calibration)} scans")
    quantise(fp32, path, scans.calibration, scans.verification, say, prove)


def _prover(
    source: Source, original: Original, target: str, cases: Sequence[Case], proofs: list[Proof], say: Say
) -> Prove:
    """What compares a finished file with fp32 before it is kept; the findings go to `proofs`."""

    def proved(path: str) -> None:
        try:
            found = prove(original, path, cases, say) if cases else compare_golden(source.golden, path)
        except SegError as error:
            error.path = target  # it was still hidden
            raise
        proofs.extend(found)

    return proved


def _remove(path: str) -> None:
    """What an earlier export left there: the folder holds the forms of one model."""
    for file in (path, f"{path}.seal", f"{path}.json"):
        with suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(file)


def _size(path: str) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if os.path.isfile(path) else [str(p) for p in Path(path).rglob("*") if p.is_file()]
    return sum(map(os.path.getsize, files))


def table(forms: Sequence[Form], name: str, scans: int) -> list[str]:
    """What the forms are compared with, and an aligned Markdown table: the worst engine of each form."""
    judged = (
        f"{name} on {scans} scan{'s' * (scans > 1)}"
        if scans
        else "the golden pair, which is noise; --verify DIR takes scans"
    )
    rows = [["file", "size", "error / logits' range", "labels as fp32", "Dice", "remark"]]
    for form in forms:
        size = "-" if form.size is None else f"{form.size / 1e6:.2f} MB"
        error = f"{max(p.error for p in form.proofs):.1e}" if form.proofs else "-"
        labels = f"{100 * min(p.labels for p in form.proofs):.4f} %" if form.proofs else "-"
        dice = min((p.dice for p in form.proofs if p.dice is not None), default=None)
        rows.append([form.name, size, error, labels, "-" if dice is None else f"{dice:.4f}", form.remark])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [f"compared with {judged}:", *(f"| {line} |" for line in lines)]
