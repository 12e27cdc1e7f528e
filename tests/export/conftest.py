"""Fixtures of the export tests."""

from collections.abc import Iterator

import onnx
import pytest
from torch import nn

from seg.export import onnx_
from seg.infer.spec import ModelSpec

Key = tuple[object, ...]


@pytest.fixture(scope="session")
def _converted() -> dict[Key, onnx.ModelProto]:
    return {}


@pytest.fixture(scope="module")
def converted_once(_converted: dict[Key, onnx.ModelProto]) -> Iterator[None]:
    """A conversion from torch takes seconds: the same weights are converted once. For tests of what comes after it."""
    convert = onnx_._convert

    def quick(module: nn.Module, spec: ModelSpec) -> onnx.ModelProto:
        key = (str(module), *_weights(module), *onnx_.sample_and_axes(spec)[0].shape, spec.tiling)
        if key not in _converted:
            _converted[key] = convert(module, spec)
        copy = onnx.ModelProto()
        copy.CopyFrom(_converted[key])
        return copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_, "_convert", quick)
        yield


def _weights(module: nn.Module) -> Iterator[object]:
    for name, value in module.state_dict().items():
        yield name, value.dtype, value.stride(), value.numpy().tobytes()
