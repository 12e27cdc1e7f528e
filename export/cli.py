"""seg-export: from a trained run to one self-describing file."""

import sys
from typing import Annotated, NoReturn

import typer
from seg.infer.console import guarded, version_option

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def seg_export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder that seg-train wrote.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="MODEL.onnx", help="File to write.")],
    card: Annotated[str | None, typer.Option(metavar="FILE.toml", help="Entries for the model card: data, license, limits.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: version_option = False,
) -> None:  # fmt: skip
    """Export the student network to ONNX, proven against torch before it is kept."""
    with guarded("seg-export", debug):
        _export(run, output, card, overwrite, quiet)


def _export(run: str, output: str, card: str | None, overwrite: bool, quiet: bool) -> None:
    import os
    import tomllib
    from pathlib import Path

    from seg.infer.errors import Exit, SegError

    if not output.endswith(".onnx"):
        raise SegError("E-OUT-SUFFIX", Exit.USAGE, output, "an artifact is an ONNX file", "end the name in .onnx")
    if os.path.exists(output) and not overwrite:
        raise SegError("E-OUT-EXISTS", Exit.OUTPUT, output, "the file exists", "choose another name or --overwrite")
    entries = {}
    if card is not None:
        try:
            entries = tomllib.loads(Path(card).read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise SegError("E-CONFIG", Exit.USAGE, card, f"cannot be read ({error})", "give a TOML file") from error

    from .onnx_ import export
    from .run import load_run

    module, spec = load_run(Path(run), entries)
    spec, parity = export(module, spec, output)
    if not quiet:
        size = os.path.getsize(output) / 1e6
        print(
            f"{output}: {size:.1f} MB, differs from torch by {parity.error:.1e} of the logits' range, "
            f"labels equal on {100 * parity.labels:.4f} %",
            file=sys.stderr,
        )
        print(f"next: seg-infer scan.nii.gz -o mask.nii.gz -m {output}", file=sys.stderr)


def main() -> NoReturn:
    """Entry point."""
    app()
    sys.exit(0)
