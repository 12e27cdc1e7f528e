"""Half precision: weights and activations in float16, input and output in float32. Half the size.

Made from the fp32 graph, which loses less than exporting a half-precision network does. Engines without float16
arithmetic, OpenVINO on most CPUs among them, compute such a graph in float32.
"""

import onnx

TOLERANCE = 5e-3  # largest logit error over the logits' range: float16 has three digits


def to_half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in float16, nodes in an order that the ONNX checker accepts."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half: onnx.ModelProto = convert_float_to_float16(proto, keep_io_types=True)
    graph = half.graph
    known = {"", *(tensor.name for tensor in graph.initializer), *(value.name for value in graph.input)}
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = [node for node in waiting if all(name in known for name in node.input)]
        assert ready, "the converted graph has a cycle"
        known.update(name for node in ready for name in node.output)
        ordered += ready
        waiting = [node for node in waiting if node not in ready]
    del graph.node[:]
    graph.node.extend(ordered)
    return half
