"""seg-infer: scans in, masks out. Nothing heavy is imported before the arguments are known to be good."""

from typing import Annotated, Any, Literal, NoReturn

import typer

from .console import guarded, launch, version_option

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _window(text: str | None) -> Any:
    """ "96,96,64" -> three voxel counts."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(
        part.strip().isascii() and part.strip().isdigit() and int(part) > 0 for part in parts
    ):
        raise typer.BadParameter(f"--window {text!r} is not three positive numbers like 96,96,64")
    return tuple(int(part) for part in parts)


def memory_size(text: str | None, option: str = "--max-memory") -> int | None:
    """ "4G", "500M" or bytes -> bytes."""
    if text is None:
        return None
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    try:
        size = int(float(number) * unit)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise typer.BadParameter(f"{option} {text!r} is not a size like 4G or 500M")
    return size


def _print_models(value: bool) -> None:
    if value:
        with guarded("seg-infer"):
            from .cards import model_table

            print(model_table())
        raise typer.Exit


def _list_series(path: str | None) -> None:
    if path is not None:
        with guarded("seg-infer"):
            from .dicom.listing import table
            from .dicomweb.address import is_address, parse_address

            if is_address(path):
                parse_address(path)  # one with a password must not be said to be no such file
            print(table(path))
        raise typer.Exit


def _print_codecs(value: bool) -> None:
    if value:
        with guarded("seg-infer"):
            from .dicom.decoders import codec_table

            print(codec_table())
        raise typer.Exit


def _selftest(model: str | None) -> None:
    if model is not None:
        with guarded("seg-infer"):
            from .selftest import run_selftest

            run_selftest(model)
        raise typer.Exit


def _demo(folder: str | None) -> None:
    if folder is not None:
        with guarded("seg-infer"):
            from .demo import run_demo

            status = run_demo(folder)
        raise typer.Exit(status)


@app.command()
def seg_infer(
    output: Annotated[str, typer.Option("-o", "--output", metavar="OUT", help="Mask file, or a folder for several.")],
    scans: Annotated[list[str] | None, typer.Argument(metavar="SCAN...", help="NIfTI files or DICOM series (folder, zip), folders of NIfTI files, quoted patterns, or @LIST.", show_default=False)] = None,
    inputs: Annotated[list[str] | None, typer.Option("-i", "--input", metavar="SCAN", help="The same as SCAN; may be repeated.")] = None,
    lists: Annotated[list[str] | None, typer.Option("--from", metavar="FILE", help="Text with one scan a line, and after a tab, if wanted, the mask's name; may be repeated.")] = None,
    model: Annotated[str | None, typer.Option("-m", "--model", help="Name from --models, or a file that seg-export wrote.  [default: left-atrium]", show_default=False)] = None,
    triton: Annotated[list[str] | None, typer.Option(metavar="HOST:PORT", help="Compute on a Triton server that has the model (gRPC port); repeat for several servers.")] = None,
    device: Annotated[str, typer.Option("-d", "--device", help="auto, cpu or cuda:N.")] = "auto",
    precision: Annotated[Literal["auto", "fp32", "bf16", "int8"], typer.Option(help="auto: as the model was exported; a shipped model's int8 form on the CPU.")] = "auto",
    max_memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Bound on the process, like 4G. Default: what is free.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="0: all that this process may use.")] = 0,
    window: Annotated[str | None, typer.Option(metavar="X,Y,Z", help="Tile in voxels of the network grid. Default: the whole scan where it fits.")] = None,
    overlap: Annotated[float | None, typer.Option(min=0.0, max=0.95, help="Share of a tile that its neighbour covers too.")] = None,
    step_size: Annotated[float | None, typer.Option(min=0.05, max=1.0, metavar="F", help="The same, as nnU-Net says it: 1 - overlap.")] = None,
    protocol: Annotated[Literal["crossmatch"] | None, typer.Option(help="The papers' windows: 112x112x80, stride 18/18/4, uniform weights, probabilities averaged.")] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Average over the mirrorings that the model was trained with: two to eight times the time.")] = False,
    largest_component: Annotated[bool | None, typer.Option("--largest-component/--no-largest-component", help="Keep the largest connected part of each class, or all of them.  [default: as the model says]", show_default=False)] = None,
    save_probabilities: Annotated[bool, typer.Option("--save-probabilities", help="Write each class's probability beside the mask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan of each scan (windows, seconds, memory) and stop.")] = False,
    statistics: Annotated[str | None, typer.Option(metavar="FILE.json", help="Write volumes per class.")] = None,
    preview: Annotated[str | None, typer.Option(metavar="FILE.png", help="Write a picture of the mask; a folder for several scans.")] = None,
    report: Annotated[str | None, typer.Option(metavar="FILE.json", help="Write what was done, with which versions, and every error.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
    resume: Annotated[bool, typer.Option("--continue", help="Skip scans whose mask is there and proved whole and unchanged; make all others (again).")] = False,
    volume: Annotated[int | None, typer.Option(min=0, metavar="K", help="Take volume K (from 0) of a 4D file.")] = None,
    prefer: Annotated[Literal["sform", "qform"] | None, typer.Option(help="Which form to believe where sform and qform disagree.")] = None,
    nonfinite: Annotated[Literal["refuse", "zero"], typer.Option(help="What to do with NaN and infinite voxels.")] = "refuse",
    force_intensity: Annotated[bool, typer.Option("--force-intensity", help="Segment a scan whose intensities do not look like those the model was trained on.")] = False,
    series: Annotated[str | None, typer.Option("--series", metavar="WHICH", help="Of a DICOM folder with several series: number, UID, auto (the one that suits the model) or all.")] = None,
    time_point: Annotated[int | None, typer.Option(min=1, metavar="N", help="Take time point N (from 1) of a DICOM time series.")] = None,
    resample_tilt: Annotated[bool, typer.Option("--resample-tilt", help="Straighten DICOM series of a tilted gantry instead of refusing them.")] = False,
    form: Annotated[Literal["nifti", "seg", "labelmap", "rtstruct"] | None, typer.Option("--format", help="Of the masks. Default: by the name of OUT (.dcm is a DICOM SEG), else nifti. labelmap is the SEG of 2024, for many classes.", show_default=False)] = None,
    max_voxels: Annotated[int, typer.Option(min=1, help="Refuse larger scans before reading them.")] = 2_000_000_000,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    list_series: Annotated[str | None, typer.Option("--list", metavar="FOLDER", callback=_list_series, is_eager=True, help="Print the DICOM series in a folder or zip file as a table, and exit.")] = None,
    codecs: Annotated[bool, typer.Option("--codecs", callback=_print_codecs, is_eager=True, help="Print which compressed DICOM can be read here, and exit.")] = False,
    models: Annotated[bool, typer.Option("--models", callback=_print_models, is_eager=True, help="List the shipped models with their cards and exit.")] = False,
    selftest: Annotated[str | None, typer.Option("--selftest", metavar="MODEL", callback=_selftest, is_eager=True, help="Prove a model on this machine against its golden pair, and exit.")] = None,
    demo: Annotated[str | None, typer.Option("--demo", metavar="FOLDER", callback=_demo, is_eager=True, help="Segment a synthetic scan, all outputs into FOLDER, and exit.")] = None,
    version: version_option = False,
) -> None:  # fmt: skip
    """Segment 3D scans. Each mask lies on its scan's exact grid."""
    tiled = {"--protocol": protocol, "--window": window, "--overlap": overlap, "--step-size": step_size}
    given = [flag for flag, value in tiled.items() if value is not None]
    if len(given) > 1 and given != ["--window", given[-1]]:
        raise typer.BadParameter(f"{' and '.join(given if protocol else given[-2:])} exclude each other")
    tile, memory = _window(window), memory_size(max_memory)
    overlap = overlap if step_size is None else 1.0 - step_size
    words = [*(scans or ()), *(inputs or ())]
    if not words and not lists:
        raise typer.BadParameter("no scans: give files, folders, patterns or --from FILE")
    with guarded("seg-infer", debug):
        from .batch import PROTOCOLS, ComputeOptions, ReadOptions, Request, TilingOptions, run

        tiling = PROTOCOLS[protocol] if protocol else TilingOptions(tile, overlap)

        request = Request(
            words,
            output,
            lists or [],
            model=model,
            triton=triton or [],
            device=device,
            computing=ComputeOptions(
                tiling, precision, threads, memory, tta, largest_component, save_probabilities, force_intensity
            ),
            reading=ReadOptions(max_voxels, nonfinite, volume, prefer, series, time_point, resample_tilt),
            form=form,
            statistics=statistics,
            preview=preview,
            report=report,
            overwrite=overwrite,
            resume=resume,
            dry_run=dry_run,
            quiet=quiet,
            debug=debug,
        )
        status = run(request)
    raise typer.Exit(status)


def main() -> NoReturn:
    """Entry point."""
    launch(app)
