"""Weak augmentation of a batch on the training device: one affine resampling and a change of contrast.

Rotation, scaling and cropping of the window are one `grid_sample`, images trilinear and labels nearest. Rot90 and
mirroring are free and happen while cropping.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .draws import normal, uniform

FLAT = 3.0  # beyond this ratio of the voxels' edges (nnU-Net's threshold) slices are only rotated in their plane
PLANES = {2: ((0, 1),), 3: ((1, 2), (0, 2), (0, 1))}  # of rotation, by number of dimensions


@dataclass(frozen=True)
class WeakAugmentation:
    """Ranges of the weak augmentation; zeros switch a part off.

    Attributes
    ----------
    rotation : degrees, uniform in +- about each axis, in mm; of slices, and where voxels are over three times as thick
        as wide, about the axis across them alone.
    scale : log-scale, uniform in +-, one factor for all axes plus a quarter of that per axis.
    contrast : log-gain and log-gamma, uniform in +-, about the crop's mean.
    brightness : offset in standard deviations, uniform in +-.
    noise : upper bound of Gaussian noise in standard deviations.
    mirror : axes mirrored with probability 1/2; none by default, for left is not right, nor anterior posterior.
    rot90 : rotation by multiples of 90 degrees in the x-y plane (the papers' RandomRotFlip).
    """

    rotation: float = 15.0
    scale: float = 0.2
    contrast: float = 0.3
    brightness: float = 0.2
    noise: float = 0.15
    mirror: tuple[int, ...] = ()
    rot90: bool = False

    @property
    def spatial(self) -> bool:
        """Whether crops are resampled, and so need a margin."""
        return self.rotation > 0 or self.scale > 0

    def margin(self, window: tuple[int, int, int]) -> tuple[int, int, int]:
        """Extent to crop, in voxels, so that most of a rotated and shrunk window has data; a slice stays one."""
        if not self.spatial:
            return window
        x, y, z = (int(np.ceil(w * 1.25 / 2)) * 2 if w > 1 else 1 for w in window)
        return x, y, z


def _symmetric(generator: torch.Generator, count: int, *shape: int) -> Tensor:
    """Uniform in [-1, 1)."""
    return uniform(generator, count, *shape) * 2 - 1


def _affines(
    count: int, dims: int, spec: WeakAugmentation, generator: torch.Generator, edges: Sequence[float] = ()
) -> Tensor:
    """(count, dims, dims) output -> input voxel offsets about the centre; `edges` of the voxels, all 1 by default."""
    planes = PLANES[dims]
    angles = torch.deg2rad(spec.rotation * _symmetric(generator, count, len(planes)))
    common = spec.scale * _symmetric(generator, count, 1)
    scales = torch.exp(common + spec.scale / 4 * _symmetric(generator, count, dims))
    matrix = torch.diag_embed(scales)
    edges = edges or [1.0] * dims
    for number, (i, j) in enumerate(planes):
        if dims == 3 and max(edges) > FLAT * min(edges) and edges.index(max(edges)) in (i, j):
            continue
        c, s = torch.cos(angles[:, number]), torch.sin(angles[:, number])
        turn = torch.eye(dims, device=matrix.device).repeat(count, 1, 1)
        ratio = edges[j] / edges[i]
        turn[:, i, i], turn[:, j, j], turn[:, i, j], turn[:, j, i] = c, c, -s * ratio, s / ratio
        matrix = turn @ matrix
    return matrix


def weak_augment(
    image: Tensor,
    label: Tensor | None,
    window: Sequence[int],
    spec: WeakAugmentation,
    generator: torch.Generator,
    edges: Sequence[float] = (),
) -> tuple[Tensor, Tensor | None]:
    """Augment a batch of volumes or slices.

    Parameters
    ----------
    image : (B, C, *margin(window)) float32; the margin's last extent is left out for slices.
    label : (B, *margin(window)) integer, or None.
    edges : of a voxel, mm along each axis; their ratios count. All equal by default.

    Returns
    -------
    image (B, C, *window) float32 and label (B, *window) int64.
    """
    image, label, _ = weak_augment_with(image, label, None, window, spec, generator, edges)
    return image, label


def weak_augment_with(
    image: Tensor,
    label: Tensor | None,
    bank: Tensor | None,
    window: Sequence[int],
    spec: WeakAugmentation,
    generator: torch.Generator,
    edges: Sequence[float] = (),
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`weak_augment`, with maps (B, E, *margin(window)) that are resampled like the image and keep their values.

    Beyond the margin image and label go on as they end there, and the maps are 0, which is: not known.
    """
    count = len(image)
    if count and spec.spatial:
        grid = _grid(image, window, _affines(count, len(window), spec, generator, edges))
        image = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if label is not None:
            values = label[:, None].float()
            label = F.grid_sample(values, grid, mode="nearest", padding_mode="border", align_corners=False)[:, 0]
        if bank is not None:
            bank = F.grid_sample(bank, grid, mode="bilinear", align_corners=False)
    if count:
        image = _intensity(image, spec, generator)
    return image, None if label is None else label.long(), bank


def _grid(image: Tensor, window: Sequence[int], affine: Tensor) -> Tensor:
    """(B, *window, dims) sampling positions, in grid_sample's [-1, 1] with the last axis first."""
    axes = [torch.arange(w, device=image.device, dtype=torch.float32) - (w - 1) / 2 for w in window]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # (*window, dims) voxels about the centre
    moved = torch.einsum("bij,...j->b...i", affine, points)
    half = torch.tensor(image.shape[2:], device=image.device, dtype=torch.float32) / 2
    return (moved / half).flip(-1)


def _intensity(image: Tensor, spec: WeakAugmentation, generator: torch.Generator) -> Tensor:
    """Gain, gamma about the mean, offset and noise; one draw per sample."""
    if not (spec.contrast or spec.brightness or spec.noise):
        return image
    draws = _symmetric(generator, len(image), 4).T
    gain, gamma, offset, noise = draws.reshape(4, -1, *[1] * (image.ndim - 1))
    mean = image.flatten(1).mean(dim=1).view_as(gain)
    centred = image - mean
    centred = centred.sign() * centred.abs().clamp_min(1e-6) ** torch.exp(spec.contrast * gamma)
    image = centred * torch.exp(spec.contrast * gain) + mean + spec.brightness * offset
    if spec.noise:
        strength = (spec.noise * (noise + 1) / 2).clamp_min(0) ** 2 / max(spec.noise, 1e-6)
        image = image + normal(generator, *image.shape) * strength
    return image
