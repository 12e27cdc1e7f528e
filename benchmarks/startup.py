"""How long does the command line take to start, and where does that time go?

Measured as whole processes, in turns, medians of N: the bare interpreter, `seg-infer --help`, the imports that a
segmentation needs one by one, and `seg-infer` on one small scan with a shipped model, from the shell to the mask on
disk. A second table splits the imports of that segmentation by package (`-X importtime`, self times). With
--peer-python, the imports that other tools begin with stand beside it.
"""

import argparse
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import environment as env

ENTRY = "from seg.infer.cli import main; main()"
IMPORTS = ("numpy", "nibabel", "openvino", "seg.infer.cli", "seg.infer.pipeline")
PEER_IMPORTS = ("torch", "monai.inferers", "nnunetv2.inference.predict_from_raw_data")
SHAPE = (36, 52, 36)  # a hippocampus crop
SHOWN = 12  # packages in the second table


def main() -> None:
    """Measure, print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="hippocampus", help="name or file for the whole segmentation")
    parser.add_argument("--scan", type=Path, help="default: noise of the size of a hippocampus crop")
    parser.add_argument("--peer-python", help="interpreter with torch, monai and nnunetv2")
    parser.add_argument("--threads", type=int, default=env.usable_threads())
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--results", type=Path, default=env.RESULTS)
    parser.add_argument("--smoke", action="store_true", help="one run; writes no result")
    options = parser.parse_args()
    if options.smoke:
        options.runs = 1
    with tempfile.TemporaryDirectory() as folder:
        scan = options.scan or write_noise(Path(folder) / "scan.nii.gz")
        segment = [str(scan), "-o", str(Path(folder) / "mask.nii.gz"), "--overwrite", "-q", "-m", options.model]
        segment += ["--threads", str(options.threads)]
        seconds, failures = measure(commands(segment, options.peer_python), options.runs, options.threads)
        packages = breakdown(segment, options.threads)
    middle = env.medians([dict(zip(seconds, values, strict=True)) for values in zip(*seconds.values(), strict=True)])
    rows = [[name, f"{middle[name]:.3f}", f"{min(seconds[name]):.3f}"] for name in seconds]
    whole = sum(packages.values())
    parts = [[name, f"{value:.3f}", f"{100 * value / whole:.0f}"] for name, value in packages.most_common(SHOWN)]
    text = env.table(("process", "median s", "least s"), rows)
    text += f"\n\nImports of the whole segmentation, {whole:.2f} s in all:\n\n"
    text += env.table(("package", "self s", "share %"), parts)
    for name, reason in failures.items():
        print(f"{name}: skipped, {reason}", file=sys.stderr)
    content = {"runs": options.runs, "seconds": seconds, "medians": middle, "imports": packages, "skipped": failures}
    env.report("startup", content, text, None if options.smoke else options.results)


def commands(segment: list[str], peer: str | None) -> dict[str, list[str]]:
    """What is measured, by name."""
    script = Path(sys.executable).with_name("seg-infer")
    tool = [str(script)] if script.exists() else [sys.executable, "-c", ENTRY]
    table = {"python -c pass": [sys.executable, "-c", "pass"]}
    table |= {f"import {name}": [sys.executable, "-c", f"import {name}"] for name in IMPORTS}
    table |= {"seg-infer --help": [*tool, "--help"], "seg-infer, one small scan": [*tool, *segment]}
    if peer is not None:
        table |= {f"import {name} (peer)": [peer, "-c", f"import {name}"] for name in PEER_IMPORTS}
    return table


def measure(
    table: dict[str, list[str]], runs: int, threads: int
) -> tuple[dict[str, list[float]], dict[str, str]]:  # fmt: skip
    """Seconds of every run; the first round only warms the disk's cache and byte code, unless it is the only one."""
    seconds: dict[str, list[float]] = {name: [] for name in table}
    failures: dict[str, str] = {}
    for turn in range(runs + (runs > 1)):
        for name, command in table.items():
            if name in failures:
                continue
            try:
                took, _ = env.fresh(command, threads=threads)
            except env.Failed as error:
                failures[name] = str(error)
                seconds.pop(name)
                continue
            if turn or runs == 1:
                seconds[name].append(took)
    return seconds, failures


def breakdown(segment: list[str], threads: int) -> Counter[str]:
    """Self time of imports by package, in seconds, of one segmentation."""
    import os
    import subprocess

    variables = {**os.environ, **dict.fromkeys(env.THREAD_VARIABLES, str(threads))}
    command = [sys.executable, "-X", "importtime", "-c", ENTRY, *segment]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    packages: Counter[str] = Counter()
    for own, _, _, module in re.findall(r"import time:\s+(\d+) \|\s+(\d+) \|(\s+)(\S+)", done.stderr):
        top = module.partition(".")[0]
        name = "standard library" if top in sys.stdlib_module_names or top.startswith("_") else top
        packages[name] += int(own) / 1e6
    return packages


def write_noise(path: Path) -> Path:
    """A small scan that no data set is needed for."""
    import numpy as np

    from seg.infer.phantom import write_nifti

    write_nifti(path, np.random.default_rng(0).normal(100, 30, SHAPE).astype(np.int16), np.eye(4))
    return path


if __name__ == "__main__":
    main()
