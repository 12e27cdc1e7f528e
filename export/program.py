"""A PyTorch program (.pt2) from a network: what the torch engine runs, with spec and golden pair, sealed.

For comparison and for layers that ONNX lacks. Such a file is code, so it runs only where it was written (see
`seg.infer.backends.seal`); ONNX artifacts are what one passes on.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from seg.infer import __version__
from seg.infer.artifact import GOLDEN_KEY, SPEC_KEY
from seg.infer.atomic import atomic_file, output_error
from seg.infer.backends.torch_ import seal_pt2
from seg.infer.spec import ModelSpec

from .onnx_ import TOLERANCE, Parity, golden_of, larger, sample_and_axes, unequal, verify

TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn")  # of a node: files and lines it came from


def _in_order(constraints: dict[Any, Any]) -> None:
    """By name, in place: the exporter's order is that of a set, another in every process, and stands in the file."""
    ordered = sorted(constraints.items(), key=lambda item: str(item[0]))
    constraints.clear()
    constraints.update(ordered)


def export_program(
    module: nn.Module, spec: ModelSpec, path: str, prove: Callable[[str], None] = lambda _: None
) -> tuple[ModelSpec, Parity]:
    """Write the program with its seal beside it, proven through the torch engine.

    Parameters
    ----------
    module, spec, prove : as in `onnx_.export`.

    Raises
    ------
    SegError : E-EXPORT-PARITY, E-OUT-*, E-CACHE. No file is left.
    """
    module = module.cpu().float().eval()
    golden = golden_of(module, spec)
    sample, axes = sample_and_axes(spec)
    with torch.no_grad():
        program = torch.export.export(module, (sample,), dynamic_shapes=(axes,))
    for node in program.graph.nodes:
        for name in TRACES:
            node.meta.pop(name, None)
    _in_order(program.range_constraints)
    spec = replace(spec, versions={"seg-toolkit": __version__, "torch": torch.__version__.split("+")[0]})
    extra = {SPEC_KEY: spec.to_json(), GOLDEN_KEY: golden.to_text()}
    try:
        with tempfile.TemporaryDirectory(prefix=".seg-export-", dir=os.path.dirname(path) or os.curdir) as folder:
            candidate = os.path.join(folder, "model.pt2")
            torch.export.save(program, candidate, extra_files=extra)
            seal_pt2(candidate)
            parity = verify(module, candidate, [golden.x.shape[2:], larger(spec)], "torch")
            if not parity.error <= TOLERANCE:
                raise unequal(path, parity.error, TOLERANCE)
            prove(candidate)
            with open(candidate, "rb") as file:
                content = file.read()
    except OSError as error:
        raise output_error(path, error) from error
    with atomic_file(path, overwrite=True) as file:
        file.write(content)
    seal_pt2(path)
    return spec, parity
