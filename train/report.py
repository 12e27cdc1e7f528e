"""What an evaluation leaves for people: validation.json, a table of every case, and a picture of the worst ones."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seg.infer.atomic import atomic_file
from seg.infer.preprocess import Grids
from seg.infer.preview import CAPTION, INK, PAGE, render
from seg.infer.spec import ModelSpec

from .evaluate import Evaluation, Worst
from .prepare import load_label, load_volume
from .run import VALIDATION, write_json

if TYPE_CHECKING:
    from PIL import Image

TABLE, WORST_CASES, CURVES = "validation.csv", "worst-cases.png", "curves.png"


def write_evaluation(folder: Path, evaluation: Evaluation, spec: ModelSpec, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the files; `facts` are further entries of validation.json. Returns its content.

    Raises
    ------
    SegError : E-OUT-... when a file cannot be written.
    """
    result = {**evaluation.result, **facts}
    write_json(folder / VALIDATION, result)
    with atomic_file(str(folder / TABLE), overwrite=True) as file:
        file.write(case_table(evaluation.result).encode(errors="surrogateescape"))
    if evaluation.worst:
        write_picture(folder / WORST_CASES, worst_cases(evaluation, spec))
    return result


def case_table(result: Mapping[str, Any]) -> str:
    """CSV with one line a case and class."""
    text = io.StringIO()
    rows = [
        {"case": case, "class": label, **metrics, "distances_in": result["unit"]}
        for case, labels in result["cases"].items()
        for label, metrics in labels.items()
    ]
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def worst_cases(evaluation: Evaluation, spec: ModelSpec) -> "Image.Image":
    """The worst cases below one another: three planes through the largest error, or the worst slices of a 2D model."""
    from PIL import Image, ImageDraw, ImageFont

    pictures = [_picture(worst, spec) for worst in evaluation.worst]
    width = max(picture.width for picture in pictures)
    page = Image.new("RGB", (width, sum(picture.height + CAPTION for picture in pictures)), PAGE)
    draw, top = ImageDraw.Draw(page), 0
    for worst, picture in zip(evaluation.worst, pictures, strict=True):
        line = _caption(worst, evaluation.result)
        draw.text((14, top + CAPTION / 2 + 4), line, INK, ImageFont.load_default(18), "lm")
        page.paste(picture, (0, top + CAPTION))
        top += CAPTION + picture.height
    return page


def _caption(worst: Worst, result: Mapping[str, Any]) -> str:
    labels: Mapping[str, Mapping[str, float]] = result["cases"][worst.case.id]
    hd95 = max(metrics["hd95"] for metrics in labels.values())
    each = ", ".join(f"{label} {metrics['dice']:.3f}" for label, metrics in labels.items())
    dice = each if len(labels) <= 3 else f"{worst.dice:.3f} (mean of {len(labels)} classes)"
    return f"{worst.case.id}: Dice {dice}; 95HD {hd95:.1f} {result['unit']}"


def _picture(worst: Worst, spec: ModelSpec) -> "Image.Image":
    assert worst.case.label is not None
    volume, values = load_volume(worst.case, len(spec.channels)), spec.label_values
    truth = np.asarray(values, worst.mask.dtype)[load_label(worst.case.label, values)]
    across = Grids.of(volume.shape, volume.affine, spec).turn.axes[2] if spec.dims == 2 else None
    return render(volume, worst.mask, spec.labels, values, truth, across)


def write_picture(path: Path, picture: "Image.Image") -> None:
    """Write a PNG whole or not at all."""
    with atomic_file(str(path), overwrite=True) as file:
        picture.save(file, format="PNG")
