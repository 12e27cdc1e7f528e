"""A window seen at another scale: which part of it, on which grid, and how tensors move between the two.

The view is always a grid that the network's stride divides, and no larger than the window. Its scale is exact and
the same along all axes: a view of extent T at scale f shows T / f voxels of the window, placed at random; where that
is more than there is, the rest is 0, the mean after normalisation, and does not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .strong import gaussian_blur

LARGEST_UP = 0.85  # of the window's extent, for views at a larger scale


@dataclass(frozen=True)
class Zoom:
    """A view.

    Attributes
    ----------
    factor : scale; above 1 the view is a magnified part of the window.
    window : extents of the window, voxels.
    shape : extents of the view, voxels of its own.
    start, extent : the part of the window that is seen, window voxels; whole numbers when magnified.
    """

    factor: float
    window: tuple[int, ...]
    shape: tuple[int, ...]
    start: tuple[float, ...]
    extent: tuple[float, ...]

    @classmethod
    def draw(cls, factor: float, window: Sequence[int], stride: Sequence[int], draws: Sequence[float]) -> "Zoom":
        """A view at `factor`; `draws` are uniform numbers in [0, 1), one an axis, that place it."""
        share = factor if factor < 1 else LARGEST_UP
        shape, start, extent = [], [], []
        for w, step, u in zip(window, stride, draws, strict=True):
            n = min(w, step * max(2, int(share * w / step)))
            seen = n / factor if factor < 1 else float(max(1, round(n / factor)))
            low, high = min(0.0, w - seen), max(0.0, w - seen)
            shape.append(n)
            extent.append(seen)
            start.append(float(int(low + u * (high - low))) if high > 0 else low + u * (high - low))
        return cls(factor, tuple(window), tuple(shape), tuple(start), tuple(extent))

    def sample(self, x: Tensor, shape: Sequence[int] | None = None, mode: str = "bilinear") -> Tensor:
        """(N, C, ...) on the window, at any resolution -> (N, C, *shape) on the view; 0 outside the window."""
        positions = self._positions(shape or self.shape, x.device)
        grid = torch.stack(torch.meshgrid(*positions, indexing="ij"), dim=-1).flip(-1)
        grid = grid.expand(len(x), *grid.shape)
        return F.grid_sample(x.float(), grid, mode=mode, align_corners=False)

    def image(self, x: Tensor) -> Tensor:
        """`sample` of an image, smoothed first where the view is coarser."""
        if self.factor < 1:
            sigma = (1 / self.factor - 1) / 2
            x = gaussian_blur(x, x.new_full((len(x), x.ndim - 2), sigma))
        return self.sample(x)

    def label(self, y: Tensor) -> Tensor:
        """(N, ...) int64 -> the nearest label of each voxel of the view."""
        return self.sample(y[:, None], mode="nearest")[:, 0].long()

    def inside(self, shape: Sequence[int] | None = None, device: torch.device | None = None) -> Tensor:
        """(*shape) float32, 1 for voxels of the view that lie in the window."""
        found = torch.ones((), device=device)
        shape = shape or self.shape
        for axis, position in enumerate(self._positions(shape, device)):
            found = found * (position.abs() < 1).float().view(*(-1 if a == axis else 1 for a in range(len(shape))))
        return found

    def cut(self, x: Tensor) -> Tensor:
        """(N, C, *window) -> the voxels that a magnified view shows, on the window's own grid."""
        part = [slice(int(s), int(s + e)) for s, e in zip(self.start, self.extent, strict=True)]
        return x[(slice(None), slice(None), *part)]

    def back(self, x: Tensor) -> Tensor:
        """(N, C, *shape) on a magnified view -> the grid of `cut`."""
        mode = "trilinear" if len(self.shape) == 3 else "bilinear"
        return F.interpolate(x.float(), size=[int(e) for e in self.extent], mode=mode, align_corners=False)

    def _positions(self, shape: Sequence[int], device: torch.device | None) -> list[Tensor]:
        """Per axis, each view voxel's centre in grid_sample's [-1, 1] of the window."""
        return [
            ((torch.arange(n, device=device) + 0.5) / n * e + s) / w * 2 - 1
            for n, e, s, w in zip(shape, self.extent, self.start, self.window, strict=True)
        ]
