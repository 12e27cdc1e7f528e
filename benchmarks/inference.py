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
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import environment as env

WINDOW = (112, 112, 80)
PROTOCOL_STEP = (18, 18, 4)
SECOND_SCAN_BELOW = 20.0  # seconds
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


# Workers: each imports what its contender needs, nothing else


def work(name: str, bundle: Path, threads: int) -> dict[str, Any]:
    """Load, segment twice (once if that takes long), leave the labels in the bundle."""
    shared = json.loads((bundle / "bundle.json").read_text())
    began = time.perf_counter()
    segment = LOADERS[name](name, bundle, shared, threads)
    report: dict[str, Any] = {"load": time.perf_counter() - began}
    for scan in ("first", "next"):
        began, busy = time.perf_counter(), time.process_time()
        labels, windows = segment()
        report[scan] = time.perf_counter() - began
        report[f"{scan}_cpu"] = time.process_time() - busy
        if report[scan] > SECOND_SCAN_BELOW:
            break
    import numpy as np

    np.save(bundle / f"labels-{name}.npy", np.asarray(labels, np.uint8))
    return {**report, "windows": windows, "peak_bytes": env.peak_bytes(), "versions": env.versions()}


Segment = Callable[[], tuple[Any, int]]


def load_ours(name: str, bundle: Path, shared: dict[str, Any], threads: int) -> Segment:
    """The path of seg-infer, from the network's grid to labels."""
    from dataclasses import replace

    import numpy as np

    from seg.infer.artifact import load
    from seg.infer.backends import open_backend
    from seg.infer.plan import TilingOptions, choose_tiling
    from seg.infer.predict import segment
    from seg.infer.spec import Normalisation
    from seg.infer.volume import Volume

    path = str(bundle / ("int8.onnx" if name == "ours-int8" else "model.onnx"))
    spec = replace(load(path).spec, spacing=(None,) * 3, normalisation=Normalisation("fixed"), tiling="free")
    volume = Volume(np.load(bundle / "x.npy"), np.eye(4))
    options = TilingOptions(tuple(shared["window"]), 0.5) if name == "ours-windows" else TilingOptions()
    tiling = choose_tiling(volume.shape, spec, options)
    precision = "bf16" if name == "ours-bf16" else "fp32"
    shape = (1, len(spec.channels), *tiling.window)  # seg-infer knows it from the header, before it loads the network
    backend = open_backend("openvino", path, precision=precision, threads=threads, shape=shape)
    return lambda: (segment(volume, spec, backend, options), tiling.windows)


def load_torch(name: str, bundle: Path, shared: dict[str, Any], threads: int) -> Segment:
    """torch alone: one pass, or the papers' evaluation loop."""
    import numpy as np
    import torch

    network, x = _torch_network(bundle, shared, threads), np.load(bundle / "x.npy")
    if name == "torch-one-pass":
        return lambda: (_one_pass(network, x, shared["stride"]), 1)

    def protocol() -> tuple[Any, int]:
        window, places, padded, crop = _places(x, shared, "protocol")
        score = np.zeros((shared["network"]["classes"], *padded.shape[1:]), np.float32)
        count = np.zeros(padded.shape[1:], np.float32)
        with torch.inference_mode():
            for place in places:
                cut = _cut(place, window)
                patch = torch.from_numpy(padded[(slice(None), *cut)][np.newaxis])
                score[(slice(None), *cut)] += torch.softmax(network(patch), 1)[0].numpy()
                count[cut] += 1
        return (score / count).argmax(0)[crop], len(places)

    return protocol


def load_monai(name: str, bundle: Path, shared: dict[str, Any], threads: int) -> Segment:
    """MONAI's sliding window with the options of its tutorials."""
    import numpy as np
    import torch
    from monai.inferers import sliding_window_inference

    network, x = _torch_network(bundle, shared, threads), torch.from_numpy(np.load(bundle / "x.npy"))[None]
    windows = len(_places(x[0].numpy(), shared, "half")[1])

    @torch.inference_mode()
    def segment() -> tuple[Any, int]:
        logits = sliding_window_inference(x, shared["window"], 1, network, overlap=0.5, mode="gaussian")
        return logits.argmax(1)[0].numpy(), windows

    return segment


def load_nnunet(name: str, bundle: Path, shared: dict[str, Any], threads: int) -> Segment:
    """nnU-Net's predictor around the same network: what it needs of a plan is the patch size and the classes."""
    from types import SimpleNamespace

    import numpy as np
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    network, x = _torch_network(bundle, shared, threads), torch.from_numpy(np.load(bundle / "x.npy"))
    windows = len(_places(x.numpy(), shared, "even")[1])
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=tuple(shared["window"]))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=shared["network"]["classes"])
    return lambda: (predictor.predict_sliding_window_return_logits(x).argmax(0).numpy(), windows)


