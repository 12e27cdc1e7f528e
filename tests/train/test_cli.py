"""seg-train at the terminal: one line per failure, the promised exit status, nothing heavy before it is needed."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seg.infer.console import Terminated
from seg.train.cli import _tell_result, app

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """run(*arguments) -> (exit status, what stderr got)."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            app([str(a) for a in arguments])
        return int(caught.value.code or 0), capsys.readouterr().err

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, write_cases: Callable[..., Path]) -> Path:
    return write_cases(tmp_path_factory.mktemp("cli") / "data", 4, (16, 16, 16))


TINY = ["--window", "16", "--width", "2", "--iterations", "2", "-d", "cpu", "--precision", "fp32"]


def test_a_class_that_is_never_found_is_said() -> None:
    scores = {"jaccard": 0.5, "hd95": 1.0, "asd": 1.0}
    mean = {
        "anterior": {"dice": 0.0, **scores},
        "posterior": {"dice": 0.8, **scores},
        "foreground": {"dice": 0.4, **scores},
    }
    said: list[str] = []
    _tell_result({"unit": "mm", "mean": mean}, said.append)
    assert [text.split(":")[0] for text in said if "no case" in text] == ["warning"]
    assert "anterior was found in no case" in said[-1]
    _tell_result({"unit": "mm", "mean": {"foreground": {"dice": 0.0, **scores}}}, said.append)
    assert "foreground was found in no case" in said[-1]


@pytest.mark.parametrize(
    ("left", "right", "default", "told"),
    [
        (0.9, 0.7999, False, "seg-export --largest-component"),
        (0.95, 0.79, False, None),
        (0.8005, 0.8, False, None),
        (0.8, 0.8, True, "as this model has it"),
    ],
)
def test_the_largest_component_is_advised_where_it_helps(
    left: float, right: float, default: bool, told: str | None
) -> None:
    """No class may lose by it; of a model that keeps it it is told always."""

    def mean(left: float, right: float) -> dict[str, dict[str, float]]:
        dice = {"left": left, "right": right, "foreground": (left + right) / 2}
        return {label: {"dice": value, "jaccard": 0.5, "hd95": 1.0, "asd": 1.0} for label, value in dice.items()}

    said: list[str] = []
    largest = {"mean": mean(left, right), "default": default}
    result = {"unit": "mm", "mean": mean(0.8, 0.8), "largest_component": largest}
    _tell_result(result, said.append)
    found = [text for text in said if "largest component" in text]
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


