"""Parse and build: ONNX in, a TensorRT plan out, with progress and a cache of measured times.

Written to the calls that TensorRT 10.16 and 11.4 share, which TensorRT-RTX has too: the tests really parse and build
with the latter, on a processor. Networks are strongly typed: the precision is that of the ONNX file, and TF32, which is
on by default, is off.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seg.infer.atomic import atomic_file
from seg.infer.backends.seal import refuse_unsealed, seal
from seg.infer.backends.tensorrt_ import message_logger
from seg.infer.errors import Exit, SegError
from seg.infer.volume import Shape3

WORKSPACE = 4 << 30  # bytes
QUIET_SECONDS = 2.0  # between two lines of progress

Say = Callable[[str], None]


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is built for.

    Attributes
    ----------
    batches : smallest, best and largest number of windows (2D: slices) computed at once; None is `tensorrt_.BATCHES`.
    window : voxels, multiples of the network's stride; None is the training window. The engine takes no other.
    workspace : bytes that a layer may use beside its tensors.
    timing_cache : file with the measured times of earlier builds, made where it is missing; None keeps none.
    """

    batches: tuple[int, int, int] | None = None
    window: Shape3 | None = None
    workspace: int = WORKSPACE
    timing_cache: str | None = None


Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def build_plan(trt: Any, graph: bytes, shapes: Shapes, options: BuildOptions, say: Say) -> bytes:
    """Parse and build; `trt` is the module tensorrt, or tensorrt_rtx_bindings in tests.

    Raises
    ------
    SegError : E-TRT-PARSE and E-TRT-BUILD (exit status 20) with TensorRT's own reason; E-UNSEALED for a timing cache of
        somebody else.
    """
    logger = message_logger(trt)
    builder = trt.Builder(logger)
    # The flag's number is 1 in version 10 and 0 in 11.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = [f"{e.node_operator()} {e.node_name()}: {e.desc()}".strip() for e in errors]
        raise _refusal("E-TRT-PARSE", "does not take this graph", reasons[-1] if reasons else logger.last)
    entry = network.get_input(0)
    if network.num_inputs != 1 or tuple(entry.shape)[1] != shapes[0][1] or len(entry.shape) != len(shapes[0]):
        raise _refusal("E-TRT-PARSE", "found other inputs than the spec tells", f"{network.num_inputs} inputs")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape(entry.name, *shapes)  # says nothing of a wrong name or order: hence the two checks
    if not profile or config.add_optimization_profile(profile) != 0:
        raise _refusal("E-TRT-BUILD", "does not take the profile", str(shapes))
    if options.timing_cache is not None:
        _read_timings(config, options.timing_cache, say)
    monitor = progress_monitor(trt, say)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.stopped is not None:
        raise monitor.stopped
    if plan is None:
        raise _refusal("E-TRT-BUILD", "cannot build this network", logger.last)
    if options.timing_cache is not None:
        _write_timings(config, options.timing_cache)
    return bytes(plan)


def _refusal(code: str, what: str, reason: str) -> SegError:
    said = (reason.strip().splitlines() or ["no reason given"])[0]
    fix = "run the .onnx artifact with ONNX Runtime, or report this with the artifact"
    return SegError(code, Exit.MODEL, "", f"TensorRT {what} ({said})", fix)


def progress_monitor(trt: Any, say: Say) -> Any:
    """Says how far the outermost phase is, every few seconds; a signal ends the build at its next step."""

    class Progress(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped: BaseException | None = None
            self._steps: dict[str, int] = {}
            self._said = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                total = self._steps.get(phase_name)
                if total and time.monotonic() - self._said >= QUIET_SECONDS:
                    self._said = time.monotonic()
                    say(f"building: {phase_name}, step {step + 1} of {total}")
            except BaseException as signal:  # none may pass through TensorRT's own frames
                self.stopped = signal
            return self.stopped is None

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Progress()


def _read_timings(config: Any, path: str, say: Say) -> None:
    """Start from the measured times in a file. TensorRT parses it: so only a sealed one is taken."""
    content = b""
    if os.path.exists(path):
        content = Path(path).read_bytes()
        try:
            given = Path(f"{path}.seal").read_text().strip()
        except (OSError, ValueError):
            given = ""
        refuse_unsealed(path, given, content)
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        say(f"{path}: measured with another TensorRT or GPU, so it starts anew")
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _write_timings(config: Any, path: str) -> None:
    content = bytes(config.get_timing_cache().serialize())
    with atomic_file(path, overwrite=True) as file:
        file.write(content)
    with atomic_file(f"{path}.seal", overwrite=True) as file:
        file.write(seal(content).encode() + b"\n")
