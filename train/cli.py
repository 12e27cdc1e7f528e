"""seg-train: from a folder of scans to a trained run."""

import os
import sys
from collections.abc import Callable
from math import inf
from typing import Annotated, Any, Literal, NoReturn, cast

import typer

from seg.infer.console import guarded, version_option

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

WORTH = 0.001  # of Dice, from which on the largest component alone is advised; no class may lose more
FLAGS = {"compiled": "compile", "options": "set"}  # parameter -> flag, where the names differ
SETTINGS = {"compiled": "compile", "graphs": "compile"}  # parameter -> field of Settings, likewise
EVALUATION = {"data", "output", "evaluate", "cases", "split", "overwrite", "device", "quiet", "debug"}  # its flags


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
    if len(values) != 3 or not all(0 < value < inf for value in values):
        raise typer.BadParameter(f"{text!r} is not one or three positive numbers like 112,112,80")
    return values


@app.command()
def seg_train(
    ctx: typer.Context,
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="Folder(s) of scans: images/ and labels/, labeled/ and unlabeled/, nnU-Net or Decathlon.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="RUN", help="Run folder to write.")],
    method: Annotated[str, typer.Option(help="supervised, crossmatch, hstf, hstf_crossmatch, or one of twelve more, with :PRESET where it has some; see also --distill.")] = "supervised",
    preset: Annotated[str | None, typer.Option(help="Named settings of the method; crossmatch: paper, official, fast; hstf_crossmatch: all.")] = None,
    distill: Annotated[str | None, typer.Option(metavar="TEACHER", help="Learn from a trained run, an exported file or a shipped model: a smaller student, see --width.")] = None,
    network: Annotated[str, typer.Option(help="vnet, hstf (CNN and transformer) or hstf_s, its smaller size; for slices unet2d or hstf2d.")] = "vnet",
    labeled: Annotated[int | None, typer.Option(metavar="N", help="Use the labels of N patients, or labeledN of the split; the others are unlabelled.")] = None,
    split: Annotated[str | None, typer.Option(metavar="FILE", help="JSON with labeledN, train, unlabeled, val. Default: splits.json in DATA.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1)] = None,
    spacing: Annotated[str | None, typer.Option(metavar="MM", help="Network grid: one number or R,A,S in mm.")] = None,
    window: Annotated[str | None, typer.Option(metavar="X,Y,Z", help="Training window in voxels, multiples of 16; Z is 1 for slices.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Channels of the first stage.")] = None,
    device: Annotated[str, typer.Option("-d", "--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="torch.compile: a minute or more at the start, faster steps. Needs a C++ compiler.")] = False,
    graphs: Annotated[bool, typer.Option("--graphs", help="--compile with CUDA graphs: for small windows on a GPU.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: that of the first DATA folder.")] = None,
    validate_every: Annotated[int | None, typer.Option(min=0, metavar="STEPS", help="0: at the end alone.")] = None,
    config: Annotated[str | None, typer.Option(metavar="FILE.toml", help="Settings file; flags win over it.")] = None,
    options: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method, or augmentation.NAME, loop.NAME; may be repeated; wins over --config. Example: --set eta=0.1")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in RUN exactly.")] = False,
    evaluate: Annotated[str | None, typer.Option("--evaluate", metavar="MODEL", help="Train nothing: score a run folder or an exported model on DATA, results into RUN.")] = None,
    cases: Annotated[Literal["val", "test", "all"], typer.Option(help="With --evaluate: cases of the split, or all that have a label.")] = "val",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="With --evaluate: replace an evaluation in RUN.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: version_option = False,
) -> None:  # fmt: skip
    """Train a segmentation network on labelled and unlabelled scans."""
    given = {k for k in ctx.params if ctx.get_parameter_source(k).name == "COMMANDLINE"}  # type: ignore[union-attr]
    with guarded("seg-train", debug):
        if evaluate is not None:
            _refuse_flags(given - EVALUATION, "--evaluate does not take")
            if cases == "all":
                _refuse_flags(given & {"split"}, "--cases all does not take")
            _evaluate(evaluate, data, output, cases, split, overwrite, device, quiet)
            return
        _refuse_flags(given & {"cases", "overwrite"}, "without --evaluate there is no")
        from .settings import Settings

        settings = Settings(
            tuple(data), output, name, method, preset, network, labeled, split, iterations,
            _triple(spacing, float), _triple(window, int), width, device, cast(Any, precision), seed, validate_every,
            "graphs" if graphs else compiled,
            distill=distill,
        )  # fmt: skip
        if config is not None:
            named = {"preset"} if ":" in method else set()
            settings = settings.with_file(config, {SETTINGS.get(name, name) for name in given} | named)
        settings = settings.with_options(options or ())
        _refuse_unknown(settings.checked())
        _train(settings, resume, quiet or os.environ.get("RANK", "0") != "0")  # of torchrun's processes one talks


def _refuse_flags(names: set[str], text: str) -> None:
    if names:
        flags = sorted("--" + FLAGS.get(name, name).replace("_", "-") for name in names)
        raise typer.BadParameter(f"{text} {', '.join(flags)}")


def _refuse_unknown(settings: Any) -> None:
    from .methods import METHODS
    from .networks import NETWORKS
    from .networks.hstf_variants import VARIANTS

    for flag, value, table in (("--method", settings.method, METHODS), ("--network", settings.network, NETWORKS)):
        if value not in table:
            usual = ", ".join(name for name in table if name not in VARIANTS)
            raise typer.BadParameter(f"{flag} {value}: choose from {usual}")


def _train(settings: Any, resume: bool, quiet: bool) -> None:
    from .training import train

    tell, bar = _terminal(quiet)
    with bar as progress:
        task = progress.add_task("preparing", total=None)

        def report(step: int, total: int, losses: dict[str, float], rate: float) -> None:
            progress.update(
                task, completed=step, total=total, description=f"loss {sum(losses.values()):.4f}  {rate:.2f} it/s"
            )

        result = train(settings, resume=resume, say=tell, report=report)
    _tell_result(result, tell)
    tell(f"next: seg-export {settings.output} -o model.onnx")


def _evaluate(
    model: str, data: list[str], output: str, cases: Any, split: str | None, overwrite: bool, device: str, quiet: bool
) -> None:
    from .score import score

    tell, bar = _terminal(quiet)
    with bar as progress:
        task = progress.add_task("checking", total=None)

        def tick(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, description="cases")

        result = score(model, data, output, cases, split=split, overwrite=overwrite, device=device, say=tell, tick=tick)
    _tell_result(result, tell, "seg-export" if os.path.isdir(model) else "seg-infer")
    tell(f"every case: {output}/validation.csv, the worst: {output}/worst-cases.png")


def _terminal(quiet: bool) -> tuple[Callable[[str], None], Any]:
    """What prints a message, and a progress bar (none in a log file, which gets the messages alone)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

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
    shown = console.is_terminal and not quiet
    return tell, Progress(*columns, console=console, disable=not shown, refresh_per_second=2)


def _tell_result(result: dict[str, Any], tell: Callable[[str], None], tool: str = "seg-export") -> None:
    """The mean figures, what is wrong with them, and what the largest components alone would change, by which tool."""
    unit = result["unit"]
    for label, mean in result["mean"].items():
        tell(
            f"{label:<16} Dice {mean['dice']:.4f}  Jaccard {mean['jaccard']:.4f}  "
            f"95HD {mean['hd95']:.2f} {unit}  ASD {mean['asd']:.2f} {unit}"
        )
    for label, mean in result["mean"].items():
        of_all = label == "foreground" and len(result["mean"]) > 1  # the mean over classes
        if mean["dice"] == 0 and not of_all:
            tell(f"warning: {label} was found in no case: look at its labels, train longer, or take another --seed")
    if largest := result.get("largest_component"):
        gains = {label: mean["dice"] - result["mean"][label]["dice"] for label, mean in largest["mean"].items()}
        worth = bool(gains) and gains["foreground"] >= WORTH and min(gains.values()) >= -WORTH
        if worth or largest["default"]:
            how = "as this model has it" if largest["default"] else f"{tool} --largest-component has it so"
            dice = largest["mean"]["foreground"]["dice"]
            tell(f"the largest component of each class alone: Dice {dice:.4f} ({how})")


def main() -> NoReturn:
    """Entry point."""
    app()
    sys.exit(0)
