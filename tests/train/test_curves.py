import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seg.train import curves
from seg.train.chart import HEIGHT, Panel
from seg.train.curves import learning_curves, read_log

LOSSES = [{"step": 10 * k + 9, "lr": 0.1, "supervised": 1 / (k + 1), "image": 0.1 * k} for k in range(6)]
CHECKS = [
    {"step": 29, "dice": {"ball": 0.4, "foreground": 0.4}},
    {"step": 59, "dice": {"ball": 0.6, "foreground": 0.6}},
]


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[Panel]:
    drawn: list[Panel] = []
    chart = curves.chart
    monkeypatch.setattr(curves, "chart", lambda panels: (drawn.extend(panels), chart(panels))[1])
    return drawn


def test_losses_and_validations(panels: list[Panel]) -> None:
    picture = learning_curves([*LOSSES[:3], CHECKS[0], *LOSSES[3:], CHECKS[1]])
    assert picture is not None
    assert picture.height == 2 * HEIGHT
    loss, dice = panels
    assert [series.name for series in loss.series] == ["supervised", "image"]
    assert loss.series[0].x == [10, 20, 30, 40, 50, 60]
    assert loss.series[0].y == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6])
    assert [series.name for series in dice.series] == ["ball"]  # the mean of one class says nothing more
    assert (dice.series[0].x, dice.series[0].y) == ([30, 60], [0.4, 0.6])


def test_the_mean_of_several_classes_is_drawn(panels: list[Panel]) -> None:
    learning_curves([{"step": 9, "dice": {"a": 0.1, "b": 0.3, "foreground": 0.2}}])
    assert [series.name for series in panels[0].series] == ["a", "b", "foreground"]


def test_long_logs_are_averaged(panels: list[Panel]) -> None:
    rng = np.random.default_rng(0)
    log: list[dict[str, Any]] = [{"step": k, "lr": 1.0, "loss": float(v)} for k, v in enumerate(rng.random(1000))]
    learning_curves(log)
    series = panels[0].series[0]
    assert 100 < len(series.x) <= curves.POINTS
    assert np.average(series.y[:-1]) == pytest.approx(np.mean([e["loss"] for e in log[:994]]), abs=0.01)
    assert np.std(series.y) < 0.6 * np.std([e["loss"] for e in log])


def test_nothing_logged_is_nothing_to_draw(tmp_path: Path) -> None:
    assert read_log(tmp_path / "metrics.jsonl") == []
    assert learning_curves([]) is None


def test_a_line_that_was_cut_off_ends_the_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps(entry) for entry in LOSSES)[:-7])
    assert read_log(path) == LOSSES[:-1]
