"""Small networks, batches and samples for the tests of training."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from seg.train.methods import PRESETS, PRESETS_2D, Batch, MethodConfig
from seg.train.methods.crossmatch import CrossMatchConfig
from seg.train.networks.vnet import VNet
from seg.train.sampling import Sample


def make_batch(config: MethodConfig, classes: int = 2, seed: int = 0) -> Batch:
    """A batch of 16^3 windows whose labels follow from the images."""
    generator = torch.Generator().manual_seed(seed)
    x, u = (
        torch.randn(count, 1, 16, 16, 16, generator=generator)
        for count in (config.labeled_batch, config.unlabeled_batch)
    )
    y = torch.bucketize(x[:, 0], torch.linspace(-0.5, 0.5, classes - 1))
    return Batch(x, y, u, generator)


def preset(name: str, dims: int = 3) -> CrossMatchConfig:
    """A preset of CrossMatch for volumes or slices."""
    return replace(CrossMatchConfig(), **(PRESETS if dims == 3 else PRESETS_2D)["crossmatch"][name])


def confident_vnet(classes: int = 2, factor: float = 7.0) -> VNet:
    """A VNet of width 2 whose logits are far apart, so that thresholds keep some voxels and drop others."""
    torch.manual_seed(0)
    network = VNet(classes=classes, width=2)
    with torch.no_grad():
        network.head.weight *= factor
        nn.init.zeros_(network.head.bias)
    return network


def sample(shape: tuple[int, int, int], name: str = "a", *, labelled: bool = True, foreground: int = 1) -> Sample:
    """A sample whose image is its label: `foreground` random voxels have random values from 1 to 200."""
    rng = np.random.default_rng(len(name))
    label = np.zeros(shape, np.uint8)
    label.ravel()[rng.choice(label.size, foreground, replace=False)] = rng.integers(1, 200, foreground)
    return Sample(name, label[None].astype(np.float32), label if labelled else None)
