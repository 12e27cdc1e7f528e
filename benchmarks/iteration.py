"""How long does one training iteration take, per method, and how much of it is the method's own?

Timed as Table 3 of the CrossMatch paper defines it, with a synchronised device: from the batch on the training device
to the end of the backward pass and the optimiser's step. Included: strong views, CutMix, every forward pass, losses,
backward, optimiser, moving averages. Not included: loading and weak augmentation (see --loading).

A row is METHOD[:PRESET][,FIELD=VALUE...], any method of seg.train; "supervised" with a labelled batch of 4 is V-Net,
the unit of the column "x V-Net". With --official the official code runs from a checkout, see official.py. Each row is
a process of its own; the rows take turns, iteration by iteration, so that whatever disturbs the machine disturbs all
alike, and a ratio is the median over the turns of the ratio within a turn. Where memory does not hold all processes,
--at-once has fewer take turns, V-Net in each group. --clock cpu takes the processes' CPU time: for a machine that
others use too, with --threads 1.

FLOP are counted by torch's FlopCounterMode over one whole iteration, two per multiply-add. In units of V-Net's they are
the floor of the time, and "time / floor" is what the method takes beyond it: host work, copies, layouts. "official
floor" is that of the passes in the official code, by reading it. The paper's FLOP column, 187.4 G for V-Net, is not the
cost of an iteration: it is thop's count of multiply-adds for one forward pass of a batch of 4 at 112 x 112 x 80, with
eight times those of transposed convolutions; without that error it is 160.4 G.
Each side runs as its users would: ours keeps freed memory for itself and takes --precision, by default bf16 where that
is faster (not on a CPU without AMX); the official code has float32 and the C library's allocation.
"peak" is a CPU process's greatest resident memory less what it had before the first iteration, or what torch allocated
on a GPU.

    python benchmarks/iteration.py --official CHECKOUT
    python benchmarks/iteration.py --loading --data LA --name iteration-loading
    python benchmarks/iteration.py --methods --at-once 4 --name iteration-methods
    python benchmarks/iteration.py --device cuda --window 112,112,80 --runs 50 --official CHECKOUT --results FOLDER
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import environment as env
import iteration_worker
from iteration_worker import COMPILED, GRAPHS, LOADING, MAPPED, OFFICIAL_ROW

UNIT = "supervised,labeled_batch=4"
ROWS = (
    UNIT,
    "crossmatch:fast",
    "crossmatch:fast,labeled_batch=2",  # the paper's batch
    "crossmatch:fast,labeled_batch=4",
    "crossmatch:paper",
    "crossmatch:official",
)
# --methods: Table 3 in its order, then the other methods of the papers' tables
METHODS = (UNIT, "ua_mt", "sassnet", "dtc", "mc_net", "mc_net_plus", "caml", "bcp", "crossmatch:paper")
METHODS += ("crossmatch:fast", "urpc", "ss_net", "dmd", "fixmatch", "unimatch", "hstf", "hstf_crossmatch:all")
# Encoder and decoder passes of the official codes, with gradient 3 and without 1, in units of V-Net's 4 and 4 with it
OFFICIAL_FLOOR = {
    "supervised": 1.00,
    "ua_mt": 2.50,
    "sassnet": 1.91,
    "dtc": 1.00,
    "mc_net": 2.19,
    "mc_net_plus": 3.38,
    "caml": 2.77,
    "bcp": 1.33,
    "crossmatch:paper": 3.30,
    "crossmatch:official": 3.82,
    "urpc": 1.72,
    "ss_net": 3.42,
    "dmd": 2.00,
    "fixmatch": 1.67,
    "unimatch": 2.73,
}
# Table 3: ms, millions of parameters, GFLOP
PAPER = {
    "supervised": (22, 9.443, 187.409),
    "ua_mt": (273, 9.443, 187.409),
    "sassnet": (501, 20.463, 249.194),
    "dtc": (545, 9.443, 187.538),
    "mc_net": (486, 12.348, 380.394),
    "mc_net_plus": (1269, 15.247, 572.229),
    "caml": (1057, 19.725, 450.677),
    "bcp": (379, 9.443, 187.409),
    "crossmatch": (210, 9.443, 187.409),
}
ALONE_AND_LOADED = (UNIT, "crossmatch:fast")
VOLUMES = 8  # phantoms, half of them labelled; with --smoke 2


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", help="default: V-Net and the presets of CrossMatch")
    parser.add_argument("--methods", action="store_true", help="rows: every method of the papers' tables")
    parser.add_argument("--at-once", type=int, metavar="N", help="rows that take turns with V-Net; default: all")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--official", type=Path, metavar="CHECKOUT", help="of AiEson/CrossMatch")
    parser.add_argument("--loading", action="store_true", help="the step alone against the step with its loading")
    parser.add_argument("--data", help="real scans: a data set in SEG_DATA, or a folder; default: phantoms")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true", help="each of our rows also through torch.compile")
    parser.add_argument("--graphs", action="store_true", help="each of our rows also as CUDA graphs; needs a GPU")
    parser.add_argument("--window", default="64,64,48")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--threads", type=int, default=env.usable_threads())
    parser.add_argument("--name", default="iteration", help="of the result file")
    parser.add_argument("--results", type=Path, default=env.RESULTS)
    parser.add_argument("--smoke", action="store_true", help="tiny and once, to see that it runs; writes no result")
    options = parser.parse_args()
    if options.graphs and options.device == "cpu":
        parser.error("--graphs needs --device cuda")
    return options


def main() -> None:
    """Parent: let the rows take turns, then the table."""
    options = arguments()
    if options.smoke:
        options.window, options.width, options.runs, options.warm_up = "16,16,16", 2, 1, 1
    if options.loading:
        rows = options.rows or ALONE_AND_LOADED
        names = [f"{row}{mode}" for row in rows for mode in ("", LOADING, *([MAPPED] if options.data else []))]
    else:
        rows = options.rows or (METHODS if options.methods else ROWS)
        names = [UNIT, *(row for row in rows if row != UNIT)]
        if options.compile:
            names = [name for row in names for name in (row, row + COMPILED)]
        if options.graphs:
            names += [row + GRAPHS for row in names if not row.endswith(COMPILED)]
        names += [OFFICIAL_ROW] if options.official else []
    if options.at_once and not options.loading:
        seconds, facts = in_groups(names, options)
    else:
        seconds, facts = take_turns(names, options)
    text = loading_table(seconds) if options.loading else iteration_table(names, seconds, facts)
    content = {"window": options.window, "width": options.width, "device": facts[names[0]]["device"]}
    content |= {"precision": facts[names[0]]["precision"], "threads": options.threads}
    content |= {"clock": options.clock, "data": options.data or "phantoms"}
    content |= {"rows": {name: {**facts[name], "seconds": seconds[name]} for name in names}}
    env.report(options.name, content, text, None if options.smoke else options.results)
    if options.methods and not options.smoke:
        (options.results / f"{options.name}.md").write_text(text + "\n")
        picture(names, seconds, facts).save(options.results / f"{options.name}.png")


def in_groups(names: list[str], options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """As `take_turns`, few rows at a time, the unit in each group; seconds are scaled to the first group's unit."""
    unit, rest = names[0], names[1:]
    seconds: dict[str, list[float]] = {}
    facts: dict[str, Any] = {}
    for first in range(0, len(rest), options.at_once):
        found, told = take_turns([unit, *rest[first : first + options.at_once]], options)
        units = seconds.setdefault(unit, found[unit])
        for name in rest[first : first + options.at_once]:
            turns = zip(found[name], found[unit], units, strict=True)
            seconds[name] = [own * reference / mine for own, mine, reference in turns]
        facts |= told
    return seconds, facts