def test_help_and_version_import_no_torch() -> None:
    code = (
        "import sys\n"
        "from seg.train.cli import app\n"
        "for flag in ('--help', '--version'):\n"
        "    try: app([flag])\n"
        "    except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'onnx', 'scipy', 'nibabel'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout
    assert "seg-toolkit" in done.stdout


@pytest.mark.parametrize(
    "flags",
    [
        ["--nonsense"],
        ["--method", "magic"],
        ["--method", "distill"],
        ["--method", "crossmatch", "--distill", "left-atrium"],
        ["--network", "magic"],
        ["--iterations", "0"],
        ["--iterations", "many"],
        ["--window", "16,16"],
        ["--window", "0"],
        ["--window", "17"],
        ["--spacing", "a,b,c"],
        ["--spacing", "-1"],
        ["--width", "0"],
        ["--seed", "-1"],
        ["--validate-every", "-1"],
        ["--precision", "fp8"],
        ["--device", "abacus"],
        ["--preset", "paper"],
        ["--method", "crossmatch", "--preset", "magic"],
        ["--method", "crossmatch:magic"],
        ["--method", "crossmatch:fast", "--preset", "paper"],
        ["--labeled", "0"],
        ["--config", "none.toml"],
        ["--set", "lr"],
        ["--set", "=0.1"],
        ["--set", "window.x=0.1"],
        ["--set", "learning=0.1"],
        ["--set", "lr='high'"],
        ["--set", "loop.seed=1"],
        ["--set", "lr=-1.0"],
        ["--set", "lr=nan"],
        ["--set", "dropout=1.0"],
        ["--set", "betas=[0.9, 1.5]"],
        ["--set", "labeled_batch=0"],
        ["--set", "loop.log_every=0"],
        ["--set", "loop.foreground=7.0"],
        ["--set", "augmentation.mirror=[1, 2, 3]"],
        ["--set", "augmentation.mirror=[-1]"],
        ["--set", "augmentation.mirror=[0, 0]"],
        ["--spacing", "inf"],
        ["--seed", "99999999999999999999999"],
        ["--device", "meta"],
    ],
)
def test_bad_flags_exit_2(run: Run, data: Path, tmp_path: Path, flags: list[str]) -> None:
    status, text = run(data, "-o", tmp_path / "run", *flags)
    assert status == 2
    assert text.strip()
    assert "Traceback" not in text
    assert "E-INTERNAL" not in text
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(("word", "fix"), [("mirror=[0]", "augmentation.mirror"), ("log_every=1", "loop.log_every")])
def test_a_setting_of_another_table_is_named(run: Run, data: Path, tmp_path: Path, word: str, fix: str) -> None:
    text = run(data, "-o", tmp_path / "run", "--set", word)[1]
    assert f"that is {fix}" in text


@pytest.mark.parametrize("word", ["iterations=3", "loop.iterations=3", "width=4", "preset=paper"])
def test_a_setting_of_the_top_is_sent_there(run: Run, data: Path, tmp_path: Path, word: str) -> None:
    text = run(data, "-o", tmp_path / "run", "--set", word)[1]
    assert "set it at the top of the file or with its flag" in text


def test_without_presets_none_is_offered(run: Run, data: Path, tmp_path: Path) -> None:
    assert "Fix: leave it out." in run(data, "-o", tmp_path / "run", "--preset", "paper")[1]


def test_graphs_need_a_gpu(run: Run, data: Path, tmp_path: Path) -> None:
    status, text = run(data, "-o", tmp_path / "run", "--graphs", *TINY)
    assert (status, text.count("\n")) == (2, 1)
    assert "E-DEVICE: CUDA graphs on a CPU" in text


def test_networks_of_ablations_are_not_offered(run: Run, data: Path, tmp_path: Path) -> None:
    text = run(data, "-o", tmp_path / "run", "--network", "magic")[1]
    assert "choose from vnet, unet2d, hstf, hstf_s, hstf2d" in " ".join(text.replace("│", " ").split())
    assert "hstf_identity" not in text


@pytest.mark.parametrize(
    ("toml", "found"),
    [
        ("widht = 4", "widht"),
        ("width = 'four'", "width"),
        ("iterations = 0", "iterations"),
        ("iterations = true", "iterations"),
        ("tiling = 'never'", "tiling"),
        ("precision = 'fp8'", "precision"),
        ("labels = ['a', 1]", "labels"),
        ("spacing = [1, 1]", "spacing"),
        ("[method]\nlearning = 3", "learning"),
        ("[method]\noptimizer = 'adam'", "optimizer"),
        ("[method]\nlr = '1e-3'", "lr"),
        ("[augmentation]\nrot90 = 1", "rot90"),
        ("[augmentation]\nshear = 1", "shear"),
        ("[loop]\nsaves = 1", "saves"),
        ("[loop]\nwindow = [16, 16, 16]", "window"),
        ("width = ", "cannot be read"),
    ],
)
def test_bad_settings_exit_2_before_data_are_read(run: Run, tmp_path: Path, toml: str, found: str) -> None:
    (tmp_path / "c.toml").write_text(toml)
    status, text = run(tmp_path / "no-data", "-o", tmp_path / "run", "--config", tmp_path / "c.toml")
    assert status == 2
    assert text.startswith("seg-train: error E-CONFIG: ")
    assert found in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("precision = 'fp8'", "one of auto, fp32, bf16"),
        ("tiling = 'never'", "one of free, window"),
        ("width = 'four'", "int | None"),
        ("width = ", "benchmarks/recipes"),
    ],
)
def test_what_was_expected_is_in_words(run: Run, tmp_path: Path, toml: str, expected: str) -> None:
    (tmp_path / "c.toml").write_text(toml)
    _, text = run(tmp_path / "no-data", "-o", tmp_path / "run", "--config", tmp_path / "c.toml")
    assert expected in text
    assert "Literal" not in text


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ('["background", "a", "b"]', "3 label names for the values 0, 1"),
        ("[]", "0 label names"),
        ('["a", "a"]', "two classes named 'a'"),
    ],
)
def test_names_are_those_of_the_values_in_the_labels(
    run: Run, data: Path, tmp_path: Path, names: str, found: str
) -> None:
    (tmp_path / "c.toml").write_text(f"labels = {names}")
    status, text = run(data, "-o", tmp_path / "run", "--config", tmp_path / "c.toml", *TINY)
    assert status == 2
    assert found in text
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_single_voxel_at_the_bottom_is_refused(run: Run, data: Path, tmp_path: Path) -> None:
    status, text = run(data, "-o", tmp_path / "run", *TINY, "--set", "labeled_batch=1")
    assert status == 2
    assert "one window of 16 x 16 x 16 a step" in text


