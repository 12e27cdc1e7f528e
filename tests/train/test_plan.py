"""Plans from facts written by hand: no scan is read."""

from dataclasses import replace

import numpy as np
import pytest
from builders import MR, fact

from seg.infer.errors import Exit, SegError
from seg.infer.spec import ModelSpec, Normalisation
from seg.train.facts import QUANTILES, CaseFacts, Intensity
from seg.train.grid import median_shape, target_spacing
from seg.train.intensities import fixed_normalisation, intensity_range
from seg.train.plan import BATCH_LABELED, Plan, plan


def ct(values: np.ndarray, minimum: float = -1024) -> Intensity:
    """A CT whose foreground voxels are `values`."""
    fore = tuple(np.quantile(values, QUANTILES).tolist())
    return Intensity(minimum, -1000, 0, 1500, -300, 500, True, fore, float(values.mean()), float(values.std()))


def make(facts: list[CaseFacts], names: dict[int, str] | None = None, **options: object) -> Plan:
    return plan(facts, names, **{"memory_bytes": 24 << 30, **options})  # type: ignore[arg-type]


# Spacing and shape


def test_spacing_is_the_median_of_each_axis() -> None:
    facts = [fact(spacing=s) for s in [(0.5, 1.0, 2.0), (0.7, 1.1, 2.5), (0.9, 1.6, 2.2)]]
    assert target_spacing(facts) == (0.7, 1.1, 2.2)


def test_spacing_from_float32_headers_is_clean() -> None:
    assert target_spacing([fact(spacing=(0.62500001, 0.62499999, 0.625))]) == (0.625, 0.625, 0.625)


def thick(slices: int, ratios: list[float]) -> list[CaseFacts]:
    return [fact(str(n), (256, 256, slices), (1.0, 1.0, z)) for n, z in enumerate(ratios)]


def test_thick_slices_take_the_tenth_percentile() -> None:
    assert target_spacing(thick(40, [2.0, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5])) == (1.0, 1.0, 5.0)
    assert target_spacing(thick(40, [2.0, 2.0, 5, 5, 5, 5, 5, 5, 5, 5, 5])) == (1.0, 1.0, 2.0)


def test_a_ratio_of_exactly_three_keeps_the_median() -> None:
    assert target_spacing(thick(40, [1.5, 1.5, 3.0, 3.0, 3.0])) == (1.0, 1.0, 3.0)
    assert target_spacing(thick(40, [1.5, 1.5, 3.1, 3.1, 3.1])) == (1.0, 1.0, 1.5)


def test_many_thick_slices_keep_the_median() -> None:
    assert target_spacing(thick(100, [2.0, 2.0, 5, 5, 5])) == (1.0, 1.0, 5.0)


def test_thick_slices_never_become_finer_than_the_plane() -> None:
    assert target_spacing(thick(40, [0.2, 0.2, 5, 5, 5])) == (1.0, 1.0, 1.0)


def test_the_coarse_axis_need_not_be_the_last() -> None:
    facts = [fact(str(n), (40, 256, 256), (x, 1.0, 1.0)) for n, x in enumerate((2.0, 2.0, 5, 5, 5))]
    assert target_spacing(facts) == (2.0, 1.0, 1.0)


def test_median_shape_is_taken_on_the_grid() -> None:
    facts = [fact(shape=(100, 50, 10), spacing=(1, 1, 4)), fact(shape=(60, 50, 40), spacing=(2, 1, 1))]
    facts.append(fact(shape=(90, 52, 20), spacing=(1, 1, 2)))
    assert median_shape(facts, (1.0, 0.5, 2.0)) == (100, 100, 20)
    assert median_shape(facts, (1.0, 0.5, None)) == (100, 100, 20)


# Window


def test_the_users_choices_are_kept() -> None:
    result = make([fact()], window=(32, 48, 16), width=8, spacing=(1.25, 1.25, None))
    assert (result.window, result.width, result.spacing, result.notes) == ((32, 48, 16), 8, (1.25, 1.25, None), ())


def test_a_window_above_the_budget_is_kept_with_a_note() -> None:
    result = make([fact()], window=(256, 256, 256))
    assert result.window == (256, 256, 256)
    assert "16777216 voxels" in result.notes[0]


@pytest.mark.parametrize(
    "options",
    [
        {"window": (32, 40, 16)},
        {"window": (0, 16, 16)},
        {"window": (32, 32, 16), "dims": 2},
        {"spacing": (1.0, 0.0, 1.0)},
        {"spacing": (1.0, float("nan"), 1.0)},
        {"width": 0},
    ],
)
def test_impossible_choices(options: dict[str, object]) -> None:
    with pytest.raises(SegError) as caught:
        make([fact()], **options)
    assert (caught.value.code, caught.value.exit) == ("E-DATA-PLAN", Exit.USAGE)


def test_two_dimensions() -> None:
    result = make([fact(shape=(100, 90, 12), spacing=(1.4, 1.4, 8))], dims=2)
    assert (result.spacing, result.window, result.stride) == ((1.4, 1.4, None), (112, 96, 1), (16, 16, 1))


def test_a_cpu_gets_a_plan_of_its_size() -> None:
    """Without the user's choice: width 8 and a window of at most 64 x 64 x 48 voxels; a GPU gets what memory holds."""
    large = fact(shape=(200, 180, 160))
    slow, fast = make([large], device="cpu"), make([large])
    assert (slow.width, fast.width) == (8, 16)
    assert np.prod(slow.window) <= 64 * 64 * 48 < np.prod(fast.window)
    assert make([large], device="cpu", iterations=10).iterations == 10


