"""Quantisers of an int8 graph, put into the form that every engine reads alike."""

import numpy as np
import onnx
from onnx import numpy_helper


def sign_activations(graph: onnx.GraphProto) -> None:
    """uint8 with zero point 0 -> int8 with zero point 0 over the same range, in place."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = tensors[node.input[1]], tensors[node.input[2]]
            assert not numpy_helper.to_array(zero).any(), "the preset is symmetric"
            if zero.data_type == onnx.TensorProto.UINT8:
                wider = numpy_helper.to_array(scale) * np.float32(255 / 127)
                scale.CopyFrom(numpy_helper.from_array(wider, scale.name))
                zero.CopyFrom(numpy_helper.from_array(np.zeros(wider.shape, np.int8), zero.name))
    del graph.value_info[:]  # holds the old types


def quantise_behind_pools(graph: onnx.GraphProto) -> None:
    """Quantiser, max pool -> max pool, quantiser, in place: the same function, which engines read without mistakes.

    With the quantiser in front OpenVINO 2026.4 loses its scale, and ONNX Runtime 1.31 does not load the file.
    """
    made = {output: node for node in graph.node for output in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        back = made.get(node.input[0]) if node.op_type == "MaxPool" else None
        if back is None or back.op_type != "DequantizeLinear":
            continue
        quantiser, pooled = made[back.input[0]], node.output[0]
        node.input[0], node.output[0] = quantiser.input[0], f"{pooled}_float"
        names = [node.output[0], f"{pooled}_int8", pooled]
        for old, source, output in zip((quantiser, back), names[:2], names[1:], strict=True):
            new = onnx.NodeProto()
            new.CopyFrom(old)
            new.name, new.input[0], new.output[0] = f"{old.name}_{output}", source, output
            nodes.append(new)
    while True:
        read = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
        kept = [node for node in nodes if read.intersection(node.output)]
        if len(kept) == len(nodes):
            break
        nodes = kept
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
