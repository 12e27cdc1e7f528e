"""The plan: one pass where it fits, as few tiles as fit, the papers' windows on request, an error before allocation."""

import numpy as np
import pytest
from known import plain_spec

from seg.infer.errors import Exit, SegError
from seg.infer.plan import PROTOCOLS, Plan, TilingOptions, choose_tiling, plan_scan, rate
from seg.infer.spec import Cost

SPEC = plain_spec(stride=(16, 16, 16), window=(64, 64, 48), cost=Cost(macs=10_000.0, bytes=130.0))
GB = 1 << 30


def planned(shape: tuple[int, int, int], memory: int, options: TilingOptions | None = None, **changes: int) -> Plan:
    values = {"memory_bytes": memory, "scan_bytes": 2 * int(np.prod(shape)), "channels_out": 2} | changes
    return plan_scan(shape, np.eye(4), SPEC, options or TilingOptions(), **values)  # type: ignore[arg-type]


def test_one_pass_where_it_fits() -> None:
    plan = planned((183, 140, 88), 2 * GB)
    assert plan.tiling.windows == 1
    assert plan.tiling.window == (192, 144, 96)
    assert "one pass" in plan.describe()


@pytest.mark.parametrize("memory", [0.6, 0.8, 1.0, 2.0, 4.0])
def test_tiles_fit_the_memory_and_cover_the_grid(memory: float) -> None:
    plan = planned((400, 380, 500), int(memory * GB) + 2 * 400 * 380 * 500 * 3)
    tiling = plan.tiling
    assert plan.peak_bytes <= int(memory * GB) + 2 * 400 * 380 * 500 * 3
    for extent, window, starts in zip(tiling.shape, tiling.window, tiling.starts, strict=True):
        covered = np.zeros(extent, bool)
        for start in starts:
            covered[start : start + window] = True
        assert covered.all()
        assert window % 16 == 0


def test_more_memory_never_means_more_windows() -> None:
    windows = [planned((512, 512, 300), int(m * GB)).tiling.windows for m in (1.2, 1.5, 2, 3, 6, 12, 24)]
    assert windows == sorted(windows, reverse=True)
    assert windows[0] > 1
    assert windows[-1] == 1


def test_peak_memory_grows_by_the_arrays_alone() -> None:
    """With tiles of a fixed size only the input and the labels grow with the number of slices."""
    options = TilingOptions(window=(128, 128, 128), overlap=0.25)
    peaks = [planned((512, 512, n), 100 * GB, options).peak_bytes for n in (600, 1200, 1600)]
    arrays = 512 * 512 * (2 + 1)
    assert peaks[1] - peaks[0] == pytest.approx(600 * arrays, rel=0.01)
    assert peaks[2] - peaks[1] == pytest.approx(400 * arrays, rel=0.01)


def test_too_little_memory_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(SegError, match="E-LIMIT-MEMORY") as caught:
        planned((512, 512, 1000), GB // 4)
    assert caught.value.exit is Exit.LIMIT


def test_a_given_window_is_not_changed_to_fit() -> None:
    with pytest.raises(SegError, match="smaller --window"):
        planned((512, 512, 64), GB // 2, TilingOptions(window=(512, 512, 64)))


def test_the_papers_protocol() -> None:
    """Window starts as the official loop computes them: ceil((n - w) / s) + 1 positions, each min(s i, n - w)."""
    shape, window, step = (183, 140, 88), (112, 112, 80), (18, 18, 4)
    tiling = choose_tiling(shape, SPEC, PROTOCOLS["crossmatch"])
    official = tuple(
        tuple(sorted({min(s * i, n - w) for i in range(-(-(n - w) // s) + 1)}))
        for n, w, s in zip(shape, window, step, strict=True)
    )
    assert tiling.starts == official
    assert tiling.windows == 5 * 3 * 3
    assert (tiling.shape, tiling.window) == (shape, window)
    assert (tiling.weighting, tiling.blend) == ("uniform", "probability")


def test_the_protocol_pads_small_scans_to_one_window() -> None:
    tiling = choose_tiling((50, 140, 20), SPEC, PROTOCOLS["crossmatch"])
    assert tiling.shape == (112, 140, 80)
    assert tiling.starts[0] == (0,)


def test_a_window_only_network_keeps_its_window() -> None:
    spec = plain_spec(stride=(16, 16, 16), window=(64, 64, 48), tiling="window")
    tiling = choose_tiling((200, 200, 200), spec, TilingOptions())
    assert tiling.window == (64, 64, 48)
    assert tiling.starts[0][1] == 32


def test_plan_as_dict_is_plain_json() -> None:
    import json

    found = json.loads(json.dumps(planned((100, 100, 100), 4 * GB).as_dict()))
    assert found["windows"] == 1
    assert found["estimated_peak_bytes"] > 0


def test_rate_is_positive_for_unknown_precisions() -> None:
    assert rate("fp32") >= rate("nonsense") > 0
