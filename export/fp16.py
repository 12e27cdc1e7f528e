"""Half precision: weights and activations in float16, normalisations, input and output in float32. Half the size.

Made from the fp32 graph, which loses less than exporting a half-precision network does. Engines without float16
arithmetic, OpenVINO on most CPUs among them, compute such a graph in float32.
"""

from dataclasses import replace

import onnx

from seg.infer.spec import ModelSpec

# Sums over many values, which float16 would cut: they stay float32, with casts around them.
FLOAT_ISLANDS = ("LayerNormalization", "GroupNormalization", "InstanceNormalization", "Softmax", "ReduceMean")
TOLERANCE = 5e-3  # largest logit error over the logits' range: float16 has three digits


def to_half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in float16, nodes in an order that the ONNX checker accepts."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    source, proto = proto, onnx.ModelProto()
    proto.CopyFrom(source)
    _own_constants(proto.graph)
    half: onnx.ModelProto = convert_float_to_float16(
        proto, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FLOAT_ISLANDS]
    )
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


def described(spec: ModelSpec, tolerance: float = TOLERANCE) -> ModelSpec:
    """The spec of a float16 form; `tolerance` is what `seg-infer --selftest` allows."""
    return replace(spec, card={**spec.card, "precision": "fp16", "quantisation": {"golden_tolerance": tolerance}})


def _own_constants(graph: onnx.GraphProto) -> None:
    """Constants of its own for every node kept in float32: the converter makes one cast for each, named after them."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for number, node in enumerate(n for n in graph.node if n.op_type in ("Resize", *FLOAT_ISLANDS)):
        for at, name in enumerate(node.input):
            if at and name in tensors:
                own = graph.initializer.add()
                own.CopyFrom(tensors[name])
                own.name = node.input[at] = f"{name}_{number}_{at}"
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
