"""Trainings that differ in their seed alone, summed up for tables and charts: mean and sample standard deviation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

Rows = Sequence[dict[str, Any]]  # as they stand in the results file

METRICS = ("dice", "jaccard", "hd95", "asd")  # the papers' columns
ALL = "all"  # every training case is labelled


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation over seeds of each metric; spread is None for a single seed."""

    seeds: int
    mean: dict[str, float]
    spread: dict[str, float] | None

    @classmethod
    def of(cls, rows: Rows) -> "Summary":
        values = {metric: [row["mean"][metric] for row in rows] for metric in METRICS}
        spread = {metric: stdev(v) for metric, v in values.items()} if len(rows) > 1 else None
        return cls(len(rows), {metric: mean(v) for metric, v in values.items()}, spread)

    def scaled(self, metric: str) -> tuple[float, float]:
        """Mean and spread as the papers give them: overlap in percent."""
        scale = 100 if metric in ("dice", "jaccard") else 1
        return scale * self.mean[metric], 0.0 if self.spread is None else scale * self.spread[metric]

    def cells(self) -> list[str]:
        """Each metric with its spread, and the number of seeds."""
        cells = []
        for metric in METRICS:
            average, spread = self.scaled(metric)
            cells.append(f"{average:.2f}" + ("" if self.spread is None else f" ± {spread:.2f}"))
        return [*cells, str(self.seeds)]


def columns(rows: Rows) -> list[str]:
    """Heads of `Summary.cells`."""
    return ["Dice (%)", "Jaccard (%)", f"95HD ({unit_of(rows)})", f"ASD ({unit_of(rows)})", "seeds"]


def unit_of(rows: Rows) -> str:
    """mm, or voxel where nothing says how large one is."""
    return str(rows[0].get("unit", "mm")) if rows else "mm"


def series(name: str, groups: Mapping[float, Rows], metric: str, *, shift: float = 0.0, joined: bool = True) -> Any:
    """A line of the chart: x -> the rows over whose seeds the metric is averaged."""
    from seg.train.chart import Series

    points = [(x + shift, *Summary.of(rows).scaled(metric)) for x, rows in sorted(groups.items()) if rows]
    xs, means, spreads = zip(*points, strict=True) if points else ((), (), ())
    return Series(name, xs, means, spreads, joined)


def shifts(count: int) -> list[float]:
    """Small distances, so that the points of `count` series at one name do not hide each other."""
    return [0.08 * (k - (count - 1) / 2) for k in range(count)]


def label_names(rows: Rows) -> list[str]:
    """Numbers of labelled cases in order, `all` last."""
    found = {row["labels"] for row in rows}
    return [str(count) for count in sorted(found - {ALL})] + ([ALL] if ALL in found else [])


def with_labels(rows: Rows, name: str) -> Rows:
    """The rows of one of the `label_names`."""
    return [row for row in rows if str(row["labels"]) == name]
