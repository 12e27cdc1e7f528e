"""Which layers keep int8 from being four times as fast as fp32?

Both forms of a model run the same input in OpenVINO in turn, with performance counters on, in one process. Layers are
grouped by kind, channels and extent, so that a group is the same layers in both forms; time is the least of all turns,
since other work on the machine only ever adds to it. All that is no convolution is summed by extent: skip additions,
ReLUs that did not fuse, quantisation of the input, changes of memory layout.

Tried on the shipped model, and not worth its price: the last transposed convolution as a 1x1x1 convolution and a
shuffle of its channels (1.10 times faster as a whole, the last two 1.12); the first convolution over four slices at a
time (its own time falls by a third, and the changes of layout around it cost more: 0.96). Unsigned activations (1.1 to
1.2) are in the engine, not in the file, which TensorRT would misread.

    python benchmarks/int8_profile.py infer/models/left-atrium.onnx infer/models/left-atrium.int8.onnx
"""

import argparse
from pathlib import Path
from typing import Any

import environment as env

CONVOLUTIONS = {"Convolution": "convolution", "Deconvolution": "transposed convolution"}

Group = tuple[str, tuple[int, ...]]  # what it is, X, Y, Z of its output


def main() -> None:
    """Measure and print one row a group of layers, the most expensive in int8 first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fp32", type=Path, nargs="?", help="ONNX file that seg-export wrote")
    parser.add_argument("int8", type=Path, nargs="?", help="its int8 form")
    parser.add_argument("--shape", default="112,80,48", help="X,Y,Z of the pass in voxels (an LA scan at 1.25 mm)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--name", default="int8-profile", help="of the result file")
    parser.add_argument("--results", type=Path, default=env.RESULTS)
    parser.add_argument("--smoke", action="store_true", help="a shipped model, small, two turns; writes no result")
    options = parser.parse_args()
    shape = (32, 32, 16) if options.smoke else tuple(int(n) for n in options.shape.split(","))
    paths = {"fp32": options.fp32, "int8": options.int8}
    if options.smoke:
        from seg.infer.artifact import DEFAULT_MODEL, resolve

        paths = {form: Path(resolve(DEFAULT_MODEL, form)) for form in paths}
    elif options.int8 is None:
        parser.error("two files are needed")
    found = measure(paths, shape, options.threads, 2 if options.smoke else options.turns)
    content = {"shape": shape, "threads": options.threads, "groups": rows_of(found, shape)}
    env.report(options.name, content, text(content["groups"]), None if options.smoke else options.results)


def measure(paths: dict[str, Path], shape: tuple[int, ...], threads: int, turns: int) -> dict[str, dict[Group, float]]:
    """Milliseconds by form and group of layers."""
    import numpy as np
    import openvino as ov

    from seg.infer.backends.quantisers import fuse_quantisers

    requests, groups = {}, {}
    for form, path in paths.items():
        model = ov.Core().read_model(path)
        fuse_quantisers(model, ov.opset13)
        model.reshape((1, 1, *shape))
        config = {"INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = ov.Core().compile_model(model, "CPU", config)
        requests[form] = compiled.create_infer_request()
        groups[form] = {op.get_friendly_name(): group_of(op) for op in compiled.get_runtime_model().get_ops()}
    x = np.random.default_rng(0).standard_normal((1, 1, *shape), dtype=np.float32)
    least: dict[str, dict[str, float]] = {form: {} for form in paths}
    for turn in range(turns + 1):
        for form, request in requests.items():
            request.infer([x], share_inputs=True, share_outputs=True)
            for node in request.profiling_info if turn else ():
                ms = node.real_time.total_seconds() * 1e3
                least[form][node.node_name] = min(ms, least[form].get(node.node_name, ms))
    found: dict[str, dict[Group, float]] = {form: {} for form in paths}
    for form, layers in least.items():
        for name, ms in layers.items():
            group = groups[form].get(name, ("other", ()))
            found[form][group] = found[form].get(group, 0.0) + ms
    return found


def group_of(op: Any) -> Group:
    """A layer of OpenVINO's runtime model -> its group."""
    kind = op.get_rt_info()["layerType"].astype(str)
    if op.get_output_size() == 0 or op.output(0).partial_shape.is_dynamic or len(op.output(0).shape) != 5:
        return "other", ()
    _, channels, *extent = op.output(0).shape
    if kind not in CONVOLUTIONS:
        return "other", tuple(extent)
    given = op.input(0).get_source_output().shape
    step = "" if list(given[2:]) == extent else f", {'half' if given[2] > extent[0] else 'double'} the extent"
    return f"{CONVOLUTIONS[kind]} {given[1]} to {channels}{step}", tuple(extent)


def rows_of(found: dict[str, dict[Group, float]], shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """The groups, the most expensive in int8 first; then the sums at the scan's own extent, below it, and of all."""
    names = found["fp32"].keys() | found["int8"].keys()
    rows = [
        {"layers": what, "extent": extent, **{form: found[form].get((what, extent), 0.0) for form in found}}
        for what, extent in sorted(names)
    ]
    rows.sort(key=lambda row: -row["int8"])
    full = [row for row in rows if row["extent"] == shape]
    below = [row for row in rows if row["extent"] != shape]
    sums = {"all at the scan's extent": full, "all below": below, "all": rows}
    return rows + [
        {"layers": name, "extent": (), **{form: sum(row[form] for row in part) for form in found}}
        for name, part in sums.items()
    ]


def text(rows: list[dict[str, Any]]) -> str:
    """Groups above 1 % of the time of int8."""
    whole, cells = rows[-1]["int8"], []
    for row in rows:
        if row["int8"] > 0.01 * whole:
            extent = " x ".join(map(str, row["extent"])) or "-"
            share, faster = f"{100 * row['int8'] / whole:.1f} %", f"{row['fp32'] / row['int8']:.1f}"
            cells.append([row["layers"], extent, f"{row['fp32']:.2f}", f"{row['int8']:.2f}", share, faster])
    return env.table(("layers", "extent", "fp32, ms", "int8, ms", "share of int8", "faster"), cells)


if __name__ == "__main__":
    main()
