"""Line charts, and bars, as pictures: enough for learning curves and tables of experiments, with Pillow alone.

Pillow is a base dependency and every `seg-train` ends with a picture, so a plotting library would be a new dependency
of training for 130 lines. Panels stand below one another; every series has a colour, a marker at each point when they
are few, and a bar of one spread up and down where it has one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

WIDTH, HEIGHT = 760, 300  # px of a panel
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 36, 48  # px around its axes, above them the legend
ROW = 22  # px of a line of the legend
BAR = 13  # px of a horizontal bar
FINE = 3  # drawn this much larger and reduced, which makes lines smooth
FEW = 40  # points that get markers
PAPER, INK, FAINT, GRID = (255, 255, 255), (30, 32, 36), (110, 115, 125), (226, 228, 232)
# Okabe and Ito's colours, told apart with every common colour blindness; those that show on white.
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (60, 60, 60))


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes
    ----------
    x, y : its points, in order; points with a y that is not finite are left out.
    spread : half the length of each point's error bar, or None.
    joined : whether a line joins the points.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    joined: bool = True


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes
    ----------
    ticks : names at x = 0, 1, 2, ... instead of numbers.
    reach : numbers that the x axis covers besides those of the points.
    """

    title: str
    xlabel: str
    series: Sequence[Series]
    ticks: Sequence[str] | None = None
    reach: Sequence[float] = ()


def chart(panels: Sequence[Panel]) -> "Image.Image":
    """The panels below one another, RGB, `WIDTH` px wide.

    Raises
    ------
    ValueError : if there is no panel.
    """
    from PIL import Image, ImageDraw

    if not panels:
        raise ValueError("a chart needs at least one panel")
    axes, top = [], 0
    for panel in panels:
        axes.append(_Axes(panel, top))
        top = axes[-1].bottom
    page = Image.new("RGB", (WIDTH * FINE, top * FINE), PAPER)
    draw = ImageDraw.Draw(page)
    for each in axes:
        each.draw(draw)
    return page.reduce(FINE)


