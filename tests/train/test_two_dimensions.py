"""Slices through what was written for volumes: the same code, one axis less, and exact where both say the same."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from builders import DATA, fact
from test_methods import UNSUPERVISED, gradients
from tiny import preset

from seg.infer.errors import Exit, SegError
from seg.train import job, training
from seg.train.augment import PLANES, WeakAugmentation, _affines, weak_augment
from seg.train.config import Engine
from seg.train.methods import METHODS, PRESETS, PRESETS_2D, SLICES, Batch, Distill, Method, default_options
from seg.train.methods.crossmatch import CrossMatch
from seg.train.networks import run_windows
from seg.train.networks.unet import UNet2d
from seg.train.plan import plan
from seg.train.processes import Processes
from seg.train.sampling import Sample, draw
from seg.train.settings import Settings, override
from seg.train.strong import bias_field, cutmix_boxes, gaussian_blur, strong_view
from seg.train.training import edges_of

SHAPE = torch.Size((20, 24))
ALL = [(name, row) for name in METHODS for row in (None, *PRESETS_2D.get(name, {}))]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_unet_has_the_parameters_of_the_papers() -> None:
    """1.81 M, as the tables of the semi-supervised papers give it."""
    assert sum(p.numel() for p in UNet2d(channels=1, classes=4, width=16).parameters()) == 1_813_764


def test_unet_levels_halve_and_double() -> None:
    network = UNet2d(width=3, classes=2)
    levels = network.encode(torch.zeros(2, 1, 32, 48))
    assert [tuple(level.shape) for level in levels] == [
        (2, 3, 32, 48),
        (2, 6, 16, 24),
        (2, 12, 8, 12),
        (2, 24, 4, 6),
        (2, 48, 2, 3),
    ]
    assert network.decode(levels).shape == (2, 2, 32, 48)


def test_unet_drops_less_at_finer_levels() -> None:
    rates = [m.p for m in UNet2d(dropout=0.5).modules() if isinstance(m, torch.nn.Dropout) and m.p]
    assert rates == pytest.approx([0.05, 0.1, 0.2, 0.3, 0.5])


def test_unet_moves_with_its_input() -> None:
    """What a pixel gets does not depend on the extent of the slice, away from the border."""
    torch.manual_seed(0)
    network, x = UNet2d(width=2, classes=3).eval(), torch.zeros(1, 1, 512, 32)
    x[:, :, 240:272] = torch.randn(32, 32)
    with torch.no_grad():
        whole, part = network(x), network(x[:, :, 96:416])
    torch.testing.assert_close(part[:, :, 130:190], whole[:, :, 226:286], atol=1e-5, rtol=0)


def test_windows_are_slices_to_a_2d_network() -> None:
    torch.manual_seed(0)
    network, x = UNet2d(width=2, classes=3).eval(), torch.randn(2, 1, 16, 32, 3)
    with torch.no_grad():
        found = run_windows(network, x)
        expected = torch.stack([network(x[..., z]) for z in range(3)], dim=-1)
    torch.testing.assert_close(found, expected)


def test_a_crop_is_one_slice_of_the_volume() -> None:
    volume = np.arange(7, 7 + 40 * 30 * 7, dtype=np.float32).reshape(1, 40, 30, 7)  # 0 lies beyond it
    sample = Sample("a", volume, (volume[0] > 4000).astype(np.uint8))
    crops = draw([sample], 50, (16, 16, 1), seed=0, step=0, stream=0)
    assert crops.image.shape == (50, 1, 16, 16, 1)
    slices = [set(image[image > 0] % 7) for image in crops.image]
    assert all(len(one) == 1 for one in slices)
    assert set.union(*slices) == set(range(7))


def test_augmented_slices_keep_image_and_label_together() -> None:
    spec = WeakAugmentation(rotation=40, scale=0.2, contrast=0, brightness=0, noise=0)
    assert spec.margin((32, 32, 1)) == (40, 40, 1)
    x, y = torch.meshgrid(torch.arange(40) - 19.5, torch.arange(40) - 19.5, indexing="ij")
    label = (((x - 3) / 12) ** 2 + (y / 6) ** 2 < 1).repeat(6, 1, 1)
    image, moved = weak_augment(label[:, None].float(), label, (32, 32), spec, generator(1))
    assert moved is not None
    assert (image.shape, moved.shape, moved.dtype) == ((6, 1, 32, 32), (6, 32, 32), torch.int64)
    both = ((image[:, 0] > 0.5) & (moved > 0)).sum()
    assert 2 * both / ((image[:, 0] > 0.5).sum() + (moved > 0).sum()) > 0.95
    assert not torch.equal(moved[0], moved[1])


def test_rotation_about_z_is_that_of_volumes() -> None:
    assert PLANES[2] == ((0, 1),)
    matrix = _affines(50, 2, WeakAugmentation(rotation=40, scale=0), generator())
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(2).expand(50, 2, 2), atol=1e-5, rtol=0)
    angles = torch.rad2deg(torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]))
    assert 30 < angles.abs().max() <= 40
    assert (angles > 0).any()
    assert (angles < 0).any()


def test_bias_field_of_slices_has_ten_monomials() -> None:
    field = bias_field(2, SHAPE, generator(4)).numpy()
    coefficients = torch.rand(2, 4, 4, generator=generator(4)).numpy() - 0.5
    powers = [p for p in itertools.product(range(4), repeat=2) if sum(p) <= 3]
    assert len(powers) == 10
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    for b in range(2):
        log = sum(coefficients[b, i, j] * x**i * y**j for i, j in powers)
        np.testing.assert_allclose(field[b], np.exp(log), rtol=1e-5)


def test_blur_of_a_slice_is_that_of_a_volume_without_z() -> None:
    torch.manual_seed(0)
    image, sigma = torch.randn(2, 1, *SHAPE), torch.tensor([[1.5, 0.4], [0.7, 2.0]])
    flat = torch.cat([sigma, torch.full((2, 1), 0.1)], dim=1)
    volume = gaussian_blur(image[..., None].expand(-1, -1, -1, -1, 5), flat)
    torch.testing.assert_close(gaussian_blur(image, sigma), volume[..., 2], atol=1e-5, rtol=0)


def test_boxes_of_slices_have_the_area_drawn() -> None:
    boxes = cutmix_boxes(4000, SHAPE, generator())
    used = boxes[boxes.flatten(1).any(dim=1)]
    assert 0.47 < len(used) / 4000 < 0.53
    assert 0.18 < used.float().mean() < 0.22  # uniform in [0.02, 0.4] has mean 0.21; long edges are cut at the border
    for inside in used[:50]:
        at = inside.nonzero()
        assert int((at.amax(dim=0) - at.amin(dim=0) + 1).prod()) == int(inside.sum())
    assert used.float().mean(dim=0).min() > 0


def slices(config: object, classes: int = 4, seed: int = 0) -> Batch:
    g = generator(seed)
    x, u = (torch.randn(n, 1, 16, 16, generator=g) for n in (config.labeled_batch, config.unlabeled_batch))  # type: ignore[attr-defined]
    return Batch(x, torch.bucketize(x[:, 0], torch.linspace(-0.5, 0.5, classes - 1)), u, g)


def build(name: str, row: str | None) -> Method:
    torch.manual_seed(0)
    config = override(METHODS[name].Config(), default_options(name, row, 2), "method")
    method = METHODS[name](UNet2d(classes=4, width=2), config, 100).train()
    if isinstance(method, Distill):
        method.teacher = torch.no_grad()(UNet2d(classes=4, width=2).eval())
    return method


@pytest.mark.parametrize(("name", "row"), ALL)
def test_every_method_learns_from_slices(name: str, row: str | None) -> None:
    method = build(name, row)
    batch = slices(method.config)
    losses = method.losses(batch, 50)
    assert all(torch.isfinite(loss) and loss.ndim == 0 for loss in losses.values())
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    assert len(gradients(method.student)) == len(list(method.student.parameters()))
    method.after_step(0)
    assert method.deployed().eval()(batch.x).shape == (len(batch.x), 4, 16, 16)


def test_unlabelled_slices_move_the_student() -> None:
    method = build("crossmatch", None)
    method.config = replace(method.config, ramp_up=0.0, threshold=0.3)  # type: ignore[call-arg]
    losses = method.losses(slices(method.config), 0)
    torch.autograd.backward(torch.stack([losses[name] for name in UNSUPERVISED]).sum())
    assert sum(float(g.abs().sum()) for g in gradients(method.student)) > 1e-4


def test_perturbation_of_slices_drops_whole_channels() -> None:
    method = build("crossmatch", None)
    assert isinstance(method, CrossMatch)
    levels = [torch.rand(4, 16, 8, 8) + 1]
    torch.manual_seed(0)
    (strong,) = method._perturbed(levels, 0.75)
    share = (strong == 0).flatten(2).float().mean(dim=2)
    assert set(share.unique().tolist()) == {0.0, 1.0}
    assert 0.6 < share.mean() < 0.9


def test_presets_for_slices_are_those_published_for_acdc() -> None:
    assert PRESETS.keys() == PRESETS_2D.keys()
    paper, official = preset("paper", 2), preset("official", 2)
    assert (paper.labeled_batch, paper.unlabeled_batch, paper.mix_batch) == (12, 12, 0)
    assert (official.labeled_batch, official.unlabeled_batch, official.mix_batch) == (12, 24, 12)
    assert (paper.scale, paper.ip_weight, paper.kd_weight) == (1, 1, 1)
    assert (official.scale, official.ip_weight, official.kd_weight) == (0.5, 0.5, 0.5)
    for one in (paper, official):
        assert (one.optimizer, one.lr, one.weight_decay, one.schedule) == ("nesterov", 0.01, 1e-4, "poly")
        assert (one.threshold, one.threshold_ramp, one.eta, one.gap, one.dropout) == (0.95, False, 0.3, 0.5, 0.5)
    for method in METHODS:
        options = default_options(method, None, 2)
        unlabeled = SLICES if METHODS[method].Config().unlabeled_batch else 0
        assert (options["labeled_batch"], options["unlabeled_batch"]) == (12, unlabeled)
        assert default_options(method, None, 3) == {}


def test_strong_view_of_slices() -> None:
    u = torch.randn(200, 1, 16, 16)
    view = strong_view(u, generator())
    same = (view == u).flatten(1).all(dim=1).float().mean()
    assert 0.04 < same < 0.17
    assert torch.isfinite(view).all()


# Plans

OBLIQUE = fact(shape=(10, 256, 216), spacing=(8.0, 1.5, 1.5))  # slices across the R axis
AXIAL = fact(shape=(256, 216, 10), spacing=(1.5, 1.5, 8.0))
UNKNOWN = replace(fact(shape=(216, 256, 10), spacing=(1.0, 1.0, 1.0)), size_known=False)
GIB = 1 << 30


def test_axial_stacks_stay_in_ras() -> None:
    result = plan([AXIAL], None, memory_bytes=8 * GIB, dims=2)
    assert (result.orientation, result.spacing, result.window) == ("RAS", (1.5, 1.5, None), (256, 224, 1))
    assert result.notes == ()


def test_other_stacks_are_taken_as_stored() -> None:
    result = plan([AXIAL, OBLIQUE], None, memory_bytes=8 * GIB, dims=2)
    assert (result.orientation, result.spacing) == ("slices", (1.5, 1.5, None))
    assert result.window[2] == 1
    assert "rot90" in result.notes[0]


def test_lost_sizes_mean_the_scans_own_grid() -> None:
    result = plan([UNKNOWN, UNKNOWN], None, memory_bytes=8 * GIB, dims=2)
    assert (result.orientation, result.spacing, result.window) == ("slices", (None, None, None), (224, 256, 1))
    assert "2 of 2 scans are not known" in result.notes[1]
    assert "own" in result.notes[1]
    volume = plan([replace(UNKNOWN, shape=(64, 64, 64))], None, memory_bytes=8 * GIB)
    assert (volume.orientation, volume.spacing) == ("RAS", (1.0, 1.0, 1.0))
    assert "taken as 1 mm" in volume.notes[0]
    chosen = plan([UNKNOWN], None, memory_bytes=8 * GIB, dims=2, spacing=(2.0, 2.0, 8.0))
    assert chosen.spacing == (2.0, 2.0, None)
    assert "taken as 1 mm" in chosen.notes[1]


# A whole run


def write_stacks(folder: Path, count: int = 5) -> Path:
    """Stacks of 5 slices, stored with the slices first: a bright disc with a ring, on noise."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    x, y = np.meshgrid(np.arange(40.0), np.arange(36.0), indexing="ij")
    for number in range(count):
        rng = np.random.default_rng(number)
        label = np.zeros((5, 40, 36), np.uint8)
        for z in range(5):
            distance = np.hypot(x - rng.uniform(14, 26), y - rng.uniform(12, 24))
            label[z] = np.select([distance < 5, distance < 9], [2, 1])
        image = rng.normal(100, 10, label.shape) + np.array([0, 60, 150])[label]
        name = f"p{number}.nii.gz"
        nib.save(nib.Nifti1Image(image.astype(np.int16), np.eye(4)), folder / "images" / name)
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "labels" / name)
    (folder / "splits.json").write_text(
        json.dumps({"labeled2": ["p0", "p1"], "train": ["p0", "p1", "p2", "p3"], "val": ["p4"]})
    )
    return folder


