"""Does the hybrid network cost no more than V-Net, a window at a time, in the same engine?

Networks of equal width with random weights are exported and run by OpenVINO on the same window; they take turns, so
that a ratio is the median over the turns of the ratio within a turn. Multiply-adds are torch's count.

    python benchmarks/hybrid.py --window 112,112,80 --threads 2
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import environment as env

NAMES = ("vnet", "hstf", "hstf_s")


def main() -> None:
    """Export, take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--window", default="112,112,80")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=env.usable_threads())
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--results", type=Path, default=env.RESULTS)
    parser.add_argument("--smoke", action="store_true", help="tiny and once, to see that it runs; writes no result")
    options = parser.parse_args()
    if options.smoke:
        options.window, options.width, options.runs = "32,32,32", 2, 1
    x, y, z = (int(n) for n in options.window.split(","))
    seconds, facts = measure((x, y, z), options)
    lines = []
    for name in NAMES:
        ratio = median(a / b for a, b in zip(seconds[name], seconds["vnet"], strict=True))
        million, giga = facts[name]
        lines.append([name, f"{million:.2f}", f"{giga:.1f}", f"{1000 * median(seconds[name]):.0f}", f"{ratio:.2f}"])
    text = env.table(("network", "M parameters", "GMAC", "ms a window", "x V-Net"), lines)
    content = {"window": options.window, "width": options.width, "threads": options.threads, "seconds": seconds}
    content |= {"precision": options.precision}
    env.report("hybrid", content, text, None if options.smoke else options.results)


def measure(
    window: tuple[int, int, int], options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, tuple[float, float]]]:
    """Seconds of every run; millions of parameters and GMAC."""
    import numpy as np
    import torch

    from seg.export.onnx_ import export
    from seg.infer.backends import open_backend
    from seg.infer.spec import ModelSpec, Normalisation
    from seg.train.networks import build_network

    backends, facts = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            torch.manual_seed(0)
            network = build_network(name, 1, 2, options.width, 0.5)
            spec = ModelSpec(name, ("background", "organ"), ("MR",), (None,) * 3, Normalisation("zscore"), window,
                             network.stride)  # type: ignore[arg-type]  # fmt: skip
            path = f"{folder}/{name}.onnx"
            spec, _ = export(network, spec, path)
            facts[name] = (
                sum(p.numel() for p in network.parameters()) / 1e6,
                spec.cost.macs * float(np.prod(window)) / 1e9,
            )
            backends[name] = open_backend("openvino", path, "cpu", precision=options.precision, threads=options.threads)
        x = np.random.default_rng(0).standard_normal((1, 1, *window), dtype=np.float32)
        for backend in backends.values():
            backend.run(x)
        seconds: dict[str, list[float]] = {name: [] for name in NAMES}
        for _ in range(options.runs):
            for name, backend in backends.items():
                began = time.perf_counter()
                backend.run(x)
                seconds[name].append(time.perf_counter() - began)
        for backend in backends.values():
            backend.close()
    return seconds, facts


if __name__ == "__main__":
    main()
