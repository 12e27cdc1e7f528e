"""What accuracy.py and ablations.py share: a grid of trainings and one results file (`seeds` makes tables of it).

The results file is the checkpoint. A row is written as soon as its training is validated, rows that are there are not
trained again, and a training that was killed goes on from its own checkpoint in its run folder. Several processes may
work on one file. It holds one size (data, window, width, iterations, ...): rows of different sizes are not comparable
and are refused. Its table lies beside it as Markdown and as a chart.
"""

import argparse
import fcntl
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import environment as env
from seeds import ALL, Rows
from trainings import Row, config_of, parse_method, parse_options, preset_options

CHECKPOINTS = ("checkpoint.pt", "checkpoint.previous.pt")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of both scripts: what is trained, at what size, and where it is kept."""
    parser.add_argument("--data", help="data set in SEG_DATA (else ../shared/data), or a folder")
    parser.add_argument("--config", help="seg-train settings file for all rows; flags win over it")
    parser.add_argument("--window", type=_numbers(int), help="X,Y,Z voxels")
    parser.add_argument("--spacing", type=_numbers(float), help="mm: one number, or R,A,S")
    parser.add_argument("--width", type=int)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--network")
    parser.add_argument("--device")
    parser.add_argument("--precision")
    parser.add_argument(
        "--options", default="", metavar="NAME=VALUE,...", help="of all; a row's or its preset's own win"
    )
    parser.add_argument("--labels", nargs="+", type=_labels, help="numbers of labelled cases, and `all`")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--name", help="of the results file; a new size needs a new name")
    parser.add_argument("--runs", type=Path, default=env.ROOT / "runs", help="where trainings are kept")
    parser.add_argument("--keep", action="store_true", help="keep the weights of finished trainings")
    parser.add_argument("--results", type=Path, default=env.RESULTS)
    parser.add_argument("--smoke", action="store_true", help="a step each on phantoms; writes no result")


def _numbers(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        values = tuple(kind(part) for part in text.split(","))
        return values * 3 if len(values) == 1 else values

    return parse


def _labels(text: str) -> int | str:
    return text if text == ALL else int(text)


def base_settings(options: argparse.Namespace) -> Any:
    """seg-train's settings that all rows have in common."""
    from seg.train.settings import Settings

    folder = Path(options.data)
    settings = Settings((str(folder if folder.is_dir() else env.DATA / options.data),), "", validate_every=0)
    if options.config:
        settings = settings.with_file(options.config, {"validate_every"})
    if settings.method_options or settings.preset or settings.labeled:
        raise SystemExit(f"{options.config}: method, preset and labels belong to the rows; name them with the flags")
    names = ("window", "spacing", "width", "iterations", "network", "device", "precision")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return replace(settings, method_options=parse_options(options.options), **given).checked()


def size_of(settings: Any) -> dict[str, Any]:
    """What all rows of one file must have in common, as JSON has it."""
    names = ("spacing", "window", "width", "iterations", "network", "precision", "augmentation", "loop")
    names += ("method_options", "cine") if settings.cine else ("method_options",)  # files without it stay what they are
    common = {name: getattr(settings, name) for name in names}
    return json.loads(json.dumps({"data": Path(settings.data[0]).name, **common}))


