"""Connected components of a mask."""

import numpy as np
from numpy.typing import NDArray


def keep_largest(labels: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    """Keep the largest 26-connected part of every class; other parts become background.

    Parameters
    ----------
    labels : (X, Y, Z) label values.

    Returns
    -------
    (X, Y, Z) array of the same dtype; of two equally large parts the first in memory order stays.
    """
    import cc3d

    parts, count = cc3d.connected_components(labels, connectivity=26, return_N=True)
    sizes = cc3d.statistics(parts)["voxel_counts"]
    first = np.zeros(count + 1, labels.dtype)  # label value of each part
    first[parts.ravel(order="K")] = labels.ravel(order="K")
    keep = np.zeros(count + 1, bool)
    for value in np.unique(first[1:]):
        candidates = np.flatnonzero(first == value)
        candidates = candidates[candidates > 0]
        keep[candidates[np.argmax(sizes[candidates])]] = True
    kept: NDArray[np.unsignedinteger] = np.where(keep[parts], labels, 0).astype(labels.dtype)
    return kept
