"""seg-export SOURCE --all DIR: every form, proven against fp32, or named with the reason why it is not there."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest
import torch

from seg.export import forms, proof
from seg.export.derived import write_copy
from seg.export.onnx_ import export
from seg.infer.artifact import DIGEST_KEY, load
from seg.infer.errors import Exit
from seg.infer.spec import ModelSpec, Normalisation
from seg.train.networks.vnet import VNet

SPEC = ModelSpec(
    name="two balls",
    labels=("background", "small", "large"),
    label_values=(0, 1, 2),
    channels=("any",),
    spacing=(1.0, 1.0, 1.0),
    normalisation=Normalisation(),
    window=(16, 16, 16),
    stride=(16, 16, 16),
    card={"training": {"seed": 3}},
)
NAME = "two-balls"
ONNX = [f"{NAME}.onnx", f"{NAME}.fp16.onnx", f"{NAME}.int8.onnx"]
Command = Callable[..., tuple[int, str]]


def network() -> VNet:
    torch.manual_seed(3)
    return VNet(classes=3, width=2).eval()


@pytest.fixture(scope="module", autouse=True)
def _quick(tmp_path_factory: pytest.TempPathFactory, converted_once: None) -> Iterator[None]:
    """A conversion from torch takes seconds: one serves all tests. Seals go to a cache of their own."""
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEG_CACHE", str(tmp_path_factory.mktemp("cache") / "cache"))
        yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_cases: Callable[..., Path]) -> Path:
    return write_cases(tmp_path_factory.mktemp("balls"), 3, (24, 20, 16), classes=3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose network is `network()`."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(json.dumps({"split": {"val": ["scan02"]}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seg.export.run.load_run", lambda *_, **__: (network(), SPEC))
        yield folder


def call(*arguments: object) -> int:
    from seg.export.cli import app

    with pytest.raises(SystemExit) as caught:
        app([str(a) for a in arguments])
    return int(caught.value.code or 0)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """seg-export(*arguments) -> (exit status, what stderr got)."""

    def called(*arguments: object) -> tuple[int, str]:
        return call(*arguments), capsys.readouterr().err

    return called


@pytest.fixture(scope="module")
def made(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All forms of the run. Its weights are random, so int8's gate, which has tests of its own, is open."""
    folder = tmp_path_factory.mktemp("all") / "forms"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seg.export.quality.LEAST_OVERLAP", 0.0)
        assert call(run, "--all", folder, "--calibration", data, "--verify", data) == 0
    return folder


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    """The fp32 form alone, in a folder of its own."""
    (tmp_path / "source").mkdir()
    return shutil.copy(made / ONNX[0], tmp_path / "source" / "mine.onnx")


def rows(said: str) -> dict[str, list[str]]:
    """The table's cells by file."""
    lines = said[said.index("| file ") :].splitlines()
    assert len({len(line) for line in lines if line.startswith("|")}) == 1, "the columns are aligned"
    return {(cells := [c.strip() for c in line.strip("|").split(" | ")])[0]: cells for line in lines[2:]}


def test_all_forms_of_a_run(made: Path, tmp_path: Path) -> None:
    """The files that single exports write; each loads, and says what it is."""
    found = sorted(p.name for p in made.iterdir())
    assert found == sorted([*ONNX, f"{NAME}.pt2", f"{NAME}.pt2.seal", "bundle", "triton"])
    precisions = [load(str(made / name)).spec.card.get("precision", "fp32") for name in ONNX]
    assert precisions == ["fp32", "fp16", "int8"]
    assert load(str(made / f"{NAME}.pt2")).spec.labels == SPEC.labels
    for name, half in ((ONNX[0], False), (ONNX[1], True)):
        export(network(), SPEC, str(tmp_path / name), half=half)
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()
    fp32 = (made / ONNX[0]).read_bytes()
    assert (made / "bundle" / "models" / "model.onnx").read_bytes() == fp32
    assert (made / "triton" / NAME / "1" / "model.onnx").read_bytes() == fp32
    figures = load(str(made / ONNX[2])).spec.card["quantisation"]
    assert (figures["calibration_scans"], figures["verification_scans"]) == (2, 1)


