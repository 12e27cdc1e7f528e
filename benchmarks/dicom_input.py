"""How long does reading a DICOM series take, beside pydicom alone in a plain loop?

A CT series of 140 slices, 512 x 512, 16-bit, made by code, uncompressed. Each contender reads it in fresh processes,
in turns: once with its imports, then four times more. "pydicom" is dcmread and pixel_array of each file, stacked in the
order of names: it looks at no position and refuses nothing. "ours" is the whole of `seg.infer.dicom.read`. Both must
give the same stored values.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import environment as env

SHAPE = (512, 512, 140)  # columns, rows, slices
SMALL = (64, 48, 20)
CONTENDERS = ("pydicom", "ours")
TIMES = ("first", "next", "processor")


def main() -> None:
    """Measure both, print a table; exit status 1 if they read different values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--runs", type=int, default=5, help="in each process, the first with imports")
    parser.add_argument("--results", type=Path, default=env.RESULTS)
    parser.add_argument("--smoke", action="store_true", help="small series, one process; writes no result")
    parser.add_argument("--worker", nargs=3, metavar=("NAME", "FOLDER", "RUNS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        name, folder, runs = options.worker
        print(json.dumps(work(name, Path(folder), int(runs))))
        return
    shape, processes = (SMALL, 1) if options.smoke else (SHAPE, options.processes)
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        write_series(Path(folder), shape)
        script = str(Path(__file__).resolve())
        for _ in range(processes):
            for name in CONTENDERS:
                command = [sys.executable, script, "--worker", name, folder, str(options.runs)]
                reports[name].append(env.fresh(command, threads=1)[1])
    digests = {report["sha256"] for both in reports.values() for report in both}
    found = {name: env.medians(both) for name, both in reports.items()}
    ratios = {key: round(found["ours"][key] / found["pydicom"][key], 2) for key in TIMES}
    rows = [[name, *(f"{found[name][key]:.3f}" for key in TIMES)] for name in CONTENDERS]
    rows.append(["ours / pydicom", *(f"{ratios[key]:.2f}" for key in TIMES)])
    text = env.table(
        ("reader", "first read of a process, imports included, s", "next reads, s", "their processor time, s"), rows
    )
    content = {
        "shape": shape,
        "processes": processes,
        "runs": options.runs,
        "threads": 1,
        "same_values": len(digests) == 1,
    }
    content |= {"contenders": found, "ratios": ratios, "reports": reports}
    env.report("dicom-input", content, text, None if options.smoke else options.results)
    sys.exit(int(len(digests) != 1))


def write_series(folder: Path, shape: tuple[int, int, int]) -> None:
    """A CT series of noise, files named in slice order; by the builder of the tests."""
    import numpy as np

    sys.path.insert(0, str(env.ROOT / "tests" / "infer"))
    from dicom_files import write_series as write

    write(folder, np.random.default_rng(0).integers(-1000, 1000, shape, np.int16))


def work(name: str, folder: Path, runs: int) -> dict[str, Any]:
    """Read `runs` times; seconds of the first and median of the others, digest of the stored values."""
    seconds, processor = [], []
    for _ in range(runs):
        began, busy = time.perf_counter(), time.process_time()
        planes = read_ours(folder) if name == "ours" else read_plainly(folder)
        seconds.append(time.perf_counter() - began)
        processor.append(time.process_time() - busy)
    digest = hashlib.sha256(planes.tobytes()).hexdigest()
    found = {"first": seconds[0], "next": median(seconds[1:] or seconds)}
    return {**found, "processor": median(processor[1:] or processor), "sha256": digest}


def read_ours(folder: Path) -> Any:
    """(slices, rows, columns) stored values."""
    from seg.infer.dicom.read import read

    return read(str(folder)).volume.voxels[0].transpose(2, 1, 0)


def read_plainly(folder: Path) -> Any:
    """The same."""
    import numpy as np
    from pydicom import dcmread

    return np.stack([dcmread(path).pixel_array for path in sorted(folder.iterdir())])


if __name__ == "__main__":
    main()
