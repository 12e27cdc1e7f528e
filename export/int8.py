"""Post-training quantisation: an fp32 artifact and some scans in, an int8 artifact out, proven on scans or no file.

The result is QDQ ONNX (opset 21): weights int8 per channel, activations int8 per tensor, biases float32. Activations
are *signed* although ReLU outputs would use unsigned better: TensorRT reads uint8 zero points as int8, with a warning
alone, and then cuts every range in half. All zero points are 0, which TensorRT needs as well.

Layers stay float only where that is measured to help: candidates are tried from none to several, and the first one
that loses next to nothing is taken.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from seg.infer.artifact import Golden, load
from seg.infer.atomic import atomic_file
from seg.infer.backends import Backend, to_slices
from seg.infer.errors import missing_extra
from seg.infer.selftest import golden_error
from seg.infer.spec import ModelSpec
from seg.train.cases import Case

from .calibration import network_inputs
from .onnx_ import describe
from .qdq import quantise_behind_pools, sign_activations
from .quality import Quality, judge, mask_of, opened, refusal, row

MOST_FLOAT_LAYERS = 4
CONVOLUTIONS = ("Conv", "ConvTranspose")
LEAST_TRANSPOSED = 8  # output channels; OpenVINO 2026.4 on AMX gives wrong signed int8 results below 6
GOLDEN_TOLERANCE = 0.1  # of the logits' range in another engine, where a rounding may go the other way; 0.03 measured


@dataclass(frozen=True)
class Candidate:
    """An int8 graph and what it costs. `float_layers` are node names."""

    float_layers: tuple[str, ...]
    proto: onnx.ModelProto
    quality: Quality


def quantise(
    source: str,
    path: str,
    calibration: Sequence[Case],
    verification: Sequence[Case] = (),
    say: Callable[[str], None] = lambda _: None,
    prove: Callable[[str], None] = lambda _: None,
) -> tuple[ModelSpec, Quality]:
    """Write the int8 artifact of an fp32 artifact and prove it.

    Parameters
    ----------
    source : fp32 artifact, verified.
    path : where the int8 artifact goes; it appears there only once it is verified.
    calibration : scans whose activations set the ranges.
    verification : scans on which int8 is compared with fp32, and with the truth where they have labels; the calibration
        scans if empty.
    say : takes the rows of the table of candidates.
    prove : takes the finished file's path before it is kept, and raises if it must not be (see `proof`).

    Raises
    ------
    SegError : E-EXPORT-INT8 when no candidate is close enough to fp32; E-EXTRA without NNCF. No file is left.
    """
    artifact = load(source)
    assert artifact.golden is not None
    proto = onnx.load(source)
    inputs = network_inputs(calibration, artifact.spec)
    judged = verification or calibration
    with tempfile.TemporaryDirectory(prefix="seg-export-") as folder:
        place = str(Path(folder) / "candidate.onnx")
        with opened(source) as backend:
            fp32 = [mask_of(case, artifact.spec, backend) for case in judged]
        best = _search(proto, inputs, place, lambda b: judge(b, judged, fp32, artifact.spec), say)
        if not best.quality.acceptable:
            raise refusal(path, best.quality)
        spec = replace(artifact.spec, card={**artifact.spec.card, **_card(best, len(inputs), len(judged), proto)})
        Path(place).write_bytes(best.proto.SerializeToString(deterministic=True))
        with opened(place) as backend:
            golden = Golden(artifact.golden.x, backend.run(artifact.golden.x.astype(np.float32)).copy())
        final, spec = describe(best.proto, spec, golden, artifact.head)
        onnx.checker.check_model(final, full_check=True)
        content = final.SerializeToString(deterministic=True)
        Path(place).write_bytes(content)
        with opened(place) as backend:
            error = golden_error(backend.run(golden.x.astype(np.float32)), golden.logits)
            assert error < 1e-3, f"the same graph gave other logits: {error}"
        prove(place)
    with atomic_file(path, overwrite=True) as file:
        file.write(content)
    return spec, best.quality


def float_sets(graph: onnx.GraphProto) -> Iterator[tuple[str, ...]]:
    """Layers to keep in float, ever more of them, by node name: none, the head, the first layer too, and so on inwards.

    The layers next to the input and the output are the usual suspects: the first sees the scan's whole range, the last
    decides by small differences. Transposed convolutions with few output channels are in every set.
    """
    channels = {tensor.name: tensor.dims[1] for tensor in graph.initializer if len(tensor.dims) > 1}
    layers = [node for node in graph.node if node.op_type in CONVOLUTIONS]
    narrow = {n.name for n in layers if n.op_type == "ConvTranspose" and channels[n.input[1]] < LEAST_TRANSPOSED}
    nodes = [node.name for node in layers if node.name not in narrow]
    order = [nodes.pop(-1 if turn % 2 == 0 else 0) for turn in range(min(MOST_FLOAT_LAYERS, len(nodes) - 1))]
    return ((*sorted(narrow), *order[:count]) for count in range(len(order) + 1))


def quantised(
    proto: onnx.ModelProto, inputs: Sequence[NDArray[np.float32]], float_layers: Sequence[str]
) -> onnx.ModelProto:
    """The QDQ graph: ranges from `inputs`, each (1, C, X, Y, Z), weights folded to int8.

    NNCF's correction of biases is off: on our networks it moved masks away from the fp32 ones.
    """
    nncf = _nncf()
    name = proto.graph.input[0].name
    flat = len(proto.graph.input[0].type.tensor_type.shape.dim) == 4
    data = nncf.Dataset(inputs, lambda x: {name: to_slices(x) if flat else x})
    options = nncf.AdvancedQuantizationParameters(disable_bias_correction=True)
    ignored = nncf.IgnoredScope(names=list(float_layers)) if float_layers else None
    with contextlib.redirect_stdout(io.StringIO()):  # progress bars
        result: onnx.ModelProto = nncf.quantize(
            proto,
            data,
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(inputs),
            ignored_scope=ignored,
            advanced_parameters=options,
        )
    sign_activations(result.graph)
    quantise_behind_pools(result.graph)
    return result


def _search(
    proto: onnx.ModelProto,
    inputs: Sequence[NDArray[np.float32]],
    place: str,
    quality_of: Callable[[Backend], Quality],
    say: Callable[[str], None],
) -> Candidate:
    """Try float layers from none to several; the first good candidate, or the best of all."""
    best: Candidate | None = None
    size = len(proto.graph.SerializeToString())
    say("| float layers | size | voxels as fp32 | Dice to fp32 | Dice fp32 | Dice int8 | points lost |")
    say("|---|---|---|---|---|---|---|")
    for layers in float_sets(proto.graph):
        graph = quantised(proto, inputs, layers)
        Path(place).write_bytes(graph.SerializeToString(deterministic=True))
        with opened(place) as backend:
            candidate = Candidate(layers, graph, quality_of(backend))
        say(row(layer_names(proto, layers), len(graph.graph.SerializeToString()) / size, candidate.quality))
        if best is None or candidate.quality.rank > best.quality.rank:
            best = candidate
        if candidate.quality.good:
            return candidate
    assert best is not None
    return best


def layer_names(proto: onnx.ModelProto, nodes: Sequence[str]) -> list[str]:
    """Node names -> the names that the layers have in the network, such as ``encoder.0.0``."""
    weights = {node.name: node.input[1].removesuffix(".weight") for node in proto.graph.node if len(node.input) > 1}
    return [weights[name] for name in nodes]


def _card(best: Candidate, calibration: int, judged: int, proto: onnx.ModelProto) -> dict[str, Any]:
    quality = best.quality
    figures: dict[str, Any] = {
        "tool": f"nncf {_nncf().__version__}",
        "calibration_scans": calibration,
        "float_layers": layer_names(proto, best.float_layers),
        "verification_scans": judged,
        "agreement": round(quality.agreement, 5),
        "overlap": round(quality.overlap, 4),
        "golden_tolerance": GOLDEN_TOLERANCE,
    }
    if quality.loss is not None:
        figures["dice_fp32"] = {k: round(v, 4) for k, v in quality.dice_fp32.items()}
        figures["dice_int8"] = {k: round(v, 4) for k, v in quality.dice_int8.items()}
        figures["points_lost"] = round(quality.loss, 2)
    return {"precision": "int8", "quantisation": figures}


def _nncf() -> ModuleType:
    """NNCF, with its usage reports off (it would send them to Google Analytics) and its log quiet."""
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
        import onnxruntime  # noqa: F401 - NNCF runs the calibration with it
    except ImportError as error:
        raise missing_extra(error.name or "nncf", "train") from error
    nncf.set_log_level(40)
    module: ModuleType = nncf
    return module