def test_the_table_of_a_run(command: Command, run: Path, tmp_path: Path, data: Path) -> None:
    status, said = command(run, "--all", tmp_path / "forms", "--verify", data)
    assert status == 0
    assert "compared with torch on 1 scan:" in said
    table = rows(said)
    assert list(table) == [*ONNX, f"{NAME}.pt2", f"{NAME}.engine", "triton", "bundle"]
    for name in (ONNX[0], ONNX[1], f"{NAME}.pt2"):
        _, size, error, labels, dice, remark = table[name]
        assert float(size.removesuffix(" MB")) == pytest.approx(
            (tmp_path / "forms" / name).stat().st_size / 1e6, abs=1e-2
        )
        assert 0 <= float(error) < 5e-3
        assert float(labels.removesuffix(" %")) >= 99.9
        assert float(dice) == pytest.approx(float(table[ONNX[0]][4]), abs=1e-3)
        assert remark == ""
    assert float(table[ONNX[1]][2]) > float(table[ONNX[0]][2])
    assert table[ONNX[2]][1:] == ["-", "-", "-", "-", "not made: it needs scans: --calibration DIR"]
    assert not (tmp_path / "forms" / ONNX[2]).exists()


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is here")
def test_what_this_machine_lacks_is_told(command: Command, artifact: Path, tmp_path: Path) -> None:
    """In a line of its own, and without a failure; likewise what an artifact cannot give."""
    status, said = command(artifact, "--all", tmp_path / "forms")
    assert status == 0
    (engine,) = [line for line in said.splitlines() if line.startswith(f"{NAME}.engine: ")]
    assert engine.startswith(
        f"{NAME}.engine: not made: a TensorRT engine cannot be built here: missing the package tensorrt"
    )
    assert f"{NAME}.pt2: not made: an exported file holds no PyTorch module; give the run" in said.splitlines()
    assert f"{NAME}.int8.onnx: not made: it needs scans: --calibration DIR" in said.splitlines()
    assert "compared with the golden pair" in said
    assert sorted(p.name for p in (tmp_path / "forms").iterdir()) == ["bundle", "triton", ONNX[1], ONNX[0]]
    assert (tmp_path / "forms" / ONNX[0]).read_bytes() == artifact.read_bytes()


def test_a_copy_of_an_older_file_gets_the_digest(artifact: Path) -> None:
    """All bytes that were there stay: the digest is added at the end. Shipped models were given theirs so."""
    proto = onnx.load(artifact)
    whole = {entry.key: entry.value for entry in proto.metadata_props}
    digest = whole.pop(DIGEST_KEY)
    onnx.helper.set_model_props(proto, whole)
    older = proto.SerializeToString(deterministic=True)
    artifact.write_bytes(older)
    spec = write_copy(str(artifact), str(artifact))
    content = artifact.read_bytes()
    assert content.startswith(older)
    assert {entry.key: entry.value for entry in onnx.load(artifact).metadata_props} == {**whole, DIGEST_KEY: digest}
    assert load(str(artifact)).spec == spec
    write_copy(str(artifact), str(artifact))
    assert artifact.read_bytes() == content


