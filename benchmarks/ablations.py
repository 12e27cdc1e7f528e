"""What does each part of CrossMatch and of HSTF contribute? At any size.

Of CrossMatch Tables 4 and 5 and Fig. 5 of its paper, and four more:

  eta            weight of the assistant against the teacher, 0.1 to 0.5     (Table 4)
  gap            between weak and strong feature perturbation, 0 to 0.75     (Table 5)
  perturbation   dropout, alpha dropout, feature alpha dropout               (Fig. 5)
  threshold      confidence from which a voxel of the teacher counts
  reading        of that threshold: fixed as in the text, or as in the code
  labels         number of labelled cases, beside supervised training on the same ones
  choices        the fast preset, and without one of its choices at a time, whatever --preset says

Of HSTF, on V-Net, or with --network hstf, hstf_s or hstf2d under another --name:

  hstf-methods   supervised, CrossMatch, HSTF, HSTF with CrossMatch
  hstf-parts     from CrossMatch to all parts of HSTF at the proposal's times, one more a row
  hstf-scale     consistency across scales: off, as augmentation alone, down, up, both, both as proposed
  hstf-rounds    of pseudo-labels: none, one, three, three early; without cleaning, without stability in the quality
  hstf-weights   of voxels: none, a hard threshold, SoftMatch's
  hstf-statistics  of batch norm for inference: from labelled and weak streams, from strong or scaled ones too
  hstf-streams   of CrossMatch: as its fast preset has them, with Dice alone, as proposed

Of its network, whatever --network says (but --network hstf shares the row of the whole network with those above):

  hstf-attention   the transformer, none, convolutions of as many weights, at the coarsest level alone
  hstf-design      as it is, without positions, rotary positions, instance norm, nearest-neighbour upsampling
  hstf-backbones   V-Net, HSTF-B and HSTF-S, each with supervision alone and with CrossMatch

Every row is a training with one option or network changed, scored as in accuracy.py; rows that two ablations have in
common (the preset as it is) are trained once. Killed, it goes on where it was: the same command again.

  python benchmarks/ablations.py eta --name hippocampus-800 --data hippocampus --labels 10 \\
      --window 32,48,32 --width 8 --iterations 800
  python benchmarks/ablations.py eta gap --name la-paper --data LA --labels 8 --seeds 0 \\
      --config benchmarks/recipes/crossmatch-la.toml
  python benchmarks/ablations.py perturbation --name la-paper --data LA --labels 4 8 16 --seeds 0 \\
      --config benchmarks/recipes/crossmatch-la.toml
  python benchmarks/ablations.py hstf-methods hstf-parts hstf-scale hstf-rounds hstf-weights \\
      hstf-statistics hstf-streams --name hstf-hippocampus --data hippocampus \\
      --labels 10 --window 32,48,32 --width 8 --iterations 800
  python benchmarks/ablations.py hstf-attention hstf-design hstf-backbones --network hstf --name hstf-networks ...
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import environment as env
import experiments as ex
from seeds import Rows, Summary, columns, label_names, series, shifts, with_labels
from trainings import Row, config_of

BASELINE = "supervised"


@dataclass(frozen=True)
class Ablation:
    """One option of CrossMatch and the values it takes; `option` None compares numbers of labels alone.

    `methods` holds names and what is trained, for other methods and where rows differ in more than one option.
    """

    title: str
    option: str | None
    values: tuple[float | str, ...] = ()
    methods: tuple[tuple[float | str, str], ...] = ()


FAST = "crossmatch:fast"
CHOICES = (
    ("as it is", FAST),
    ("Dice alone", f"{FAST},distance=dice"),
    ("one batch norm for all streams", f"{FAST},batch_norm=shared"),
    ("weights of 1", f"{FAST},ip_weight=1.0,kd_weight=1.0"),
    ("gap of 0.5", f"{FAST},gap=0.5"),
    ("no ramp", f"{FAST},ramp_up=0.0"),
    ("the student teaches", f"{FAST},teacher=apart"),
    ("no averaged weights", f"{FAST},teacher=apart,ema=0.0"),
    ("PyTorch's start", f"{FAST},background_start=false"),
    ("dropout of 0.5", f"{FAST},dropout=0.5"),
)
BOTH = "hstf_crossmatch"
CROSSMATCH = "crossmatch:fast,labeled_batch=4"  # as many as HSTF's methods have
PROPOSED = "gap=0.5,distance=dice,strong_statistics=true,ip_weight=0.5,kd_weight=1.0"
ALL = f"{BOTH}:all"
PARTS = (
    ("EMA teacher, threshold", f"{BOTH},rounds=[]"),
    ("+ scaled consistency", f"{ALL},weights=threshold,rounds=[],feature_weight=0.0"),
    ("+ features", f"{ALL},weights=threshold,rounds=[]"),
    ("+ pseudo-labels", f"{ALL},weights=threshold,curriculum=[1.0]"),
    ("+ curriculum", f"{ALL},weights=threshold"),
    ("+ SoftMatch: all", ALL),
)
ATTENTION = {"full": "hstf", "none": "hstf_identity", "convolutions": "hstf_conv", "T4 alone": "hstf_t4"}
DESIGN = {
    "as it is": "hstf",
    "no positions": "hstf_noposition",
    "rotary positions": "hstf_rope",
    "instance norm": "hstf_instance",
    "nearest + convolution": "hstf_nearest",
}


def networks(names: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """HSTF with CrossMatch on each network."""
    return tuple((name, f"{BOTH}@{network}") for name, network in names.items())


ABLATIONS = {
    "eta": Ablation("Weight of the assistant, eta", "eta", (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)),
    "gap": Ablation("Gap between the perturbations", "gap", (0.0, 0.25, 0.5, 0.75)),
    "perturbation": Ablation("Kind of feature perturbation", "perturbation", ("dropout", "alpha", "feature_alpha")),
    "threshold": Ablation("Confidence threshold", "threshold", (0.5, 0.6, 0.7, 0.75, 0.85, 0.95)),
    "reading": Ablation(
        "Reading of the threshold",
        None,
        methods=(
            ("fixed, the text", "crossmatch:paper"),
            ("rising, x ln 2, the code", "crossmatch:paper,threshold_ramp=true"),
        ),
    ),
    "labels": Ablation("Number of labelled cases", None),
    "choices": Ablation("Choices of the fast preset", None, methods=CHOICES),
    "hstf-methods": Ablation(
        "HSTF's parts by method", None, methods=tuple((m, m) for m in (BASELINE, CROSSMATCH, "hstf", BOTH))
    ),
    "hstf-parts": Ablation(
        "From CrossMatch to HSTF",
        None,
        methods=(
            ("CrossMatch", CROSSMATCH),
            *PARTS,
        ),
    ),
    "hstf-scale": Ablation(
        "Consistency across scales",
        None,
        methods=(
            ("off", BOTH),
            *((v, f"{BOTH},csc={v}") for v in ("augment", "down", "up", "both")),
            ("both, as proposed", f"{BOTH},csc=both,csc_weight=0.5,feature_weight=0.1"),
        ),
    ),
    "hstf-rounds": Ablation(
        "Rounds of pseudo-labels",
        None,
        methods=(
            ("none", f"{BOTH},rounds=[]"),
            ("one", f"{BOTH},rounds=[0.5]"),
            ("three", BOTH),
            ("three, early", f"{BOTH},rounds=[0.22,0.44,0.72]"),
            ("three, no cleaning", f"{BOTH},cleaning=off"),
            ("three, quality by scales alone", f"{BOTH},stability=false"),
        ),
    ),
    "hstf-weights": Ablation(
        "Weights of voxels",
        None,
        methods=(("threshold", BOTH), *((v, f"{BOTH},weights={v}") for v in ("none", "softmatch"))),
    ),
    "hstf-statistics": Ablation(
        "Batch norm's statistics for inference",
        None,
        methods=(
            ("labelled and weak", BOTH),
            ("and strong", f"{BOTH},strong_statistics=true"),
            ("with scales", f"{BOTH},csc=both"),
            ("with scales, and scaled", f"{BOTH},csc=both,scaled_statistics=true"),
        ),
    ),
    "hstf-streams": Ablation(
        "CrossMatch's streams",
        None,
        methods=(
            ("as crossmatch:fast", BOTH),
            ("Dice alone", f"{BOTH},distance=dice"),
            ("as proposed", f"{BOTH},{PROPOSED}"),
        ),
    ),
    "hstf-attention": Ablation("What the transformer gives", None, methods=networks(ATTENTION)),
    "hstf-design": Ablation("Position, norm and upsampling", None, methods=networks(DESIGN)),
    "hstf-backbones": Ablation(
        "Networks by method",
        None,
        methods=tuple(
            (name, name) for n in ("vnet", "hstf", "hstf_s") for name in (f"{BASELINE}@{n}", f"crossmatch:fast@{n}")
        ),
    ),
}


def main() -> None:
    """Train what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ablations", nargs="+", choices=list(ABLATIONS), metavar="ABLATION")
    parser.add_argument("--preset", default="paper", help="of CrossMatch, whose options are changed one at a time")
    ex.add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.smoke:
            ex.make_small(options, Path(folder))
        if not (options.name and options.data and options.labels):
            parser.error("--name, --data and --labels are needed")
        sys.exit(benchmark(options))


