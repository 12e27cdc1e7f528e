"""A model repository for the Triton Inference Server, from an artifact.

    DIR/MODEL/config.pbtxt      shapes, dynamic batching, instances, and the model's spec as parameters
    DIR/MODEL/1/model.onnx      the artifact, byte for byte; a TensorRT plan is 1/model.plan
    DIR/MODEL/1/model.py        for the Python backend alone

Three backends of the server can run it: its own ONNX Runtime ("onnxruntime"), its own TensorRT (for plans), and its
Python backend with our engine ("python": OpenVINO on CPUs, needs seg-toolkit in the server's Python). Each further
export of a model adds a version, and the server takes the newest. What this does not know: which backends the server
has, and its memory.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from seg.infer.artifact import Artifact, load, metadata_of
from seg.infer.atomic import atomic_text, output_error, refuse_existing
from seg.infer.backends.triton_ import model_name
from seg.infer.errors import Exit, SegError
from seg.infer.outputs import make_folder
from seg.infer.spec import ModelSpec

TritonBackendName = Literal["onnxruntime", "python", "tensorrt"]

MAX_BATCH = 4  # windows of several requests that the server may join
MAX_SLICES = 64  # the same in 2D, where the client also sends a window's slices together
MODEL_PY = '"""Written by seg-export."""\n\nfrom seg.infer.triton_server import TritonPythonModel  # noqa: F401\n'
INPUT = "image"


def write_model_repository(
    path: str, folder: str, backend: TritonBackendName, *, half: bool = False, overwrite: bool = False
) -> str:
    """Add the artifact to a model repository.

    Parameters
    ----------
    path : .onnx artifact, or a TensorRT plan for the backend "tensorrt".
    folder : the repository; made where it is missing.
    half : windows and logits travel as float16 ("python" alone); see `seg.infer.triton_server.halved`.
    overwrite : add a version to a model that is there, and write its config.pbtxt anew.

    Returns
    -------
    The model's name on the server.

    Raises
    ------
    SegError : E-TRITON-BACKEND when the backend cannot run this file, E-MODEL-*, E-OUT-*.
    """
    artifact = load(path)
    refuse_repository(path, artifact.spec, folder, backend, half=half, overwrite=overwrite)
    model = model_name(artifact.spec)
    home = Path(folder) / model
    make_folder(str(home))
    version = 1 + max((int(p.name) for p in home.iterdir() if p.name.isdigit()), default=0)
    _write_version(artifact, home / str(version), backend)
    try:
        atomic_text(str(home / "config.pbtxt"), config(artifact, model, backend, half))
    except SegError:
        shutil.rmtree(home / str(version), ignore_errors=True)  # lest a server takes it with the spec of the one before
        raise
    return model


def refuse_repository(
    path: str, spec: ModelSpec, folder: str, backend: TritonBackendName, *, half: bool, overwrite: bool
) -> None:
    """Check before any work that a model can be added; makes the repository. `path` may be a run, exported as .onnx.

    Raises
    ------
    SegError : E-TRITON-BACKEND, E-OUT-*.
    """
    plan = path.endswith((".engine", ".plan"))
    if plan != (backend == "tensorrt") or not (plan or path.endswith(".onnx") or os.path.isdir(path)):
        expected = "a TensorRT plan" if backend == "tensorrt" else "an .onnx artifact"
        fix = "choose the backend with --triton-backend: onnxruntime or python for .onnx, tensorrt for a plan"
        raise SegError("E-TRITON-BACKEND", Exit.USAGE, path, f"is not for {backend}", fix, expected)
    if half and backend != "python":
        found, fix = f"{backend} sends what the graph gives, float32", "use --triton-backend python, or leave it out"
        raise SegError("E-TRITON-BACKEND", Exit.USAGE, path, found, fix, "the python backend")
    make_folder(folder)
    refuse_existing(str(Path(folder) / model_name(spec) / "config.pbtxt"), overwrite)


def _write_version(artifact: Artifact, target: Path, backend: str) -> None:
    """The version's folder, whole or not at all: a server that polls must not see half a file."""
    try:
        with tempfile.TemporaryDirectory(prefix=".seg-export-", dir=target.parent) as hidden:
            draft = Path(hidden) / target.name
            draft.mkdir()
            shutil.copyfile(artifact.path, draft / ("model.plan" if backend == "tensorrt" else "model.onnx"))
            if backend == "python":
                (draft / "model.py").write_text(MODEL_PY)
            os.rename(draft, target)
    except OSError as error:
        raise output_error(str(target), error) from error


def config(artifact: Artifact, model: str, backend: TritonBackendName, half: bool) -> str:
    """config.pbtxt: the text form of Triton's ModelConfig message."""
    spec = artifact.spec
    flat = spec.dims == 2 and backend == "onnxruntime"  # the graph itself, which takes (N, C, X, Y)
    axes = (-1, -1) if flat else (-1, -1, -1)
    most = MAX_SLICES if flat else MAX_BATCH
    if backend == "tensorrt":
        from seg.infer.backends.engine_file import read_engine

        most, _, *axes = read_engine(artifact.path).key.profile  # type: ignore[assignment]
    kind = "TYPE_FP16" if half else "TYPE_FP32"
    outputs = [_tensor("logits", kind, (len(spec.labels), *axes))]
    if artifact.head is not None:
        outputs.append(_tensor("features", "TYPE_FP32", (artifact.head.weight.shape[1], *axes)))
    parameters = metadata_of(spec, artifact.golden, artifact.head)
    lines = [
        f'name: "{model}"',
        f'backend: "{backend}"',
        f"max_batch_size: {most}",
        f"input [ {_tensor(INPUT, kind, (len(spec.channels), *axes))} ]",
        f"output [ {', '.join(outputs)} ]",
        "dynamic_batching { }",
        "instance_group [ { kind: KIND_AUTO, count: 1 } ]",
        "version_policy { latest { num_versions: 1 } }",
        *(f'parameters {{ key: "{k}", value {{ string_value: {_quoted(v)} }} }}' for k, v in parameters.items()),
    ]
    return "\n".join(lines) + "\n"


def _tensor(name: str, kind: str, dims: tuple[int, ...]) -> str:
    return f'{{ name: "{name}", data_type: {kind}, dims: [ {", ".join(map(str, dims))} ] }}'


def _quoted(text: str) -> str:
    """A string literal of the protobuf text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
