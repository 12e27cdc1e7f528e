import numpy as np
import pytest
from builders import fact

from seg.infer.errors import Exit, SegError
from seg.train.plan import plan
from seg.train.window import MAX_WINDOW_VOXELS, cpu_notes, cpu_step_seconds, fit_window, voxel_budget

GIB = 1 << 30
Shape3 = tuple[int, int, int]
Vec3 = tuple[float, float, float]


@pytest.mark.parametrize(
    ("shape", "edges", "budget", "window"),
    [
        ((35, 51, 35), (1, 1, 1), 10**9, (48, 64, 48)),  # all of it, rounded up
        ((48, 64, 16), (1, 1, 1), 48 * 64 * 16, (48, 64, 16)),  # exactly the budget
        ((128, 128, 128), (1, 1, 1), 96**3, (96, 96, 96)),  # alternates between the axes
        ((128, 128, 128), (1, 1, 1), 100 * 96 * 96, (96, 96, 96)),
        ((128, 128, 64), (1, 1, 4), 128 * 128 * 32, (128, 128, 32)),  # mm count, not voxels
        ((5, 5, 5), (1, 1, 1), 10**9, (16, 16, 16)),
    ],
)
def test_window_fits_the_budget(shape: Shape3, edges: Vec3, budget: int, window: Shape3) -> None:
    assert fit_window(shape, edges, (16, 16, 16), budget) == window


def test_window_is_refused_when_the_least_does_not_fit() -> None:
    assert fit_window((64, 64, 64), (1, 1, 1), (16, 16, 16), 16**3) == (16, 16, 16)
    with pytest.raises(SegError, match="E-DATA-PLAN") as caught:
        fit_window((64, 64, 64), (1, 1, 1), (16, 16, 16), 16**3 - 1)
    assert caught.value.exit == Exit.LIMIT


@pytest.mark.parametrize("memory", [1, 2, 4, 8, 16, 24, 80])
@pytest.mark.parametrize("width", [8, 16, 32])
def test_window_obeys_memory_multiples_and_the_median_case(memory: int, width: int) -> None:
    result = plan([fact(shape=(200, 180, 90))], None, memory_bytes=memory * GIB, width=width)
    assert all(w % 16 == 0 for w in result.window)
    assert all(w < s + 16 for w, s in zip(result.window, (200, 180, 90), strict=True))
    assert np.prod(result.window) <= min(voxel_budget(memory * GIB, width), MAX_WINDOW_VOXELS)
    assert np.prod(result.window) > 0.5 * min(voxel_budget(memory * GIB, width), MAX_WINDOW_VOXELS)


def test_budget_is_linear_in_memory_and_inverse_in_width() -> None:
    assert voxel_budget(16 * GIB, 16) == pytest.approx(2 * voxel_budget(8 * GIB, 16), abs=1)
    assert voxel_budget(8 * GIB, 8) == pytest.approx(2 * voxel_budget(8 * GIB, 16), abs=1)


def test_cost_on_a_cpu_follows_the_multiply_adds() -> None:
    """Three passes over four windows of 40.109 G multiply-adds, 50 G of them a second."""
    assert cpu_step_seconds((112, 112, 80), 16, 4) == pytest.approx(40.109 * 3 * 4 / 50)
    assert cpu_step_seconds((112, 112, 160), 8, 4) == pytest.approx(40.109 * 3 * 4 / 50 / 2)


@pytest.mark.parametrize(
    ("window", "width", "flags"),
    [((64, 64, 64), 16, ["--window", "--width"]), ((64, 64, 48), 16, ["--width"]), ((128, 128, 128), 8, ["--window"])],
)
def test_advice_names_what_would_help(window: Shape3, width: int, flags: list[str]) -> None:
    _, advice = cpu_notes(window, width, 4, 6000)
    assert [flag for flag in ("--window", "--width") if flag in advice] == flags


def test_a_small_window_needs_no_advice() -> None:
    (cost,) = cpu_notes((64, 64, 48), 8, 4, 6000)
    assert "0.47 s a step, 0.79 h" in cost
