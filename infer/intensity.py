"""Whether a scan's intensities can be those that the model was made for.

Only a model with fixed normalisation (CT, in Hounsfield units) depends on the unit: one that normalises each scan by
itself takes any but a single value. A scan in another unit gives an empty or partial mask without a word, so it is
refused.
"""

from dataclasses import replace

import numpy as np

from .errors import Exit, SegError
from .spec import ModelSpec
from .volume import Volume

SAMPLES = 200_000  # voxels looked at: percentiles to about 0.1 %
LEAST_SHARE = 0.1  # of the training range that a scan must cover: a crop of soft tissue covers a sixth of a CT's
AIR = -200.0  # where training scans reach below it (air), a scan without one negative voxel is no CT


def check_intensities(volume: Volume, spec: ModelSpec, path: str) -> None:
    """Compare the 0.5 and 99.5 percentile of `volume` with `spec.intensity_range`.

    Raises
    ------
    SegError : E-INTENSITY, exit 12.
    """
    if spec.normalisation.kind != "fixed":
        _refuse_constant(volume, path)
    if spec.normalisation.kind != "fixed" or spec.intensity_range is None:
        return
    stride = max(1, int((volume.voxels.size / SAMPLES) ** (1 / 3)))
    sample = replace(volume, voxels=volume.voxels[:, ::stride, ::stride, ::stride]).intensities()
    low, high = np.percentile(sample, (0.5, 99.5))
    lowest, highest = spec.intensity_range
    covered = (min(high, highest) - max(low, lowest)) / (highest - lowest)
    if covered >= LEAST_SHARE and not (lowest < AIR and sample.min() >= 0):
        return
    raise SegError(
        "E-INTENSITY",
        Exit.INPUT_REFUSED,
        path,
        f"has intensities from {low:.4g} to {high:.4g}",
        "give the scan in the unit the model was trained with (CT: Hounsfield), choose another model, "
        "or insist with --force-intensity",
        f"about {lowest:.4g} to {highest:.4g} for {spec.name}",
    )


def _refuse_constant(volume: Volume, path: str) -> None:
    """A scan whose channels have one value each shows nothing, but a network finds something in it all the same."""
    for voxels in (volume.voxels[:, ::8, ::8, ::8], volume.voxels):  # nearly every scan is known by a few
        if any(channel.min() < channel.max() for channel in voxels):
            return
    value = float(volume.voxels[0, 0, 0, 0]) * volume.slope + volume.intercept
    found, fix = f"has the value {value:.6g} in every voxel", "give the scan itself"
    raise SegError("E-INTENSITY", Exit.INPUT_REFUSED, path, found, fix, "an image")
