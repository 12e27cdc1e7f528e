"""Does a network keep its Dice on tiles larger than the windows it was trained on?

Convolutions see the same in any tile, but for its borders; attention sees more tokens. Every run's network segments its
validation cases in windows of the training's size, in tiles so many times as large along each axis but no larger than
the scan, and with the whole scan as one tile. A spec may say `tiling: free` where Dice does not fall, if the
network's cost grows with the voxels alone.

    python benchmarks/tiles.py --data LA vnet=runs/a hybrid=runs/b
"""

from dataclasses import replace
from typing import Any

import environment as env
from rescaling import arguments, named, scorer

FACTORS = (1.25, 1.5, 1.75)


def main() -> None:
    """Score every run with every tile."""
    options, folder = arguments(__doc__, FACTORS, "tiles")
    found = {}
    for entry in options.runs:
        name, run = named(entry)
        spec, dice = scorer(run, str(folder), options.cases)
        found[name] = {"window": dice(lambda _, s=spec: replace(s, tiling="window"))}
        found[name] |= {f"{f:g} x": dice(lambda case, s=spec, f=f: tiled(s, f, case)) for f in options.factors}
        found[name]["whole"] = dice(lambda _, s=spec: replace(s, tiling="free"))
    columns = ["run", "window", *(f"{f:g} x" for f in options.factors), "whole"]
    lines = [[name, *(f"{100 * row[tile]:.2f}" for tile in columns[1:])] for name, row in found.items()]
    env.report(options.name, {"data": folder.name, "dice": found}, env.table(columns, lines), options.results)


def tiled(spec: Any, factor: float, case: Any) -> Any:
    """The spec with windows `factor` times as large, on multiples of the stride; none reaches beyond the scan."""
    from seg.infer.nifti import inspect
    from seg.infer.preprocess import Grids

    header = inspect(case.images[0])
    grid = Grids.of(header.shape, header.affine, spec).network
    window = [
        s * min(max(1, round(w * factor / s)), -(-n // s)) if axis < spec.dims else w
        for axis, (n, w, s) in enumerate(zip(grid, spec.window, spec.stride, strict=True))
    ]
    return replace(spec, window=tuple(window), tiling="window")


if __name__ == "__main__":
    main()
