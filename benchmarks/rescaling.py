"""How does Dice fall when scans appear larger or smaller than in training?

A scan is resampled to a grid that is finer or coarser by each factor, so that the network sees everything so much
larger or smaller; the mask comes back on the scan's own grid and is scored there, on the validation cases. "fall" is
the mean over the factors of the Dice lost against factor 1.

    python benchmarks/rescaling.py --data hippocampus with-csc=runs/a without-csc=runs/b
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import environment as env

FACTORS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4)


def main() -> None:
    """Score every run at every factor."""
    options, folder = arguments(__doc__, FACTORS, "rescaling")
    factors = sorted({*options.factors, 1.0})  # `fall` compares with 1
    curves = {}
    for entry in options.runs:
        name, run = named(entry)
        curves[name] = curve(run, str(folder), factors, options.cases)
    columns = ["run", *(f"{f:g}" for f in factors), "fall"]
    lines = [
        [name, *(f"{100 * d:.2f}" for d in dice.values()), f"{100 * fall(dice):.2f}"] for name, dice in curves.items()
    ]
    content = {"data": folder.name, "dice": {name: {f"{f:g}": d for f, d in c.items()} for name, c in curves.items()}}
    env.report(options.name, content, env.table(columns, lines), options.results)


def arguments(question: str | None, factors: tuple[float, ...], name: str) -> tuple[argparse.Namespace, Path]:
    """Runs, factors and cases as the user gives them, and the data folder."""
    parser = argparse.ArgumentParser(description=question, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--data", required=True, help="data set in SEG_DATA (else ../shared/data), or a folder")
    parser.add_argument("--factors", nargs="+", type=float, default=factors)
    parser.add_argument("--cases", type=int, help="the first N validation cases; default all")
    parser.add_argument("--name", default=name, help="of the result file")
    parser.add_argument("--results", type=Path, default=env.RESULTS)
    options = parser.parse_args()
    return options, Path(options.data) if Path(options.data).is_dir() else env.DATA / options.data


def named(entry: str) -> tuple[str, Path]:
    """NAME=RUN, or the folder of a run alone; folders may have "=" in their names too."""
    name, given, run = entry.partition("=")
    return (name, Path(run)) if given and not Path(entry).is_dir() else (Path(entry).name, Path(entry))


def curve(run: Path, data: str, factors: list[float], cases: int | None) -> dict[float, float]:
    """Factor -> mean Dice of the run's validation cases."""
    spec, dice = scorer(run, data, cases)
    return {factor: dice(lambda _, f=factor: scaled(spec, f)) for factor in factors}


def scorer(run: Path, data: str, cases: int | None) -> tuple[Any, Callable[[Callable[[Any], Any]], float]]:
    """The run's spec, and what gives its network's mean Dice on the validation cases, each under a spec of its own."""
    import torch

    from seg.infer.spec import ModelSpec
    from seg.train.cases import discover
    from seg.train.config import trained_method
    from seg.train.evaluate import validate

    method, config, _ = trained_method(run)
    val = [case for case in discover([data]).cases if case.id in config["split"]["val"]][:cases]

    def dice(spec_of: Callable[[Any], ModelSpec]) -> float:
        network, device = method.deployed(), torch.device("cpu")
        found = [validate(network, [case], spec_of(case), device, torch.float32) for case in val]
        return mean(result["mean"]["foreground"]["dice"] for result in found)

    return ModelSpec.from_dict(config["spec"]), dice


def scaled(spec: Any, factor: float) -> Any:
    """The spec whose grid shows everything `factor` times as large."""
    dims = spec.dims
    spacing = tuple(None if s is None else s / factor if a < dims else s for a, s in enumerate(spec.spacing))
    if None in spacing[:dims]:
        raise SystemExit("a network on each scan's own grid has no scale to change: train with --spacing")
    return replace(spec, spacing=spacing)


def fall(dice: dict[float, float]) -> float:
    """Mean Dice lost at the factors other than 1."""
    own = dice[1.0]
    others = [own - value for factor, value in dice.items() if factor != 1.0]
    return sum(others) / len(others) if others else 0.0


if __name__ == "__main__":
    main()
