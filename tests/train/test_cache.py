import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import fact
from tiny import sample

from seg.infer.errors import Exit, SegError
from seg.infer.spec import ModelSpec, Normalisation
from seg.train.cache import STEP, Store, packed, packed_bytes
from seg.train.sampling import Sample, draw

RNG = np.random.default_rng(0)
NORMAL = Sample("n", RNG.standard_normal((2, 20, 24, 18)).astype(np.float32), sample((20, 24, 18), foreground=50).label)


def restored(one: Sample) -> np.ndarray:
    return one.image.astype(np.float64) * one.slope + one.offset


def test_packed_values_are_within_half_a_step() -> None:
    small = packed(NORMAL)
    assert small.image.dtype == np.int16
    assert small.slope < 2e-4
    assert np.abs(restored(small) - NORMAL.image).max() <= 0.505 * small.slope  # float32 rounds before the integer does
    assert small.image.min() >= -32768
    assert restored(small).max() == pytest.approx(NORMAL.image.max(), abs=1e-5)


@pytest.mark.parametrize("image", [np.full((1, 4, 4, 4), 3.0), np.linspace(-1, STEP * 70_000, 64).reshape(1, 4, 4, 4)])
def test_what_would_lose_contrast_stays_as_it_is(image: np.ndarray) -> None:
    one = Sample("c", image.astype(np.float32), None)
    assert packed(one) is one


def test_crops_of_packed_volumes() -> None:
    for one, tolerance in ((packed(NORMAL), 1e-4), (NORMAL, 0.0)):
        whole, part = (draw([s], 2, (30, 16, 18), seed=0, step=3, stream=0, foreground=0.5) for s in (NORMAL, one))
        assert part.image.dtype == np.float32
        assert np.abs(whole.image - part.image).max() <= tolerance
        assert np.array_equal(whole.image == 0, part.image == 0), "padding is exactly 0"


def test_files_hold_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path / "volumes")
    store.put(NORMAL)
    for one in (store.get("n"), Store(tmp_path / "volumes").get("n")):
        assert isinstance(one.image, np.memmap)
        assert (one.id, one.slope, one.offset) == ("n", packed(NORMAL).slope, packed(NORMAL).offset)
        assert np.array_equal(one.image, packed(NORMAL).image)
        assert NORMAL.label is not None
        assert one.label is not None
        assert np.array_equal(one.label, NORMAL.label)
    store.put(Sample("a/b", NORMAL.image[:, 1:], None))
    assert store.get("a/b").label is None
    assert np.array_equal(store.get("a/b").image, packed(replace(NORMAL, image=NORMAL.image[:, 1:])).image)


def test_there_may_be_more_cases_than_a_process_may_open(tmp_path: Path) -> None:
    import resource

    store, limits = Store(tmp_path / "volumes"), resource.getrlimit(resource.RLIMIT_NOFILE)
    names = [f"case {number}" for number in range(60)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, limits[1]))
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda name: store.put(replace(NORMAL, id=name, image=NORMAL.image + len(name))), names))
        samples = [store.get(name) for name in names]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for one in samples:
        assert np.abs(restored(one) - NORMAL.image - len(one.id)).max() < 1e-3
        assert np.array_equal(one.label, NORMAL.label)


def test_foreground_candidates_are_few_and_spread() -> None:
    label = np.zeros((64, 64, 64), np.uint8)
    label[8:, 8:, 8:] = 1
    found = Sample("f", label[None].astype(np.float32), label).foreground
    assert 1 << 15 < len(found) <= 1 << 16
    assert label.ravel()[found].all()
    assert found[0] == np.flatnonzero(label)[0]
    assert found[-1] > 0.99 * label.size


def test_bytes_on_the_networks_grid() -> None:
    spec = ModelSpec(
        "x", ("background", "a"), ("MR",), (2.0, 1.0, None), Normalisation(), (16, 16, 16), (16, 16, 16), (0, 1)
    )
    assert packed_bytes([fact(shape=(10, 20, 30)), fact("p2", (10, 20, 30))], spec) == 2 * (5 * 20 * 30) * 3


def test_a_case_whose_name_is_no_utf8_is_stored(tmp_path: Path) -> None:
    name = b"M\xfcller".decode(errors="surrogateescape")
    store = Store(tmp_path / "volumes")
    store.put(replace(NORMAL, id=name))
    assert np.abs(restored(store.get(name)) - NORMAL.image).max() < 1e-3


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    (tmp_path / "volumes").write_text("in the way")
    with pytest.raises(SegError) as caught:
        Store(tmp_path / "volumes").put(NORMAL)
    assert (caught.value.code, caught.value.exit) == ("E-OUT-FULL", Exit.OUTPUT)
