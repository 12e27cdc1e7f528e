"""What a voxel of a pass costs: multiply-adds and peak activation memory, both counted: exports stay reproducible.

Memory is the largest sum of tensors alive at once while the graph runs in its own order, with elementwise nodes in
place: what a good engine needs. `MARGIN` covers its blocked layouts and scratch; tests hold it against measured memory.
"""

from math import prod

import onnx
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from seg.infer.spec import Cost, ModelSpec

MARGIN = 1.8
EXTENT = 4  # of the counted input, in network strides
IN_PLACE = {"Relu", "LeakyRelu", "BatchNormalization", "Add", "Mul", "Sub", "Sigmoid", "Identity", "Cast", "Reshape"}
BYTES = 4  # float32


def cost_of(module: nn.Module, proto: onnx.ModelProto, spec: ModelSpec) -> Cost:
    """Both costs per voxel of the network grid."""
    return Cost(macs_per_voxel(module, spec), bytes_per_voxel(proto, spec))


def macs_per_voxel(module: nn.Module, spec: ModelSpec) -> float:
    """Multiply-adds of one forward pass over the training window, per voxel."""
    x = torch.zeros((1, len(spec.channels), *spec.window))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(x[..., 0] if spec.dims == 2 else x)
    return float(round(counter.get_total_flops() / 2 / x[0, 0].numel(), 1))


def bytes_per_voxel(proto: onnx.ModelProto, spec: ModelSpec) -> float:
    """Peak bytes of activations of one pass, per voxel, output included."""
    sized = onnx.ModelProto()
    sized.CopyFrom(proto)
    # Attention grows with the square of the extent: a network that sees windows alone is counted on one.
    whole = spec.window if spec.tiling == "window" else [s * EXTENT for s in spec.stride]
    extent = whole[: spec.dims]
    for dim, size in zip(
        sized.graph.input[0].type.tensor_type.shape.dim, (1, len(spec.channels), *extent), strict=True
    ):
        dim.ClearField("dim_param")
        dim.dim_value = size
    del sized.graph.value_info[:]
    for dim in (d for output in sized.graph.output for d in output.type.tensor_type.shape.dim):
        dim.Clear()
    graph = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    sizes = {
        info.name: BYTES * prod(d.dim_value for d in info.type.tensor_type.shape.dim)
        for info in (*graph.input, *graph.value_info, *graph.output)
    }
    return float(round(MARGIN * _peak(graph, sizes) / prod(extent), 1))


def _peak(graph: onnx.GraphProto, size: dict[str, int]) -> int:
    """Largest number of bytes alive while the nodes run in order."""
    last = {name: at for at, node in enumerate(graph.node) for name in node.input}
    last |= {output.name: len(graph.node) for output in graph.output}
    alive = {graph.input[0].name: size[graph.input[0].name]}
    peak = 0
    for at, node in enumerate(graph.node):
        ending = [name for name in node.input if name in alive and last[name] == at]
        if node.op_type in IN_PLACE and ending:
            del alive[ending.pop(0)]
        alive |= {name: size.get(name, 0) for name in node.output}
        peak = max(peak, sum(alive.values()))
        for name in ending:
            del alive[name]
    return peak
