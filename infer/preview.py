"""One picture of a scan and its mask: three orthogonal planes side by side, and a legend. For a look, not a diagnosis.

Radiological convention: axial is seen from the feet and coronal from the front, so the patient's right is on the left
of the picture; sagittal is seen from the patient's left, so anterior is on the left. Letters on each plane say so.
Planes follow the axes of the scan nearest to R, A, S; an oblique scan is not straightened. Outlines are interpolated
between voxels. The picture holds no text from the scan's file, only the label names of the model.

Beside a truth, the planes go through the largest error instead, and the truth's outlines are white: where they hide
behind the mask's, the two agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .statistics import plane_counts
from .volume import Reorientation, Volume

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    from .atomic import Overwrite

HEIGHT = 360  # px of each plane
WIDEST = 1080  # px; a thin slab gets less height instead of an endless picture
NARROWEST = 120
GAP = 14
CAPTION = 30
ROW = 30  # of the legend
FINE = 3  # masks are drawn this much larger and reduced, which makes contours smooth
FILL, LINE = 72, 255  # opacity of areas and contours, 0 to 255
LINE_PX = 2.5
SAMPLES = 1 << 21  # voxels are plenty for two percentiles

PAGE, INK, FAINT, WHITE = (18, 19, 23), (232, 234, 238), (140, 145, 155), (255, 255, 255)
# Okabe and Ito's colours, told apart with every common colour blindness; ordered for contrast on grey.
PALETTE = ((230, 159, 0), (86, 180, 233), (0, 178, 128), (204, 121, 167), (240, 228, 66), (213, 94, 0), (0, 114, 178))


@dataclass(frozen=True)
class View:
    """A plane: the RAS axis it lies across, and the letters on its left, right, top and bottom."""

    name: str
    across: int
    letters: str


Mask = NDArray[np.bool_]
Cut = tuple[View, int]  # and the index of the plane

VIEWS = (View("Axial", 2, "RLAP"), View("Coronal", 1, "RLSI"), View("Sagittal", 0, "APSI"))


def preview_png(
    volume: Volume,
    mask: NDArray[np.generic],
    labels: Sequence[str],
    path: str,
    *,
    label_values: Sequence[int] | None = None,
    overwrite: "Overwrite" = True,
) -> None:
    """Write a picture of the three planes through the mask's centre of mass, or the scan's centre if it is empty.

    Parameters
    ----------
    volume : scan in any orientation; its first channel is shown between its 1st and 99th percentile.
    mask : (X, Y, Z) integer label values on the scan's own grid.
    labels : class names, the background first.
    path : file to write, complete or not at all.
    label_values : mask value of each name; 0, 1, 2, ... if not given.
    overwrite : as of `atomic_file`.

    Raises
    ------
    ValueError : if the mask's shape is not the scan's, or it holds an unknown value.
    SegError : ``E-OUT-...`` if the file cannot be written.
    """
    from .atomic import atomic_file

    picture = render(volume, mask, labels, label_values)
    with atomic_file(path, overwrite=overwrite) as file:
        picture.save(file, format="PNG")


def render(
    volume: Volume,
    mask: NDArray[np.generic],
    labels: Sequence[str],
    label_values: Sequence[int] | None = None,
    truth: NDArray[np.generic] | None = None,
    slices: int | None = None,
) -> "Image.Image":
    """The picture of `preview_png`, RGB. Same parameters, raises ValueError likewise.

    Parameters
    ----------
    truth : (X, Y, Z) label values to compare the mask with, or None.
    slices : array axis of the scan across the slices of a 2D model: beside a truth, three slices are shown instead of
        three planes.
    """
    from PIL import Image, ImageDraw

    for name, array in (("mask", mask), ("truth", truth)):
        if array is not None and array.shape != volume.shape:
            raise ValueError(f"{name} has shape {array.shape}, expected the scan's {volume.shape}")
    values = list(range(len(labels)) if label_values is None else label_values)
    classes = {v: name for name, v in zip(labels, values, strict=True) if v != 0}
    turn = Reorientation.to_ras(volume.affine)
    mask, truth = turn.apply(mask), None if truth is None else turn.apply(truth)
    volume = volume.to_canonical()
    counts = plane_counts(mask, list(classes))
    centre = [_middle(axis.sum(0)) for axis in counts]
    cuts = [(view, centre[view.across]) for view in VIEWS]
    if truth is not None and (mask != truth).any():
        cuts = _worst_cuts(mask != truth, None if slices is None else turn.axes.index(slices))
    low, high = _window(volume)
    colours = {value: PALETTE[k % len(PALETTE)] for k, value in enumerate(classes)}
    panels = []
    flat = [cut for cut in cuts if volume.shape[cut[0].across] == min(volume.shape) == 1]
    for view, index in flat or cuts:  # a single slice has no other planes
        cut = (slice(None),) * view.across + (index,)
        grey = (_scaled(volume, volume.voxels[0][cut]) - low) / (high - low)
        a, b = (axis for axis in range(3) if axis != view.across)
        size = _fit(grey.shape[0] * volume.spacing[a], grey.shape[1] * volume.spacing[b])
        behind = None if truth is None else truth[cut]
        panel = _plane(np.nan_to_num(np.clip(grey, 0, 1)), mask[cut], size, colours, behind)
        panels.append(_framed(panel, view, _position(volume, centre, view.across, index)))
    width = sum(panel.width for panel in panels) + GAP * (len(panels) + 1)
    ml = counts[0].sum(1) * abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    entries = [
        (colours[value], name, f"{volume_ml:.{1 if volume_ml >= 10 else 2}f} ml" if volume_ml else "not found")
        for (value, name), volume_ml in zip(classes.items(), ml, strict=True)
    ]
    if truth is not None:
        entries.append((WHITE, "truth", ""))
    rows = _legend_rows(entries, width)
    page = Image.new("RGB", (width, GAP + panels[0].height + ROW * len(rows) + GAP), PAGE)
    left = GAP
    for panel in panels:
        page.paste(panel, (left, GAP // 2))
        left += panel.width + GAP
    draw = ImageDraw.Draw(page)
    for k, row in enumerate(rows):
        _legend(draw, row, GAP + panels[0].height + ROW * k)
    return page


def _worst_cuts(wrong: Mask, slices: int | None) -> list[Cut]:
    """The plane across each axis, or the three across one, with the most wrong voxels."""
    errors = [axis[0] for axis in plane_counts(wrong.astype(np.uint8), [1])]
    if slices is None:
        return [(view, int(np.argmax(errors[view.across]))) for view in VIEWS]
    view = next(view for view in VIEWS if view.across == slices)
    return [(view, int(index)) for index in sorted(np.argsort(errors[slices], kind="stable")[-3:])]


def _middle(planes: NDArray[np.int64]) -> int:
    """The plane nearest to the centre of mass that holds some of the mask; the middle one of an empty mask."""
    occupied = np.flatnonzero(planes)
    if not len(occupied):
        return len(planes) // 2
    mass = float(np.arange(len(planes)) @ planes / planes.sum())
    return int(occupied[np.argmin(np.abs(occupied - mass))])


def _scaled(volume: Volume, stored: NDArray[np.generic]) -> NDArray[np.float32]:
    """Intensities of stored values."""
    return stored.astype(np.float32) * np.float32(volume.slope) + np.float32(volume.intercept)


def _window(volume: Volume) -> tuple[float, float]:
    """1st and 99th percentile of the intensities, apart by more than nothing."""
    channel = volume.voxels[0]
    step = max(1, int(np.ceil((channel.size / SAMPLES) ** (1 / 3))))
    sample = _scaled(volume, channel[::step, ::step, ::step])
    sample = sample[np.isfinite(sample)]
    low, high = (float(v) for v in np.percentile(sample, (1, 99))) if sample.size else (0.0, 1.0)
    return low, high if high > low else low + 1.0


def _fit(width_mm: float, height_mm: float) -> tuple[int, int]:
    """Size in px of a plane: equal height and true proportions, unless that would be too wide."""
    scale = min(HEIGHT / height_mm, WIDEST / width_mm)
    return max(1, round(width_mm * scale)), max(1, round(height_mm * scale))


def _plane(
    grey: NDArray[np.float32],
    mask: NDArray[np.generic],
    size: tuple[int, int],
    colours: dict[int, tuple[int, int, int]],
    truth: NDArray[np.generic] | None = None,
) -> "Image.Image":
    """A plane (first axis, second axis) of greys from 0 to 1 as a picture of `size` px: the mask in colour, over the
    truth's outlines in white."""
    from PIL import Image

    picture = _upright(grey).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    for areas, fill in ((truth, 0), (mask, FILL)):
        if areas is None:
            continue
        winner = _enlarged(areas, size, list(colours))
        for value in np.intersect1d(winner, list(colours)):
            area = winner == value
            rim = area & ~_eroded(area, round(LINE_PX * FINE))
            opacity = np.where(area, np.where(rim, LINE, fill), 0).astype(np.uint8)
            colour = colours[value] if fill else WHITE
            picture.paste(colour, (0, 0), Image.fromarray(opacity).reduce(FINE))
    return picture