def benchmark(options: argparse.Namespace) -> int:
    """Run the rows and print; 1 when one failed."""
    base = f"crossmatch:{options.preset}"
    settings = ex.base_settings(options)
    results = ex.Results(
        options.results / f"ablations-{options.name}.json",
        {**ex.size_of(settings), "preset": options.preset},
        partial(tables, base=base, network=settings.network),
        partial(panels, base=base, network=settings.network),
    )
    rows = [
        Row(method, labels, seed)
        for seed in options.seeds
        for name in options.ablations
        for labels in options.labels
        for method in variants(ABLATIONS[name], base, settings.network).values()
    ]
    failed = ex.run(list(dict.fromkeys(rows)), results, settings, options)
    print(results.render())
    return 1 if failed else 0


def variants(ablation: Ablation, base: str, network: str = "vnet") -> dict[float | str, str]:
    """Value -> method. The value that the preset has anyway is the preset itself; --network's is not named."""
    if ablation.methods:
        return {value: method.removesuffix(f"@{network}") for value, method in ablation.methods}
    if ablation.option is None:
        return {BASELINE: BASELINE, base: base}
    own = getattr(config_of(base, network), ablation.option)
    return {value: base if value == own else f"{base},{ablation.option}={value}" for value in ablation.values}


def measured(rows: Rows, base: str, network: str = "vnet") -> dict[str, dict[float | str, Rows]]:
    """Ablation -> value -> its rows, for those that compare at least two values."""
    found = {}
    for name, ablation in ABLATIONS.items():
        groups = {
            value: [row for row in rows if row["method"] == method]
            for value, method in variants(ablation, base, network).items()
        }
        groups = {value: group for value, group in groups.items() if group}
        if len(groups) > 1:
            found[name] = groups
    return found