def test_only_a_cpu_is_told_the_cost() -> None:
    options = {"window": (112, 112, 80), "width": 16}
    assert make([fact()], **options).notes == ()
    slow = make([fact()], device="cpu", **options)
    assert max(map(len, slow.describe().splitlines())) <= 120
    cost, advice = slow.notes
    assert "about 9.6 s a step, 16 h for 6000 iterations (estimate" in cost
    assert all(flag in advice for flag in ("--spacing", "--window 64,64,48", "--width 8"))
    slices = make([fact(shape=(200, 200, 9))], device="cpu", dims=2, window=(256, 256, 1), width=32, batch_labeled=12)
    assert "about 7.5 s a step" in slices.notes[0]
    assert "--window 192,192,1 and --width 16 make it faster" in slices.notes[1]


# Intensities


def test_mr_is_normalised_scan_by_scan() -> None:
    result = make([fact()])
    assert (result.modality, result.normalisation) == ("MR", Normalisation("zscore"))


@pytest.mark.parametrize(
    ("change", "modality"),
    [({}, "CT"), ({"minimum": -500}, "CT"), ({"minimum": -499}, "MR"), ({"integral": False}, "MR")],
)
def test_ct_is_integers_down_to_air(change: dict[str, float], modality: str) -> None:
    channel = replace(ct(np.arange(-100.0, 201.0)), **change)  # type: ignore[arg-type]
    assert make([fact(channel=channel)]).modality == modality


def test_a_mixture_is_treated_as_mr_and_told() -> None:
    result = make([fact("p1"), fact("p2"), fact("p3", channel=ct(np.arange(10.0)))])
    assert (result.modality, result.normalisation.kind) == ("MR", "zscore")
    assert "1 of 3 cases look like CT" in result.notes[0]


def test_ct_statistics_equal_those_of_all_foreground_voxels() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(0, 10, 3000), rng.normal(100, 50, 9000)
    facts = [
        replace(fact("p1", channel=ct(one)), class_voxels={0: 10**6, 1: 1000, 2: 2000}),
        replace(fact("p2", channel=ct(two)), class_voxels={0: 5, 1: 9000}),
        fact("p3", channel=replace(ct(one), foreground=())),  # unlabelled: no say
    ]
    norm = fixed_normalisation(facts)
    everything = np.concatenate([one, two])
    assert (norm.mean, norm.std) == pytest.approx((everything.mean(), everything.std()), rel=1e-5)
    low, high = np.percentile(everything, (0.5, 99.5))
    assert norm.lower == pytest.approx(low, abs=5)
    assert norm.upper == pytest.approx(high, abs=5)
    assert make(facts).normalisation == norm


def test_ct_of_one_case_clips_at_its_percentiles() -> None:
    values = np.arange(-100.0, 901.0)
    norm = fixed_normalisation([fact(channel=ct(values))])
    assert (norm.kind, norm.lower, norm.upper) == ("fixed", pytest.approx(-95), pytest.approx(895))


def test_ct_without_foreground_is_refused() -> None:
    with pytest.raises(SegError, match="foreground"):
        make([fact(channel=replace(ct(np.arange(10.0)), foreground=()))])


def test_one_scan_in_another_unit_does_not_stretch_the_range() -> None:
    usual = [fact(f"p{n}") for n in range(30)]
    odd = fact("q", channel=replace(MR, low=-9e5, high=9e5))
    assert intensity_range([*usual, odd]) == (2, 200)


# Classes, channels, the whole


def test_classes_are_declared_or_found() -> None:
    assert make([fact(classes=3)]).labels == ("background", "class 1", "class 2")
    result = make([fact(classes=2)], {1: "atrium", 4: "appendage"})
    assert (result.labels, result.label_values) == (("background", "atrium", "appendage"), (0, 1, 4))


def test_no_class_is_refused() -> None:
    with pytest.raises(SegError, match="no class"):
        make([fact(classes=0)])
    with pytest.raises(SegError, match="no class"):
        make([], {0: "background"})


def test_channels_are_named() -> None:
    assert make([fact()]).channels == ("MR",)
    assert make([replace(fact(), channels=(MR, MR))]).channels == ("MR 0", "MR 1")
    assert make([fact()], channel_names=["T1"]).channels == ("T1",)
    with pytest.raises(SegError, match="1 channels in p1, expected those"):
        make([fact()], channel_names=["T1", "T2"])


def test_order_of_cases_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    facts = [
        fact(f"p{n}", (40 + n, 60, 30), (1, 1.1, 1 + n / 10), ct(rng.normal(n, 9, 500)), 2 + n % 2) for n in range(9)
    ]
    assert make(facts) == make(facts[::-1])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channel", [MR, ct(np.arange(-50.0, 300.0))])
def test_a_plan_makes_a_valid_spec_and_a_page(dims: int, channel: Intensity) -> None:
    result = make([fact(channel=channel)], {0: "background", 1: "atrium"}, dims=dims)
    spec = ModelSpec(
        name="test",
        labels=result.labels,
        label_values=result.label_values,
        channels=result.channels,
        spacing=result.spacing,
        normalisation=result.normalisation,
        window=result.window,
        stride=result.stride,
        dims=result.dims,
        intensity_range=result.intensity_range,
    )
    assert ModelSpec.from_json(spec.to_json()) == spec
    page = result.describe()
    words = [result.modality, "1 atrium", " x ".join(map(str, result.window)), f"{BATCH_LABELED} labelled"]
    assert all(word in page for word in words)
    assert len(page.splitlines()) < 40
    assert max(map(len, page.splitlines())) <= 120
