"""Does a network keep its Dice on tiles larger than the windows it was trained on?

Convolutions see the same in any tile, but for its borders; attention sees more tokens. Every run's network segments its
validation cases in windows of the training's size, in windows so many times as large along each axis, and with the
whole scan as one tile. A spec may say `tiling: free` where the last column does not fall.

    python benchmarks/tiles.py --data LA vnet=runs/a hybrid=runs/b
"""

from dataclasses import replace
from typing import Any

import environment as env
from rescaling import arguments, named, scorer

FACTORS = (1.0, 1.25, 1.5)


def main() -> None:
    """Score every run with every tile."""
    options, folder = arguments(__doc__, FACTORS, "tiles")
    found = {}
    for entry in options.runs:
        name, run = named(entry)
        spec, dice = scorer(run, str(folder), options.cases)
        tiles = {f"{f:g} x": tiled(spec, f) for f in options.factors} | {"whole": replace(spec, tiling="free")}
        found[name] = {tile: {"window": list(s.window), "dice": dice(s)} for tile, s in tiles.items()}
    columns = ["run", *(f"{f:g} x" for f in options.factors), "whole"]
    lines = [[name, *(f"{100 * row[tile]['dice']:.2f}" for tile in columns[1:])] for name, row in found.items()]
    env.report(options.name, {"data": folder.name, "tiles": found}, env.table(columns, lines), options.results)


def tiled(spec: Any, factor: float) -> Any:
    """The spec with windows `factor` times as large, on multiples of the stride, and no larger tiles than those."""
    window = [s * max(1, round(w * factor / s)) for w, s in zip(spec.window, spec.stride, strict=True)]
    return replace(spec, window=tuple(window), tiling="window")


if __name__ == "__main__":
    main()
