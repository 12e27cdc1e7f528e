"""Where does one pass of the network spend its time, and how far is that from what the processor can do?

The pass runs in OpenVINO with its performance counters on; time is summed by kind of layer and by kernel. Beside it
stands the rate of a large float32 matrix product (numpy's BLAS, same threads, same process): what remains between the
two is all that a better convolution could gain. Multiply-adds are those that the artifact's own spec counts.

    python benchmarks/roofline.py MODEL.onnx --shape 224,144,96
"""

import argparse
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import environment as env

SIZE = 3072  # of the square matrices


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="ONNX files that seg-export wrote")
    parser.add_argument("--shape", default="224,144,96", help="X,Y,Z of the pass in voxels (an LA scan, padded)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=env.usable_threads())
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--results", type=Path, default=env.RESULTS)
    parser.add_argument("--smoke", action="store_true", help="small, one run; writes no result")
    options = parser.parse_args()
    shape = (32, 32, 16) if options.smoke else tuple(int(n) for n in options.shape.split(","))
    size, runs = (256, 1) if options.smoke else (SIZE, options.runs)
    content: dict[str, Any] = {"shape": shape, "precision": options.precision, "matrix_gflops": matrix_rate(size, runs)}
    content["models"] = {path.name: profile(path, shape, options, runs) for path in options.models}
    env.report("roofline", content, text(content), None if options.smoke else options.results)


def matrix_rate(size: int, runs: int) -> float:
    """GFLOP/s of a float32 matrix product, median."""
    import numpy as np

    a = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    seconds = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / median(seconds[1:]) / 1e9


def profile(path: Path, shape: tuple[int, ...], options: argparse.Namespace, runs: int) -> dict[str, Any]:
    """Seconds of a pass, its GFLOP/s, and milliseconds by (layer, kernel)."""
    import numpy as np
    import openvino as ov

    from seg.infer.artifact import load

    spec = load(str(path)).spec
    core = ov.Core()
    model = core.read_model(path)
    model.reshape((1, len(spec.channels), *shape))
    hint = {"fp32": "f32", "bf16": "bf16"}[options.precision]
    config = {"INFERENCE_NUM_THREADS": options.threads, "PERF_COUNT": True, "INFERENCE_PRECISION_HINT": hint}
    request = core.compile_model(model, "CPU", config).create_infer_request()
    x = np.random.default_rng(0).standard_normal((1, len(spec.channels), *shape), dtype=np.float32)
    seconds, parts = [], []
    for _ in range(runs + 1):
        began = time.perf_counter()
        request.infer([x], share_inputs=True, share_outputs=True)
        seconds.append(time.perf_counter() - began)
        counted: Counter[str] = Counter()
        for node in request.profiling_info:
            counted[f"{node.node_type} ({node.exec_type})"] += node.real_time.total_seconds() * 1e3
        parts.append(counted)
    names = {name for counted in parts[1:] for name in counted}
    layers = {name: median(counted[name] for counted in parts[1:]) for name in names}
    flops = 2 * spec.cost.macs * int(np.prod(shape))
    shown = {name: ms for name, ms in sorted(layers.items(), key=lambda item: -item[1]) if ms > 0}
    return {"seconds": median(seconds[1:]), "gflops": flops / median(seconds[1:]) / 1e9, "milliseconds": shown}


def text(content: dict[str, Any]) -> str:
    """One line a kind of layer, and the rates."""
    rows = []
    for name, found in content["models"].items():
        share = f"{100 * found['gflops'] / content['matrix_gflops']:.0f} % of a float32 matrix product"
        rows.append([name, "the pass", f"{1e3 * found['seconds']:.0f}", f"{found['gflops']:.0f} GFLOP/s: {share}"])
        whole = sum(found["milliseconds"].values())
        for layer, ms in list(found["milliseconds"].items())[:6]:
            rows.append(["", layer, f"{ms:.1f}", f"{100 * ms / whole:.1f} %"])
    rows.append(["matrix product", "", "", f"{content['matrix_gflops']:.0f} GFLOP/s"])
    return env.table(("model", "layer (kernel)", "ms", "share or rate"), rows)


if __name__ == "__main__":
    main()
