"""Codes: right by pydicom's copy of the standard, readable by people, and stable."""

import json
from dataclasses import replace

import pytest
from known import plain_spec
from pydicom.sr import _concepts_dict

from seg.infer.dicom.codes import PRIVATE_SCHEME, TABLE, codes_of, long_string, uncoded
from seg.infer.spec import Code, LabelCodes, ModelSpec

STANDARD = {
    (value, meaning) for names in _concepts_dict.concepts["SCT"].values() for value, (meaning, _) in names.items()
}  # fmt: skip
TUMOUR = LabelCodes(
    Code("49755003", "SCT", "Morphologically Abnormal Structure"),
    Code("108369006", "SCT", "Neoplasm"),
    modifiers=(Code("7771000", "SCT", "Left"),),
    region=Code("64033007", "SCT", "Kidney"),
)


@pytest.mark.parametrize("label", TABLE)
def test_the_table_is_the_standards(label: str) -> None:
    codes = TABLE[label]
    for code in (codes.category, codes.type, *codes.modifiers):
        assert code.scheme == "SCT"
        assert (code.value, code.meaning) in STANDARD


def test_labels_are_found_with_and_without_the_models_name() -> None:
    spec = plain_spec(name="hippocampus", labels=("background", "anterior", "Left_Atrium", "posterior hippocampus"))
    assert codes_of(spec) == (TABLE["anterior hippocampus"], TABLE["left atrium"], TABLE["posterior hippocampus"])
    assert uncoded(spec) == ()
    assert uncoded(replace(spec, name="other")) == ("anterior",)


def test_the_spec_comes_before_the_table() -> None:
    spec = plain_spec(labels=("background", "left atrium", "right atrium"), codes=(None, TUMOUR, None))
    assert codes_of(spec) == (TUMOUR, TABLE["right atrium"])


def test_private_codes_tell_labels_apart() -> None:
    names = ("background", "odd", "Odd", "odd ", "x" * 90, "x" * 91, "a\\b", "左心房", "\n")
    types = [codes.type for codes in codes_of(plain_spec(labels=names))]
    assert len({code.value for code in types}) == len(names) - 1
    for code in types:
        assert code.scheme == PRIVATE_SCHEME
        assert code.scheme.startswith("99")
    assert types[0] == Code("990cb8ebd0afb715", PRIVATE_SCHEME, "odd")  # the same for ever


def test_long_string() -> None:
    assert long_string(" a\\b\nc ") == "a b c"
    assert len(long_string("x" * 90)) == 64


def test_codes_travel_in_the_spec() -> None:
    spec = plain_spec(labels=("background", "tumour", "other"), codes=(None, TUMOUR, None))
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_a_spec_without_codes_has_the_bytes_it_had() -> None:
    """Readers of before refuse fields that they do not know."""
    assert "codes" not in plain_spec().to_json()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([None], "one per label"),
        ([None, {"category": {}, "type": {}}], "value"),
        ([None, {"type": {"value": "1", "scheme": "SCT", "meaning": "x"}}], "category"),
        ([None, "82471001"], "str"),
        (7, "int"),
    ],
)
def test_wrong_codes_are_refused(codes: object, message: str) -> None:
    raw = json.loads(plain_spec().to_json()) | {"codes": codes}
    with pytest.raises(ValueError, match=message):
        ModelSpec.from_json(json.dumps(raw))


@pytest.mark.parametrize(
    ("part", "value"), [("value", ""), ("value", "1" * 17), ("scheme", "S" * 17), ("meaning", "a\\b"), ("meaning", 7)]
)
def test_wrong_parts_of_a_code_are_refused(part: str, value: object) -> None:
    with pytest.raises(ValueError, match=part):
        Code(**{"value": "1", "scheme": "SCT", "meaning": "x", part: value})  # type: ignore[arg-type]