def tables(rows: Rows, base: str, network: str = "vnet") -> str:
    """A headed table for each ablation, with a line a value and number of labels."""
    text = []
    for name, groups in measured(rows, base, network).items():
        lines = []
        for value, group in groups.items():
            shown = f"{value} (p {(1 - value) / 2:g} and {(1 + value) / 2:g})" if name == "gap" else str(value)  # type: ignore[operator]
            for labels in label_names(group):
                lines.append([shown, labels, *Summary.of(with_labels(group, labels)).cells()])
        text.append(f"{ABLATIONS[name].title}\n\n" + env.table((name, "labelled", *columns(rows)), lines))
    return "\n\n".join(text)


def panels(rows: Rows, base: str, network: str = "vnet") -> list[Any]:
    """Dice of each ablation: over its values where these are numbers, else over the numbers of labels."""
    from seg.train.chart import Panel

    found = []
    for name, groups in measured(rows, base, network).items():
        title = f"{ABLATIONS[name].title}: Dice (%), mean and spread over seeds"
        labels = label_names([row for group in groups.values() for row in group])
        if all(isinstance(value, float) for value in groups):
            each = {n: {float(v): with_labels(group, n) for v, group in groups.items()} for n in labels}
            lines = [series(f"{n} labelled", of, "dice") for n, of in each.items()]
            found.append(Panel(title, name, lines))
            continue
        lines = []
        for (value, group), shift in zip(groups.items(), shifts(len(groups)), strict=True):
            of = {float(x): with_labels(group, n) for x, n in enumerate(labels)}
            lines.append(series(str(value), of, "dice", shift=shift, joined=False))
        found.append(Panel(title, "labelled cases", lines, labels))
    return found


if __name__ == "__main__":
    main()
