"""Offer the features before the last layer as a second output, and the last layer as a matrix.

With many classes the sliding window then blends F features and applies the (K, F) head per layer, instead of blending K
logits: the same labels with memory that does not grow with the classes.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from seg.infer.classes import Head
from seg.infer.errors import Exit, SegError


def offer_features(proto: onnx.ModelProto) -> Head:
    """Add the output "features" to the graph, in place.

    Raises
    ------
    SegError : E-EXPORT-HEAD when the graph does not end in a 1x1x1 convolution.
    """
    graph = proto.graph
    last = next((node for node in graph.node if graph.output[0].name in node.output), None)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    if last is None or last.op_type != "Conv" or last.input[1] not in weights:
        raise _no_head(last.op_type if last is not None else "nothing")
    weight = weights[last.input[1]].astype(np.float32)
    if any(n != 1 for n in weight.shape[2:]):
        raise _no_head(f"a convolution of {weight.shape[2:]}")
    bias = weights[last.input[2]] if len(last.input) > 2 else np.zeros(len(weight))
    dims: list[str | int | None] = [d.dim_param or d.dim_value for d in graph.output[0].type.tensor_type.shape.dim]
    dims[1] = weight.shape[1]
    last.name = last.name or "head"
    features = helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, dims)
    graph.node.append(helper.make_node("Identity", [last.input[0]], ["features"], name="features"))
    graph.output.append(features)
    return Head(weight.reshape(weight.shape[:2]), bias.astype(np.float32))


def _no_head(found: str) -> SegError:
    return SegError(
        "E-EXPORT-HEAD",
        Exit.MODEL,
        "",
        f"the network ends in {found}",
        "export without --features",
        "a 1x1x1 convolution as the last layer",
    )