def test_single_slices_need_a_network_for_slices(run: Run, tmp_path: Path, write_cases: Callable[..., Path]) -> None:
    data = write_cases(tmp_path / "slices", 5, (32, 32, 1))
    status, text = run(data, "-o", tmp_path / "run", *TINY)
    assert status == 12
    assert "is a single slice" in text
    assert "--network unet2d" in text


def test_a_label_that_is_a_link_to_nothing(run: Run, tmp_path: Path, write_cases: Callable[..., Path]) -> None:
    data = write_cases(tmp_path / "annex", 5, (32, 32, 32))
    label = next((data / "labels").iterdir())
    label.unlink()
    label.symlink_to(".git/annex/objects/none")
    status, text = run(data, "-o", tmp_path / "run", *TINY)
    assert status == 10
    assert "is a link to nothing" in text
    assert "annex get" in text


@pytest.mark.parametrize("quiet", [False, True])
def test_each_finding_is_one_line(run: Run, tmp_path: Path, write_cases: Callable[..., Path], quiet: bool) -> None:
    """Off a terminal, with names that are long, and look like markup and emoji; the last line repeats none of them."""
    data = write_cases(tmp_path / ("a" * 90 + " [b] :smile:") / "data", 4, (16, 16, 16))
    images = [data / "images" / f"scan{n:02}.nii.gz" for n in (1, 2)]
    for image in images:
        image.write_bytes(b"no scan")
    status, text = run(data, "-o", tmp_path / "run", *TINY, *(["-q"] if quiet else []))
    assert status == 11
    lines = text.splitlines()
    findings = [line for line in lines if line.startswith("error: ")]
    named = [line.split(": ")[1].split(" ", 1)[1] for line in findings]
    assert sorted(named) == [str(image) for image in images]
    assert lines[-1].startswith(f"seg-train: error E-DATA-CHECK: {named[0]}: 2 errors, the first is E-NII-")
    assert named[1] not in lines[-1]
    assert len(lines) == (3 if quiet else 5)  # and what the split is: patients, counts


def test_no_data_folder(run: Run, tmp_path: Path) -> None:
    status, text = run(tmp_path / "none", "-o", tmp_path / "run")
    assert status == 10
    assert text.startswith("seg-train: error E-DATA-MISSING: ")
    assert ". Fix: " in text
    assert text.count("\n") == 1


def test_missing_arguments(run: Run) -> None:
    assert run()[0] == 2
    assert run("somewhere")[0] == 2


