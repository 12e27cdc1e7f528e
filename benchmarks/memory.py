"""How much memory does a scan need, as slices and classes grow?

The scan is synthetic, int16, 512 x 512 x slices; the network is nearly nothing (a 1x1x1 convolution to eight features,
a 1x1x1 head to the classes), so that what is measured is everything around it: preprocessing, windows, stitching,
labels. Each point is a fresh process that segments one scan through `seg.infer.predict.segment`, with fixed windows or
with those that the plan chooses for --max-memory. Beside it stands what a float32 volume of scores would take, classes
x volume x 4 bytes, which accumulating tools allocate.

With --features the network returns its eight features and the head is applied to finished layers, as artifacts
exported with --features do; without it all classes are blended.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import environment as env

SLICES = (100, 200, 400, 800, 1600)
CLASSES = (2, 14, 117)
EDGE = 512
WINDOW = (128, 128, 32)
OVERLAP = 0.25
FEATURES = 8


def main() -> None:
    """Parent: every point in a fresh process, smallest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, nargs="+", default=SLICES)
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--edge", type=int, default=EDGE, help="slices are this many voxels squared")
    parser.add_argument("--window", type=int, nargs=3, default=WINDOW)
    parser.add_argument("--max-memory", type=float, metavar="GB", help="let the plan choose the windows")
    parser.add_argument("--features", action="store_true", help="blend features, apply the head to finished layers")
    parser.add_argument("--threads", type=int, default=env.usable_threads())
    parser.add_argument("--results", type=Path, default=env.RESULTS)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs; writes no result")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(work(**json.loads(options.worker))))
        return
    if options.smoke:
        options.slices, options.classes, options.edge, options.window = (4, 8), (2, 5), 32, (16, 16, 4)
    points = measure(options)
    columns = ("slices", "classes", "peak RSS MB", "beyond scan and mask MB", "scores would take MB", "seconds")
    keys = ("slices", "classes", "peak_mb", "working_mb", "scores_mb", "seconds")
    rows = [[f"{point[key]:.1f}" if key == "seconds" else f"{point[key]:.0f}" for key in keys] for point in points]
    name = "memory-features" if options.features else "memory"
    setting = {"window": options.window} if options.max_memory is None else {"max_memory_gb": options.max_memory}
    env.report(name, {**setting, "points": points}, env.table(columns, rows), _folder(options))


def _folder(options: argparse.Namespace) -> Path | None:
    return None if options.smoke else options.results


def measure(options: argparse.Namespace) -> list[dict[str, float]]:
    """One report for every number of classes and slices."""
    points = []
    with tempfile.TemporaryDirectory() as folder:
        for classes in options.classes:
            model = str(Path(folder) / f"{classes}.onnx")
            write_network(model, classes, features=options.features)
            for slices in options.slices:
                job = dict(model=model, slices=slices, edge=options.edge, threads=options.threads)
                job |= dict(window=options.window, memory=options.max_memory)
                command = [sys.executable, __file__, "--worker", json.dumps(job)]
                _, found = env.fresh(command, threads=options.threads)
                voxels = options.edge**2 * slices
                peak, base = found["peak_bytes"], found["base_bytes"]
                points.append(
                    {
                        "slices": slices,
                        "classes": classes,
                        "peak_mb": peak / 1e6,
                        "working_mb": (peak - 3 * voxels) / 1e6,
                        "interpreter_mb": base / 1e6,
                        "scores_mb": classes * voxels * 4 / 1e6,
                        "seconds": found["seconds"],
                    }
                )
                print(f"{slices} slices, {classes} classes: {peak / 1e6:.0f} MB", file=sys.stderr)
    return points


