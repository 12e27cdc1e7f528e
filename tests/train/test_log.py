"""metrics.jsonl and the curves, and a disk that is full."""

from pathlib import Path

import pytest

from seg.infer.errors import Exit, SegError
from seg.train.log import Log
from seg.train.processes import Processes
from seg.train.run import METRICS, TENSORBOARD

FULL = Path("/dev/full")  # every write ends with "no space left on device"


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_line_that_does_not_fit_ends_the_training_with_one_message(tmp_path: Path) -> None:
    (tmp_path / METRICS).symlink_to(FULL)
    with pytest.raises(SegError) as caught, Log(tmp_path, 0, Processes()) as log:
        log.losses(1, 0.1, {"supervised": 1.0}, 1.0)
    assert (caught.value.code, caught.value.exit) == ("E-OUT-FULL", Exit.OUTPUT)
    assert "No space left on device" in str(caught.value)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_what_went_wrong_first_is_told(tmp_path: Path) -> None:
    (tmp_path / METRICS).symlink_to(FULL)
    log = Log(tmp_path, 0, Processes())
    assert log._file is not None
    log._file.write("not written yet")
    log.__exit__(KeyError, None, None)  # says nothing of its own


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with Log(tmp_path, 0, Processes(1, 2)) as log:
        log.dice(1, {"a": 1.0})
    assert not list(tmp_path.iterdir())


def test_a_resumed_training_keeps_the_curve_up_to_its_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begun, steps in ((0, (10, 20, 30)), (20, (30,))):  # killed after 30, resumed from the checkpoint at 20
        with Log(tmp_path, begun, Processes()) as log:
            for step in steps:
                log.dice(step, {"a": float(step + begun)})
    events = EventAccumulator(str(tmp_path / TENSORBOARD))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("dice/a")] == [(10, 10), (20, 20), (30, 50)]
