"""Strong views of CrossMatch, in batch on the training device: bias field, gamma, blur; and CutMix boxes.

Source: LA/code/dataloaders/la_heart.py of the official repository and torchio 0.19's definitions. Slices get the same
in two dimensions; the official code for ACDC has brightness and contrast jitter in the place of bias field and gamma.
"""

import torch
from torch import Tensor

from .draws import uniform

BIAS_ORDER, BIAS_COEFFICIENT = 3, 0.5
LOG_GAMMA = 0.5
BLUR_SIGMA = (0.1, 2.0)  # voxels
JITTER_P, BLUR_P, CUTMIX_P = 0.8, 0.5, 0.5


def strong_view(u: Tensor, generator: torch.Generator) -> Tensor:
    """(B, C, X, Y[, Z]) float32 weak view -> strong view: p 0.8 bias field then gamma; p 0.5 blur."""
    with torch.autocast(u.device.type, enabled=False):  # its products would round the image to bf16
        return _strong_view(u, generator)


def _strong_view(u: Tensor, generator: torch.Generator) -> Tensor:
    each = (len(u), *[1] * (u.ndim - 1))  # one number a sample
    jitter = uniform(generator, *each) < JITTER_P
    blur = uniform(generator, *each) < BLUR_P
    field = bias_field(len(u), u.shape[2:], generator)[:, None]
    exponent = torch.exp(LOG_GAMMA * (2 * uniform(generator, *each) - 1))
    biased = u * field
    # z-scored data are negative in part: the sign is kept
    jittered = biased.sign() * biased.abs().clamp_min(1e-12) ** exponent
    view = torch.where(jitter, jittered, u)
    low, high = BLUR_SIGMA
    sigma = low + (high - low) * uniform(generator, len(u), u.ndim - 2)
    return torch.where(blur, gaussian_blur(view, sigma), view)


def bias_field(count: int, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """(count, *shape): exp of the monomials of total degree <= 3 on [-1, 1], coefficients uniform in +-0.5.

    Volumes have 20 monomials, slices 10.
    """
    degree = torch.arange(BIAS_ORDER + 1, device=generator.device)
    total = torch.stack(torch.meshgrid(*[degree] * len(shape), indexing="ij")).sum(dim=0)
    drawn = 2 * uniform(generator, count, *total.shape) - 1
    field = BIAS_COEFFICIENT * drawn * (total <= BIAS_ORDER)
    for extent in shape:  # each product takes the degrees of the first axis left and puts its positions last
        powers = torch.linspace(-1, 1, extent, device=generator.device)[:, None] ** degree
        field = torch.tensordot(field, powers, dims=([1], [1]))
    return field.exp()


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """(B, C, *shape) blurred by (B, dims) sigmas in voxels: a batched matrix product an axis, edges reflected."""
    with torch.autocast(image.device.type, enabled=False):  # products would round the image to bf16
        for axis in range(image.ndim - 2):
            matrix = _blur_matrix(image.shape[axis + 2], sigma[:, axis])
            moved = image.movedim(axis + 2, 2)
            flat = moved.reshape(len(image), image.shape[1], moved.shape[2], -1)
            image = (matrix[:, None] @ flat).reshape(moved.shape).movedim(2, axis + 2)
    return image


def _blur_matrix(extent: int, sigma: Tensor) -> Tensor:
    """(B, extent, extent) rows of a Gaussian cut at 4 sigma, half-sample reflection as scipy.ndimage's default."""
    at = torch.arange(extent, device=sigma.device)
    offset = torch.arange(-extent, 2 * extent, device=sigma.device)
    distance = (offset[None, :] - at[:, None]).float()[None]  # (1, extent, 3 extent)
    s = sigma[:, None, None]
    weight = torch.exp(-0.5 * (distance / s) ** 2) * (distance.abs() <= torch.floor(4 * s + 0.5))
    weight = weight / weight.sum(dim=-1, keepdim=True)
    left, middle, right = weight.chunk(3, dim=-1)
    folded: Tensor = middle + left.flip(-1) + right.flip(-1)
    return folded


def cutmix_boxes(count: int, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """(count, *shape) bool, one box each with probability 0.5.

    Fraction of the volume (of slices: the area) uniform in [0.02, 0.4], edge ratio uniform in [0.3, 3.33]. The official
    code for volumes swaps axes 0 and 2 when it writes the box and so cuts 17 % off it; here the box has the volume that
    was drawn.
    """
    dims = len(shape)
    draws = uniform(generator, count, dims + 3)
    fraction, ratio = 0.02 + 0.38 * draws[:, 0], 0.3 + (1 / 0.3 - 0.3) * draws[:, 1]
    volume = fraction * shape.numel()
    parts = [volume / ratio, volume * ratio, volume][:dims]
    lengths = [(part ** (1 / dims)).round().clamp_max(n) for part, n in zip(parts, shape, strict=True)]
    edges, places = (
        torch.stack(lengths, dim=1),
        torch.stack([n - e + 1 for n, e in zip(shape, lengths, strict=True)], dim=1),
    )
    start = (draws[:, 2:-1] * places).floor()
    inside = (draws[:, -1] < CUTMIX_P).view(count, *[1] * dims).expand(count, *shape)
    for axis in range(dims):
        at = torch.arange(shape[axis], device=generator.device)
        within = (at >= start[:, axis, None]) & (at < start[:, axis, None] + edges[:, axis, None])
        inside = inside & within.view(count, *(-1 if a == axis else 1 for a in range(dims)))
    return inside
