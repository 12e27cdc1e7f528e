"""How good are the models, on scans they were not trained on?

Every artifact segments the validation scans of its data set through the path that ships (artifact, OpenVINO backend,
`predict.segment`), and its masks are scored at the scans' own grid: Dice, Jaccard, 95 % Hausdorff distance and average
surface distance in mm (medpy's definitions; in voxels where the data do not tell their size), per class and their mean.
The JSON file holds every case. Prints rows for the README.

Data: the folder in SEG_DATA, else ../shared/data beside the project; a data set is found by the model's name. With
--data, one folder with images/, labels/ and splits.json for all artifacts given.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import environment as env

DATASETS = {"left-atrium": "LA", "short-axis": "ACDC"}  # model name -> folder, where it is another
METRICS = ("dice", "jaccard", "hd95", "asd")


def main() -> None:
    """Evaluate, print one row a class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names or .onnx files; default: all that ship")
    parser.add_argument("--data", type=Path, help="one data folder for all models given")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "auto"))
    parser.add_argument("--tta", action="store_true", help="average over the mirrorings of training; another file")
    parser.add_argument("--all-components", action="store_true", help="as --no-largest-component; another file")
    parser.add_argument("--threads", type=int, default=env.usable_threads())
    parser.add_argument("--results", type=Path, default=env.RESULTS)
    parser.add_argument("--smoke", action="store_true", help="a phantom or two; writes no result")
    options = parser.parse_args()

    from seg.infer.artifact import load, resolve, shipped_models

    content: dict[str, Any] = {}
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        if options.smoke:
            options.data, options.models = write_smoke(Path(folder))
        for name in options.models or shipped_models():
            artifact = load(resolve(name))
            data = options.data or env.DATA / DATASETS.get(artifact.spec.name, artifact.spec.name)
            if not (data / "splits.json").exists():
                print(f"{artifact.spec.name}: skipped, no {data.name}/splits.json; set SEG_DATA", file=sys.stderr)
                continue
            found = evaluate(artifact, data, options)
            label = f"{artifact.spec.name} {artifact.spec.card.get('precision', 'fp32')}"
            content[label if label not in content else f"{label} ({Path(name).stem})"] = found
            rows += table_rows(label, found)
    columns = ("model", "scans", "class", "Dice", "Jaccard", "95HD", "ASD", "s a scan", "MB")
    text = env.table(columns, rows)
    name = "models" + "-all-components" * options.all_components + "-tta" * options.tta
    env.report(name, {"models": content}, text, None if options.smoke else options.results)


def evaluate(artifact: Any, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Metrics of every validation scan and their means over scans."""
    from dataclasses import asdict, replace

    import numpy as np

    from seg.infer.backends import open_backend
    from seg.infer.compute import ComputeOptions, mirrored_axes
    from seg.infer.metrics import evaluate as class_metrics
    from seg.infer.nifti import read
    from seg.infer.predict import segment

    spec = replace(artifact.spec, largest_component=False) if options.all_components else artifact.spec
    backend = open_backend("openvino", artifact.path, precision=options.precision, threads=options.threads)
    cases: dict[str, Any] = {}
    mirror = mirrored_axes(artifact, ComputeOptions(mirror=options.tta))
    known = True
    for case in validation_cases(data):
        image = read(str(data / "images" / f"{case}.nii.gz"))
        scan, known = image.volume, known and image.header.size_known
        truth = np.rint(read(str(data / "labels" / f"{case}.nii.gz")).volume.intensities()[0]).astype(np.int64)
        began = time.perf_counter()
        mask = segment(scan, spec, backend, mirror=mirror)
        seconds = time.perf_counter() - began
        scores = class_metrics(mask, truth, spec.label_values, scan.spacing.tolist())
        names = dict(zip(spec.label_values, spec.labels, strict=True))
        cases[case] = {"seconds": seconds, "classes": {names[value]: asdict(found) for value, found in scores.items()}}
        print(f"{spec.name} {case}: {_dice(cases[case])}", file=sys.stderr)
    labels = spec.labels[1:]
    means = {k: {m: mean(c["classes"][k][m] for c in cases.values()) for m in METRICS} for k in labels}
    if len(labels) > 1:
        means["mean"] = {m: mean(means[label][m] for label in labels) for m in METRICS}
    return {
        "graph_sha256": spec.graph_sha256,
        "data": data.name,
        "precision": options.precision,
        "tta": options.tta,
        "unit": "mm" if known else "voxel",
        "megabytes": Path(artifact.path).stat().st_size / 1e6,
        "seconds": median(case["seconds"] for case in cases.values()),
        "means": means,
        "cases": cases,
    }


def validation_cases(data: Path) -> list[str]:
    """Names of the scans that splits.json holds out; it names scans or patients."""
    from seg.train.cases import discover

    held = set(json.loads((data / "splits.json").read_text())["val"])
    return [case.id for case in discover([str(data)]).cases if {case.id, case.patient} & held]


def _dice(case: dict[str, Any]) -> str:
    return ", ".join(f"{label} {found['dice']:.4f}" for label, found in case["classes"].items())


def table_rows(label: str, found: dict[str, Any]) -> list[list[str]]:
    """One row a class, and one for their mean."""
    count, size, seconds = str(len(found["cases"])), f"{found['megabytes']:.1f}", f"{found['seconds']:.2f}"
    unit = found["unit"]
    return [
        [
            label,
            count,
            name,
            *(f"{m[k]:.4f}" for k in METRICS[:2]),
            *(f"{m[k]:.2f} {unit}" for k in METRICS[2:]),
            seconds,
            size,
        ]
        for name, m in found["means"].items()
    ]


def write_smoke(folder: Path) -> tuple[Path, Sequence[str]]:
    """Two small scans with a known answer, and a network that nearly knows it."""
    import numpy as np
    from memory import write_network

    from seg.infer.phantom import write_nifti

    write_network(str(folder / "model.onnx"), 2)
    for number in range(2):
        voxels = np.random.default_rng(number).integers(-500, 500, (20, 18, 12)).astype(np.int16)
        for part, content in (("images", voxels), ("labels", (voxels > 0).astype(np.uint8))):
            (folder / part).mkdir(exist_ok=True)
            write_nifti(folder / part / f"{number}.nii.gz", content, np.eye(4))
    (folder / "splits.json").write_text(json.dumps({"val": ["0", "1"]}))
    return folder, [str(folder / "model.onnx")]


if __name__ == "__main__":
    main()