class Results:
    """The results file NAME.json of one experiment, with NAME.md and NAME.png made from it.

    Parameters
    ----------
    table : rows -> Markdown.
    panels : rows -> panels of the chart (`seg.train.chart.Panel`).

    Raises
    ------
    SystemExit : when the file is there and of another size.
    """

    def __init__(
        self,
        path: Path,
        size: dict[str, Any],
        table: Callable[[Rows], str],
        panels: Callable[[Rows], Sequence[Any]],
    ) -> None:
        self.path, self.size, self.table, self.panels = path, size, table, panels
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows()

    def rows(self) -> list[dict[str, Any]]:
        """Every finished row, as the file has them now."""
        if not self.path.exists():
            return []
        content = json.loads(self.path.read_text())
        if content["size"] != self.size:
            changed = sorted(k for k in self.size if content["size"].get(k) != self.size[k])
            was = ", ".join(f"{k} {content['size'].get(k)}, now {self.size[k]}" for k in changed)
            raise SystemExit(f"{self.path.name} is of another size ({was}); choose another --name")
        return list(content["rows"])

    def has(self, row: Row, options: dict[str, Any]) -> bool:
        """Whether a row is done; refuses one that had other options then, since a default is another now."""
        for found in self.rows():
            if all(found[k] == v for k, v in asdict(row).items()):
                was = found.get("options", options)  # rows from before these were kept are known by name alone
                changed = sorted(k for k in {*was, *options} if was.get(k) != options.get(k))
                if changed:
                    said = ", ".join(f"{k} {was.get(k)}, now {options.get(k)}" for k in changed)
                    raise SystemExit(f"{self.path.name} has {row.folder} with {said}; choose another --name")
                return True
        return False

    def add(self, row: dict[str, Any]) -> None:
        """One more row, with its environment; the file is replaced whole."""
        with open(self.path.with_suffix(".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            rows = [*self.rows(), row]
            content = {"environment": env.machine(), "size": self.size, "rows": rows}
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps({**content, "table": self.table(rows).splitlines()}, indent=1) + "\n")
            temporary.replace(self.path)

    def render(self) -> str:
        """Write Markdown and chart of the rows there are; returns the Markdown."""
        from seg.train.chart import chart

        rows = self.rows()
        text = self.table(rows)
        self.path.with_suffix(".md").write_text(text + "\n")
        if panels := self.panels(rows):
            chart(panels).save(self.path.with_suffix(".png"))
        return text


def run(rows: Sequence[Row], results: Results, settings: Any, options: argparse.Namespace) -> int:
    """Train the rows that are not done; returns how many failed. A signal stops at once and keeps the checkpoint."""
    from seg.infer.errors import SegError

    for row in rows:
        results.has(row, options_of(row, settings))  # a misspelled or changed one should not be found after hours
    failed = 0
    for number, row in enumerate(rows, 1):
        if results.has(row, options_of(row, settings)):
            continue
        began = time.monotonic()
        print(f"{number}/{len(rows)} {row.folder}", file=sys.stderr, flush=True)
        try:
            result = train_row(row, settings, options)
        except SegError as error:
            print(f"{row.folder}: {error}", file=sys.stderr, flush=True)
            if error.code == "E-STOPPED":
                raise SystemExit(int(error.exit)) from None
            failed += error.code != "E-RUN-LOCKED"  # another process is at it
            continue
        results.add(result)
        results.render()
        spent = time.monotonic() - began
        print(f"   Dice {result['mean']['dice']:.4f}, {spent:.0f} s", file=sys.stderr, flush=True)
    return failed


def train_row(row: Row, settings: Any, options: argparse.Namespace) -> dict[str, Any]:
    """One training through the product's own path, with its final weights on the validation cases."""
    from seg.train.training import train

    recipe = parse_method(row.method)
    folder = options.runs / options.name / row.folder
    settings = replace(
        settings,
        output=str(folder),
        method=recipe.method,
        preset=recipe.preset,
        network=recipe.network or settings.network,
        method_options=common_options(row, settings) | recipe.options,
        labeled=None if row.labels == ALL else row.labels,
        seed=row.seed,
    )
    found = train(settings, resume=(folder / "config.json").exists(), say=lambda _: None)
    split = json.loads((folder / "config.json").read_text())["split"]
    if not options.keep:
        for name in CHECKPOINTS:
            (folder / name).unlink(missing_ok=True)
    return {
        **asdict(row),
        "options": options_of(row, settings),
        "labeled": len(split["labeled"]),
        "unlabeled": len(split["unlabeled"]) if config_of(row.method, settings.network).unlabeled_batch else 0,
        "mean": found["mean"]["foreground"],
        "classes": {label: metrics for label, metrics in found["mean"].items() if label != "foreground"},
        "unit": found["unit"],
        "cases": len(found["cases"]),
        "commit": env.commit(),
        **({"pseudo_labels": rounds} if (rounds := pseudo_labels(folder)) else {}),
    }


def options_of(row: Row, settings: Any) -> dict[str, Any]:
    """Everything that a row's method is trained with, as JSON has it."""
    from seg.train.settings import override

    config = override(config_of(row.method, settings.network), common_options(row, settings), row.method)
    return dict(json.loads(json.dumps(asdict(config))))


def common_options(row: Row, settings: Any) -> dict[str, Any]:
    """Those of --options that neither the row nor its preset sets."""
    recipe = parse_method(row.method)
    own = preset_options(recipe.method, recipe.preset, recipe.network or settings.network) | recipe.options
    return {name: value for name, value in settings.method_options.items() if name not in own}


def pseudo_labels(run: Path) -> list[dict[str, float]]:
    """True Dice of a run's pseudo-labels after each round: of all unlabelled cases, and of those it uses."""
    found = []
    for path in sorted((run / "refinement").glob("round-*.json")):
        report = json.loads(path.read_text())
        dice = {case: facts["true_dice"] for case, facts in report["cases"].items() if "true_dice" in facts}
        used = [dice[case] for case in report["used"] if case in dice]
        if used:
            found.append({"dice": fmean(dice.values()), "dice_of_used": fmean(used), "used": len(report["used"])})
    return found


def make_small(options: argparse.Namespace, folder: Path) -> None:
    """--smoke: the options of a run on phantoms that takes seconds and leaves nothing behind."""
    options.data, options.labels, options.seeds = write_phantoms(folder / "data"), [2], [0]
    options.window, options.width, options.iterations = (16, 16, 16), 2, 1
    options.name, options.runs, options.results = "smoke", folder, folder


def write_phantoms(folder: Path) -> str:
    """Six small scans, each a bright box in noise, of which two validate."""
    import numpy as np

    from seg.infer.phantom import write_nifti

    for number in range(6):
        rng = np.random.default_rng(number)
        label = np.zeros((24, 24, 24), np.uint8)
        x, y, z = rng.integers(3, 11, 3)
        label[x : x + 10, y : y + 10, z : z + 10] = 1
        image = (rng.normal(100, 15, label.shape) + 80 * label).astype(np.int16)
        for part, content in (("images", image), ("labels", label)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            write_nifti(folder / part / f"p{number}.nii.gz", content, np.eye(4))
    split = {"labeled2": ["p0", "p1"], "train": ["p0", "p1", "p2", "p3"], "val": ["p4", "p5"]}
    (folder / "splits.json").write_text(json.dumps(split))
    return str(folder)
