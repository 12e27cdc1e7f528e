"""A scan whose windows, sums and labels stay in another memory gives the same mask as in NumPy's."""

import numpy as np
import pytest
import strict_arrays
from known import plain_spec
from test_predict import Features, Local, scan

from seg.infer.arrays import module_of, to_host
from seg.infer.classes import Head
from seg.infer.plan import TilingOptions
from seg.infer.predict import segment


class Elsewhere:
    """A backend on a device whose arrays are strict; its host path fails."""

    xp = strict_arrays

    def __init__(self, network: Local) -> None:
        self.network = network

    def run(self, x: np.ndarray) -> np.ndarray:
        raise AssertionError("the host path")

    def device_run(self, x: strict_arrays.Strict) -> strict_arrays.Strict:
        assert isinstance(x, strict_arrays.Strict)
        assert x.held.flags.c_contiguous
        return strict_arrays.asarray(self.network.run(x.get()))

    def close(self) -> None:
        """Nothing to release."""


@pytest.mark.parametrize("classes", [2, 3, 300])
@pytest.mark.parametrize("spacing", [(None, None, None), (1.3, 0.7, 2.0)])
@pytest.mark.parametrize("blend", ["logit", "probability"])
@pytest.mark.parametrize(("window", "batch", "mirror"), [(None, 1, ()), ((16, 12, 10), 3, ()), (None, 1, (0, 1, 2))])
def test_the_same_labels(classes, spacing, blend, window, batch, mirror) -> None:  # type: ignore[no-untyped-def]
    volume, options = scan(), TilingOptions(window, 0.4, blend=blend)
    spec = plain_spec(labels=tuple(f"c{k}" for k in range(classes)), spacing=spacing)
    maps = [np.zeros((*volume.shape, classes - 1), np.uint8) if classes < 300 else None for _ in range(2)]
    here = segment(volume, spec, Local(classes), options, batch=batch, mirror=mirror, probabilities=maps[0])
    there = segment(volume, spec, Elsewhere(Local(classes)), options, batch=batch, mirror=mirror, probabilities=maps[1])
    np.testing.assert_array_equal(here, there)
    np.testing.assert_array_equal(*maps)
    if blend == "logit":
        head = Head(Local(classes).weights, np.zeros(classes, np.float32))
        by = [segment(volume, spec, b, options, head=head) for b in (Features(classes), Elsewhere(Features(classes)))]
        np.testing.assert_array_equal(*by)


def test_modules() -> None:
    strict = strict_arrays.asarray(np.arange(3))
    assert module_of(strict) is strict_arrays
    assert module_of(strict.get()) is np
    np.testing.assert_array_equal(to_host(strict), np.arange(3))
    with pytest.raises(TypeError):
        np.asarray(strict)
    with pytest.raises(TypeError):
        strict + np.arange(3)
