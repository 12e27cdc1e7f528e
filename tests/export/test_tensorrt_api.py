"""Every name of TensorRT that the build touches exists in the real bindings, read off versions 10.16 and 11.4."""

import ast
import json
import os
from pathlib import Path

import pytest

import seg.export.plan_build

API = Path(os.environ.get("SEG_DATA") or Path(__file__).parents[3] / "shared" / "data") / "tensorrt_api"
CALLED = {
    "Builder": ["create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"],
    "NetworkDefinitionCreationFlag": ["STRONGLY_TYPED"],
    "INetworkDefinition": ["get_input", "num_inputs"],
    "ITensor": ["name", "shape"],
    "OnnxParser": ["parse", "num_errors", "get_error"],
    "ParserError": ["desc", "node_name", "node_operator"],
    "IBuilderConfig": [
        "set_memory_pool_limit",
        "clear_flag",
        "add_optimization_profile",
        "progress_monitor",
        "create_timing_cache",
        "set_timing_cache",
        "get_timing_cache",
    ],
    "MemoryPoolType": ["WORKSPACE"],
    "BuilderFlag": ["TF32"],
    "IOptimizationProfile": ["set_shape"],
    "ITimingCache": ["serialize"],
    "IProgressMonitor": ["phase_start", "step_complete", "phase_finish"],
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
    """Every attribute of the source that is a name of these classes is in CALLED."""
    tree = ast.parse(Path(seg.export.plan_build.__file__).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    listed = {name for names in CALLED.values() for name in names}
    known = {name for found in api() for group in CALLED for name in found[group]}
    assert used & known - {"name", "shape"} == listed - {"name", "shape"}
