"""Signed distance maps of label crops, on the training device.

Augmented labels exist on the device alone, so their distance maps are made there too: an exact Euclidean transform,
one axis after the other, each a minimum over shifts (Felzenszwalb and Huttenlocher 2012 in its brute-force form, which
needs no data-dependent step and so no synchronisation on a GPU).
"""

import torch
from torch import Tensor

FAR = 1e9  # squared voxels


@torch.no_grad()
def squared_distance(to: Tensor) -> Tensor:
    """(N, ...) bool -> (N, ...) float32: squared distance in voxels to the nearest True, `FAR` where there is none."""
    distance = torch.where(to, 0.0, FAR)
    for axis in range(1, to.ndim):
        extent, best = to.shape[axis], distance.clone()
        for shift in range(1, extent):
            if not to.is_cuda and shift % 4 == 0 and shift**2 >= float(best.max()):
                break  # nothing farther away can be nearer
            moved = distance + float(shift**2)
            for into, source in ((shift, 0), (0, shift)):
                target = best.narrow(axis, into, extent - shift)
                torch.minimum(target, moved.narrow(axis, source, extent - shift), out=target)
        distance = best
    return distance


@torch.no_grad()
def signed_distance_maps(label: Tensor, classes: int) -> Tensor:
    """(N, ...) class indices -> (N, K - 1, ...) float32 in [-1, 1]: negative inside, 0 on the inner boundary.

    Distances outside and inside are each divided by their largest value in the crop; a crop without the class is all
    zeros (SASSNet code/utils/util.py, compute_sdf, which also divides by the difference to a minimum that is always 0).
    """
    maps = []
    for value in range(1, classes):
        inside = label == value
        out, deep = squared_distance(inside).sqrt(), squared_distance(~inside).sqrt()
        axes = list(range(1, label.ndim))
        signed = _scaled(out, axes) - _scaled(deep, axes)
        present = inside.any(dim=-1).flatten(1).any(dim=1).view(-1, *[1] * (label.ndim - 1))
        maps.append(torch.where((deep == 1) | ~present, 0.0, signed))
    return torch.stack(maps, dim=1)


def _scaled(distance: Tensor, axes: list[int]) -> Tensor:
    return distance / distance.amax(axes, keepdim=True).clamp_min(1.0)
