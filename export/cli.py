"""seg-export: from a trained run to one self-describing file."""

import os
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from seg.infer.console import guarded, say, version_option

from .from_run import OF_RUNS, Options, artifact_of, export_run

if TYPE_CHECKING:
    from .triton import TritonBackendName

ENGINES = (".engine", ".plan")
SCANS, WORKSPACE = 12, "4G"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _inspect(path: str | None) -> None:
    if path is not None:
        with guarded("seg-export"):
            from .inspect_ import inspect_file

            inspect_file(path)
        raise typer.Exit


@app.command()
def seg_export(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder that seg-train wrote; for an engine, --triton, --bundle and --all also an exported file or a shipped model.")],
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="MODEL", help="File to write: .onnx; .engine or .plan for TensorRT; .pt2 for a PyTorch program that runs here alone.", show_default=False)] = None,
    triton: Annotated[str | None, typer.Option(metavar="DIR", help="Add the model to a Triton server's model repository.")] = None,
    triton_backend: Annotated[Literal["onnxruntime", "python", "tensorrt"] | None, typer.Option(help="What runs it there: the server's ONNX Runtime, our engine in its Python backend, or its TensorRT (for a plan).", show_default="onnxruntime")] = None,
    triton_half: Annotated[bool, typer.Option("--triton-half", help="Half the traffic, in float16; python backend.")] = False,
    bundle: Annotated[str | None, typer.Option(metavar="DIR", help="Write a MONAI bundle, which runs without seg-toolkit.")] = None,
    all_forms: Annotated[str | None, typer.Option("--all", metavar="DIR", help="Write every form that can be made here, each proven, and a table of them.")] = None,
    card: Annotated[str | None, typer.Option(metavar="FILE.toml", help="Entries for the model card: data, license, limits.")] = None,
    largest_component: Annotated[bool, typer.Option("--largest-component", help="Masks keep the largest connected part of each class alone; seg-train says what that gives.")] = False,
    features: Annotated[bool, typer.Option("--features", help="Offer the features too: less memory with many classes.")] = False,
    precision: Annotated[Literal["fp32", "fp16", "int8"], typer.Option(help="fp16 is half the size; int8 a quarter and faster on CPUs, it needs --calibration.")] = "fp32",
    calibration: Annotated[str | None, typer.Option(metavar="DIR", help="Scans of the kind that the model will see; the training folder is a good choice.")] = None,
    scans: Annotated[int | None, typer.Option(min=1, help="Scans to calibrate on, taken evenly from that folder.", show_default=str(SCANS))] = None,
    verify: Annotated[str | None, typer.Option(metavar="DIR", help="Whole scans, best with labels: the file through OpenVINO, ONNX Runtime and onnx.reference against torch.")] = None,
    trt: Annotated[bool, typer.Option("--trt", help="Build a TensorRT engine for the GPU of this machine; -o ends in .engine or .plan.")] = False,
    trt_profile: Annotated[str | None, typer.Option(metavar="MIN,OPT,MAX", help="Windows (2D: slices) computed at once. Default: 1,2,4 (2D: 1,16,32).")] = None,
    trt_window: Annotated[str | None, typer.Option(metavar="X,Y,Z", help="The engine's window in voxels. Default: that of the training.")] = None,
    workspace: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory TensorRT may use beside the tensors: 512M, 4G.", show_default=WORKSPACE)] = None,
    timing_cache: Annotated[str | None, typer.Option(metavar="FILE", help="Keep TensorRT's measurements: later builds are faster.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    inspect: Annotated[str | None, typer.Option("--inspect", metavar="FILE", callback=_inspect, is_eager=True, help="Print an exported file's card, sizes and precision by layer type, prove it here, and exit.")] = None,
    version: version_option = False,
) -> None:  # fmt: skip
    """Export the student network, proven against torch before it is kept, or hand a model to a server."""
    with guarded("seg-export", debug):
        engine = output is not None and output.endswith(ENGINES)
        tuning, calibrates = (trt_profile, trt_window, workspace, timing_cache), calibration is not None
        for wrong, what in (
            (sum(x is not None for x in (output, triton, bundle, all_forms)) != 1, "give one of -o MODEL, --triton DIR, --bundle DIR and --all DIR"),
            (all_forms is None and (precision == "int8" and os.path.isdir(source)) != calibrates, "--precision int8 and --calibration DIR go together"),
            (all_forms is not None and precision != "fp32", "--all writes every precision: leave --precision out"),
            ((trt or tuning != (None,) * 4) and not engine, "--trt and its options go with -o MODEL.engine"),
            ((triton_backend is not None or triton_half) and triton is None, "--triton-backend and --triton-half go with --triton DIR"),
            (scans is not None and not calibrates, "--scans goes with --calibration DIR"),
        ):  # fmt: skip
            if wrong:
                raise typer.BadParameter(what)
        options = Options(card, largest_component, features, precision, calibration, scans or SCANS, verify)
        backend = triton_backend or "onnxruntime"
        if all_forms is not None:
            _to_all(source, all_forms, options, overwrite, quiet)
            return
        if output is not None and not engine:
            export_run(source, output, options, overwrite, quiet)
            return
        if engine and output is not None:
            _refuse_engine(output, overwrite)
        elif bundle is not None:
            _refuse_bundle(bundle, overwrite)
        elif triton is not None and os.path.isdir(source):
            _refuse_triton(source, triton, backend, triton_half, overwrite)
        with artifact_of(source, options, quiet) as path:
            if triton is not None:
                _to_triton(path, triton, backend, triton_half, overwrite, quiet)
            elif bundle is not None:
                _to_bundle(path, bundle, overwrite, quiet)
            elif output is not None:
                _to_engine(path, output, tuning, overwrite, quiet)


def _to_all(source: str, folder: str, options: Options, overwrite: bool, quiet: bool) -> None:
    from pathlib import Path

    from seg.infer.artifact import resolve
    from seg.train.run import read_config

    from .calibration import calibration_cases, validation_ids, verification_cases
    from .forms import Scans, make_all, refuse_outputs
    from .run import load_run, remark
    from .source import Source

    tell = (lambda _: None) if quiet else say
    run = Path(source) if os.path.isdir(source) else None
    if run is not None:
        entries = options.card_entries()
        made_from = Source.of_run(*load_run(run, entries, largest_component=options.largest_component))
        if text := remark(made_from.spec):
            tell(f"note: {text}")
    elif options.of_runs:
        raise typer.BadParameter(f"{OF_RUNS} are for runs; this model is exported already")
    else:
        made_from = Source.of_artifact(resolve(source))
    refuse_outputs(folder, made_from.name, overwrite)

    def held_out(data: str) -> set[str]:
        return validation_ids(data) if run is None else set(read_config(run)["split"]["val"])

    scans = Scans(
        calibration_cases(data, options.scans, held_out(data)) if (data := options.calibration) is not None else (),
        verification_cases(data, held_out(data)) if (data := options.verify) is not None else (),
    )
    make_all(made_from, folder, scans, tell, features=options.features)


def _to_engine(
    path: str, output: str, given: tuple[str | None, str | None, str | None, str | None], overwrite: bool, quiet: bool
) -> None:
    from seg.infer.cli import memory_size

    from .plan_build import BuildOptions
    from .tensorrt_ import export_engine

    profile, window, workspace, timing_cache = given
    options = BuildOptions(
        _three(profile, "--trt-profile"),
        _three(window, "--trt-window"),
        memory_size(workspace or WORKSPACE, "--workspace") or 0,
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


def _refuse_engine(path: str, overwrite: bool) -> None:
    from .tensorrt_ import refuse_engine, tensorrt_here

    tensorrt_here()
    refuse_engine(path, overwrite)


def _refuse_bundle(folder: str, overwrite: bool) -> None:
    from .bundle import refuse_bundle

    refuse_bundle(folder, overwrite)


def _refuse_triton(run: str, folder: str, backend: "TritonBackendName", half: bool, overwrite: bool) -> None:
    """What would be refused once the run is exported."""
    from pathlib import Path

    from seg.infer.spec import ModelSpec
    from seg.train.run import read_config

    from .triton import refuse_repository

    spec = ModelSpec.from_dict(read_config(Path(run))["spec"])
    refuse_repository(run, spec, folder, backend, half=half, overwrite=overwrite)


def _to_triton(path: str, folder: str, backend: "TritonBackendName", half: bool, overwrite: bool, quiet: bool) -> None:
    from .triton import write_model_repository

    model = write_model_repository(path, folder, backend, half=half, overwrite=overwrite)
    if not quiet:
        say(f"{folder}: the model {model} for the backend {backend}")
        say(f"next: tritonserver --model-repository {folder}")
        say(f"      seg-infer scan.nii.gz -o mask.nii.gz -m {model} --triton localhost:8001")


def _to_bundle(path: str, folder: str, overwrite: bool, quiet: bool) -> None:
    from .bundle import write_bundle

    write_bundle(path, folder, overwrite=overwrite)
    if not quiet:
        home = shlex.quote(folder.rstrip("/") or folder)
        say(
            f"next: python -m monai.bundle run --config_file {home}/configs/inference.json "
            f"--meta_file {home}/configs/metadata.json --bundle_root {home} --dataset_dir SCANS --output_dir MASKS"
        )
        say(f"      {folder}/docs/README.md says what it needs")


def main() -> NoReturn:
    """Entry point."""
    app()
    sys.exit(0)