def train(root: Path, **changes: object) -> dict[str, dict[str, float]]:
    """Mean metrics of a run in two dimensions on stacks that are stored with the slices first."""
    options = {"lr": 0.003, "ema": 0.5, "labeled_batch": 4}
    settings = Settings(
        (str(write_stacks(root / "data")),),
        str(root / "run"),
        network="unet2d",
        labeled=2,
        window=(48, 48, 1),
        width=4,
        device="cpu",
        precision="fp32",
        validate_every=0,
        method_options=options,
        augmentation={"rotation": 0.0, "scale": 0.0, "mirror": [0, 1], "rot90": True},
    )
    mean: dict[str, dict[str, float]] = training.train(replace(settings, **changes), resume=False, say=lambda _: None)[
        "mean"
    ]  # type: ignore[arg-type]
    return mean


def test_stacks_are_learnt(tmp_path: Path) -> None:
    mean = train(tmp_path, iterations=120)
    assert mean["class 1"]["dice"] > 0.85
    assert mean["class 2"]["dice"] > 0.75
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["spec"]["dims"], config["spec"]["orientation"]) == (2, "slices")
    assert config["spec"]["spacing"] == [None, None, None]


def test_only_square_windows_are_turned(tmp_path: Path) -> None:
    with pytest.raises(SegError, match="rot90 with a window of 48 x 32 x 1") as caught:
        train(tmp_path, iterations=1, window=(48, 32, 1))
    assert caught.value.exit == Exit.USAGE