def work(model: str, slices: int, edge: int, threads: int, window: list[int], memory: float | None) -> dict[str, float]:
    """Worker: one scan. The scan is int16 and Fortran-ordered, as NIfTI files are."""
    import numpy as np

    from seg.infer.artifact import load
    from seg.infer.backends import open_backend
    from seg.infer.plan import plan_scan
    from seg.infer.predict import TilingOptions, segment
    from seg.infer.volume import Volume

    artifact = load(model)
    output = "logits" if artifact.head is None else "features"
    backend = open_backend("openvino", model, threads=threads, output=output)
    base = env.resident_bytes()
    voxels = np.empty((1, edge, edge, slices), np.int16, order="F")
    plane = np.arange(edge * edge, dtype=np.int32).reshape(edge, edge)
    for z in range(slices):
        voxels[0, :, :, z] = (plane * 7919 + z * 104729) % 2000 - 1000
    volume = Volume(voxels, np.eye(4))
    began = time.perf_counter()
    x, y, z = window
    tiling = None
    if memory is not None:
        outputs = len(artifact.spec.labels) if artifact.head is None else FEATURES
        limits = dict(memory_bytes=int(memory * 1e9), scan_bytes=voxels.nbytes, channels_out=outputs, threads=threads)
        tiling = plan_scan(volume.shape, volume.affine, artifact.spec, TilingOptions(), **limits).tiling
    options = TilingOptions((x, y, z), OVERLAP)
    labels = segment(volume, artifact.spec, backend, options, tiling=tiling, head=artifact.head)
    seconds = time.perf_counter() - began
    if labels.shape != (edge, edge, slices) or not labels.any():
        raise AssertionError("the mask is empty: this measures nothing")
    return {"seconds": seconds, "peak_bytes": env.peak_bytes(), "base_bytes": base}


def write_network(path: str, classes: int, *, features: bool = False) -> None:
    """An artifact: 1x1x1 convolution to features, ReLU, 1x1x1 head. All classes occur for intensities around 0."""
    import hashlib
    from dataclasses import replace

    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from seg.infer.artifact import Golden, metadata_of
    from seg.infer.classes import Head
    from seg.infer.spec import Cost, ModelSpec, Normalisation

    rng = np.random.default_rng(0)
    first = rng.standard_normal((FEATURES, 1, 1, 1, 1)).astype(np.float32)
    shift = rng.standard_normal(FEATURES).astype(np.float32)
    head = Head(
        rng.standard_normal((classes, FEATURES)).astype(np.float32), rng.standard_normal(classes).astype(np.float32)
    )
    tensors = {"w1": first, "b1": shift, "w2": head.weight.reshape(classes, FEATURES, 1, 1, 1), "b2": head.bias}
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["features" if features else "active"]),
        helper.make_node("Conv", ["features" if features else "active", "w2", "b2"], ["logits"], "head"),
    ]

    def value(name: str, channels: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, "x", "y", "z"])

    outputs = [value("logits", classes), *([value("features", FEATURES)] if features else [])]
    graph = helper.make_graph(
        nodes,
        "nearly-nothing",
        [value("image", 1)],
        outputs,
        [numpy_helper.from_array(t, n) for n, t in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = rng.standard_normal((1, 1, 2, 2, 2)).astype(np.float16)
    active = np.maximum(np.einsum("fc,ncxyz->nfxyz", first[..., 0, 0, 0], x) + shift.reshape(-1, 1, 1, 1), 0)
    logits = np.einsum("kf,nfxyz->nkxyz", head.weight, active) + head.bias.reshape(-1, 1, 1, 1)
    spec = ModelSpec(
        name="nearly-nothing",
        labels=tuple(f"class {k}" for k in range(classes)),
        channels=("any",),
        spacing=(None, None, None),
        normalisation=Normalisation("fixed", std=500.0),
        window=(16, 16, 16),
        stride=(1, 1, 1),
        cost=Cost(macs=FEATURES * (classes + 1), bytes=2.0 * 4 * (1 + FEATURES)),
    )
    digest = hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()
    golden = Golden(x, logits.astype(np.float32))
    entries = metadata_of(replace(spec, graph_sha256=digest), golden, head if features else None)
    helper.set_model_props(model, entries)
    Path(path).write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(model)


if __name__ == "__main__":
    main()