LOADERS: dict[str, Callable[[str, Path, dict[str, Any], int], Segment]] = {
    **dict.fromkeys(("ours-fp32", "ours-bf16", "ours-int8", "ours-windows"), load_ours),
    **dict.fromkeys(("torch-one-pass", "protocol"), load_torch),
    "monai": load_monai,
    "nnunet": load_nnunet,
}


def _torch_network(bundle: Path, shared: dict[str, Any], threads: int) -> Any:
    import torch

    from seg.train.networks import build_network

    torch.set_num_threads(threads)
    network = build_network(**shared["network"], dropout=0.0)
    network.load_state_dict(torch.load(bundle / "weights.pt", weights_only=True))
    return network.eval()


# The reference, and where windows stand


def compare(name: str, bundle: Path) -> float:
    """Share of voxels on which a contender agrees with the naive reference for its windows."""
    import numpy as np

    place = PLACES[name]
    path = bundle / f"reference-{place}.npy"
    if not path.exists():
        np.save(path, reference(bundle, place))
    return float((np.load(path) == np.load(bundle / f"labels-{name}.npy")).mean())


def reference(bundle: Path, place: tuple[str, str] | None) -> Any:
    """Labels by the plainest code that could be right: torch float32, one window at a time, float64 sums."""
    import numpy as np
    import torch

    shared = json.loads((bundle / "bundle.json").read_text())
    network, x = _torch_network(bundle, shared, env.usable_threads()), np.load(bundle / "x.npy")
    if place is None:
        return _one_pass(network, x, shared["stride"])
    rule, weighting = place
    window, places, padded, crop = _places(x, shared, rule)
    profiles = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in window]
    weight = np.maximum(np.einsum("a,b,c->abc", *profiles), 1e-3) if weighting == "gaussian" else np.ones(window)
    score = np.zeros((shared["network"]["classes"], *padded.shape[1:]))
    total = np.zeros(padded.shape[1:])
    with torch.inference_mode():
        for corner in places:
            cut = _cut(corner, window)
            logits = network(torch.from_numpy(padded[(slice(None), *cut)][np.newaxis]))[0]
            found = torch.softmax(logits, 0) if rule == "protocol" else logits
            score[(slice(None), *cut)] += found.double().numpy() * weight
            total[cut] += weight
    return (score / total).argmax(0)[crop].astype(np.uint8)


def _one_pass(network: Any, x: Any, stride: Sequence[int]) -> Any:
    import numpy as np
    import torch

    padded, crop = _pad(x, [-(-n // s) * s for n, s in zip(x.shape[1:], stride, strict=True)])
    with torch.inference_mode():
        logits = network(torch.from_numpy(padded[np.newaxis]))[0].numpy()
    return logits.argmax(0)[crop].astype(np.uint8)


def _pad(x: Any, shape: Sequence[int]) -> tuple[Any, tuple[slice, ...]]:
    """Zeros around the scan, and the cut that takes them off."""
    import numpy as np

    before = [(wanted - n) // 2 for n, wanted in zip(x.shape[1:], shape, strict=True)]
    margins = [(b, w - n - b) for b, n, w in zip(before, x.shape[1:], shape, strict=True)]
    return np.pad(x, [(0, 0), *margins]), tuple(slice(b, b + n) for b, n in zip(before, x.shape[1:], strict=True))


def _places(x: Any, shared: dict[str, Any], rule: str) -> tuple[Any, list[tuple[int, ...]], Any, tuple[slice, ...]]:
    """Window, corners of all windows, the padded scan, and the cut that takes the padding off."""
    window = tuple(shared["window"])
    padded, crop = _pad(x, [max(n, w) for n, w in zip(x.shape[1:], window, strict=True)])
    steps = shared["step"] if rule == "protocol" else [w // 2 for w in window]
    axes = zip(padded.shape[1:], window, steps, strict=True)
    return window, list(product(*(list(starts(n, w, s, even=rule == "even")) for n, w, s in axes))), padded, crop


def starts(extent: int, window: int, step: int, *, even: bool) -> Iterator[int]:
    """Where windows begin: a step apart with the last one flush with the border, or evenly spread (nnU-Net)."""
    last, count = extent - window, math.ceil((extent - window) / step) + 1
    for number in range(count):
        yield round(last / max(1, count - 1) * number) if even else min(number * step, last)


def _cut(corner: Sequence[int], window: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))


if __name__ == "__main__":
    main()
