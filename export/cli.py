"""seg-export: from a trained run to one self-describing file."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from seg.infer.console import guarded, say, version_option

if TYPE_CHECKING:
    from torch import nn

    from seg.infer.spec import ModelSpec

    from .onnx_ import Parity
    from .triton import TritonBackendName

CARD_ENTRIES = ("data", "license", "limits")
ENGINES = (".engine", ".plan")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _inspect(path: str | None) -> None:
    if path is not None:
        with guarded("seg-export"):
            from .inspect_ import inspect_file

            inspect_file(path)
        raise typer.Exit


@app.command()
def seg_export(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder that seg-train wrote; for an engine, --triton and --bundle also an exported file or a shipped model.")],
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="MODEL", help="File to write: .onnx; .engine or .plan for TensorRT; .pt2 for a PyTorch program that runs here alone.", show_default=False)] = None,
    triton: Annotated[str | None, typer.Option(metavar="DIR", help="Add the model to a Triton server's model repository.")] = None,
    triton_backend: Annotated[Literal["onnxruntime", "python", "tensorrt"], typer.Option(help="What runs it there: the server's ONNX Runtime, our engine in its Python backend, or its TensorRT (for a plan).")] = "onnxruntime",
    triton_half: Annotated[bool, typer.Option("--triton-half", help="Half the traffic, in float16; python backend.")] = False,
    bundle: Annotated[str | None, typer.Option(metavar="DIR", help="Write a MONAI bundle, which runs without seg-toolkit.")] = None,
    card: Annotated[str | None, typer.Option(metavar="FILE.toml", help="Entries for the model card: data, license, limits.")] = None,
    features: Annotated[bool, typer.Option("--features", help="Offer the features too: less memory with many classes.")] = False,
    precision: Annotated[Literal["fp32", "fp16", "int8"], typer.Option(help="fp16 is half the size; int8 a quarter and faster on CPUs, it needs --calibration.")] = "fp32",
    calibration: Annotated[str | None, typer.Option(metavar="DIR", help="Scans of the kind that the model will see; the training folder is a good choice.")] = None,
    scans: Annotated[int, typer.Option(min=1, help="Scans to calibrate on, taken evenly from that folder.")] = 12,
    verify: Annotated[str | None, typer.Option(metavar="DIR", help="Whole scans, best with labels: the file through OpenVINO, ONNX Runtime and onnx.reference against torch.")] = None,
    trt: Annotated[bool, typer.Option("--trt", help="Build a TensorRT engine for the GPU of this machine; -o ends in .engine or .plan.")] = False,
    trt_profile: Annotated[str | None, typer.Option(metavar="MIN,OPT,MAX", help="Windows (2D: slices) computed at once. Default: 1,2,4 (2D: 1,16,32).")] = None,
    trt_window: Annotated[str | None, typer.Option(metavar="X,Y,Z", help="The engine's window in voxels. Default: that of the training.")] = None,
    workspace: Annotated[str, typer.Option(metavar="SIZE", help="Memory TensorRT may use beside the tensors: 512M, 4G.")] = "4G",
    timing_cache: Annotated[str | None, typer.Option(metavar="FILE", help="Keep TensorRT's measurements: later builds are faster.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    inspect: Annotated[str | None, typer.Option("--inspect", metavar="FILE", callback=_inspect, is_eager=True, help="Print an exported file's card, sizes and precision by layer type, prove it here, and exit.")] = None,
    version: version_option = False,
) -> None:  # fmt: skip
    """Export the student network, proven against torch before it is kept, or hand a model to a server."""
    with guarded("seg-export", debug):
        if (precision == "int8" and os.path.isdir(source)) != (calibration is not None):
            raise typer.BadParameter("--precision int8 and --calibration DIR go together")
        if sum(target is not None for target in (output, triton, bundle)) != 1:
            raise typer.BadParameter("give one of -o MODEL, --triton DIR and --bundle DIR")
        engine = output is not None and output.endswith(ENGINES)
        tuned = any(x is not None for x in (trt_profile, trt_window, timing_cache))
        if (trt or tuned) and not engine:
            raise typer.BadParameter("--trt and its options go with -o MODEL.engine")
        options = Options(card, features, precision, calibration, scans, verify)
        if output is not None and not engine:
            _export(source, output, options, overwrite, quiet)
            return
        if engine:
            from .tensorrt_ import tensorrt_here

            tensorrt_here()
        with _artifact(source, options, quiet) as path:
            if triton is not None:
                _to_triton(path, triton, triton_backend, triton_half, overwrite, quiet)
            elif bundle is not None:
                _to_bundle(path, bundle, quiet)
            elif output is not None:
                _to_engine(path, output, (trt_profile, trt_window, workspace, timing_cache), overwrite, quiet)


@dataclass(frozen=True)
class Options:
    """What the export of a run takes: entries of the card, form, and folders of scans."""

    card: str | None
    features: bool
    precision: Literal["fp32", "fp16", "int8"]
    calibration: str | None
    scans: int
    verify: str | None


def _export(run: str, output: str, options: Options, overwrite: bool, quiet: bool) -> None:
    from pathlib import Path

    from seg.infer.errors import Exit, SegError
    from seg.infer.outputs import refuse_unwritable

    if not output.endswith((".onnx", ".pt2")):
        fix = "end the name in .onnx, .engine, .plan or .pt2"
        raise SegError("E-OUT-SUFFIX", Exit.USAGE, output, "its suffix names no form of a model", fix)
    if output.endswith(".pt2") and (options.features or options.precision != "fp32" or options.verify):
        raise typer.BadParameter("a .pt2 program is fp32, with the logits alone, and is proven by itself")
    refuse_unwritable(output, overwrite)
    entries = _card_entries(options.card) if options.card is not None else {}

    from .run import load_run, remark

    module, spec = load_run(Path(run), entries)
    if not quiet and (text := remark(spec)):
        say(f"note: {text}")
    if output.endswith(".pt2"):
        from .program import export_program

        _, parity = export_program(module, spec, output)
        _tell(output, parity, quiet)
        return
    prove = _prover(module, run, options, quiet)
    if options.precision == "int8":
        _export_int8(module, spec, run, output, options, prove, quiet)
        return
    from .onnx_ import export

    half = options.precision == "fp16"
    _, parity = export(module, spec, output, features=options.features, half=half, prove=prove)
    _tell(output, parity, quiet)


def _tell(output: str, parity: "Parity", quiet: bool) -> None:
    if not quiet:
        say(
            f"{output}: {os.path.getsize(output) / 1e6:.1f} MB, differs from torch by {parity.error:.1e} "
            f"of the logits' range, labels equal on {100 * parity.labels:.4f} %"
        )
        say(f"next: seg-infer scan.nii.gz -o mask.nii.gz -m {output}")


def _prover(module: "nn.Module", run: str, options: Options, quiet: bool) -> "Callable[[str], None]":
    """What proves a finished file on the scans of --verify; nothing without."""
    if options.verify is None:
        return lambda _: None
    from pathlib import Path

    from seg.train.run import read_config

    from .calibration import verification_cases
    from .proof import prove

    cases = verification_cases(options.verify, set(read_config(Path(run))["split"]["val"]))

    def proved(path: str) -> None:
        prove(module, path, cases, (lambda _: None) if quiet else say)

    return proved


@contextmanager
def _artifact(source: str, options: Options, quiet: bool) -> Iterator[str]:
    """Path of the artifact that SOURCE is, or of one that is exported from the run that it is."""
    import tempfile

    from seg.infer.artifact import load, resolve
    from seg.infer.compute import stored_precision

    if os.path.isdir(source):
        with tempfile.TemporaryDirectory(prefix="seg-export-") as folder:
            path = os.path.join(folder, "model.onnx")
            _export(source, path, options, overwrite=False, quiet=True)
            yield path
        return
    if options.card or options.features or options.verify:
        raise typer.BadParameter("--card, --features and --verify are for runs; this model is exported already")
    path = resolve(source, options.precision)
    if options.precision != "fp32" and (found := stored_precision(load(path).spec)) != options.precision:
        raise typer.BadParameter(f"{source} is exported already, in {found}: --precision is for runs")
    yield path


def _to_engine(
    path: str, output: str, given: tuple[str | None, str | None, str, str | None], overwrite: bool, quiet: bool
) -> None:
    from seg.infer.cli import memory_size

    from .plan_build import BuildOptions
    from .tensorrt_ import export_engine

    profile, window, workspace, timing_cache = given
    options = BuildOptions(
        _three(profile, "--trt-profile"),
        _three(window, "--trt-window"),
        memory_size(workspace, "--workspace") or 0,
        timing_cache,
    )
    done = export_engine(path, output, options, (lambda _: None) if quiet else say, overwrite=overwrite)
    if not quiet:
        say(f"{output}: {done}")
        say(f"next: seg-infer scan.nii.gz -o mask.nii.gz -d cuda:0 -m {output}")


def _three(text: str | None, option: str) -> tuple[int, int, int] | None:
    """ "1,2,4" -> three positive integers."""
    if text is None:
        return None
    words = text.split(",")
    if len(words) != 3 or not all(word.strip().isdigit() for word in words):
        raise typer.BadParameter(f"{option} takes three whole numbers, found {text!r}")
    a, b, c = map(int, words)
    return a, b, c


def _to_triton(path: str, folder: str, backend: "TritonBackendName", half: bool, overwrite: bool, quiet: bool) -> None:
    from .triton import write_model_repository

    model = write_model_repository(path, folder, backend, half=half, overwrite=overwrite)
    if not quiet:
        say(f"{folder}: the model {model} for the backend {backend}")
        say(f"next: tritonserver --model-repository {folder}")
        say(f"      seg-infer scan.nii.gz -o mask.nii.gz -m {model} --triton localhost:8001")


def _to_bundle(path: str, folder: str, quiet: bool) -> None:
    from .bundle import write_bundle

    write_bundle(path, folder)
    if not quiet:
        say(
            f"next: see {folder}/docs/README.md, or python -m monai.bundle run --config_file {folder}/configs/inference.json"
        )


def _card_entries(path: str) -> dict[str, str]:
    """The user's entries of the card. What the export knows itself, such as the figures, is not theirs to write."""
    import tomllib
    from pathlib import Path

    from seg.infer.errors import Exit, SegError

    try:
        entries = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: not TOML, or not UTF-8
        raise SegError("E-CONFIG", Exit.USAGE, path, f"cannot be read ({error})", "give a TOML file") from error
    for key, value in entries.items():
        if key not in CARD_ENTRIES:
            found, expected = f"unknown entry {key}", f"only {', '.join(CARD_ENTRIES)}"
            raise SegError("E-CONFIG", Exit.USAGE, path, found, "remove it", expected)
        if not isinstance(value, str):
            raise SegError("E-CONFIG", Exit.USAGE, path, f"{key} is {value!r}", "correct the value", "text in quotes")
    return entries


def _export_int8(
    module: "nn.Module",
    spec: "ModelSpec",
    run: str,
    output: str,
    options: Options,
    prove: "Callable[[str], None]",
    quiet: bool,
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
            f"{output}: {size / 1e6:.1f} MB, {100 * size / before:.0f} % of fp32; calibrated on {len(calibration)} scans"
        )
        say(f"next: seg-infer scan.nii.gz -o mask.nii.gz -m {output}")


def main() -> NoReturn:
    """Entry point."""
    app()
    sys.exit(0)
