"""Every name of TensorRT that the backend touches exists in the real bindings, read off versions 10.16 and 11.4."""

import ast
import json
import os
from pathlib import Path

import fake_tensorrt
import pytest

import seg.infer.backends

API = Path(os.environ.get("SEG_DATA") or Path(__file__).parents[3] / "shared" / "data") / "tensorrt_api"
CALLED = {  # every name of TensorRT that the backend touches
    "ILogger": ["ERROR", "INTERNAL_ERROR", "log"],
    "Runtime": ["deserialize_cuda_engine"],
    "ICudaEngine": [
        "num_io_tensors",
        "get_tensor_name",
        "get_tensor_mode",
        "get_tensor_dtype",
        "get_tensor_profile_shape",
        "get_tensor_shape",
        "device_memory_size_v2",
        "create_execution_context",
    ],
    "IExecutionContext": [
        "set_device_memory",
        "set_optimization_profile_async",
        "set_input_shape",
        "infer_shapes",
        "set_tensor_address",
        "execute_async_v3",
    ],
    "TensorIOMode": ["INPUT"],
    "DataType": ["FLOAT"],
    "ExecutionContextAllocationStrategy": ["USER_MANAGED"],
}


def api() -> list[dict[str, list[str]]]:
    files = sorted(API.glob("*.json"))
    if not files:
        pytest.skip(f"no lists of TensorRT's names under {API}: set SEG_DATA")
    return [json.loads(path.read_text()) for path in files]


def test_every_name_is_in_both_real_versions() -> None:
    versions = api()
    assert len(versions) == 2
    for found in versions:
        for group, names in CALLED.items():
            assert set(names) <= set(found[group]), group


def test_the_list_of_names_is_complete() -> None:
    """Every attribute in our source that is a name of TensorRT's is in CALLED."""
    folder = Path(seg.infer.backends.__file__).parent
    nodes = [
        node
        for name in ("tensorrt_.py", "cuda_graphs.py")
        for node in ast.walk(ast.parse((folder / name).read_text()))
        if isinstance(node, ast.Attribute)
    ]
    groups = {g for found in api() for g in found}
    used_groups = {n.attr for n in nodes if isinstance(n.value, ast.Name | ast.Attribute) and n.attr in groups}
    assert used_groups == set(CALLED) - {"ICudaEngine", "IExecutionContext"}  # these are returned, not named
    members = {name for found in api() for group in CALLED for name in found[group]}
    assert {n.attr for n in nodes} & members <= {name for names in CALLED.values() for name in names}


def test_the_fake_invents_no_names() -> None:
    fakes = {"ICudaEngine": fake_tensorrt.ICudaEngine, "IExecutionContext": fake_tensorrt.IExecutionContext}
    for found in api():
        for name, group in fakes.items():
            assert {n for n in vars(group) if not n.startswith("_")} <= set(found[name])
