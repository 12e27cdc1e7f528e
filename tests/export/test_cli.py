"""seg-export at the terminal, on a run that seg-train wrote."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seg.export.cli import app
from seg.export.run import load_run, remark
from seg.infer.artifact import load
from seg.infer.cards import card_text
from seg.infer.spec import ModelSpec
from seg.train import training
from seg.train.config import trained_method
from seg.train.networks.vnet import VNet
from seg.train.settings import Settings

pytestmark = pytest.mark.usefixtures("converted_once")

Run = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """run(*arguments) -> (exit status, what stderr got)."""

    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            app([str(a) for a in arguments])
        return int(caught.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, write_cases: Callable[..., Path]) -> Path:
    root = tmp_path_factory.mktemp("export")
    settings = Settings(
        (str(write_cases(root / "data", 4, (20, 16, 16), unlabeled=1, classes=3)),),
        str(root / "run"),
        name="tiny",
        method="crossmatch",
        preset="fast",
        iterations=3,
        window=(16, 16, 16),
        width=2,
        device="cpu",
        precision="fp32",
        seed=4,
        labels=("background", "left", "right"),
        license="CC0-1.0",
        augmentation={"mirror": [2, 0]},
    )
    training.train(settings, resume=False, say=lambda _: None)
    return root / "run"


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from seg.export.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'onnx'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--overwrite" in done.stdout


def test_run_becomes_an_artifact(run: Run, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.onnx"
    (tmp_path / "card.toml").write_text('limits = "phantoms only"\n')
    status, text = run(trained, "-o", out, "--card", tmp_path / "card.toml")
    assert status == 0
    assert "differs from torch by" in text
    assert "note:" not in text
    assert f"next: seg-infer scan.nii.gz -o mask.nii.gz -m {out}" in text

    spec = load(str(out)).spec
    planned = ModelSpec.from_dict(json.loads((trained / "config.json").read_text())["spec"])
    for field in ("name", "labels", "label_values", "channels", "spacing", "normalisation", "window", "stride"):
        assert getattr(spec, field) == getattr(planned, field)
    assert spec.mirror == (0, 2)
    assert (spec.name, spec.labels, spec.window) == ("tiny", ("background", "left", "right"), (16, 16, 16))
    training = spec.card["training"]
    assert {k: training[k] for k in ("method", "preset", "network", "width", "iterations", "seed")} == {
        "method": "crossmatch",
        "preset": "fast",
        "network": "vnet",
        "width": 2,
        "iterations": 3,
        "seed": 4,
    }
    assert (training["labeled"], training["unlabeled"], len(training["data_sha256"])) == (3, 1, 64)
    assert spec.card["validation"]["scans"] == 1
    assert set(spec.card["validation"]["mean"]) == {"left", "right", "foreground"}
    assert 0 <= spec.card["validation"]["mean"]["foreground"]["dice"] <= 1
    assert (spec.card["license"], spec.card["limits"]) == ("CC0-1.0", "phantoms only")
    assert "not a medical device" in spec.card["notice"]
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".onnx" or ".tmp" in p.name] == ["tiny.onnx"]


def test_the_largest_component_is_the_models_way(run: Run, trained: Path, tmp_path: Path) -> None:
    """The spec has it, the card its figures: here of a run that was edited to have some."""
    validation = json.loads((trained / "validation.json").read_text())
    kept = validation["largest_component"]
    assert set(kept) == {"cases", "mean", "default"}
    kept["mean"]["left"]["dice"] = 0.8765
    source = edited(trained, tmp_path / "run", largest_component=kept)
    status, text = run(source, "-o", tmp_path / "solid.onnx", "--largest-component")
    assert status == 0, text
    spec = load(str(tmp_path / "solid.onnx")).spec
    assert spec.largest_component
    assert spec.card["validation"]["mean"]["left"]["dice"] == 0.8765
    assert "the largest part of each class alone" in card_text(spec)
    _, plain = load_run(source)
    assert not plain.largest_component
    assert plain.card["validation"]["mean"]["left"]["dice"] == round(validation["mean"]["left"]["dice"], 4)
    _, old = load_run(edited(trained, tmp_path / "old", largest_component=None), largest_component=True)
    assert old.card["validation"] == {}
    assert "no validation of step 3 with the largest components" in str(remark(old))
    status, text = run(tmp_path / "solid.onnx", "--bundle", tmp_path / "bundle", "--largest-component")
    assert (status, "--largest-component" in text) == (2, True)


def test_run_becomes_every_form(run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card of --card is in each; what the forms are is in test_forms."""
    monkeypatch.setenv("SEG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "card.toml").write_text('limits = "phantoms only"\n')
    status, text = run(trained, "--all", tmp_path / "forms", "--card", tmp_path / "card.toml")
    assert status == 0, text
    for name in ("tiny.onnx", "tiny.fp16.onnx", "tiny.pt2"):
        spec = load(str(tmp_path / "forms" / name)).spec
        assert spec.card["limits"] == "phantoms only"
        assert spec.card["training"]["method"] == "crossmatch"
    assert "tiny.int8.onnx: not made: it needs scans: --calibration DIR" in text.splitlines()


def test_what_is_exported_is_the_deployed_network(trained: Path) -> None:
    module, _ = load_run(trained)
    method, _, _ = trained_method(trained)
    assert type(module) is VNet
    mine, average = module.state_dict(), method.average.network.state_dict()  # type: ignore[union-attr]
    assert all(bool((mine[name] == average[name]).all()) for name in average)
    assert any(bool((mine[name] != value).any()) for name, value in method.student.state_dict().items())


def edited(trained: Path, copy: Path, **changes: object) -> Path:
    """The run with entries of validation.json changed; None removes one."""
    shutil.copytree(trained, copy)
    content = json.loads((copy / "validation.json").read_text()) | changes
    (copy / "validation.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return copy


def unfinished(run: Path) -> Path:
    config = json.loads((run / "config.json").read_text())
    config["loop"]["iterations"] = 5
    (run / "config.json").write_text(json.dumps(config))
    return run


@pytest.mark.parametrize("step", [3, None])  # None: as older versions wrote it
def test_figures_of_the_exported_step_are_in_the_card(trained: Path, tmp_path: Path, step: int | None) -> None:
    _, spec = load_run(edited(trained, tmp_path / "run", step=step))
    assert spec.card["validation"]["scans"] == 1
    assert remark(spec) is None


@pytest.mark.parametrize("step", [2, 4])
def test_figures_of_another_step_are_not(trained: Path, tmp_path: Path, step: int) -> None:
    _, spec = load_run(edited(trained, tmp_path / "run", step=step))
    assert spec.card["validation"] == {}
    assert remark(spec) == "no validation of step 3 is there, so the card has no figures"


@pytest.mark.parametrize(("step", "scans"), [(3, 1), (2, None), (None, None)])
def test_an_unfinished_run_is_told(trained: Path, tmp_path: Path, step: int | None, scans: int | None) -> None:
    _, spec = load_run(unfinished(edited(trained, tmp_path / "run", step=step)))
    assert spec.card["validation"].get("scans") == scans
    text = remark(spec)
    assert text is not None
    assert text.startswith("the run is unfinished, at step 3 of 5")
    assert ("no figures" in text) is (scans is None)


def test_the_note_is_one_line(run: Run, trained: Path, tmp_path: Path) -> None:
    folder, out = unfinished(edited(trained, tmp_path / "run", step=2)), tmp_path / "m.onnx"
    status, text = run(folder, "-o", out)
    assert status == 0
    assert [line for line in text.splitlines() if line.startswith("note: ")] == [
        "note: the run is unfinished, at step 3 of 5; no validation of step 3 is there, so the card has no figures"
    ]
    assert load(str(out)).spec.card["validation"] == {}
    assert run(folder, "-o", out, "--overwrite", "-q") == (0, "")


@pytest.mark.parametrize("target", ["--triton", "--bundle"])
def test_what_is_handed_on_is_told_as_a_file_is(run: Run, trained: Path, tmp_path: Path, target: str) -> None:
    """Note and figures of the export, without the name of a file that is not kept; nothing with -q."""
    folder = unfinished(edited(trained, tmp_path / "run"))
    status, text = run(folder, target, tmp_path / "target")
    assert status == 0
    lines = text.splitlines()
    assert lines[0].startswith("note: the run is unfinished, at step 3 of 5")
    assert lines[1].startswith(f"{folder}: ")
    assert "differs from torch by" in lines[1]
    assert "model.onnx" not in text
    assert sum(line.startswith("next: ") for line in lines) == 1
    assert run(folder, target, tmp_path / "target", "--overwrite", "-q") == (0, "")


@pytest.mark.parametrize(
    ("target", "code"),
    [
        (["--triton", "models"], "E-OUT-EXISTS"),
        (["--triton", "free", "--triton-half"], "E-TRITON-BACKEND"),
        (["--triton", "free", "--triton-backend", "tensorrt"], "E-TRITON-BACKEND"),
        (["--bundle", "models"], "E-OUT-EXISTS"),
        (["--bundle", "none/bundle"], "E-OUT-DIR"),
        (["-o", "mine.engine", "--trt"], "E-OUT-EXISTS"),
        (["-o", "none/m.engine", "--trt"], "E-OUT-DIR"),
    ],
)
def test_a_target_is_refused_before_the_run_is_exported(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: list[str], code: str
) -> None:
    monkeypatch.setattr("seg.export.tensorrt_.tensorrt_here", lambda: None)
    monkeypatch.setattr("seg.export.run.load_run", lambda *_, **__: pytest.fail("work before the refusal"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.pbtxt").write_text("mine")
    (tmp_path / "mine.engine").write_text("mine")
    refused(run, 2 if code == "E-TRITON-BACKEND" else 30, code, trained, *target)


def refused(run: Run, status: int, code: str, *arguments: object) -> None:
    found, text = run(*arguments)
    assert found == status
    assert text.startswith(f"seg-export: error {code}: ")
    assert ". Fix: " in text
    assert text.count("\n") == 1


def test_suffix(run: Run, trained: Path, tmp_path: Path) -> None:
    refused(run, 2, "E-OUT-SUFFIX", trained, "-o", tmp_path / "model.pt")


def test_existing_file(run: Run, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("mine")
    refused(run, 30, "E-OUT-EXISTS", trained, "-o", tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "mine"


def test_the_target_is_checked_before_torch_is_loaded(tmp_path: Path) -> None:
    """Every target here is bad, and so is the run: the target is told, and torch stays out."""
    (tmp_path / "there.onnx").write_text("mine")
    (tmp_path / "folder.onnx").mkdir()
    code = (
        "import sys\n"
        "from seg.export.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        "assert not {'torch', 'onnx'} & set(sys.modules)\n"
        "sys.exit(status)\n"
    )
    targets = [("there.onnx", "E-OUT-EXISTS"), ("folder.onnx", "E-OUT-DIR"), ("none/m.onnx", "E-OUT-DIR")]
    for target, expected in targets:
        command = [sys.executable, "-c", code, str(tmp_path / "no-run"), "-o", str(tmp_path / target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, f"error {expected}: " in done.stderr) == (30, True), done.stderr
    assert (tmp_path / "there.onnx").read_text() == "mine"


@pytest.mark.parametrize("name", ["none", "empty", "garbage"])
def test_not_a_run(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "config.json").write_text("{")
    refused(run, 20, "E-RUN-NONE", tmp_path / name, "-o", tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_run_without_checkpoint(run: Run, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_bytes((trained / "config.json").read_bytes())
    refused(run, 20, "E-RUN-NONE", tmp_path / "run", "-o", tmp_path / "m.onnx")


def test_bad_card(run: Run, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text("license = ")
    refused(run, 2, "E-CONFIG", trained, "-o", tmp_path / "m.onnx", "--card", tmp_path / "card.toml")
    refused(run, 2, "E-CONFIG", trained, "-o", tmp_path / "m.onnx", "--card", tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("toml", "key"),
    [
        ("precision = 'int8'", "precision"),
        ("notice = 'a medical device'", "notice"),
        ("[validation.mean.foreground]\ndice = 1.0", "validation"),
        ("training = 'none'", "training"),
        ("data = 'mine'\nauthor = 'me'", "author"),
        ("limits = ['none']", "limits"),
        ("license = 2", "license"),
    ],
)
def test_a_card_writes_its_own_entries_alone(run: Run, trained: Path, tmp_path: Path, toml: str, key: str) -> None:
    (tmp_path / "card.toml").write_text(toml)
    status, text = run(trained, "-o", tmp_path / "m.onnx", "--card", tmp_path / "card.toml")
    assert status == 2
    assert text.startswith(f"seg-export: error E-CONFIG: {tmp_path / 'card.toml'}: ")
    found = text.removeprefix(f"seg-export: error E-CONFIG: {tmp_path / 'card.toml'}: ")
    assert found.startswith((f"unknown entry {key},", f"{key} is "))
    assert text.count("\n") == 1
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("target", "option"),
    [
        ("-o", ["--triton-half"]),
        ("-o", ["--triton-backend", "onnxruntime"]),
        ("-o", ["--workspace", "4G"]),
        ("-o", ["--scans", "12"]),
        ("--all", ["--triton-backend", "python"]),
        ("--all", ["--triton-half"]),
        ("--all", ["--scans", "3"]),
        ("--bundle", ["--triton-half"]),
    ],
)
def test_options_that_would_do_nothing(run: Run, tmp_path: Path, target: str, option: list[str]) -> None:
    """Told before the source is looked at, also where the value is what it is by itself."""
    status, text = run(tmp_path / "none", target, tmp_path / "m.onnx", *option)
    assert (status, option[0] in text or "--trt and its options" in text) == (2, True), text
    assert not list(tmp_path.iterdir())


def test_missing_arguments(run: Run) -> None:
    assert run()[0] == 2
