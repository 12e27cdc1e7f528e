"""int8: small files, real int8 arithmetic, masks as in fp32, and nothing written when they are not."""

import getpass
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from seg.export import int8, onnx_
from seg.export.calibration import calibration_cases, cases_in, network_inputs, verification_cases
from seg.export.int8 import float_sets, layer_names, quantise, quantised
from seg.export.quality import Quality
from seg.infer.artifact import GOLDEN_KEY, load
from seg.infer.backends import open_backend
from seg.infer.errors import SegError
from seg.infer.predict import segment
from seg.infer.selftest import golden_error
from seg.infer.spec import ModelSpec, Normalisation
from seg.train.cases import Case
from seg.train.losses import supervised_loss
from seg.train.prepare import load_label, load_volume, prepare

SPEC = ModelSpec(
    name="balls",
    labels=("background", "small", "large"),
    label_values=(0, 1, 2),
    channels=("any",),
    spacing=(1.0, 1.0, 1.0),
    normalisation=Normalisation(),
    window=(16, 16, 16),
    stride=(2, 2, 2),
)


class Tiny(nn.Module):
    """The layers of a V-Net in small: strided and transposed convolution, added skip, ReLU, 1x1x1 head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, width, 3, padding=1)
        self.down = nn.Conv3d(width, 2 * width, 2, stride=2)
        self.middle = nn.Conv3d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
        self.last = nn.Conv3d(width, width, 3, padding=1)
        self.head = nn.Conv3d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.first(x))
        x = torch.relu(self.middle(torch.relu(self.down(skip))))
        logits: Tensor = self.head(torch.relu(self.last(torch.relu(self.up(x)) + skip)))
        return logits


def trained(cases: list[Case], width: int = 8, steps: int = 60) -> Tiny:
    torch.manual_seed(0)
    samples = [prepare(case, SPEC) for case in cases]
    x = torch.from_numpy(np.stack([sample.image for sample in samples]))
    y = torch.from_numpy(np.stack([sample.label for sample in samples])).long()
    module = Tiny(width)
    optimiser = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        supervised_loss(module(x), y).backward()
        optimiser.step()
    return module.eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_cases: Callable[..., Path]) -> Path:
    return write_cases(tmp_path_factory.mktemp("balls"), 6, (24, 20, 16), unlabeled=2, classes=3)


@pytest.fixture(scope="module")
def module(data: Path) -> Tiny:
    return trained([case for case in cases_in(str(data)) if case.label is not None])


@pytest.fixture(scope="module")
def fp32(module: Tiny, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("fp32") / "model.onnx")
    onnx_.export(module, SPEC, path)
    return path


@pytest.fixture(scope="module")
def made(fp32: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Quality, list[str]]:
    """The int8 artifact, its quality, and the table that was printed."""
    path, rows = str(tmp_path_factory.mktemp("int8") / "model.onnx"), list[str]()
    calibration = calibration_cases(str(data), 5, ())
    _, quality = quantise(fp32, path, calibration, verification_cases(str(data), ()), rows.append)
    return path, quality, rows


def test_the_quality_is_measured_and_in_the_card(made: tuple[str, Quality, list[str]]) -> None:
    path, quality, rows = made
    assert quality.acceptable
    assert quality.agreement > 0.99
    assert quality.overlap > 0.95
    assert quality.loss is not None
    card: dict[str, Any] = load(path).spec.card
    assert card["precision"] == "int8"
    figures = card["quantisation"]
    assert (figures["calibration_scans"], figures["verification_scans"]) == (5, 6)
    assert figures["points_lost"] == round(quality.loss, 2)
    assert figures["dice_fp32"].keys() == figures["dice_int8"].keys() == {"small", "large"}
    assert min(figures["dice_fp32"].values()) > 0.8
    assert len(rows) >= 3
    assert rows[-1].startswith(f"| {', '.join(figures['float_layers']) or 'none'} | ")


def test_the_quality_is_the_shipping_paths(made: tuple[str, Quality, list[str]], fp32: str, data: Path) -> None:
    """Counted again here, by hand."""
    path, quality, _ = made
    agreement, dice = [], []
    for case in cases_in(str(data))[:6]:
        assert case.label is not None
        volume, truth = load_volume(case), load_label(case.label, SPEC.label_values)
        a, b = (segment(volume, SPEC, open_backend("openvino", p, "cpu")) for p in (fp32, path))
        agreement.append(np.mean(a == b))
        dice.append(2 * np.sum((b == 2) & (truth == 2)) / (np.sum(b == 2) + np.sum(truth == 2)))
    assert quality.agreement == pytest.approx(np.mean(agreement))
    assert quality.dice_int8["large"] == pytest.approx(np.mean(dice))


def test_the_form_that_all_engines_take(made: tuple[str, Quality, list[str]], fp32: str) -> None:
    """Weights int8 per channel, zero points int8 zeros, biases float: TensorRT takes no other form, or misreads it."""
    proto = onnx.load(made[0])
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 21)]
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    outputs = {name: node for node in proto.graph.node for name in node.output}
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = tensors[node.input[2]]
            assert zero.data_type == TensorProto.INT8
            assert not numpy_helper.to_array(zero).any()
        if node.op_type in int8.CONVOLUTIONS and node.input[1] in outputs:
            weight = outputs[node.input[1]]
            assert weight.op_type == "DequantizeLinear"
            values, scale = tensors[weight.input[0]], numpy_helper.to_array(tensors[weight.input[1]])
            assert values.data_type == TensorProto.INT8
            axis = next(a.i for a in weight.attribute if a.name == "axis")
            assert axis == (1 if node.op_type == "ConvTranspose" else 0)
            assert scale.shape == (values.dims[axis],)
            assert tensors[node.input[2]].data_type == TensorProto.FLOAT
    kinds = Counter(node.op_type for node in proto.graph.node if node.op_type in int8.CONVOLUTIONS)
    assert kinds == {"Conv": 5, "ConvTranspose": 1}
    assert set(tensors) == {name for node in proto.graph.node for name in node.input} & set(tensors)
    before, after = (sum(len(t.raw_data) for t in onnx.load(p).graph.initializer) for p in (fp32, made[0]))
    assert after < 0.35 * before


def test_openvino_computes_in_int8(made: tuple[str, Quality, list[str]]) -> None:
    import openvino as ov

    compiled = ov.Core().compile_model(made[0], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = Counter()
    for node in compiled.get_runtime_model().get_ops():
        kind = node.get_rt_info()["layerType"].astype(str)
        if kind in ("Convolution", "Deconvolution"):
            kinds[node.get_rt_info()["runtimePrecision"].astype(str)] += 1
    floats = len(load(made[0]).spec.card["quantisation"]["float_layers"])
    # which of the two is the processor's choice
    assert kinds["i8"] + kinds["u8"] == 6 - floats, kinds


def test_golden_pair_and_a_second_engine(
    made: tuple[str, Quality, list[str]], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made[0]
    artifact = load(path)
    assert artifact.golden is not None
    x = artifact.golden.x.astype(np.float32)
    backend = open_backend("openvino", path, "cpu")
    assert golden_error(backend.run(x), artifact.golden.logits) < 1e-6
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    other = session.run(None, {"image": x})[0]
    tolerance = artifact.spec.card["quantisation"]["golden_tolerance"]
    assert golden_error(other, artifact.golden.logits) < tolerance
    monkeypatch.setattr("seg.infer.backends.openvino_.fuse_quantisers", lambda *_: 0)
    signed = open_backend("openvino", path, "cpu")
    for scan in network_inputs(cases_in(str(data)), SPEC):
        found, expected = session.run(None, {"image": scan})[0], signed.run(scan).copy()
        assert np.mean(found.argmax(1) == expected.argmax(1)) > 0.998


def test_unsigned_activations_are_nearer_to_fp32(
    made: tuple[str, Quality, list[str]], fp32: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Than the signed ones of the file: root of the mean square over all scans."""
    scans = network_inputs(cases_in(str(data)), SPEC)
    exact, unsigned = open_backend("openvino", fp32, "cpu"), open_backend("openvino", made[0], "cpu")
    monkeypatch.setattr("seg.infer.backends.openvino_.fuse_quantisers", lambda *_: 0)
    signed = open_backend("openvino", made[0], "cpu")
    square = {"signed": 0.0, "unsigned": 0.0}
    for scan in scans:
        logits = exact.run(scan).copy()
        square["signed"] += float(np.square(signed.run(scan) - logits).mean())
        square["unsigned"] += float(np.square(unsigned.run(scan) - logits).mean())
    assert square["unsigned"] < 0.95 * square["signed"]