def _upright(plane: NDArray[np.generic]) -> "Image.Image":
    """A plane of values from 0 to 1 as 8-bit greys. Both RAS axes of each view run against the picture: R and A to the
    left, A and S upwards."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray((plane.astype(np.float32)[::-1, ::-1].T * 255).astype(np.uint8)))


def _enlarged(mask: NDArray[np.generic], size: tuple[int, int], values: Sequence[int]) -> NDArray[np.generic]:
    """Label values on the fine pixels of a picture. The class with the largest interpolated share wins, so neighbours
    meet without gap or overlap."""
    from PIL import Image

    fine = (size[0] * FINE, size[1] * FINE)
    best = np.asarray(_upright(mask == 0).resize(fine, Image.Resampling.BICUBIC))
    winner = np.zeros(best.shape, mask.dtype)
    for value in values:
        if (mask == value).any():
            share = np.asarray(_upright(mask == value).resize(fine, Image.Resampling.BICUBIC))
            winner[share > best] = value
            best = np.maximum(best, share)
    return winner


def _eroded(area: NDArray[np.bool_], depth: int) -> NDArray[np.bool_]:
    """An area without its rim of `depth` pixels; beyond the picture counts as area, so its edge draws no line."""
    for _ in range(depth):
        padded = np.pad(area, 1, constant_values=True)
        area = area & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return area


def _framed(picture: "Image.Image", view: View, position: str) -> "Image.Image":
    """A plane in its black panel, with caption and direction letters."""
    from PIL import Image, ImageDraw

    width = max(picture.width, NARROWEST)
    panel = Image.new("RGB", (width, CAPTION + HEIGHT), PAGE)
    panel.paste((0, 0, 0), (0, CAPTION, width, CAPTION + HEIGHT))
    panel.paste(picture, ((width - picture.width) // 2, CAPTION + (HEIGHT - picture.height) // 2))
    draw = ImageDraw.Draw(panel)
    draw.text((0, CAPTION / 2), view.name, INK, _font(16), "lm")
    draw.text((width, CAPTION / 2), position, FAINT, _font(14), "rm")
    middle = CAPTION + HEIGHT / 2
    sides = [(6.0, middle, "lm"), (width - 6.0, middle, "rm")]
    ends = [(width / 2, CAPTION + 5.0, "mt"), (width / 2, CAPTION + HEIGHT - 5.0, "mb")]
    for letter, (x, y, anchor) in zip(view.letters, sides + ends, strict=True):
        draw.text((x, y), letter, INK, _font(15), anchor, stroke_width=2, stroke_fill=(0, 0, 0))
    return panel


def _position(volume: Volume, centre: Sequence[int], across: int, index: int) -> str:
    """Where a plane lies beside the centre, such as ``S 12 mm``."""
    place = [*centre[:across], index, *centre[across + 1 :]]
    mm = float((volume.affine @ np.array([*place, 1.0]))[across])
    return f"{('LR', 'PA', 'IS')[across][mm >= 0]} {abs(mm):.0f} mm"


Entry = tuple[tuple[int, int, int], str, str]


def _legend_rows(entries: Sequence[Entry], width: int) -> list[list[tuple[float, Entry]]]:
    """Entries with their x, broken into rows that fit `width` px."""
    rows: list[list[tuple[float, Entry]]] = []
    x = float(width)
    for entry in entries:
        needed = 22 + _font(15).getlength(f"{entry[1]}  {entry[2]}") + 28
        if x + needed > width:
            rows.append([])
            x = GAP
        rows[-1].append((x, entry))
        x += needed
    return rows


def _legend(draw: "ImageDraw.ImageDraw", row: Sequence[tuple[float, Entry]], top: float) -> None:
    """One row of swatches, names and volumes."""
    for x, (colour, name, amount) in row:
        middle = top + ROW / 2
        draw.rounded_rectangle((x, middle - 7, x + 14, middle + 7), 3, colour)
        draw.text((x + 22, middle), name, INK, _font(15), "lm")
        draw.text((x + 22 + _font(15).getlength(f"{name}  "), middle), amount, FAINT, _font(15), "lm")


def _font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    """Pillow's own font, so that a picture looks the same on every machine."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
