"""How OpenVINO computes an int8 file: with unsigned activations where they cannot be negative, and with their scales.

An int8 artifact keeps its activations signed, since TensorRT takes nothing else. After a ReLU half of those 256 levels
are never used. OpenVINO may have all of them: the range stays what calibration found, the step is half as wide, and
VNNI multiplies unsigned by signed bytes without a correction. On the shipped left-atrium model a pass takes about a
tenth less time and its rounding error falls by a third.

Other activations stay signed, as one operation too where a max pool or a concatenation reads them: of the quantiser and
the conversions apart OpenVINO 2026.4 loses the scale there, and rounds to whole numbers.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np


def fuse_quantisers(model: Any, opset: Any) -> int:
    """Rewrite in place the quantisers of `model` (openvino.Model) that are unsigned or not read well; how many.

    The quantiser, its two conversions and its scale, as OpenVINO reads QuantizeLinear and DequantizeLinear, become one
    FakeQuantize with the same highest value, and from 0 where the activation is never negative.
    """
    count = 0
    for node in model.get_ordered_ops():
        if not _is_signed_quantiser(node):
            continue
        unsigned = _never_negative(node.input_value(0))
        restored = list(_restored(node))
        if not unsigned and all(_convolved(product) for product in restored):
            continue
        low, high = opset.constant(np.float32(0)).output(0) if unsigned else node.input_value(1), node.input_value(2)
        fused = opset.fake_quantize(node.input_value(0), low, high, low, high, 256)
        for product in restored:
            for target in product.output(0).get_target_inputs():
                target.replace_source_output(fused.output(0))
        count += 1
    if count:
        model.validate_nodes_and_infer_types()
    return count


def _is_signed_quantiser(node: Any) -> bool:
    if node.get_type_name() != "FakeQuantize":
        return False
    ends = [_constant(node.input_value(i)) for i in (3, 4)]
    return ends == [-128.0, 127.0]


def _constant(value: Any) -> float | None:
    """The one number that `value` always is, or None."""
    node = value.get_node()
    if node.get_type_name() != "Constant" or node.get_data().size != 1:
        return None
    return float(node.get_data().reshape(()))


def _convolved(product: Any) -> bool:
    """Whether nothing but convolutions reads this."""
    kinds = {target.get_node().get_type_name() for target in product.output(0).get_target_inputs()}
    return kinds <= {"Convolution", "ConvolutionBackpropData"}


def _never_negative(value: Any) -> bool:
    """Whether `value` is a ReLU, is quantised from 0 upwards, or is a sum of such."""
    node = value.get_node()
    kind = node.get_type_name()
    if kind == "Add":
        return all(_never_negative(term) for term in node.input_values())
    return kind == "Relu" or (kind == "FakeQuantize" and _constant(node.input_value(3)) == 0.0)


def _restored(quantiser: Any) -> Iterator[Any]:
    """The products with the scale that make floats of its integers again, past conversions and zero points."""
    for target in quantiser.output(0).get_target_inputs():
        node = target.get_node()
        if node.get_type_name() == "Multiply":
            yield node
        elif node.get_type_name() in ("Convert", "Subtract"):
            yield from _restored(node)