SAME = """
import sys
from seg.export.calibration import calibration_cases, verification_cases
from seg.export.int8 import quantise
source, data, path = sys.argv[1:]
quantise(source, path, calibration_cases(data, 5, ()), verification_cases(data, ()))
"""


def test_another_process_writes_the_same_bytes(
    made: tuple[str, Quality, list[str]], fp32: str, data: Path, tmp_path: Path
) -> None:
    """With another order of sets, which the seed of hashing gives."""
    path = tmp_path / "again.onnx"
    command = [sys.executable, "-c", SAME, fp32, str(data), str(path)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "7"}, timeout=200)
    digests = {hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in (path, made[0])}
    assert len(digests) == 1


def test_no_trace_of_this_machine(made: tuple[str, Quality, list[str]], data: Path) -> None:
    proto = onnx.load(made[0])
    for entry in [p for p in proto.metadata_props if p.key == GOLDEN_KEY]:  # text of random letters
        proto.metadata_props.remove(entry)
    content = proto.SerializeToString()
    here = Path(int8.__file__).resolve().parents[1]
    traces = [".py", "site-packages", str(here), str(Path.home()) + "/", str(data), str(Path(made[0]).parent)]
    traces += [name for name in (getpass.getuser(), socket.gethostname()) if len(name) > 3]
    assert [trace for trace in traces if trace.encode() in content] == []


