"""What a network says before it has learnt anything: mostly background."""

import math
from typing import TypeVar

import torch
from torch import nn

BACKGROUND = 0.8  # below the usual thresholds (0.85, 0.95): nothing is a pseudo-label yet. CrossMatch can do without

Head = TypeVar("Head", bound=nn.Conv2d | nn.Conv3d)


def start_at_background(head: Head) -> Head:
    """Set the bias of a convolution to K logits: background has probability `BACKGROUND`, the others share the rest.

    With equal chances the first thing learnt is to deny all organs everywhere. The head sees what ReLUs leave: a class
    whose weights are all negative by then is best where all features are zero, and no gradient passes there. Of eight
    supervised trainings of 800 steps (hippocampus, width 8) one never predicted the anterior part: 0.430, and 0.866
    from this start. Lin et al. (ICCV 2017, section 3.3) start RetinaNet so for the same reason.
    """
    assert head.bias is not None
    with torch.no_grad():
        head.bias.zero_()
        head.bias[1:] = math.log((1 - BACKGROUND) / BACKGROUND / max(1, len(head.bias) - 1))
    return head
