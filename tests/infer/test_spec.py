"""The spec: frozen bytes, and refusal of everything that cannot be right."""

import json
from dataclasses import replace

import pytest
from known import plain_spec

from seg.infer.spec import Cost, ModelSpec, Normalisation

GOLDEN_BYTES = (
    '{"activation":"softmax","card":{"license":"CC0"},"channels":["MR"],"cost":{"bytes":240.0,"macs":40000.0},"dims":3,"format":1,"graph_sha256":"ab",'
    '"intensity_range":[0.5,99.5],"label_values":[0,1,4],"labels":["background","core","rim"],"name":"tumour",'
    '"normalisation":{"kind":"zscore","lower":null,"mean":0.0,"std":1.0,"upper":null},"orientation":"RAS",'
    '"spacing":[1.25,1.25,null],"stride":[16,16,16],"tiling":"free","versions":{"torch":"2.13.0"},"window":[64,64,48]}'
)

GOLDEN_SPEC = ModelSpec(
    name="tumour",
    labels=("background", "core", "rim"),
    label_values=(0, 1, 4),
    channels=("MR",),
    spacing=(1.25, 1.25, None),
    normalisation=Normalisation("zscore"),
    window=(64, 64, 48),
    stride=(16, 16, 16),
    intensity_range=(0.5, 99.5),
    cost=Cost(macs=40_000.0, bytes=240.0),
    graph_sha256="ab",
    versions={"torch": "2.13.0"},
    card={"license": "CC0"},
)


def test_bytes_are_frozen() -> None:
    """A change here breaks every artifact in the field: raise FORMAT and keep reading the old one."""
    assert GOLDEN_SPEC.to_json() == GOLDEN_BYTES
    assert ModelSpec.from_json(GOLDEN_BYTES) == GOLDEN_SPEC
    kept = replace(GOLDEN_SPEC, largest_component=True)
    assert ModelSpec.from_json(kept.to_json()) == kept != GOLDEN_SPEC
    for mirror in ((), (0, 2)):  # () is known, None is not
        spec = replace(GOLDEN_SPEC, mirror=mirror)
        assert ModelSpec.from_json(spec.to_json()) == spec != GOLDEN_SPEC


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["one"], "label_values": [0]}, "two or more"),
        ({"labels": ["a", "a"], "label_values": [0, 1]}, "distinct"),
        ({"label_values": [0, 1, 1]}, "distinct"),
        ({"label_values": [1, 0, 2]}, "the first 0"),
        ({"label_values": [0, 1, 70000]}, "65535"),
        ({"label_values": [0, 1]}, "one per label"),
        ({"channels": []}, "channels"),
        ({"spacing": [1.0, -1.0, 1.0]}, "positive"),
        ({"spacing": [1.0, 1.0]}, "three"),
        ({"window": [64, 60, 48]}, "multiple"),
        ({"window": [64, 64]}, "three positive"),
        ({"stride": [0, 16, 16]}, "three positive"),
        ({"dims": 2}, "2D"),
        ({"dims": 4}, "dims"),
        ({"mirror": [1, 0]}, "mirror"),
        ({"mirror": [0, 0]}, "mirror"),
        ({"mirror": [3]}, "mirror"),
        ({"mirror": 0}, "mirror"),
        ({"tiling": "some"}, "tiling"),
        ({"orientation": "LPS"}, "orientation"),
        ({"largest_component": 1}, "true or false"),
        ({"activation": "sigmoid"}, "activation"),
        ({"format": 2}, "format 2"),
        ({"normalisation": {"kind": "magic"}}, "normalisation"),
        ({"normalisation": {"kind": "fixed", "std": 0.0}}, "normalisation"),
        ({"normalisation": {"kind": "fixed", "typo": 1}}, "typo"),
        ({"surprise": 1}, "surprise"),
        ({"normalisation": {"kind": "fixed"}, "intensity_range": [3, 3]}, "intensity_range"),
        ({"intensity_range": [3, 1]}, "intensity_range"),
        ({"intensity_range": [1]}, "intensity_range"),
        ({"intensity_range": [1, "x"]}, "model spec"),
        ({"intensity_range": [0, 1e999]}, "intensity_range"),
        ({"intensity_range": [0, 10**400]}, "model spec"),
        ({"cost": {"macs": "x"}}, "cost"),
        ({"cost": {"macs": -1.0}}, "cost"),
        ({"cost": {"bytes": None}}, "cost"),
        ({"cost": {"bytes": 1e999}}, "cost"),
        ({"name": 3}, "name"),
        ({"labels": [1, 2, 3]}, "labels"),
        ({"labels": "abc"}, "labels"),
        ({"channels": [None]}, "channels"),
        ({"dims": 3.0}, "dims"),
        ({"extent": [1, 2, "x"]}, "model spec"),
        ({"versions": []}, "model spec"),
        ({"versions": {"torch": 2}}, "versions"),
        ({"card": []}, "model spec"),
        ({"card": {"precision": "fp8"}}, "precision"),
        ({"card": {"precision": ["fp16"]}}, "precision"),
        ({"card": {"quantisation": []}}, "quantisation"),
        ({"card": {"quantisation": {"golden_tolerance": "x"}}}, "golden_tolerance"),
        ({"card": {"note": 1e999}}, "JSON"),
    ],
)
def test_wrong_content_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    raw = json.loads(GOLDEN_BYTES) | changes
    with pytest.raises(ValueError, match=message):
        ModelSpec.from_json(json.dumps(raw))


@pytest.mark.parametrize("missing", ["name", "labels", "normalisation", "window"])
def test_missing_fields_are_named(missing: str) -> None:
    raw = json.loads(GOLDEN_BYTES)
    del raw[missing]
    with pytest.raises(ValueError, match=missing):
        ModelSpec.from_json(json.dumps(raw))


@pytest.mark.parametrize("text", ["", "[]", "null", "{"])
def test_not_a_spec(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|JSON object"):
        ModelSpec.from_json(text)


@pytest.mark.parametrize("depth", [700, 100_000])
def test_a_spec_nested_too_deeply(depth: int) -> None:
    text = GOLDEN_BYTES.replace('"CC0"', "[" * depth + "]" * depth)
    with pytest.raises(ValueError, match="nested"):
        ModelSpec.from_json(text)


def test_label_values_default_to_the_indices() -> None:
    assert plain_spec().label_values == (0, 1)