def test_signed_activations_cover_the_same_range(fp32: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = network_inputs(calibration_cases(str(data), 3, ()), SPEC)
    signed = quantised(onnx.load(fp32), inputs, ())
    monkeypatch.setattr(int8, "sign_activations", lambda graph: None)
    unsigned = quantised(onnx.load(fp32), inputs, ())

    def ranges(proto: onnx.ModelProto) -> dict[str, float]:
        tensors = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        nodes = [node for node in proto.graph.node if node.op_type == "QuantizeLinear"]
        return {n.name: float(tensors[n.input[1]]) * np.iinfo(tensors[n.input[2]].dtype).max for n in nodes}

    assert ranges(signed) == pytest.approx(ranges(unsigned))
    assert any(t.data_type == TensorProto.UINT8 for t in unsigned.graph.initializer)


def test_float_layers_go_inwards_from_both_ends(fp32: str) -> None:
    proto = onnx.load(fp32)
    names = [layer_names(proto, nodes) for nodes in float_sets(proto.graph)]
    assert names[:4] == [[], ["head"], ["head", "first"], ["head", "first", "last"]]
    assert len(names) == 5


def test_narrow_transposed_convolutions_stay_float(data: Path, tmp_path: Path) -> None:
    """OpenVINO's kernel for them was wrong; the gate would refuse the file, with a message that helps nobody."""
    cases = [case for case in cases_in(str(data)) if case.label is not None]
    onnx_.export(trained(cases, width=4), SPEC, str(tmp_path / "fp32.onnx"))
    spec, quality = quantise(str(tmp_path / "fp32.onnx"), str(tmp_path / "int8.onnx"), cases, cases)
    assert spec.card["quantisation"]["float_layers"][0] == "up"
    assert quality.overlap > 0.95


def test_the_first_good_candidate_is_taken_else_the_best(monkeypatch: pytest.MonkeyPatch, fp32: str) -> None:
    proto = onnx.load(fp32)
    losses = iter([2.0, 0.5, 0.2, 0.0])
    monkeypatch.setattr(int8, "quantised", lambda proto, inputs, layers: proto)

    def judge(_: object) -> Quality:
        return Quality(0.999, 0.99, {"a": 0.9}, {"a": 0.9 - next(losses) / 100})

    rows = list[str]()
    best = int8._search(proto, [], fp32, judge, rows.append)
    assert layer_names(proto, best.float_layers) == ["head", "first"]
    assert [row.split(" | ")[-1] for row in rows[2:]] == ["2.00 |", "0.50 |", "0.20 |"]
    losses = iter([2.0, 0.5, 0.9, 0.8, 0.7])
    assert layer_names(proto, int8._search(proto, [], fp32, judge, rows.append).float_layers) == ["head"]


@pytest.mark.parametrize(
    ("quality", "acceptable"),
    [
        (Quality(0.98, 0.99, {}, {}), True),
        (Quality(0.96, 0.99, {}, {}), False),
        (Quality(0.99, 0.5, {}, {}), False),  # an empty mask of a small organ
        (Quality(0.99, 0.99, {"a": 0.9}, {"a": 0.885}), False),
        (Quality(0.99, 0.99, {"a": 0.9}, {"a": 0.895}), True),
    ],
)
def test_gates(quality: Quality, acceptable: bool) -> None:
    assert quality.acceptable is acceptable


def test_a_failed_verification_leaves_no_file(
    fp32: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seg.export.quality.LEAST_OVERLAP", 1.01)
    path = tmp_path / "int8.onnx"
    path.write_bytes(b"the old one")
    with pytest.raises(SegError, match="E-EXPORT-INT8"):
        quantise(fp32, str(path), calibration_cases(str(data), 2, ()))
    assert path.read_bytes() == b"the old one"
    assert os.listdir(tmp_path) == ["int8.onnx"]


# Which scans


def test_calibration_never_sees_the_validation_scans(data: Path) -> None:
    chosen = [case.id for case in calibration_cases(str(data), 3, {"scan00", "scan07"})]
    assert chosen == ["scan01", "scan03", "scan05"]
    assert len(calibration_cases(str(data), 12, ())) == 8
    with pytest.raises(SegError, match="E-DATA-CALIBRATION"):
        calibration_cases(str(data), 3, {f"scan{n:02}" for n in range(8)})


def test_verification_prefers_labelled_scans_that_the_run_did_not_train_on(data: Path) -> None:
    assert [case.id for case in verification_cases(str(data), ())] == [f"scan{n:02}" for n in range(6)]
    assert [case.id for case in verification_cases(str(data), {"scan04"})] == ["scan04"]


def test_a_flat_folder_of_scans_will_do(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nii"):
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / name)
    assert [case.id for case in cases_in(str(tmp_path))] == ["a", "b"]
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "absent"):
        with pytest.raises(SegError, match="E-DATA-"):
            cases_in(str(tmp_path / folder))


def test_network_inputs_are_whole_scans_padded_or_their_centre(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases_in(str(data))[0]
    whole = network_inputs([case], replace(SPEC, stride=(16, 16, 16)))[0]
    assert whole.shape == (1, 1, 32, 32, 16)
    sample = prepare(case, SPEC).image
    np.testing.assert_array_equal(whole[0, :, 4:28, 6:26], sample)
    assert np.count_nonzero(whole) == np.count_nonzero(sample)
    windowed = network_inputs([case], replace(SPEC, tiling="window"))[0]
    np.testing.assert_array_equal(windowed[0], sample[:, 4:20, 2:18])
    monkeypatch.setattr("seg.export.calibration.TILE_VOXELS", 16 * 16 * 16)
    centre = network_inputs([case], SPEC)[0]
    np.testing.assert_array_equal(centre, windowed)


def test_other_channels_are_refused(data: Path) -> None:
    with pytest.raises(SegError, match=r"E-DATA-CALIBRATION: .*1 channels, the model takes 2"):
        network_inputs(cases_in(str(data))[:1], replace(SPEC, channels=("t1", "t2")))


# The command


@pytest.fixture
def command(
    module: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """seg-export on a run whose network is `module`; returns (status, stderr)."""
    from seg.export.cli import app

    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"split": {"val": ["scan05"]}}))
    monkeypatch.setattr("seg.export.run.load_run", lambda folder, card, largest_component: (module, SPEC))

    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            app([str(run), *map(str, arguments)])
        return int(caught.value.code or 0), capsys.readouterr().err

    handler = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, handler)


def test_export_to_int8(command: Callable[..., tuple[int, str]], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    status, said = command("-o", out, "--precision", "int8", "--calibration", data, "--scans", 3, "--verify", data)
    assert status == 0, said
    figures = load(str(out)).spec.card["quantisation"]
    assert (figures["calibration_scans"], figures["verification_scans"]) == (3, 1)
    assert "| float layers |" in said
    assert "calibrated on 3 scans" in said


@pytest.mark.parametrize("flags", [["--precision", "int8"], ["--calibration", "x"]])
def test_int8_and_calibration_go_together(
    command: Callable[..., tuple[int, str]], tmp_path: Path, flags: list[str]
) -> None:
    status, said = command("-o", tmp_path / "model.onnx", *flags)
    assert status == 2
    assert "go together" in said
    assert not (tmp_path / "model.onnx").exists()


def test_nncf_sends_no_usage_reports() -> None:
    """Outside pytest, where NNCF would: the reporter must be the stub."""
    program = "from seg.export.int8 import _nncf; _nncf(); from nncf.telemetry import telemetry as t; print(type(t))"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NNCF", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True, env=environment
    )
    assert "MagicMock" in done.stdout