def test_an_engine_is_a_form_where_it_can_be_built(
    command: Command, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(source: str, path: str, *_: object, **__: object) -> str:
        assert Path(source).read_bytes() == artifact.read_bytes()
        Path(path).write_bytes(bytes(20_000))
        return "built"

    monkeypatch.setattr(forms, "export_engine", build)
    status, said = command(artifact, "--all", tmp_path / "forms")
    assert status == 0
    assert rows(said)[f"{NAME}.engine"][1:] == ["0.02 MB", "-", "-", "-", ""]


def test_calibration_of_an_artifact_leaves_out_the_folders_validation_scans(
    command: Command, artifact: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "splits.json").write_text('{"val": ["scan00"]}')
    asked = []
    monkeypatch.setattr("seg.export.forms.make_all", lambda _, __, scans, *___, **____: asked.append(scans))
    assert command(artifact, "--all", tmp_path / "forms", "--calibration", data, "--verify", data)[0] == 0
    (data / "splits.json").unlink()
    (scans,) = asked
    assert [case.id for case in scans.calibration] == ["scan01", "scan02"]
    assert [case.id for case in scans.verification] == ["scan00"]


def test_the_int8_form_beside_an_artifact_is_taken_as_it_is(
    command: Command, made: Path, artifact: Path, tmp_path: Path
) -> None:
    shutil.copy(made / ONNX[2], artifact.with_name("mine.int8.onnx"))
    status, said = command(artifact, "--all", tmp_path / "forms")
    assert status == 0
    assert f"{artifact.with_name('mine.int8.onnx')}: taken as it is" in said
    assert (tmp_path / "forms" / ONNX[2]).read_bytes() == (made / ONNX[2]).read_bytes()
    assert float(rows(said)[ONNX[2]][2]) > 1e-4


def test_another_models_int8_form_is_not_taken(command: Command, made: Path, artifact: Path, tmp_path: Path) -> None:
    """The others are made and told all the same; the status is that of the failure."""
    other = replace(SPEC, card={"training": {"seed": 4}, "precision": "int8"})
    export(network(), other, str(artifact.with_name("mine.int8.onnx")))
    status, said = command(artifact, "--all", tmp_path / "forms")
    assert status == Exit.MODEL
    assert said.splitlines()[-1].startswith("seg-export: error E-EXPORT-SOURCE: ")
    assert rows(said)[ONNX[2]][5].startswith("failed: is not the int8 form of ")
    assert sorted(p.name for p in (tmp_path / "forms").iterdir()) == ["bundle", "triton", ONNX[1], ONNX[0]]


def test_no_file_that_others_are_made_from_is_removed(
    command: Command, made: Path, artifact: Path, tmp_path: Path
) -> None:
    """Into the folder where they are."""
    folder = tmp_path / "forms"
    folder.mkdir()
    source = folder / ONNX[0]
    shutil.copy(artifact, source)
    other = replace(SPEC, card={"training": {"seed": 4}, "precision": "int8"})
    export(network(), other, str(folder / ONNX[2]))
    before = (folder / ONNX[2]).read_bytes()
    assert command(source, "--all", folder, "--overwrite")[0] == Exit.MODEL
    assert (folder / ONNX[2]).read_bytes() == before


def test_a_form_that_fails_its_proof_is_not_there(
    command: Command, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(proof.LIMITS, "fp16", (0.0, 1.0, 0.0))
    folder = tmp_path / "forms"
    status, said = command(run, "--all", folder, "--verify", data)
    assert status == Exit.MODEL
    last = said.splitlines()[-1]
    assert last.startswith(f"seg-export: error E-EXPORT-PARITY: {folder / ONNX[1]}: in openvino it differs from torch")
    assert rows(said)[ONNX[1]][5].startswith("failed: in openvino it differs from torch")
    expected = [ONNX[0], f"{NAME}.pt2", f"{NAME}.pt2.seal", "bundle", "triton"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(expected)


def test_without_a_proven_fp32_form_there_is_none(
    command: Command, artifact: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(proof.LIMITS, "fp32", (-1.0, 1.0, 0.0))
    status, said = command(artifact, "--all", tmp_path / "forms", "--verify", data)
    assert status == Exit.MODEL
    assert said.splitlines()[-1].startswith(f"seg-export: error E-EXPORT-PARITY: {tmp_path / 'forms' / ONNX[0]}: ")
    assert list((tmp_path / "forms").iterdir()) == []


@pytest.mark.parametrize("name", [*ONNX, f"{NAME}.pt2", f"{NAME}.engine", f"triton/{NAME}/config.pbtxt"])
def test_what_is_there_is_refused_before_any_work(
    command: Command, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("seg.export.forms.make_all", work)
    there = tmp_path / "forms" / name
    there.parent.mkdir(parents=True)
    there.write_text("mine")
    status, said = command(artifact, "--all", tmp_path / "forms")
    assert status == Exit.OUTPUT
    assert said.startswith(f"seg-export: error E-OUT-EXISTS: {there}: already exists. Fix: ")
    assert said.count("\n") == 1
    assert [p for p in (tmp_path / "forms").rglob("*") if p.is_file()] == [there]
    assert there.read_text() == "mine"


def test_overwrite_replaces_the_forms_but_no_other_folder(command: Command, artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "forms"
    (folder / "bundle").mkdir(parents=True)
    (folder / "bundle" / "thesis.txt").write_text("mine")
    status, said = command(artifact, "--all", folder, "--overwrite")
    assert (status, "error E-OUT-EXISTS: " in said) == (Exit.OUTPUT, True)
    assert (folder / "bundle" / "thesis.txt").read_text() == "mine"

    shutil.rmtree(folder)
    assert command(artifact, "--all", folder, "-q") == (0, "")
    (folder / ONNX[1]).write_text("old")
    (folder / "bundle" / "old.txt").write_text("old")
    stale = [folder / name for name in (ONNX[2], f"{NAME}.pt2", f"{NAME}.pt2.seal", f"{NAME}.engine")]
    for path in stale:  # of another model, perhaps: this one has no such form
        path.write_text("old")
    assert command(artifact, "--all", folder, "--overwrite", "-q") == (0, "")
    assert load(str(folder / ONNX[1])).spec.card["precision"] == "fp16"
    assert not any(path.exists() for path in (*stale, folder / "bundle" / "old.txt"))
    assert (folder / "bundle" / "configs" / "metadata.json").is_file()
    assert sorted(p.name for p in (folder / "triton" / NAME).iterdir() if p.is_dir()) == ["1", "2"]


def test_only_fp32_is_a_source(command: Command, made: Path, tmp_path: Path) -> None:
    for name in (ONNX[1], ONNX[2], f"{NAME}.pt2"):
        status, said = command(made / name, "--all", tmp_path / "forms")
        assert status == Exit.USAGE
        assert said.startswith(f"seg-export: error E-EXPORT-SOURCE: {made / name}: is ")
        assert not (tmp_path / "forms").exists()


@pytest.mark.parametrize(
    "options", [("-o", "m.onnx"), ("--bundle", "b"), ("--precision", "fp16"), ("--features",), ("--card", "c.toml")]
)
def test_options_that_do_not_go_with_it(
    command: Command, artifact: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    assert command(artifact, "--all", tmp_path / "forms", *options)[0] == Exit.USAGE
    assert not (tmp_path / "forms").exists()


def test_bad_scans_are_refused_before_any_work(command: Command, artifact: Path, tmp_path: Path) -> None:
    status, said = command(artifact, "--all", tmp_path / "forms", "--verify", tmp_path / "none")
    assert (status, "error E-DATA-MISSING: " in said) == (Exit.INPUT_MISSING, True)
    assert list((tmp_path / "forms").iterdir()) == []
