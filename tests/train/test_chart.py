import numpy as np
import pytest
from PIL import Image

from seg.train.chart import (
    COLOURS,
    FAINT,
    HEIGHT,
    LEFT,
    PAPER,
    RIGHT,
    ROW,
    WIDTH,
    Panel,
    Series,
    bar_chart,
    chart,
    ticks_of,
)


def pixels(picture: Image.Image, colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of a pure colour, the legend left out."""
    array = np.asarray(picture)
    rows, columns = np.nonzero((array == colour).all(axis=-1))
    inside = rows > 60
    return columns[inside], rows[inside]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (87.25, 91.33, [87, 88, 89, 90, 91, 92]),
        (0, 2000, [0, 500, 1000, 1500, 2000]),
        (-0.013, 0.021, [-0.02, -0.01, 0.0, 0.01, 0.02, 0.03]),
        (3.0, 3.0, [1, 2, 3, 4, 5]),
        (0.0, 0.0, [-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6]),
    ],
)
def test_ticks_are_round_and_cover_the_values(low: float, high: float, expected: list[float]) -> None:
    ticks = ticks_of(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert ticks == pytest.approx(expected)


def test_values_that_rounding_alone_keeps_apart_are_one() -> None:
    ticks = ticks_of(0.2, 0.2 + 3e-17 + 2.8e-17)
    assert ticks[0] < 0.2 < ticks[-1]


def test_points_stand_where_their_values_are() -> None:
    """Two markers, far apart: their centres are those of the axes' scale."""
    picture = chart([Panel("t", "x", [Series("a", [0, 10], [0.0, 1.0], joined=False)])])
    assert picture.size == (WIDTH, HEIGHT)
    columns, rows = pixels(picture, COLOURS[0])
    left = columns < WIDTH / 2
    assert columns[left].mean() == pytest.approx(LEFT, abs=1.5)
    assert columns[~left].mean() == pytest.approx(WIDTH - RIGHT, abs=1.5)
    assert rows[left].mean() > rows[~left].mean() + 150
    middle = chart([Panel("t", "x", [Series("a", [0, 5, 10], [0.0, 1.0, 0.0], joined=False)])])
    columns, _ = pixels(middle, COLOURS[0])
    central = columns[abs(columns - WIDTH / 2) < 100]
    assert central.mean() == pytest.approx(LEFT + (WIDTH - LEFT - RIGHT) / 2, abs=1.5)


def test_error_bars_are_as_long_as_the_spread() -> None:
    def height(spread: float) -> int:
        series = [Series("a", [0], [0.5], [spread]), Series("b", [0, 0], [0.0, 1.0], joined=False)]
        _, rows = pixels(chart([Panel("t", "x", series)]), COLOURS[0])
        return int(np.ptp(rows))

    assert height(0.4) == pytest.approx(2 * height(0.2), rel=0.1)


def test_values_that_are_not_finite_are_left_out() -> None:
    whole = chart([Panel("t", "x", [Series("a", [0, 1], [1.0, 2.0])])])
    holed = chart([Panel("t", "x", [Series("a", [0, 0.5, 1], [1.0, float("nan"), 2.0])])])
    assert np.array_equal(np.asarray(whole), np.asarray(holed))
    chart([Panel("t", "x", [Series("a", [0], [float("inf")])])])  # nothing to draw is an empty panel


def test_names_and_long_legends() -> None:
    few = [Series(f"s{k}", [k], [1.0]) for k in range(3)]
    many = [Series(f"a rather long name, number {k}", [k % 3], [1.0]) for k in range(8)]
    assert chart([Panel("t", "x", few, ticks=["10", "20", "all"])]).height == HEIGHT
    tall = chart([Panel("t", "x", few), Panel("t", "x", many)])
    assert (tall.height - 2 * HEIGHT) % ROW == 0
    assert tall.height > 2 * HEIGHT
    array = np.asarray(tall)
    assert (array[0, 0] == PAPER).all()
    assert (array == FAINT).all(axis=-1).any()


def test_the_axis_reaches_as_far_as_asked() -> None:
    near, far = (chart([Panel("t", "x", [Series("a", [10, 20], [1.0, 2.0])], reach=r)]) for r in ((), (0, 20)))
    assert min(pixels(near, COLOURS[0])[0]) < LEFT + 10 < WIDTH / 3 < min(pixels(far, COLOURS[0])[0])


def test_a_chart_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one panel"):
        chart([])


def test_bars_are_as_long_as_their_values() -> None:
    picture = bar_chart("t", ["a", "b"], {"time": [1.0, 2.0], "floor": [0.5, 2.0]})
    assert picture.width == WIDTH
    columns, rows = pixels(picture, COLOURS[0])
    lengths = [np.ptp(columns[part]) for part in (rows < rows.mean(), rows >= rows.mean())]
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=2)
    other, _ = pixels(picture, COLOURS[1])
    assert other.max() == pytest.approx(columns.max(), abs=1)
    holed, _ = pixels(bar_chart("t", ["a", "b"], {"time": [float("nan"), 2.0]}), COLOURS[0])
    assert np.ptp(holed) == np.ptp(columns)
    with pytest.raises(ValueError, match="at least one bar"):
        bar_chart("t", [], {})
