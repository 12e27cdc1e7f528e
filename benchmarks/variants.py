"""All exported forms of a model: what each costs, and what it gains. Writes the forms, then measures them.

From each fp32 artifact (a shipped model's name, or a file that seg-export wrote from a run) come fp16 and int8, as
`seg-export --all` makes them; a shipped model's int8 form is the one that ships. All forms segment the same
validation scans through the path that ships, in OpenVINO and ONNX Runtime. Logits and labels are compared with the fp32
form's in OpenVINO, and with torch's on the golden pair. Seconds are medians of the network's pass over the scans, all
forms in turn in one process.

    python benchmarks/variants.py left-atrium STUDENT.onnx --data ../shared/data/LA --output build/variants
"""

import argparse
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import environment as env

FORMS = ("fp32", "fp16", "int8")
ROUNDS = 3


def main() -> None:
    """Make, measure, print one row a form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="fp32 artifacts; the first is what the others are compared with")
    parser.add_argument("--data", type=Path, required=True, help="images/, labels/ and splits.json")
    parser.add_argument("--output", type=Path, required=True, help="folder for the forms")
    parser.add_argument("--calibration-scans", type=int, default=12)
    parser.add_argument("--threads", type=int, default=env.usable_threads())
    parser.add_argument("--results", type=Path, default=env.RESULTS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    from seg.infer.artifact import resolve

    forms = {name: make_forms(Path(resolve(name)), options) for name in options.models}
    content: dict[str, Any] = {}
    for name, paths in forms.items():
        content |= measure(Path(name).stem, paths, options)
    time_all({f"{Path(n).stem} {form}": p for n, paths in forms.items() for form, p in paths.items()}, content, options)
    first = next(iter(content.values()))
    rows = [row(name, found, first) for name, found in content.items()]
    columns = ("form", "size", "Dice", "points lost", "labels as fp32", "error / logits' range", "ms a scan", "faster")
    env.report("variants", {"forms": content}, env.table(columns, rows), options.results)


def make_forms(source: Path, options: argparse.Namespace) -> dict[str, Path]:
    """As `seg-export SOURCE --all` makes them; fp32 is the source itself."""
    from seg.export.calibration import calibration_cases, validation_ids, verification_cases
    from seg.export.derived import write_half
    from seg.export.forms import Scans, write_int8

    data, validation = str(options.data), validation_ids(str(options.data))
    scans = Scans(calibration_cases(data, options.calibration_scans, validation), verification_cases(data, validation))
    paths = {"fp32": source} | {form: options.output / f"{source.stem}.{form}.onnx" for form in FORMS[1:]}
    write_half(str(source), str(paths["fp16"]))
    write_int8(str(source), str(source), str(paths["int8"]), scans, print)
    return paths


def measure(name: str, paths: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """Dice of each form, and how far it is from the fp32 one, on whole scans."""
    import numpy as np

    from seg.export.calibration import network_inputs, validation_ids, verification_cases
    from seg.infer.artifact import load
    from seg.infer.backends import ONNX_ENGINES, open_backend
    from seg.infer.metrics import overlap
    from seg.infer.predict import segment
    from seg.infer.selftest import golden_error
    from seg.train.prepare import load_label, load_volume

    cases = verification_cases(str(options.data), validation_ids(str(options.data)))
    spec = load(str(paths["fp32"])).spec
    reference = open_backend("openvino", str(paths["fp32"]), "cpu", precision="fp32")
    expected = [reference.run(network_inputs([case], spec)[0]).copy() for case in cases]
    content: dict[str, Any] = {}
    for form, path in paths.items():
        artifact = load(str(path))
        found: dict[str, Any] = {"megabytes": path.stat().st_size / 1e6, "scans": len(cases), "engines": {}}
        for engine in ONNX_ENGINES:
            backend = open_backend(engine, str(path), "cpu", precision="fp32")
            errors, labels, dice = [], [], []
            for case, logits in zip(cases, expected, strict=True):
                given = backend.run(network_inputs([case], spec)[0])
                errors.append(golden_error(given, logits))
                labels.append(float((given.argmax(1) == logits.argmax(1)).mean()))
                mask = segment(load_volume(case, len(spec.channels)), spec, backend)
                truth = np.asarray(spec.label_values)[load_label(str(case.label), spec.label_values)]
                dice.append(mean(overlap(mask == v, truth == v).dice for v in spec.label_values[1:]))
            engine_found = {"error": max(errors), "labels": mean(labels), "dice": mean(dice)}
            if artifact.golden is not None:
                golden = artifact.golden
                engine_found["golden_error"] = golden_error(backend.run(golden.x.astype(np.float32)), golden.logits)
            found["engines"][engine] = engine_found
            backend.close()
        content[f"{name} {form}"] = found
    return content


def time_all(paths: dict[str, Path], content: dict[str, Any], options: argparse.Namespace) -> None:
    """Median seconds of a pass over the scans, the forms in turn, after a round that does not count."""
    from seg.export.calibration import network_inputs, validation_ids, verification_cases
    from seg.infer.artifact import load
    from seg.infer.backends import open_backend

    cases = verification_cases(str(options.data), validation_ids(str(options.data)))
    threads = options.threads
    engines = {n: open_backend("openvino", str(p), "cpu", precision="fp32", threads=threads) for n, p in paths.items()}
    inputs = network_inputs(cases, load(str(next(iter(paths.values())))).spec)
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for turn in range(ROUNDS + 1):
        for x in inputs:
            for name, engine in engines.items():
                engine.run(x) if turn == 0 else None
                began = time.perf_counter()
                engine.run(x)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
    for name, found in seconds.items():
        content[name]["seconds"] = median(found)


def row(name: str, found: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """Against the first form of all."""
    mine, base = found["engines"]["openvino"], first["engines"]["openvino"]
    worst = [found["engines"][engine] for engine in found["engines"]]
    return [
        name,
        f"{found['megabytes']:.1f} MB",
        f"{mine['dice']:.4f}",
        f"{100 * (base['dice'] - mine['dice']):.2f}",
        f"{100 * min(w['labels'] for w in worst):.4f} %",
        f"{max(w['error'] for w in worst):.1e}",
        f"{1e3 * found['seconds']:.0f}",
        f"{first['seconds'] / found['seconds']:.1f}",
    ]


if __name__ == "__main__":
    main()
