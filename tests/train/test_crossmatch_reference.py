"""CrossMatch against a slow reference written from its description, one stream and one voxel mask at a time.

Streams are stacked only where batch norm sees them together. Dropout masks are made a function of (sample, channels,
rate), so that both sides drop the same whatever is stacked.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import confident_vnet, make_batch, preset
from torch import Tensor, nn

from seg.train.methods.base import Batch
from seg.train.methods.crossmatch import CrossMatch, CrossMatchConfig
from seg.train.networks.unet import UNet2d
from seg.train.strong import cutmix_boxes, strong_view

ITERATIONS = 100


SATURATED = -1.7580993408473766  # of SELU: what alpha dropout puts in the place of a value


def masked(
    value: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, kind: str = "dropout"
) -> Tensor:
    """Stands in for torch's dropouts: what sample b of any stream loses is drawn from (b, channels, p)."""
    if not training:
        return value
    return torch.stack([dropped(one, b, p, kind) for b, one in enumerate(value)])


def dropped(one: Tensor, b: int, p: float, kind: str) -> Tensor:
    """Whole channels, but single voxels of alpha dropout and inside the U-Net."""
    voxels = kind in ("alpha", "voxels")
    shape = one.shape if voxels else (len(one), *[1] * (one.dim() - 1))
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(1000 * b + 10 * len(one) + int(p * 8))) >= p
    if kind in ("dropout", "voxels"):
        return one * kept / (1 - p)
    scale = ((1 - p) * (1 + p * SATURATED**2)) ** -0.5  # Klambauer et al. 2017, section 3: mean and variance stay
    return scale * torch.where(kept, one, torch.tensor(SATURATED)) - scale * p * SATURATED


@pytest.fixture(autouse=True)
def _fixed_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"alpha_dropout": "alpha", "feature_alpha_dropout": "feature_alpha", "dropout": "voxels"}
    for name in ("dropout2d", "dropout3d", *kinds):
        monkeypatch.setattr(F, name, partial(masked, kind=kinds.get(name, "dropout")))


def plain_dice(cfg: CrossMatchConfig, logits: Tensor, label: Tensor, confidence: Tensor, c: float) -> Tensor:
    """Equation 3 with hard targets: voxels below the threshold are taken out by boolean indexing."""
    p, inside = logits.softmax(dim=1), confidence >= c
    losses = []
    for k in range(0 if cfg.dice_background else 1, logits.shape[1]):
        a, t = p[:, k][inside], (label[inside] == k).float()
        losses.append(1 - (2 * (a * t).sum() + 1e-5) / ((a * a).sum() + (t * t).sum() + 1e-5))
    return sum(losses, torch.zeros(())) / len(losses)


def plain_distance(cfg: CrossMatchConfig, logits: Tensor, target: tuple[Tensor, Tensor], c: float) -> Tensor:
    """D: equation 3, or its mean with the cross entropy of the same voxels, over all."""
    dice = plain_dice(cfg, logits, *target, c)
    if cfg.distance == "dice":
        return dice
    label, confidence = target
    log = logits.log_softmax(dim=1).movedim(1, -1)
    lost = -log[confidence >= c].gather(1, label[confidence >= c][:, None]).sum() / label.numel()
    return (dice + lost) / 2


