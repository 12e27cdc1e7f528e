"""seg-infer: scans in, masks out. Nothing heavy is imported before the arguments are known to be good."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from .console import guarded, version_option

if TYPE_CHECKING:
    from .artifact import Artifact
    from .pipeline import ReadOptions, Result
    from .predict import TilingOptions

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _window(text: str | None) -> Any:
    """ "96,96,64" -> three voxel counts."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--window {text!r} is not three positive numbers like 96,96,64")
    return tuple(int(part) for part in parts)


def _print_models(value: bool) -> None:
    if value:
        from .cards import model_table

        print(model_table())
        raise typer.Exit


def _demo(folder: str | None) -> None:
    if folder is not None:
        with guarded("seg-infer"):
            from .demo import run_demo

            status = run_demo(folder)
        raise typer.Exit(status)


@app.command()
def seg_infer(
    scans: Annotated[list[str], typer.Argument(metavar="SCAN...", help="NIfTI files, or folders of them.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="OUT", help="Mask file, or a folder for several.")],
    model: Annotated[str | None, typer.Option("-m", "--model", help="Name from --models, or an .onnx file.  [default: left-atrium]", show_default=False)] = None,
    device: Annotated[str, typer.Option("-d", "--device", help="auto, cpu or cuda:N.")] = "auto",
    precision: Annotated[Literal["fp32", "bf16", "auto"], typer.Option(help="auto: bf16 where the CPU multiplies it fast.")] = "fp32",
    threads: Annotated[int, typer.Option(min=0, help="0: all that this process may use.")] = 0,
    window: Annotated[str | None, typer.Option(metavar="X,Y,Z", help="Tile in voxels of the network grid. Default: the whole scan where it fits.")] = None,
    overlap: Annotated[float | None, typer.Option(min=0.0, max=0.95, help="Share of a tile that its neighbour covers too.")] = None,
    statistics: Annotated[str | None, typer.Option(metavar="FILE.json", help="Write volumes per class.")] = None,
    preview: Annotated[str | None, typer.Option(metavar="FILE.png", help="Write a picture of the mask; a folder for several scans.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
    volume: Annotated[int | None, typer.Option(min=0, metavar="K", help="Take volume K (from 0) of a 4D file.")] = None,
    prefer: Annotated[Literal["sform", "qform"] | None, typer.Option(help="Which form to believe where sform and qform disagree.")] = None,
    nonfinite: Annotated[Literal["refuse", "zero"], typer.Option(help="What to do with NaN and infinite voxels.")] = "refuse",
    max_voxels: Annotated[int, typer.Option(min=1, help="Refuse larger scans before reading them.")] = 2_000_000_000,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    models: Annotated[bool, typer.Option("--models", callback=_print_models, is_eager=True, help="List the shipped models with their cards and exit.")] = False,
    demo: Annotated[str | None, typer.Option("--demo", metavar="FOLDER", callback=_demo, is_eager=True, help="Segment a synthetic scan, all outputs into FOLDER, and exit.")] = None,
    version: version_option = False,
) -> None:  # fmt: skip
    """Segment 3D scans. Each mask lies on its scan's exact grid."""
    tile = _window(window)
    with guarded("seg-infer", debug):
        from .pipeline import ReadOptions
        from .predict import TilingOptions

        request = Request(
            scans, output, model, device, precision, threads, TilingOptions(tile, overlap),
            ReadOptions(max_voxels, nonfinite, volume, prefer),
            statistics, preview, overwrite, quiet,
        )  # fmt: skip
        status = run(request)
    raise typer.Exit(status)


@dataclass(frozen=True)
class Request:
    """One call of seg-infer, arguments parsed."""

    scans: list[str]
    output: str
    model: str | None
    device: str
    precision: str
    threads: int
    tiling: "TilingOptions"
    reading: "ReadOptions"
    statistics: str | None
    preview: str | None
    overwrite: bool
    quiet: bool


def run(request: Request) -> int:
    """Check everything that needs no computing, load the network beside the first scan, segment. Returns the status."""
    from concurrent.futures import ThreadPoolExecutor

    from .artifact import load, resolve
    from .inputs import plan_jobs, plan_previews, refuse_unwritable

    jobs = plan_jobs(request.scans, request.output, request.overwrite)
    previews = plan_previews(request.preview, jobs)
    refuse_unwritable(request.statistics)
    artifact = load(resolve(request.model))
    if request.model is None and not request.quiet:
        print(f"model: {artifact.spec.name} (choose another with -m; seg-infer --models lists them)", file=sys.stderr)
    with ThreadPoolExecutor(1, "load") as loader:
        from .backends import open_backend

        options = {"precision": request.precision, "threads": request.threads}
        backend = loader.submit(open_backend, "openvino", artifact.path, request.device, **options)
        from .pipeline import Extras, process

        extras = Extras(request.statistics is not None, previews, request.overwrite)
        results: list[Result] = []
        for result in process(jobs, artifact, backend, request.tiling, extras, request.reading):
            results.append(result)
            _report(result, len(results), len(jobs), request.quiet)
    if request.statistics is not None:
        _write_statistics(request.statistics, artifact, results)
    failed = [r.error for r in results if r.error is not None]
    if len(jobs) == 1:
        return int(failed[0].exit) if failed else 0
    if failed:
        print(f"seg-infer: {len(failed)} of {len(jobs)} scans failed", file=sys.stderr)
    return 40 if failed else 0


def _report(result: "Result", number: int, total: int, quiet: bool) -> None:
    """One line per scan on stderr: the error, or what was written and how long it took."""
    if result.error is not None:
        print(f"seg-infer: error {result.error}", file=sys.stderr)
    elif not quiet:
        from .errors import printable

        count = f"[{number}/{total}] " if total > 1 else ""
        stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in result.seconds.items())
        print(f"{count}{printable(result.job.mask)}  ({stages} s)", file=sys.stderr)
        for note in result.notes:
            print(f"note: {printable(result.job.scan)}: {note}", file=sys.stderr)


def _write_statistics(path: str, artifact: "Artifact", results: "list[Result]") -> None:
    import json

    from .atomic import atomic_text

    content = {
        "model": artifact.spec.name,
        "graph_sha256": artifact.spec.graph_sha256,
        "scans": [
            {"scan": r.job.scan, "mask": r.job.mask, "classes": r.statistics}
            if r.error is None
            else {"scan": r.job.scan, "error": r.error.as_dict()}
            for r in results
        ],
    }
    atomic_text(path, json.dumps(content, indent=1) + "\n")


def main() -> NoReturn:
    """Entry point."""
    app()
    sys.exit(0)