def test_crossmatch_runs_on_stacks(tmp_path: Path) -> None:
    options = {"labeled_batch": 2, "unlabeled_batch": 2}
    mean = train(tmp_path, iterations=3, method="crossmatch", method_options=options)
    assert 0 <= mean["foreground"]["dice"] <= 1
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert {"supervised", "image", "teacher", "assistant"} <= json.loads(line).keys()


@pytest.mark.skipif(not (DATA / "ACDC").exists(), reason=f"no {DATA}/ACDC; set SEG_DATA")
def test_acdc_is_planned_on_its_own_grid() -> None:
    said: list[str] = []
    settings = Settings((str(DATA / "ACDC"),), "run", network="unet2d", method="crossmatch", labeled=3, device="cpu")
    prepared = job.prepare_job(settings, said.append, Engine(torch.device("cpu"), torch.float32, False, Processes()))
    spec = prepared.spec
    assert (spec.dims, spec.orientation, spec.spacing) == (2, "slices", (None, None, None))
    assert (spec.window[2], spec.stride, len(spec.labels)) == (1, (16, 16, 1), 4)
    options = prepared.config["method"]["options"]
    assert (options["labeled_batch"], options["unlabeled_batch"]) == (12, 12)
    assert any("are not known" in line for line in said)


@pytest.mark.parametrize(
    ("spacing", "edges"),
    [
        ((0.8, 1.6, None), (0.8, 1.6, 1.0)),
        ((None, None, None), (1.0, 1.0, 1.0)),
        ((1.0, 0.5, 2.0), (1.0, 0.5, 2.0)),
    ],
)
def test_pixels_are_rotated_as_wide_as_they_are(spacing: tuple[float | None, ...], edges: tuple[float, ...]) -> None:
    assert edges_of(spacing) == edges
