"""`seg-infer --demo FOLDER`: a scan made by code, segmented with the shipped model, scored against its truth."""

import json
import sys
import time
from pathlib import Path

import numpy as np

from .atomic import atomic_file, refuse_existing
from .errors import SegError
from .nifti import read
from .outputs import make_folder
from .phantom import atrium_phantom, nifti_gz
from .volume import Volume

DEMO_SEED = 1000  # the shipped model's training phantoms have seeds below 100


def run_demo(folder: str) -> int:
    """Write scan, mask, preview and statistics into `folder`; returns the exit status.

    Raises
    ------
    SegError : E-OUT-*, exit 30, where they cannot be written, or files of those names are not an earlier demo's.
    """
    from .batch import Request, run

    make_folder(folder or ".")
    scan, mask, preview, statistics = (
        str(Path(folder, name)) for name in ("scan.nii.gz", "mask.nii.gz", "preview.png", "statistics.json")
    )
    volume, truth = atrium_phantom(DEMO_SEED)
    again = _holds(scan, volume)
    if not again:
        for path in (scan, mask, preview, statistics):
            refuse_existing(path, overwrite=False)
        with atomic_file(scan, overwrite=False) as file:
            file.write(nifti_gz(volume.voxels[0], volume.affine))
    began = time.perf_counter()
    request = Request([scan], mask, statistics=statistics, preview=preview, overwrite=again)
    if status := run(request):
        return status
    seconds = time.perf_counter() - began
    labels = read(mask).volume.voxels[0]
    dice = 2 * int(np.sum((labels > 0) & (truth > 0))) / (int(np.sum(labels > 0)) + int(np.sum(truth > 0)))
    content = json.loads(Path(statistics).read_text())
    classes = content["scans"][0]["classes"]
    print(f"scan        {scan}  (synthetic, {' x '.join(map(str, volume.shape))} voxels)")
    print(f"mask        {mask}  (Dice {dice:.3f} against the phantom's known truth)")
    print(f"preview     {preview}")
    volumes = ", ".join(f"{name} {found['volume_ml']:.1f} ml" for name, found in classes.items())
    print(f"statistics  {statistics}  ({volumes})")
    print(f"time        {seconds:.2f} s for the scan: loading the network, reading, segmenting and writing")
    if dice < 0.8:
        print(f"seg-infer: the demo's Dice is {dice:.3f}, expected at least 0.8", file=sys.stderr)
        return 70
    return 0


def _holds(path: str, volume: Volume) -> bool:
    """Whether a file is the demo's scan."""
    try:
        found = read(path).volume
    except SegError:
        return False
    return np.array_equal(found.affine, volume.affine) and np.array_equal(found.voxels, volume.voxels)
