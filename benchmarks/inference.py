"""How long does one scan take, here and elsewhere, with the same network, weights and input?

Contenders, each in a fresh process of its own, all with the same number of threads, in turns:

ours-fp32, ours-bf16, ours-int8   seg.infer through OpenVINO: the whole scan in one pass (bf16 where the processor has
                                  AMX; int8 when an int8 artifact of the same run is given)
ours-windows                      seg.infer in fp32 with the windows of the tools below: what the engine alone gains
torch-one-pass                    torch, the whole scan in one pass: what the single pass alone gains
monai                             monai.inferers.sliding_window_inference, overlap 0.5, Gaussian
nnunet                            nnUNetPredictor.predict_sliding_window_return_logits, step 0.5, Gaussian, no mirroring
protocol                          the evaluation of UA-MT, CrossMatch and others: stride 18, 18, 4, uniform weights, one
                                  window at a time, mean of probabilities, torch

Windows are 112 x 112 x 80. The input is one scan on the network's grid, already normalised; a contender's time runs
from there to labels. Tools run in their default memory layout. "first" is the first scan of a process, which includes
what engines do when they see a shape for the first time; "next" is the scan after it (not measured where the first took
more than 20 s); "_cpu" are the processors' seconds in these. "process" is everything for one scan, from starting the
interpreter to the labels on disk.

Agreement is the share of voxels with the label that a naive reference gives: torch in float32, one window after the
other, at the contender's window positions, summed in float64. Peers' Gaussians differ from ours in the last digits and
in their lower bound, and nnU-Net sums in float16: their agreement includes that.

The other tools go into an environment of their own, see benchmarks/requirements.txt:

    python benchmarks/inference.py --run RUN --int8 MODEL.onnx --peer-python .venv-bench/bin/python
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import environment as env
from contenders import work
from reference import reference

WINDOW = (112, 112, 80)
PROTOCOL_STEP = (18, 18, 4)
PEERS = ("torch-one-pass", "monai", "nnunet", "protocol")
# Contender -> where windows stand: (rule, weighting), or None for one pass. The reference stands there too.
PLACES: dict[str, tuple[str, str] | None] = {
    "ours-fp32": None,
    "ours-bf16": None,
    "ours-int8": None,
    "ours-windows": ("half", "gaussian"),
    "torch-one-pass": None,
    "monai": ("half", "gaussian"),
    "nnunet": ("even", "gaussian"),
    "protocol": ("protocol", "uniform"),
}


def main() -> None:
    """Parent, or one worker."""
    options = arguments()
    if options.worker is not None:
        print(json.dumps(work(options.worker, Path(options.bundle), options.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder)
        setting = prepare(options, bundle)
        runs, failures = measure(options, bundle)
        for name in runs:
            agreement = compare(name, bundle)
            for run in runs[name]:
                run["agreement"] = agreement
    for name, reason in failures.items():
        print(f"{name}: skipped, {reason}", file=sys.stderr)
    content = {"setting": setting, "runs": runs, "medians": {n: env.medians(r) for n, r in runs.items()}}
    env.report("inference", {**content, "skipped": failures}, text(runs), None if options.smoke else options.results)


def arguments() -> argparse.Namespace:
    """The command line; --smoke replaces sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder that seg-train wrote; without it the weights are random")
    parser.add_argument("--int8", type=Path, metavar="MODEL.onnx", help="int8 artifact of the same run")
    parser.add_argument("--width", type=int, default=16, help="of the V-Net with random weights (default 16)")
    parser.add_argument("--scan", type=Path, help="default: the first validation scan of LA, else a phantom")
    parser.add_argument("--spacing", type=float, metavar="MM", help="network grid, if not the run's (random: 0.625)")
    parser.add_argument("--window", type=int, nargs=3, default=WINDOW)
    parser.add_argument("--step", type=int, nargs=3, default=PROTOCOL_STEP, help="of the papers' protocol")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with monai, nnunetv2 and torch")
    parser.add_argument("--threads", type=int, default=env.usable_threads())
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--runs-of", nargs="+", default=["protocol=1"], metavar="NAME=N", help="default: protocol=1")
    parser.add_argument("--skip", nargs="+", default=[], choices=sorted(PLACES))
    parser.add_argument("--results", type=Path, default=env.RESULTS)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, one run; writes no result")
    parser.add_argument("--worker", choices=sorted(PLACES), help=argparse.SUPPRESS)
    parser.add_argument("--bundle", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.smoke:
        options.runs, options.window, options.step, options.width = 1, (32, 32, 16), (16, 16, 16), 2
    return options


def measure(options: argparse.Namespace, bundle: Path) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """All runs, contenders taking turns; those that cannot run, with the reason."""
    counts = {name: options.runs for name in PLACES if name not in options.skip}
    counts |= {name: int(number) for name, number in (word.split("=") for word in options.runs_of) if name in counts}
    runs: dict[str, list[dict[str, Any]]] = {}
    failures = absent(bundle, counts)
    for turn in range(max(counts.values(), default=0)):
        for name in counts:
            if turn >= counts[name] or name in failures:
                continue
            python = options.peer_python if name in PEERS else sys.executable
            command = [python, __file__, "--worker", name, "--bundle", str(bundle), "--threads", str(options.threads)]
            places = {"PYTHONPATH": str(bundle / "path")} if name in PEERS else {}
            try:
                seconds, report = env.fresh(command, threads=options.threads, environment=places)
            except env.Failed as error:
                failures[name] = str(error)
                continue
            seconds -= report.get("next", 0.0)
            runs.setdefault(name, []).append({"process": seconds, **report})
            print(f"{name}: {report['first']:.2f} s, process {seconds:.2f} s", file=sys.stderr)
    return {name: runs[name] for name in PLACES if name in runs}, failures


def absent(bundle: Path, names: Sequence[str]) -> dict[str, str]:
    """Contenders that this machine or these arguments rule out."""
    reasons = {}
    if "amx_bf16" not in env.cpu_flags():
        reasons["ours-bf16"] = "the processor has no AMX"
    if not (bundle / "int8.onnx").exists():
        reasons["ours-int8"] = "no --int8 artifact"
    return {name: reason for name, reason in reasons.items() if name in names}


def text(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The table, fastest process first."""
    columns = ("", "windows", "first s", "next s", "process s", "peak RSS MB", "agreement %")
    rows = []
    figures = {name: env.medians(found) for name, found in runs.items()}
    for name in sorted(figures, key=lambda name: figures[name]["process"]):
        one = figures[name]
        following = f"{one['next']:.2f}" if "next" in one else "-"
        cells = (f"{one['windows']:.0f}", f"{one['first']:.2f}", following, f"{one['process']:.2f}")
        rows.append([name, *cells, f"{one['peak_bytes'] / 1e6:.0f}", f"{100 * one['agreement']:.4f}"])
    return env.table(columns, rows)


# What all contenders get


def prepare(options: argparse.Namespace, bundle: Path) -> dict[str, Any]:
    """Fill the bundle: x.npy (C, X, Y, Z) float32, weights.pt, model.onnx, int8.onnx, bundle.json, path/seg."""
    import shutil
    from dataclasses import replace

    import numpy as np
    import torch

    from seg.export.onnx_ import export
    from seg.infer.preprocess import forward

    module, spec, network = _network(options)
    if options.spacing is not None:
        spec = replace(spec, spacing=(options.spacing,) * 3)
    volume, name = _scan(options)
    x, _ = forward(volume, spec)
    np.save(bundle / "x.npy", x)
    torch.save(module.state_dict(), bundle / "weights.pt")
    export(module, spec, str(bundle / "model.onnx"))
    if options.int8 is not None:
        shutil.copyfile(options.int8, bundle / "int8.onnx")
    namespace = bundle / "path" / "seg"  # peers' environments do not have this package: the network's file will do
    namespace.mkdir(parents=True)
    for part in ("infer", "train"):
        (namespace / part).symlink_to(env.ROOT / part)
    shared = dict(network=network, stride=spec.stride, window=options.window, step=options.step)
    (bundle / "bundle.json").write_text(json.dumps(shared))
    weights = "random" if options.run is None else options.run.name
    setting = {**shared, "weights": weights, "scan": name, "grid": list(x.shape), "threads": options.threads}
    return {**setting, "spacing": spec.spacing}


def _network(options: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """The torch network, its spec, and what builds it: from the run, or with random weights."""
    import torch

    from seg.export.run import load_run
    from seg.infer.spec import ModelSpec, Normalisation
    from seg.train.networks import build_network
    from seg.train.run import read_config

    if options.run is not None:
        module, spec = load_run(options.run)
        name, width = (read_config(options.run)["network"][key] for key in ("name", "width"))
    else:
        name, width = "vnet", options.width
        torch.manual_seed(0)
        module = build_network(name, 1, 2, width, 0.0)
        window, spacing = tuple(options.window), (0.625,) * 3
        spec = ModelSpec("random", ("background", "left atrium"), ("MR",), spacing, Normalisation(), window, (16,) * 3)
    built = dict(name=name, channels=len(spec.channels), classes=len(spec.labels), width=width)
    return module.eval(), spec, built


def _scan(options: argparse.Namespace) -> tuple[Any, str]:
    """The scan and what to call it in the results."""
    import numpy as np

    from seg.infer.nifti import read
    from seg.infer.phantom import atrium_phantom
    from seg.infer.volume import Volume

    if options.smoke:
        voxels = np.random.default_rng(0).normal(100, 30, (1, 40, 32, 24)).astype(np.int16)
        return Volume(voxels, np.diag([0.625, 0.625, 0.625, 1.0])), "noise"
    if options.scan is not None:
        return read(str(options.scan)).volume, options.scan.name
    folder = env.DATA / "LA"
    if folder.is_dir():
        case = json.loads((folder / "splits.json").read_text())["val"][0]
        return read(str(folder / "images" / f"{case}.nii.gz")).volume, f"LA {case}"
    print(f"no data in {env.DATA}: a phantom is segmented", file=sys.stderr)
    return atrium_phantom(1000)[0], "phantom 1000"


def compare(name: str, bundle: Path) -> float:
    """Share of voxels on which a contender agrees with the naive reference for its windows."""
    import numpy as np

    place = PLACES[name]
    path = bundle / f"reference-{place}.npy"
    if not path.exists():
        np.save(path, reference(bundle, place))
    return float((np.load(path) == np.load(bundle / f"labels-{name}.npy")).mean())


if __name__ == "__main__":
    main()
