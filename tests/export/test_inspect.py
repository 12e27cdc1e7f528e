"""seg-export --inspect: what a file holds, by its own bytes."""

from collections import Counter

import onnx
import pytest
from onnx import TensorProto, helper

from seg.export.cli import app
from seg.export.inspect_ import layer_precisions
from seg.infer.artifact import MODELS


def inspected(capsys: pytest.CaptureFixture[str], path: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        app(["--inspect", str(path)])
    said = capsys.readouterr()
    return int(caught.value.code or 0), said.out, said.err


def test_a_shipped_int8_model(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = inspected(capsys, MODELS / "left-atrium.int8.onnx")
    assert status == 0
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line.strip()}
    assert rows["precision"] == "int8"
    assert rows["Conv"].startswith("26 in int8")
    assert rows["weights"].startswith("int8 ")
    assert "golden check" in out
    assert "openvino int8: error" in out


def test_a_file_that_is_no_model(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    status, _, err = inspected(capsys, f"{tmp_path}/none.onnx")
    assert status == 20
    assert err.startswith("seg-export: error E-MODEL-MISSING")


def test_precision_is_that_of_what_flows_in() -> None:
    tensors = [helper.make_tensor(n, TensorProto.FLOAT, [1, 1, 1, 1, 1], [1.0]) for n in "uvw"]
    tensors.append(helper.make_tensor("s", TensorProto.FLOAT, [], [0.1]))
    tensors.append(helper.make_tensor("z", TensorProto.INT8, [], [0]))
    nodes = [
        helper.make_node("Conv", ["image", "u"], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Conv", ["d", "v"], ["b"]),
        helper.make_node("Cast", ["b"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Relu", ["h"], ["logits"]),
    ]
    shape = ["n", 1, "x", "y", "z"]
    ends = [helper.make_tensor_value_info(n, k, shape) for n, k in (("image", 1), ("logits", 10))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.checker.check_graph(graph)
    assert layer_precisions(graph) == {
        "Conv": Counter({"fp32": 1, "int8": 1}),
        "Cast": Counter({"fp32": 1}),
        "Relu": Counter({"fp16": 1}),
    }
