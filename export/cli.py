"""seg-export: from a trained run to one self-describing file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from seg.infer.console import guarded, say, version_option

if TYPE_CHECKING:
    from torch import nn

    from seg.infer.spec import ModelSpec

    from .triton import TritonBackendName

CARD_ENTRIES = ("data", "license", "limits")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def seg_export(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder that seg-train wrote; for --triton and --bundle also an exported file or a shipped model.")],
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="MODEL.onnx", help="File to write.", show_default=False)] = None,
    triton: Annotated[str | None, typer.Option(metavar="DIR", help="Add the model to a Triton server's model repository.")] = None,
    triton_backend: Annotated[Literal["onnxruntime", "python", "tensorrt"], typer.Option(help="What runs it there: the server's ONNX Runtime, our engine in its Python backend, or its TensorRT (for a plan).")] = "onnxruntime",
    triton_half: Annotated[bool, typer.Option("--triton-half", help="Half the traffic, in float16; python backend.")] = False,
    bundle: Annotated[str | None, typer.Option(metavar="DIR", help="Write a MONAI bundle, which runs without seg-toolkit.")] = None,
    card: Annotated[str | None, typer.Option(metavar="FILE.toml", help="Entries for the model card: data, license, limits.")] = None,
    features: Annotated[bool, typer.Option("--features", help="Offer the features too: less memory with many classes.")] = False,
    precision: Annotated[Literal["fp32", "fp16", "int8"], typer.Option(help="fp16 is half the size; int8 a quarter and faster on CPUs, it needs --calibration.")] = "fp32",
    calibration: Annotated[str | None, typer.Option(metavar="DIR", help="Scans of the kind that the model will see; the training folder is a good choice.")] = None,
    scans: Annotated[int, typer.Option(min=1, help="Scans to calibrate on, taken evenly from that folder.")] = 12,
    verify: Annotated[str | None, typer.Option(metavar="DIR", help="Scans, best with labels, on which int8 is compared with fp32.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: version_option = False,
) -> None:  # fmt: skip
    """Export the student network to ONNX, proven against torch before it is kept, or hand a model to a server."""
    with guarded("seg-export", debug):
        int8 = None
        if precision == "int8" and calibration is not None:
            int8 = Int8(calibration, scans, verify)
        elif precision == "int8" or calibration is not None or verify is not None:
            raise typer.BadParameter("--precision int8 and --calibration DIR go together; --verify DIR needs them")
        if sum(target is not None for target in (output, triton, bundle)) != 1:
            raise typer.BadParameter("give one of -o MODEL.onnx, --triton DIR and --bundle DIR")
        if output is not None:
            _export(source, output, card, features, precision == "fp16", int8, overwrite, quiet)
            return
        with _artifact(source, (card, features, precision == "fp16", int8)) as path:
            if triton is not None:
                _to_triton(path, triton, triton_backend, triton_half, overwrite, quiet)
            elif bundle is not None:
                _to_bundle(path, bundle, quiet)


@dataclass(frozen=True)
class Int8:
    """What an int8 export takes besides the run: folders of scans, and how many to calibrate on."""

    calibration: str
    scans: int
    verify: str | None


def _export(
    run: str, output: str, card: str | None, features: bool, half: bool, int8: Int8 | None, overwrite: bool, quiet: bool
) -> None:
    import os
    from pathlib import Path

    from seg.infer.errors import Exit, SegError
    from seg.infer.outputs import refuse_unwritable

    if not output.endswith(".onnx"):
        raise SegError("E-OUT-SUFFIX", Exit.USAGE, output, "an artifact is an ONNX file", "end the name in .onnx")
    refuse_unwritable(output, overwrite)
    entries = _card_entries(card) if card is not None else {}

    from .onnx_ import export
    from .run import load_run, remark

    module, spec = load_run(Path(run), entries)
    if not quiet and (text := remark(spec)):
        say(f"note: {text}")
    if int8 is not None:
        _export_int8(module, spec, run, output, features, int8, quiet)
        return
    spec, parity = export(module, spec, output, features=features, half=half)
    if not quiet:
        size = os.path.getsize(output) / 1e6
        print(
            f"{output}: {size:.1f} MB, differs from torch by {parity.error:.1e} of the logits' range, "
            f"labels equal on {100 * parity.labels:.4f} %",
            file=sys.stderr,
        )
        print(f"next: seg-infer scan.nii.gz -o mask.nii.gz -m {output}", file=sys.stderr)


@contextmanager
def _artifact(source: str, options: tuple[str | None, bool, bool, Int8 | None]) -> Iterator[str]:
    """Path of the artifact that SOURCE is, or of one that is exported from the run that it is."""
    import os
    import tempfile

    from seg.infer.artifact import resolve

    if os.path.isdir(source):
        with tempfile.TemporaryDirectory(prefix="seg-export-") as folder:
            path = os.path.join(folder, "model.onnx")
            _export(source, path, *options, overwrite=False, quiet=True)
            yield path
    elif any(options):
        raise typer.BadParameter("--card, --features and --precision are for runs; this model is exported already")
    else:
        yield resolve(source)


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
    module: "nn.Module", spec: "ModelSpec", run: str, output: str, features: bool, int8: Int8, quiet: bool
) -> None:
    import os
    import tempfile
    from pathlib import Path

    from seg.train.run import read_config

    from .calibration import calibration_cases, verification_cases
    from .int8 import quantise
    from .onnx_ import export

    validation = set(read_config(Path(run))["split"]["val"])
    calibration = calibration_cases(int8.calibration, int8.scans, validation)
    verification = verification_cases(int8.verify, validation) if int8.verify is not None else []
    with tempfile.TemporaryDirectory(prefix="seg-export-") as folder:
        fp32 = os.path.join(folder, "fp32.onnx")
        export(module, spec, fp32, features=features)
        before = os.path.getsize(fp32)
        quantise(fp32, output, calibration, verification, (lambda _: None) if quiet else say)
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
