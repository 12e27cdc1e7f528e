"""How accurate is a method with few labels, against the same network without it and with every label?

Trains every method with every number of labels and every seed at one size, through seg-train's own path, and scores the
final weights on the validation cases: no choice of a checkpoint, no post-processing, an empty prediction counts as a
failure (its distances are the image's diagonal). The table has the papers' columns, mean and spread (sample standard
deviation) over seeds; `all` is the fully labelled row. Killed, it goes on where it was: the same command again.

Methods are written NAME[:PRESET][@NETWORK][,OPTION=VALUE...]: supervised, crossmatch:paper, crossmatch:fast,eta=0.1,
supervised@hstf; without a network that of --network is trained. What HSTF's transformer gives with supervision alone:
--methods supervised@hstf supervised@hstf_identity supervised@hstf_conv

  python benchmarks/accuracy.py --name hippocampus-800 --data hippocampus --labels 10 20 all \\
      --window 32,48,32 --width 8 --iterations 800
  python benchmarks/accuracy.py --name la-1.25mm --data LA --labels 8 all --window 64,64,48 --spacing 1.25 --width 8
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any

import environment as env
import experiments as ex
from seeds import ALL, Rows, Summary, columns, label_names, series, shifts, unit_of, with_labels
from trainings import Row, config_of

MANY = 7  # methods, beyond which a chart of points has more series than colours
METHODS = ("supervised", "crossmatch:paper", "crossmatch:official", "crossmatch:fast")


def main() -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    ex.add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.smoke:
            ex.make_small(options, Path(folder))
            options.labels.append(ALL)
        if not (options.name and options.data and options.labels):
            parser.error("--name, --data and --labels are needed")
        sys.exit(benchmark(options))


def benchmark(options: argparse.Namespace) -> int:
    """Run the rows and print; 1 when one failed."""
    settings = ex.base_settings(options)
    results = ex.Results(options.results / f"accuracy-{options.name}.json", ex.size_of(settings), table, panels)
    failed = ex.run(plan_rows(options.methods, options.labels, options.seeds), results, settings, options)
    print(results.render())
    rows = results.rows()
    if len(methods_of(rows)) > MANY:
        bars(rows).save(results.path.with_suffix(".png"))
    return 1 if failed else 0


def plan_rows(methods: Sequence[str], labels: Sequence[int | str], seeds: Sequence[int]) -> list[Row]:
    """Seed by seed, so that a partial table has all methods; `all` is for methods without unlabelled data."""
    return [
        Row(method, count, seed)
        for seed in seeds
        for count in labels
        for method in methods
        if count != ALL or not config_of(method).unlabeled_batch
    ]


def table(rows: Rows) -> str:
    """One line a number of labels and method, the fully labelled last."""
    lines = []
    for labels in label_names(rows):
        for method in methods_of(rows):
            group = [row for row in with_labels(rows, labels) if row["method"] == method]
            if group:
                used = f"{group[0]['labeled']} (all)" if labels == ALL else labels
                lines.append([method, used, str(group[0]["unlabeled"]), *Summary.of(group).cells()])
    return env.table(("method", "labelled", "unlabelled", *columns(rows)), lines)


def panels(rows: Rows) -> list[Any]:
    """Dice and 95HD of every method over the numbers of labels."""
    from seg.train.chart import Panel

    names, methods = label_names(rows), methods_of(rows)
    found = []
    for metric, title in (("dice", "Dice (%)"), ("hd95", f"95HD ({unit_of(rows)})")):
        lines = []
        for method, shift in zip(methods, shifts(len(methods)), strict=True):
            own = [row for row in rows if row["method"] == method]
            groups = {x: with_labels(own, name) for x, name in enumerate(names)}
            lines.append(series(method, groups, metric, shift=shift, joined=False))
        found.append(Panel(f"{title}, mean and spread over seeds", "labelled cases", lines, names))
    return found


def bars(rows: Rows) -> Any:
    """Dice of every method, a bar for each number of labels: for more methods than there are colours."""
    from seg.train.chart import bar_chart

    methods, found = methods_of(rows), {}
    for name in label_names(rows):
        group = with_labels(rows, name)
        own = [[100 * row["mean"]["dice"] for row in group if row["method"] == method] for method in methods]
        found[f"{name} labelled"] = [sum(values) / len(values) if values else nan for values in own]
    return bar_chart("Dice (%), mean over seeds", methods, found)


def methods_of(rows: Rows) -> list[str]:
    """Methods in the order they were first trained."""
    return list(dict.fromkeys(row["method"] for row in rows))


if __name__ == "__main__":
    main()
