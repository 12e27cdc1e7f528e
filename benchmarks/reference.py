"""The reference of inference.py: what each window placement gives by the plainest code that could be right."""

import json
import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import environment as env


def reference(bundle: Path, place: tuple[str, str] | None) -> Any:
    """Labels by the plainest code that could be right: torch float32, one window at a time, float64 sums."""
    import numpy as np
    import torch

    shared = json.loads((bundle / "bundle.json").read_text())
    network, x = torch_network(bundle, shared, env.usable_threads()), np.load(bundle / "x.npy")
    if place is None:
        return one_pass(network, x, shared["stride"])
    rule, weighting = place
    window, places, padded, crop = placement(x, shared, rule)
    profiles = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in window]
    weight = np.maximum(np.einsum("a,b,c->abc", *profiles), 1e-3) if weighting == "gaussian" else np.ones(window)
    score = np.zeros((shared["network"]["classes"], *padded.shape[1:]))
    total = np.zeros(padded.shape[1:])
    with torch.inference_mode():
        for corner in places:
            cut = box_at(corner, window)
            logits = network(torch.from_numpy(padded[(slice(None), *cut)][np.newaxis]))[0]
            found = torch.softmax(logits, 0) if rule == "protocol" else logits
            score[(slice(None), *cut)] += found.double().numpy() * weight
            total[cut] += weight
    return (score / total).argmax(0)[crop].astype(np.uint8)


def one_pass(network: Any, x: Any, stride: Sequence[int]) -> Any:
    import numpy as np
    import torch

    padded, crop = _pad(x, [-(-n // s) * s for n, s in zip(x.shape[1:], stride, strict=True)])
    with torch.inference_mode():
        logits = network(torch.from_numpy(padded[np.newaxis]))[0].numpy()
    return logits.argmax(0)[crop].astype(np.uint8)


def _pad(x: Any, shape: Sequence[int]) -> tuple[Any, tuple[slice, ...]]:
    """Zeros around the scan, and the cut that takes them off."""
    import numpy as np

    before = [(wanted - n) // 2 for n, wanted in zip(x.shape[1:], shape, strict=True)]
    margins = [(b, w - n - b) for b, n, w in zip(before, x.shape[1:], shape, strict=True)]
    return np.pad(x, [(0, 0), *margins]), tuple(slice(b, b + n) for b, n in zip(before, x.shape[1:], strict=True))


def placement(x: Any, shared: dict[str, Any], rule: str) -> tuple[Any, list[tuple[int, ...]], Any, tuple[slice, ...]]:
    """Window, corners of all windows, the padded scan, and the cut that takes the padding off."""
    window = tuple(shared["window"])
    padded, crop = _pad(x, [max(n, w) for n, w in zip(x.shape[1:], window, strict=True)])
    steps = shared["step"] if rule == "protocol" else [w // 2 for w in window]
    axes = zip(padded.shape[1:], window, steps, strict=True)
    return window, list(product(*(list(starts(n, w, s, even=rule == "even")) for n, w, s in axes))), padded, crop


def starts(extent: int, window: int, step: int, *, even: bool) -> Iterator[int]:
    """Where windows begin: a step apart with the last one flush with the border, or evenly spread (nnU-Net)."""
    last, count = extent - window, math.ceil((extent - window) / step) + 1
    for number in range(count):
        yield round(last / max(1, count - 1) * number) if even else min(number * step, last)


def box_at(corner: Sequence[int], window: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))


def torch_network(bundle: Path, shared: dict[str, Any], threads: int) -> Any:
    import torch

    from seg.train.networks import build_network

    torch.set_num_threads(threads)
    network = build_network(**shared["network"], dropout=0.0)
    network.load_state_dict(torch.load(bundle / "weights.pt", weights_only=True))
    return network.eval()
