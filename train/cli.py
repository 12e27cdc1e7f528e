"""seg-train: from a folder of scans to a trained run."""

import os
import sys
from typing import Annotated, Any, NoReturn, cast

import typer

from seg.infer.console import guarded, version_option

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _triple(text: str | None, kind: type) -> Any:
    """ "112,112,80" or one number for all three axes -> tuple."""
    if text is None:
        return None
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) == 1:
        values *= 3
    if len(values) != 3 or min(values) <= 0:
        raise typer.BadParameter(f"{text!r} is not one or three positive numbers like 112,112,80")
    return values


@app.command()
def seg_train(
    ctx: typer.Context,
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="Folder(s) of scans: images/ and labels/, labeled/ and unlabeled/, or nnU-Net.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="RUN", help="Run folder to write.")],
    method: Annotated[str, typer.Option(help="supervised or crossmatch.")] = "supervised",
    preset: Annotated[str | None, typer.Option(help="Named settings of the method; crossmatch: paper, official, fast.")] = None,
    network: Annotated[str, typer.Option(help="vnet.")] = "vnet",
    labeled: Annotated[int | None, typer.Option(metavar="N", help="Use N labelled cases, the other training cases as unlabelled.")] = None,
    split: Annotated[str | None, typer.Option(metavar="FILE", help="JSON with labeledN, train, unlabeled, val. Default: splits.json in DATA.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1)] = None,
    spacing: Annotated[str | None, typer.Option(metavar="MM", help="Network grid: one number or R,A,S in mm.")] = None,
    window: Annotated[str | None, typer.Option(metavar="X,Y,Z", help="Training window in voxels, multiples of 16.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Channels of the first stage.")] = None,
    device: Annotated[str, typer.Option("-d", "--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="torch.compile: a minute or more at the start, faster steps. Needs a C++ compiler.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: the folder's.")] = None,
    validate_every: Annotated[int | None, typer.Option(min=0, metavar="STEPS", help="0: at the end alone.")] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE.toml", help="Settings file; flags win over it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in RUN exactly.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: version_option = False,
) -> None:  # fmt: skip
    """Train a segmentation network on labelled and unlabelled scans."""
    with guarded("seg-train", debug):
        from .settings import Settings

        settings = Settings(
            tuple(data), output, name, method, preset, network, labeled, split, iterations,
            _triple(spacing, float), _triple(window, int), width, device, cast(Any, precision), seed, validate_every,
            compiled,
        )  # fmt: skip
        if config is not None:
            given = {k for k in ctx.params if ctx.get_parameter_source(k).name == "COMMANDLINE"}  # type: ignore[union-attr]
            given = {"compile" if k == "compiled" else k for k in given}
            settings = settings.with_file(config, given)
        _refuse_unknown(settings.checked())
        _train(settings, resume, quiet or os.environ.get("RANK", "0") != "0")  # of torchrun's processes one talks


def _refuse_unknown(settings: Any) -> None:
    from .methods import METHODS
    from .networks import NETWORKS

    for flag, value, table in (("--method", settings.method, METHODS), ("--network", settings.network, NETWORKS)):
        if value not in table:
            raise typer.BadParameter(f"{flag} {value}: choose from {', '.join(table)}")


def _train(settings: Any, resume: bool, quiet: bool) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from .job import train

    console = Console(stderr=True, highlight=False)

    def tell(text: str) -> None:
        """One message as it is: names of files are neither wrapped, nor read as markup or emoji."""
        if not quiet or text.startswith("error: "):
            console.print(text, soft_wrap=True, markup=False, emoji=False)

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = console.is_terminal and not quiet  # a log file gets the messages alone
    with Progress(*columns, console=console, disable=not bar, refresh_per_second=2) as progress:
        task = progress.add_task("preparing", total=None)

        def report(step: int, total: int, losses: dict[str, float], rate: float) -> None:
            progress.update(
                task, completed=step, total=total, description=f"loss {sum(losses.values()):.4f}  {rate:.2f} it/s"
            )

        result = train(settings, resume=resume, say=tell, report=report)
    for label, mean in result["mean"].items():
        tell(
            f"{label:<16} Dice {mean['dice']:.4f}  Jaccard {mean['jaccard']:.4f}  "
            f"95HD {mean['hd95']:.2f} mm  ASD {mean['asd']:.2f} mm"
        )
    tell(f"next: seg-export {settings.output} -o model.onnx")


def main() -> NoReturn:
    """Entry point."""
    app()
    sys.exit(0)