def bar_chart(title: str, names: Sequence[str], series: Mapping[str, Sequence[float]]) -> "Image.Image":
    """Horizontal bars with their values: a group for every name, in it a bar of each series. RGB, `WIDTH` px wide.

    Values that are not finite have no bar.

    Raises
    ------
    ValueError : if there is nothing to draw.
    """
    from PIL import Image, ImageDraw

    if not names or not series:
        raise ValueError("a chart needs at least one bar")
    left = LEFT + max(int(_font(13).getlength(name)) for name in names) - 40
    group = BAR * (len(series) + 1)
    top = TOP + ROW
    page = Image.new("RGB", (WIDTH * FINE, (top + group * len(names) + BAR) * FINE), PAPER)
    draw = ImageDraw.Draw(page)
    _text(draw, (20 * FINE, 8 * FINE), title, INK, 16, "lt")
    scale = (WIDTH - left - 60) / max(value for values in series.values() for value in values if isfinite(value))
    for number, ((label, values), (x, _)) in enumerate(zip(series.items(), _legend(list(series)), strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        draw.line((x * FINE, TOP * FINE, (x + 16) * FINE, TOP * FINE), colour, 3 * FINE)
        _text(draw, ((x + 22) * FINE, TOP * FINE), label, INK, 13, "lm")
        for place, value in enumerate(values):
            if not isfinite(value):
                continue
            y = top + place * group + number * BAR
            draw.rectangle((left * FINE, y * FINE, (left + value * scale) * FINE, (y + BAR - 2) * FINE), colour)
            _text(draw, ((left + value * scale + 5) * FINE, (y + BAR / 2) * FINE), f"{value:.2f}", FAINT, 11, "lm")
    for place, name in enumerate(names):
        middle = top + place * group + BAR * len(series) / 2
        _text(draw, ((left - 8) * FINE, middle * FINE), name, INK, 13, "rm")
    return page.reduce(FINE)


def ticks_of(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that cover [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if not high - low > 1e-9 * max(abs(low), abs(high)):  # apart by rounding alone
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    power = 10.0 ** floor(log10((high - low) / count))
    step = next(power * m for m in (1, 2, 5, 10) if (high - low) / (power * m) <= count)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


class _Axes:
    """Where the points of one panel stand, `top` px down the page."""

    def __init__(self, panel: Panel, top: int) -> None:
        self.panel, self.top = panel, top
        self.legend = _legend([series.name for series in panel.series])
        self.upper = top + TOP + ROW * (1 + max((row for _, row in self.legend), default=0))
        self.bottom = self.upper + HEIGHT - TOP - ROW
        points = [point for series in panel.series for point in _points(series)]
        xs = [*(x for x, _, _ in points), *panel.reach] or [0.0, 1.0]
        ys = [edge for _, y, spread in points for edge in (y - spread, y + spread)] or [0.0, 1.0]
        self.yticks = ticks_of(min(ys), max(ys))
        if panel.ticks is None:
            self.xticks = [(x, f"{x:g}") for x in ticks_of(min(xs), max(xs), 8)]
            self.x0, self.x1 = self.xticks[0][0], self.xticks[-1][0]
        else:
            self.xticks = list(enumerate(panel.ticks))
            self.x0, self.x1 = -0.5, len(panel.ticks) - 0.5

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixel of a point on the enlarged page."""
        across = (x - self.x0) / (self.x1 - self.x0)
        up = (y - self.yticks[0]) / (self.yticks[-1] - self.yticks[0])
        lower = self.bottom - BOTTOM
        return (LEFT + across * (WIDTH - LEFT - RIGHT)) * FINE, (lower - up * (lower - self.upper)) * FINE

    def draw(self, draw: "ImageDraw.ImageDraw") -> None:
        """Grid and names, the series over them."""
        base = self.yticks[0]
        for y in self.yticks:
            left, height = self.place(self.x0, y)
            draw.line((left, height, (WIDTH - RIGHT) * FINE, height), FAINT if y == base else GRID, FINE)
            _text(draw, (left - 8 * FINE, height), f"{y:g}", FAINT, 13, "rm")
        for x, name in self.xticks:
            across, height = self.place(x, base)
            draw.line((across, height, across, height + 4 * FINE), FAINT, FINE)
            _text(draw, (across, height + 7 * FINE), name, FAINT, 13, "mt")
        _text(draw, ((LEFT + WIDTH - RIGHT) / 2 * FINE, (self.bottom - 6) * FINE), self.panel.xlabel, FAINT, 13, "mb")
        _text(draw, (LEFT * FINE, (self.top + 8) * FINE), self.panel.title, INK, 16, "lt")
        for number, (series, (x, row)) in enumerate(zip(self.panel.series, self.legend, strict=True)):
            colour = COLOURS[number % len(COLOURS)]
            y = (self.top + TOP + row * ROW + 6) * FINE
            draw.line((x * FINE, y, (x + 16) * FINE, y), colour, 3 * FINE)
            _text(draw, ((x + 22) * FINE, y), series.name, INK, 13, "lm")
            self._line(draw, series, colour)

    def _line(self, draw: "ImageDraw.ImageDraw", series: Series, colour: Colour) -> None:
        points = _points(series)
        places = [self.place(x, y) for x, y, _ in points]
        if series.joined and len(places) > 1:
            draw.line(places, colour, 2 * FINE, joint="curve")
        if len(points) > FEW:
            return
        for (x, y, spread), (px, py) in zip(points, places, strict=True):
            if spread:
                ends = self.place(x, y - spread)[1], self.place(x, y + spread)[1]
                draw.line((px, ends[0], px, ends[1]), colour, 2 * FINE)
                for end in ends:
                    draw.line((px - 4 * FINE, end, px + 4 * FINE, end), colour, 2 * FINE)
            draw.ellipse((px - 4 * FINE, py - 4 * FINE, px + 4 * FINE, py + 4 * FINE), colour)


def _points(series: Series) -> list[tuple[float, float, float]]:
    """(x, y, spread) of the points that can be drawn."""
    spreads = series.spread or [0.0] * len(series.x)
    return [(x, y, s) for x, y, s in zip(series.x, series.y, spreads, strict=True) if isfinite(y) and isfinite(s)]


def _legend(names: Sequence[str]) -> list[tuple[float, int]]:
    """Left edge in px and row of each name."""
    places: list[tuple[float, int]] = []
    x, row = float(LEFT), 0
    for name in names:
        length = 22 + _font(13).getlength(name) + 20
        if x > LEFT and x + length > WIDTH:
            x, row = float(LEFT), row + 1
        places.append((x, row))
        x += length
    return places


def _text(
    draw: "ImageDraw.ImageDraw", at: tuple[float, float], text: str, colour: Colour, size: int, anchor: str
) -> None:
    draw.text(at, text, colour, _font(size * FINE), anchor)


def _font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    """Pillow's own font, so that a picture looks the same on every machine."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