def guess(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Hard label and confidence of each voxel."""
    confidence, label = logits.detach().softmax(dim=1).max(dim=1)
    return label, confidence


def pasted(onto: tuple[Tensor, Tensor], from_: tuple[Tensor, Tensor], box: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and confidences with the partner's inside the box, sample by sample."""
    out = tuple(part.clone() for part in onto)
    for target, source in zip(out, from_, strict=True):
        for b in range(len(box)):
            target[b][box[b]] = source[b][box[b]]
    return out[0], out[1]


def paste_image(image: Tensor, partner: Tensor, box: Tensor) -> Tensor:
    image = image.clone()
    for b in range(len(box)):
        for channel in range(image.shape[1]):
            image[b, channel][box[b]] = partner[b, channel][box[b]]
    return image


def perturb(cfg: CrossMatchConfig, levels: list[Tensor], p: float) -> list[Tensor]:
    return [torch.stack([dropped(one, b, p, cfg.perturbation) for b, one in enumerate(level)]) for level in levels]


def four(net: Any, cfg: CrossMatchConfig, a: Tensor, b: Tensor) -> list[Tensor]:
    """The published pass: a and b encoded together; a, b, weak(b) and strong(b) decoded together."""
    levels = net.encode(torch.cat([a, b]))
    of_a, of_b = [f[: len(a)] for f in levels], [f[len(a) :] for f in levels]
    streams = [of_a, of_b, *(perturb(cfg, of_b, 0.5 + side * cfg.gap / 2) for side in (-1, 1))]
    logits = net.decode([torch.cat([s[k] for s in streams]) for k in range(5)], head_dropout=False)
    n, m = len(a), len(b)
    return [logits[:n], logits[n : n + m], logits[n + m : n + 2 * m], logits[n + 2 * m :]]


Reference = Callable[[CrossMatch, Batch, int], dict[str, Tensor]]


def combine(
    cfg: CrossMatchConfig,
    batch: Batch,
    c: float,
    weight: float,
    streams: dict[str, Tensor],
    mix: dict[str, tuple[Tensor, Tensor]],
    boxes: tuple[Tensor, Tensor],
) -> dict[str, Tensor]:
    """Equations 10 to 12; `mix` has the partners' targets for wn, ww and ws."""
    targets = {name: guess(streams[name]) for name in ("wn", "ww", "ws")}
    _, box2 = boxes
    wn1, wn2 = (pasted(targets["wn"], mix["wn"], box) for box in boxes)
    kept = (targets["wn"][1] >= c).float().mean()
    assert 0.05 < kept < 0.95 or c < 0.6, "the mask should matter"

    def d(name: str, target: tuple[Tensor, Tensor]) -> Tensor:
        return plain_distance(cfg, streams[name], target, c)

    l_ip = (d("s1", wn1) + d("s2", wn2)) / 2
    l_tkd = (d("ww", targets["wn"]) + d("ws", targets["wn"]) + d("sw", wn2) + d("ss", wn2)) / 4
    k1, k2 = (pasted(targets[name], mix[name], box2) for name in ("ww", "ws"))
    l_dkd = (d("sw", k1) + d("ss", k2)) / 2
    x = streams["x"]
    everywhere = torch.ones_like(batch.y, dtype=torch.float32)
    l_sup = (F.cross_entropy(x, batch.y) + plain_dice(cfg, x, batch.y, everywhere, 0.5)) / 2
    return {
        "supervised": cfg.scale * l_sup,
        "image": weight * cfg.ip_weight * l_ip,
        "teacher": weight * cfg.kd_weight * (1 - cfg.eta) * l_tkd,
        "assistant": weight * cfg.kd_weight * cfg.eta * l_dkd,
    }


def reversed_targets(streams: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    order = list(range(len(streams["wn"])))[::-1]
    return {name: guess(streams[name][order]) for name in ("wn", "ww", "ws")}


def paper(method: CrossMatch, batch: Batch, step: int) -> dict[str, Tensor]:
    """Two passes with the teacher among the streams; CutMix partner is the batch reversed."""
    cfg, net, u, g = method.config, method.student, batch.u, batch.generator
    s1, s2 = strong_view(u, g), strong_view(u, g)
    boxes = cutmix_boxes(len(u), u.shape[2:], g), cutmix_boxes(len(u), u.shape[2:], g)
    s1, s2 = (paste_image(s, torch.flip(s, [0]), box) for s, box in zip((s1, s2), boxes, strict=True))
    first, second = four(net, cfg, batch.x, u), four(net, cfg, s1, s2)
    streams = dict(zip(("x", "wn", "ww", "ws"), first, strict=True))
    streams |= dict(zip(("s1", "s2", "sw", "ss"), second, strict=True))
    return combine(cfg, batch, cfg.threshold, cfg.scale, streams, reversed_targets(streams), boxes)


def official(method: CrossMatch, batch: Batch, step: int) -> dict[str, Tensor]:
    """Partners from a third loader, predicted first and without gradient; threshold ramp times ln 2."""
    cfg, net, g = method.config, method.student, batch.generator
    u, partner = batch.u[0::2], batch.u[1::2]
    s1, s2 = strong_view(u, g), strong_view(u, g)
    boxes = cutmix_boxes(len(u), u.shape[2:], g), cutmix_boxes(len(u), u.shape[2:], g)
    p1, p2 = strong_view(partner, g), strong_view(partner, g)
    s1, s2 = paste_image(s1, p1, boxes[0]), paste_image(s2, p2, boxes[1])
    with torch.no_grad():
        mix = {"wn": guess(net(partner))}
        _, _, weak, strong = four(net, cfg, batch.x, partner)
        mix |= {"ww": guess(weak), "ws": guess(strong)}
    first, second = four(net, cfg, batch.x, u), four(net, cfg, s1, s2)
    streams = dict(zip(("x", "wn", "ww", "ws"), first, strict=True))
    streams |= dict(zip(("s1", "s2", "sw", "ss"), second, strict=True))
    c = cfg.threshold
    if step > 0 and cfg.threshold_ramp:
        c = (c + (1 - c) * math.exp(-5 * (1 - (step - 1) / (ITERATIONS * 17 / 14)) ** 2)) * math.log(2)
    return combine(cfg, batch, c, cfg.scale, streams, mix, boxes)


def frozen(net: nn.Module, run: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Normalised by the batch, and the running statistics as they were."""
    before = {name: value.clone() for name, value in net.named_buffers() if "running" in name}
    found = run()
    for name, value in net.named_buffers():
        if name in before:
            value.data.copy_(before[name])  # a plain copy_ would count as a change of what backward needs
    return found


def together(net: Any, streams: list[list[Tensor]]) -> list[Tensor]:
    """Logits of streams that are decoded in one batch."""
    logits = net.decode([torch.cat([s[k] for s in streams]) for k in range(5)], head_dropout=False)
    return list(logits.split([len(s[0]) for s in streams]))


def fast(method: CrossMatch, batch: Batch, step: int) -> dict[str, Tensor]:
    """The teacher stands apart from the first pass: averaged weights, or the student's clean stream.

    With batch norm apart, perturbed streams are decoded by themselves, and nothing but x and u moves the statistics.
    """
    cfg, net, u, g = method.config, method.student, batch.u, batch.generator
    apart = cfg.batch_norm == "apart"
    s1, s2 = strong_view(u, g), strong_view(u, g)
    boxes = cutmix_boxes(len(u), u.shape[2:], g), cutmix_boxes(len(u), u.shape[2:], g)
    s1, s2 = (paste_image(s, torch.flip(s, [0]), box) for s, box in zip((s1, s2), boxes, strict=True))
    n, m = len(batch.x), len(u)
    weak, strong = 0.5 - cfg.gap / 2, 0.5 + cfg.gap / 2
    levels = net.encode(torch.cat([batch.x, u]))
    of_x, of_u = [level[:n] for level in levels], [level[n:] for level in levels]
    if apart:
        (x,) = together(net, [of_x])
        ww, ws = frozen(net, lambda: together(net, [perturb(cfg, of_u, weak), perturb(cfg, of_u, strong)]))
    else:
        x, ww, ws = together(net, [of_x, perturb(cfg, of_u, weak), perturb(cfg, of_u, strong)])
    streams = {"x": x, "ww": ww, "ws": ws}
    with torch.no_grad():
        if cfg.teacher == "ema":
            assert method.average is not None
            streams["wn"] = method.average.network.eval()(u)
        else:
            streams["wn"] = net.decode(of_u, head_dropout=False)

    def views() -> list[Tensor]:
        if not apart:
            return four(net, cfg, s1, s2)
        levels = net.encode(torch.cat([s1, s2]))
        of_s1, of_s2 = [level[:m] for level in levels], [level[m:] for level in levels]
        clean = together(net, [of_s1, of_s2])
        return clean + together(net, [perturb(cfg, of_s2, weak), perturb(cfg, of_s2, strong)])

    seen = frozen(net, views) if apart else views()
    streams |= dict(zip(("s1", "s2", "sw", "ss"), seen, strict=True))
    length = cfg.ramp_up * ITERATIONS
    ramp = math.exp(-5 * (1 - min(1, step / length)) ** 2) if length else 1.0
    weight = cfg.scale * ramp
    return combine(cfg, batch, cfg.threshold, weight, streams, reversed_targets(streams), boxes)


def build(config: CrossMatchConfig, classes: int, dims: int = 3) -> CrossMatch:
    config = replace(config, background_start=True)  # the confident head stays
    method = CrossMatch(confident_vnet(classes) if dims == 3 else confident_unet(classes), config, ITERATIONS).train()
    if method.average is not None:
        torch.manual_seed(5)
        with torch.no_grad():  # a teacher that is not the student
            for parameter in method.average.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            for _ in range(30):  # batch-norm statistics of its own
                method.average.network.train()(torch.randn(4, 1, *[16] * dims))
            method.average.network.eval()
    return method


def confident_unet(classes: int) -> UNet2d:
    """As `confident_vnet`."""
    torch.manual_seed(0)
    network = UNet2d(classes=classes, width=2)
    with torch.no_grad():
        network.head.weight *= 7.0
        nn.init.zeros_(network.head.bias)
    return network


CASES = [
    ("paper", paper, {}, 10),
    ("paper", paper, {"gap": 0.0, "eta": 0.1}, 10),
    ("paper", paper, {"perturbation": "alpha"}, 10),
    ("paper", paper, {"perturbation": "feature_alpha"}, 10),
    ("official", official, {}, 0),
    ("official", official, {}, 1),
    ("official", official, {}, 60),
    ("fast", fast, {}, 10),
    ("fast", fast, {"ramp_up": 0.0, "ip_weight": 0.7, "gap": 0.5}, 0),
    ("fast", fast, {"teacher": "apart", "ema": 0.0}, 70),
    ("fast", fast, {"batch_norm": "shared", "distance": "dice", "kd_weight": 1.0}, 10),
    ("fast", fast, {"teacher": "apart", "ema": 0.0, "batch_norm": "shared"}, 70),
]
SLICES = [
    ("paper", paper, {"threshold": 0.7}, 10),
    ("official", official, {"threshold": 0.7}, 60),
    ("fast", fast, {"threshold": 0.7, "labeled_batch": 12, "unlabeled_batch": 12}, 10),
]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("name", "reference", "changes", "step"), CASES)
def test_same_losses_and_gradients(
    name: str, reference: Reference, changes: dict[str, object], step: int, classes: int
) -> None:
    compare(replace(preset(name), **changes), reference, step, classes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "reference", "changes", "step"), SLICES)
def test_same_losses_and_gradients_of_slices(
    name: str, reference: Reference, changes: dict[str, object], step: int
) -> None:
    compare(replace(preset(name, 2), **changes), reference, step, 4, 2)  # type: ignore[arg-type]


def compare(config: CrossMatchConfig, reference: Reference, step: int, classes: int, dims: int = 3) -> None:
    """Losses at once, losses in parts and the reference's: the same values, gradients and batch-norm statistics."""
    method = build(config, classes, dims)
    other, parted = copy.deepcopy(method), copy.deepcopy(method)
    seed = next(s for s in range(100) if both_boxes(config, classes, s, dims))
    found = method.losses(drawn(config, classes, seed, dims), step)
    expected = reference(other, drawn(config, classes, seed, dims), step)
    assert found.keys() == expected.keys()
    for loss in found:
        assert found[loss].item() == pytest.approx(expected[loss].item(), rel=1e-5, abs=1e-6), loss
        assert found[loss].item() > 1e-5, loss
    for losses in (found, expected):
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
    for part in parted.parts(drawn(config, classes, seed, dims), step):
        torch.autograd.backward(torch.stack(list(part.values())).sum())
    for one in (method, parted):
        whole = gradient(other.student).norm()
        for (where, mine), theirs in zip(one.student.named_parameters(), other.student.parameters(), strict=True):
            assert mine.grad is not None
            assert theirs.grad is not None
            # The bias in front of a batch norm has no gradient but rounding.
            assert (mine.grad - theirs.grad).norm() <= 1e-5 * max(theirs.grad.norm(), 0.1 * whole), where
        for mine, theirs in zip(one.buffers(), other.buffers(), strict=True):  # the same passes, in the same order
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def gradient(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def drawn(config: CrossMatchConfig, classes: int, seed: int, dims: int) -> Batch:
    """A batch of volumes, or of the slices in the middle of them."""
    batch = make_batch(config, classes, seed)
    return batch if dims == 3 else replace(batch, x=batch.x[..., 8], y=batch.y[..., 8], u=batch.u[..., 8])


def both_boxes(config: CrossMatchConfig, classes: int, seed: int, dims: int) -> bool:
    """Whether this seed draws a CutMix box for a sample in both strong views."""
    batch = drawn(config, classes, seed, dims)
    u, g = batch.u[: len(batch.u) - config.mix_batch], batch.generator
    strong_view(u, g), strong_view(u, g)
    return all(bool(cutmix_boxes(len(u), u.shape[2:], g).any()) for _ in range(2))