def test_run_folder_that_cannot_be_made(run: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, text = run(data, "-o", tmp_path / "file" / "run")
    assert status == 30
    assert "E-RUN-DIR" in text


def everything(root: Path) -> list[tuple[str, bytes]]:
    return sorted((str(path), path.read_bytes() if path.is_file() else b"") for path in root.rglob("*"))


@pytest.mark.parametrize("place", ["data", "data/run", "data/images", ".", "link", "link/run"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_among_the_scans_is_refused(
    run: Run, tmp_path: Path, write_cases: Callable[..., Path], place: str, resume: bool
) -> None:
    data = write_cases(tmp_path / "data", 4, (16, 16, 16))
    (tmp_path / "link").symlink_to(data)
    before = everything(tmp_path)
    status, text = run(data, "-o", tmp_path / place, *TINY, *(["--resume"] if resume else []))
    assert status == 30
    assert text.startswith(f"seg-train: error E-OUT-SAME: {tmp_path / place}: ")
    assert text.count("\n") == 1
    assert everything(tmp_path) == before


def test_a_folder_of_other_files_is_refused(run: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    status, text = run(data, "-o", tmp_path, *TINY)
    assert status == 30
    assert text.startswith(f"seg-train: error E-RUN-EXISTS: {tmp_path}: ")
    assert everything(tmp_path) == [(str(tmp_path / "thesis.tex"), b"mine")]


def test_the_lock_of_a_refused_training_is_no_other_file(
    run: Run, tmp_path: Path, write_cases: Callable[..., Path]
) -> None:
    data = write_cases(tmp_path / "data", 4, (16, 16, 16))
    image = data / "images" / "scan01.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(b"no scan")
    assert run(data, "-o", tmp_path / "run", *TINY)[0] == 11
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    image.write_bytes(whole)
    assert run(data, "-o", tmp_path / "run", *TINY)[0] == 0


def test_a_run_without_a_checkpoint_can_begin_anew(run: Run, data: Path, tmp_path: Path) -> None:
    """It would begin at step 0 with --resume, too."""
    out = tmp_path / "run"
    assert run(data, "-o", out, "--seed", "1", *TINY)[0] == 0
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (out / name).unlink(missing_ok=True)
    assert run(data, "-o", out, *TINY)[0] == 30  # its validation is there
    (out / "validation.json").unlink()
    (out / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    assert run(data, "-o", out, *TINY)[0] == 0
    assert json.loads((out / "config.json").read_text())["loop"]["seed"] == 0
    assert '{"step": 1}' not in (out / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_stopped_in_the_evaluation(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException], status: int
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr("seg.train.training.evaluate", stopped)
        found, text = run(data, "-o", tmp_path / "run", "--validate-every", "0", *TINY)
    assert found == status
    assert "the training is finished and saved. Fix: evaluate with --resume" in text
    assert not (tmp_path / "run" / "validation.json").exists()
    assert run(data, "-o", tmp_path / "run", "--validate-every", "0", "--resume", *TINY)[0] == 0
    assert (tmp_path / "run" / "validation.json").exists()


@pytest.mark.parametrize("name", ["none", "empty", "other"])
def test_nothing_to_resume(run: Run, data: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    before = everything(tmp_path)
    status, text = run(data, "-o", tmp_path / name, "--resume", *TINY)
    assert status == 20
    assert text.startswith("seg-train: error E-RUN-NONE: ")
    assert "nothing to resume" in text
    assert everything(tmp_path) == before


def test_a_preset_behind_the_method(run: Run, data: Path, tmp_path: Path) -> None:
    """As tables write it, on the command line and in a file, over which the command line wins."""
    (tmp_path / "c.toml").write_text('method = "crossmatch:official"\n')
    for place, flags, preset in (("file", [], "official"), ("flag", ["--method", "crossmatch:paper"], "paper")):
        assert run(data, "-o", tmp_path / place, "--config", tmp_path / "c.toml", *flags, *TINY)[0] == 0
        method = json.loads((tmp_path / place / "config.json").read_text())["method"]
        assert (method["name"], method["preset"]) == ("crossmatch", preset)


def test_flags_win_over_the_file(run: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('width = 3\nseed = 5\nname = "file"\n[method]\nlr = 0.5\n[loop]\nlog_every = 1\n')
    out = tmp_path / "run"
    changes = ["--set", "weight_decay=1e-5", "--set", "schedule=step", "--set", "augmentation.mirror=[0, 1]"]
    status, text = run(data, "-o", out, "--config", tmp_path / "c.toml", "--name", "flag", *changes, *TINY)
    assert status == 0
    config = json.loads((out / "config.json").read_text())
    assert (config["network"]["width"], config["spec"]["name"], config["loop"]["seed"]) == (2, "flag", 5)
    assert (config["method"]["options"]["lr"], config["loop"]["log_every"]) == (0.5, 1)
    assert (config["method"]["options"]["weight_decay"], config["method"]["options"]["schedule"]) == (1e-5, "step")
    assert config["augmentation"]["mirror"] == [0, 1]
    assert "labelled" in text
    assert "next: seg-export" in text
    assert {"checkpoint.pt", "metrics.jsonl", "validation.json", "plan.txt"} <= {p.name for p in out.iterdir()}

    status, text = run(data, "-o", out, *TINY)
    assert status == 30
    assert "E-RUN-EXISTS" in text
    status, text = run(data, "-o", out, "--resume", *TINY)
    assert status == 12
    assert "E-RUN-CONFIG" in text
    assert "loop.seed was 5, now 0" in text


def test_quiet_says_nothing(run: Run, data: Path, tmp_path: Path) -> None:
    assert run(data, "-o", tmp_path / "run", "-q", *TINY) == (0, "")


def test_labelled_cases_can_be_hidden(run: Run, data: Path, tmp_path: Path) -> None:
    assert run(data, "-o", tmp_path / "run", "-q", "--labeled", "2", *TINY)[0] == 0
    split = json.loads((tmp_path / "run" / "config.json").read_text())["split"]
    assert [len(split[role]) for role in ("labeled", "unlabeled", "val")] == [2, 1, 1]