def picture(names: list[str], seconds: dict[str, list[float]], facts: dict[str, Any]) -> Any:
    """Measured time and floor of every row, in units of V-Net's."""
    from seg.train.chart import bar_chart

    unit = names[0]
    measured = [ratio(seconds[name], seconds[unit]) for name in names]
    floor = [facts[name]["flop"] / facts[unit]["flop"] for name in names]
    labels = ["V-Net", *names[1:]]
    return bar_chart("One iteration in units of V-Net's", labels, {"time": measured, "floor by FLOP": floor})


def take_turns(names: list[str], options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of every run and the facts of every row."""
    variables = {**os.environ, **dict.fromkeys(env.THREAD_VARIABLES, str(options.threads))}
    workers: dict[str, subprocess.Popen[str]] = {}

    def ask(name: str, what: str) -> Any:
        worker = workers[name]
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(what + "\n")
        worker.stdin.flush()
        while line := worker.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{name} ended; see its message above")

    common = {key: getattr(options, key) for key in ("device", "precision", "window", "width", "clock")}
    common |= {"volumes": 2 if options.smoke else VOLUMES}
    common["data"] = options.data and str(options.data if Path(options.data).is_dir() else env.DATA / options.data)
    held = tempfile.TemporaryDirectory()  # mapped volumes
    common["folder"] = held.name
    try:
        for name in names:
            setting = json.dumps({**common, "row": name, "official": str(options.official or "")})
            command = [sys.executable, iteration_worker.__file__, setting]
            workers[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
            )
            for _ in range(options.warm_up):
                ask(name, "run")
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(options.runs):
            for name in names:
                seconds[name].append(ask(name, "run")["seconds"])
        return seconds, {name: ask(name, "facts") for name in names}
    finally:
        for worker in workers.values():
            worker.kill()
            worker.communicate()
        held.cleanup()


def ratio(times: list[float], unit: list[float]) -> float:
    """Median of the ratios within each turn."""
    return median(a / b for a, b in zip(times, unit, strict=True))


def iteration_table(names: list[str], seconds: dict[str, list[float]], facts: dict[str, Any]) -> str:
    """One row per method; the paper's columns beside ours."""
    columns = ["row", "ms (median)", "ms (least)", "x V-Net", "x V-Net in FLOP", "GFLOP", "M parameters", "peak MB"]
    columns += [
        "faster than official",
        "time / floor",
        "official floor",
        "paper: ms",
        "paper: x V-Net",
        "paper: M parameters",
        "paper: GFLOP",
    ]
    lines = []
    for name in names:
        row = name.removesuffix(COMPILED).removesuffix(GRAPHS)
        method = "crossmatch" if row == OFFICIAL_ROW else row.split(":")[0].split(",")[0]
        paper = PAPER.get(method)
        fact, own = facts[name], seconds[name]
        times, floor = ratio(own, seconds[names[0]]), fact["flop"] / facts[names[0]]["flop"]
        code = "crossmatch:official" if row == OFFICIAL_ROW else row.split(",")[0]
        read = OFFICIAL_FLOOR.get(method if method != "crossmatch" else code)
        against = f"{ratio(seconds[OFFICIAL_ROW], own):.2f}" if OFFICIAL_ROW in names else "-"
        lines.append(
            [name, f"{1000 * median(own):.0f}", f"{1000 * min(own):.0f}", f"{times:.2f}"]
            + [f"{floor:.2f}", f"{fact['flop'] / 1e9:.4g}"]
            + [f"{fact['parameters'] / 1e6:.3f}", f"{fact['peak_bytes'] / 1e6:.0f}", against]
            + [f"{times / floor:.2f}", f"{read:.2f}" if read else "-"]
            + ([f"{paper[0]}", f"{paper[0] / 22:.1f}", f"{paper[1]}", f"{paper[2]}"] if paper else ["-"] * 4)
        )
    return env.table(columns, lines)


def loading_table(seconds: dict[str, list[float]]) -> str:
    """The step alone, with its loading and weak augmentation, and the ratio; of mapped volumes too where measured."""
    lines, modes = [], [mode for mode in (LOADING, MAPPED) if any(name.endswith(mode) for name in seconds)]
    for name in (name for name in seconds if not name.endswith((LOADING, MAPPED))):
        alone, loaded = seconds[name], [seconds[name + mode] for mode in modes]
        cells = [cell for each in loaded for cell in (f"{1000 * median(each):.0f}", f"{ratio(each, alone):.3f}")]
        lines.append([name, f"{1000 * median(alone):.0f}", *cells])
    heads = [head for mode in modes for head in (f"{mode.removeprefix(' + ')}, ms", "ratio")]
    return env.table(("row", "step alone, ms", *heads), lines)


if __name__ == "__main__":
    main()
