"""The trainings behind accuracy.py and ablations.py: one row a training, none twice, a killed one continued."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in {"accuracy", "ablations", "experiments", "seeds", "environment"} - before:
        sys.modules.pop(name, None)


@pytest.fixture
def phantoms(tmp_path: Path) -> Path:
    from experiments import write_phantoms

    return Path(write_phantoms(tmp_path / "data"))


def words(phantoms: Path, tmp_path: Path) -> list[str]:
    fixed = f"--name t --data {phantoms} --window 16 --width 2 --runs {tmp_path} --results {tmp_path}"
    return [*fixed.split(), "--labels", "2"]


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run(script, *flags) -> exit status, stdout, stderr and SystemExit's message."""

    def call(script: str, *flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *flags, *words(phantoms, tmp_path)])
        with pytest.raises(SystemExit) as caught:
            import_module(script).main()
        out, err = capsys.readouterr()
        code = caught.value.code
        return (code, out, err) if isinstance(code, int) else (1, out, f"{err}{code}")

    return call


def content(tmp_path: Path, name: str = "accuracy-t") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text())
    return found


def test_rows_are_the_checkpoint(run: Run, tmp_path: Path) -> None:
    flags = ("--methods", "supervised", "crossmatch:paper,eta=0.1", "--iterations", "2", "--seeds", "0")
    assert run("accuracy", *flags)[0] == 0
    done = content(tmp_path)["rows"]
    status, out, err = run("accuracy", *flags, "1")
    assert status == 0
    rows = content(tmp_path)["rows"]
    assert rows[:2] == done  # not trained again
    assert err.count(" s\n") == 2
    assert [(row["method"], row["seed"]) for row in rows[2:]] == [("supervised", 1), ("crossmatch:paper,eta=0.1", 1)]
    finished = tmp_path / "t" / "crossmatch-paper-eta=0.1_2_seed1"
    config = json.loads((finished / "config.json").read_text())
    assert (config["method"]["preset"], config["method"]["options"]["eta"]) == ("paper", 0.1)
    assert config["loop"]["seed"] == 1
    assert not (finished / "checkpoint.pt").exists()
    assert "| supervised | 2 | 0 |" in out
    assert "| crossmatch:paper,eta=0.1 | 2 | 2 |" in out
    assert (tmp_path / "accuracy-t.md").read_text() == out
    assert content(tmp_path)["table"] == out.splitlines()
    with Image.open(tmp_path / "accuracy-t.png") as picture:
        assert picture.size[1] > 500
    status, _, err = run("accuracy", "--iterations", "3")
    assert status == 1
    assert "another size (iterations 2, now 3); choose another --name" in err
    assert content(tmp_path)["rows"] == rows


def test_a_row_is_done_with_the_options_it_has_now(run: Run, tmp_path: Path) -> None:
    """A row whose method has another default since is neither taken for done nor trained beside the others."""
    flags = ("--methods", "crossmatch:fast", "--iterations", "1", "--seeds", "0")
    path = tmp_path / "accuracy-t.json"
    assert run("accuracy", *flags)[0] == 0
    found = content(tmp_path)
    options = found["rows"][0]["options"]
    assert options["eta"] == 0.3
    options["eta"] = 0.4
    path.write_text(json.dumps(found))
    status, _, err = run("accuracy", *flags, "1")
    assert status == 1
    assert "has crossmatch-fast_2_seed0 with eta 0.4, now 0.3; choose another --name" in err
    assert content(tmp_path) == found
    del found["rows"][0]["options"]  # as in files from before
    path.write_text(json.dumps(found))
    assert run("accuracy", *flags)[0] == 0
    assert content(tmp_path) == found


def test_a_killed_training_goes_on_where_it_was(run: Run, phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[loop]\nsave_seconds = 0.0\nlog_every = 1\n")
    flags = ["--config", str(tmp_path / "c.toml"), "--seeds", "0", "--methods", "supervised", "--iterations", "40"]
    folder = tmp_path / "t" / "supervised_2_seed0"
    line = [sys.executable, str(FOLDER / "accuracy.py"), *flags, *words(phantoms, tmp_path)]
    with subprocess.Popen(line, stderr=subprocess.DEVNULL) as process:
        while not (folder / "checkpoint.previous.pt").exists():
            time.sleep(0.01)
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "accuracy-t.json").exists()
    before = (folder / "metrics.jsonl").read_text().splitlines()
    assert 0 < len(before) < 40
    assert run("accuracy", *flags)[0] == 0
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert lines[0] == before[0]
    assert [json.loads(entry)["step"] for entry in lines] == list(range(40))
    assert len(content(tmp_path)["rows"]) == 1


def test_a_row_that_another_process_trains_is_left_to_it(run: Run, tmp_path: Path) -> None:
    from seg.train.run import locked

    with locked(tmp_path / "t" / "supervised_2_seed0"):
        status, _, err = run("accuracy", "--methods", "supervised", "--iterations", "1", "--seeds", "0", "1")
    assert status == 0
    assert "E-RUN-LOCKED" in err
    assert [row["seed"] for row in content(tmp_path)["rows"]] == [1]


def test_a_failing_row_is_told_and_does_not_stop_the_others(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "t" / "supervised_2_seed0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{")
    status, _, err = run("accuracy", "--methods", "supervised", "--iterations", "1", "--seeds", "0", "1")
    assert status == 1
    assert "supervised_2_seed0: E-RUN-NONE" in err
    assert [row["seed"] for row in content(tmp_path)["rows"]] == [1]


def test_common_options_leave_what_a_preset_sets(run: Run, tmp_path: Path) -> None:
    """As published is as published: the dropout of all other rows is not the paper's."""
    from trainings import Row

    flags = ("--options", "dropout=0.25,lr=0.002", "--iterations", "1", "--seeds", "0")
    methods = ("crossmatch:paper", "crossmatch:paper,dropout=0.125", "crossmatch:fast")
    assert run("accuracy", "--methods", *methods, *flags)[0] == 0
    found = {}
    for folder in (tmp_path / "t").iterdir():
        found[folder.name] = json.loads((folder / "config.json").read_text())["method"]["options"]
    assert {name: options["dropout"] for name, options in found.items()} == {
        "crossmatch-paper_2_seed0": 0.5,
        "crossmatch-paper-dropout=0.125_2_seed0": 0.125,
        "crossmatch-fast_2_seed0": 0.25,
    }
    assert {options["lr"] for options in found.values()} == {0.002}
    rows = {Row(row["method"], row["labels"], row["seed"]).folder: row["options"] for row in content(tmp_path)["rows"]}
    assert rows == found


def test_an_option_may_be_a_list() -> None:
    from trainings import parse_options

    assert parse_options("csc=off,rounds=[0.5,0.8],eta=0.1,betas=[]") == {
        "csc": "off",
        "rounds": [0.5, 0.8],
        "eta": 0.1,
        "betas": [],
    }


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("crossmatch:best", "choose from supervised, ua_mt"),
        ("magic", "choose from supervised, ua_mt"),
        ("supervised@magic", "choose from the networks vnet, unet2d"),
        ("supervised,ema", "'ema' is not NAME=VALUE"),
        ("crossmatch:paper,etta=0.1", "etta"),
        ("crossmatch:paper,eta=high", "eta is 'high'"),
    ],
)
def test_a_misspelled_method_is_refused_before_anything_runs(run: Run, tmp_path: Path, method: str, found: str) -> None:
    status, _, err = run("accuracy", "--methods", "supervised", method)
    assert status != 0
    assert found in err
    assert not (tmp_path / "t").exists()


def test_pseudo_labels_of_every_round_are_in_the_row(tmp_path: Path) -> None:
    from experiments import pseudo_labels

    assert pseudo_labels(tmp_path) == []
    (tmp_path / "refinement").mkdir()
    for number, (a, b) in enumerate([(0.5, 0.7), (0.8, 0.9)], start=1):
        report = {"cases": {"a": {"true_dice": a}, "b": {"true_dice": b}, "unknown": {}}, "used": ["b", "unknown"]}
        (tmp_path / "refinement" / f"round-{number}.json").write_text(json.dumps(report))
    first, second = pseudo_labels(tmp_path)
    assert first == {"dice": pytest.approx(0.6), "dice_of_used": 0.7, "used": 2}
    assert second == {"dice": pytest.approx(0.85), "dice_of_used": 0.9, "used": 2}


def test_the_fully_labelled_row_is_for_methods_without_unlabelled_scans() -> None:
    from accuracy import plan_rows

    rows = plan_rows(["supervised", "crossmatch:paper"], [8, "all"], [0, 1])
    assert [(r.method, r.labels, r.seed) for r in rows] == [
        ("supervised", 8, 0),
        ("crossmatch:paper", 8, 0),
        ("supervised", "all", 0),
        ("supervised", 8, 1),
        ("crossmatch:paper", 8, 1),
        ("supervised", "all", 1),
    ]


def row(method: str, seed: int, dice: float, labels: int | str = 10) -> dict[str, Any]:
    mean = dict(dice=dice, jaccard=dice / 2, hd95=10 * dice, asd=dice)
    counts = dict(labeled=10 if labels == 10 else 200, unlabeled=0)
    return dict(method=method, labels=labels, seed=seed, **counts, unit="mm", mean=mean)


def test_mean_and_spread_over_seeds() -> None:
    from accuracy import panels, table

    rows = [row("a", 0, 0.8), row("a", 0, 0.95, "all"), row("b", 0, 0.5), row("a", 1, 0.9), row("a", 2, 0.88)]
    lines = table(rows).splitlines()
    assert lines[0].endswith("| Dice (%) | Jaccard (%) | 95HD (mm) | ASD (mm) | seeds |")
    assert "95HD (voxel) | ASD (voxel)" in table([{**each, "unit": "voxel"} for each in rows])
    spread = 100 * stdev([0.8, 0.9, 0.88])
    assert lines[2].startswith(f"| a | 10 | 0 | 86.00 ± {spread:.2f} | 43.00 ± {spread / 2:.2f} | 8.60 ± ")
    assert lines[2].endswith("| 3 |")
    assert lines[3] == "| b | 10 | 0 | 50.00 | 25.00 | 5.00 | 0.50 | 1 |"
    assert lines[4] == "| a | 200 (all) | 0 | 95.00 | 47.50 | 9.50 | 0.95 | 1 |"
    dice = panels(rows)[0]
    assert dice.ticks == ["10", "all"]
    assert dice.series[0].y == pytest.approx((86, 95))
    assert dice.series[0].spread == pytest.approx((spread, 0))
    assert [round(x) for x in dice.series[0].x] == [0, 1]
    assert len(dice.series[1].x) == 1


def test_every_ablation_is_an_option_of_the_method() -> None:
    """Tables 4 and 5 and Fig. 5 of the paper, value for value; the preset's own value is the preset."""
    from ablations import ABLATIONS, variants
    from trainings import config_of

    base = "crossmatch:paper"
    for network, ablation in product(("unet2d", "vnet"), ABLATIONS.values()):
        for value, method in variants(ablation, base, network).items():
            if ablation.option is not None:
                assert getattr(config_of(method, network), ablation.option) == value
    eta = variants(ABLATIONS["eta"], base)
    assert list(eta) == [0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]
    assert eta[0.3] == base
    assert list(variants(ABLATIONS["gap"], base)) == [0.0, 0.25, 0.5, 0.75]
    assert list(variants(ABLATIONS["perturbation"], base)) == ["dropout", "alpha", "feature_alpha"]
    own = [base in variants(ablation, base).values() for ablation in ABLATIONS.values() if not ablation.methods]
    assert all(own)


def test_every_row_of_ablations_can_be_trained() -> None:
    """Each names options and networks that exist, and rows of one table differ."""
    from ablations import ABLATIONS, variants
    from trainings import config_of, parse_method

    tables = {name: variants(ablation, "crossmatch:paper") for name, ablation in ABLATIONS.items() if ablation.methods}
    readings = [config_of(method) for method in tables.pop("reading").values()]
    assert [(config.threshold, config.threshold_ramp) for config in readings] == [(0.85, False), (0.85, True)]
    assert list(tables) == [
        *("choices", "hstf-methods", "hstf-parts", "hstf-scale", "hstf-rounds", "hstf-weights", "hstf-statistics"),
        *("hstf-streams", "hstf-attention", "hstf-design", "hstf-backbones"),
    ]
    for methods in tables.values():
        recipes = [parse_method(method) for method in methods.values()]
        rows = zip(recipes, map(config_of, methods.values()), strict=True)
        configs = [(recipe.method, recipe.network, config) for recipe, config in rows]
        assert len(configs) > 2
        assert all(a != b for n, a in enumerate(configs) for b in configs[:n])
    assert config_of(tables["hstf-rounds"]["none"]).rounds == ()
    statistics = {v: config_of(row) for v, row in tables["hstf-statistics"].items()}
    assert {v: (c.strong_statistics, c.scaled_statistics) for v, c in statistics.items()} == {
        "labelled and weak": (False, False),
        "and strong": (True, False),
        "with scales": (False, False),
        "with scales, and scaled": (False, True),
    }


def test_ablations_of_the_network_have_every_variant_once() -> None:
    from ablations import ABLATIONS, variants
    from trainings import parse_method

    from seg.train.networks.hstf_variants import VARIANTS

    shared = ("hstf-attention", "hstf-design")
    rows = [method for name in shared for method in variants(ABLATIONS[name], "crossmatch:paper").values()]
    assert {parse_method(row)[0] for row in rows} == {"hstf_crossmatch"}
    assert sorted(row.partition("@")[2] for row in rows) == sorted(["hstf", "hstf", *VARIANTS])
    own = [variants(ABLATIONS[name], "crossmatch:paper", "hstf") for name in (*shared, "hstf-methods")]
    assert own[0]["full"] == own[1]["as it is"] == own[2]["hstf_crossmatch"] == "hstf_crossmatch"  # one training
    backbones = variants(ABLATIONS["hstf-backbones"], "crossmatch:paper", "hstf_s").values()
    assert sorted(backbones) == sorted(
        method + network for method in ("supervised", "crossmatch:fast") for network in ("@vnet", "@hstf", "")
    )


def test_a_row_may_name_its_network() -> None:
    from trainings import Row, config_of, parse_method

    assert parse_method("crossmatch:fast@hstf_s,eta=0.1") == ("crossmatch", "fast", "hstf_s", {"eta": 0.1})
    assert parse_method("supervised@hstf") == ("supervised", None, "hstf", {})
    assert parse_method("supervised") == ("supervised", None, None, {})
    names = ["supervised", "supervised@hstf", "supervised@hstf_s", "crossmatch:fast@hstf", "crossmatch:fast,eta=0.1"]
    assert len({Row(name, 2, 0).folder for name in names}) == len(names)
    flat, volumes = config_of("crossmatch:paper@unet2d", "vnet"), config_of("crossmatch:paper@vnet", "unet2d")
    assert (flat, volumes) == (config_of("crossmatch:paper", "unet2d"), config_of("crossmatch:paper"))
    assert flat != volumes


def test_rows_are_trained_on_their_own_network(run: Run, tmp_path: Path) -> None:
    flags = ("--methods", "supervised", "supervised@hstf_identity", "--iterations", "1", "--seeds", "0")
    status, out, err = run("accuracy", *flags)
    assert status == 0, err
    assert "| supervised@hstf_identity | 2 | 0 |" in out
    found = {
        path.parent.name: json.loads(path.read_text())["network"] for path in (tmp_path / "t").glob("*/config.json")
    }
    assert {name: network["name"] for name, network in found.items()} == {
        "supervised_2_seed0": "vnet",
        "supervised@hstf_identity_2_seed0": "hstf_identity",
    }
    assert {network["width"] for network in found.values()} == {2}


def test_ablations_share_their_common_row(run: Run, tmp_path: Path) -> None:
    flags = ("--iterations", "1", "--seeds", "0")
    status, out, err = run("ablations", "gap", *flags)
    assert status == 0, err
    assert "| 0.75 (p 0.125 and 0.875) | 2 |" in out
    status, out, err = run("ablations", "gap", "perturbation", *flags)
    assert err.count(" s\n") == 2  # the third kind is the preset, trained with the gaps
    rows = content(tmp_path, "ablations-t")["rows"]
    assert [r["method"] for r in rows] == [
        "crossmatch:paper,gap=0.0",
        "crossmatch:paper,gap=0.25",
        "crossmatch:paper",
        "crossmatch:paper,gap=0.75",
        "crossmatch:paper,perturbation=alpha",
        "crossmatch:paper,perturbation=feature_alpha",
    ]
    assert out.count("\n| --- ") == 2
    assert "| feature_alpha | 2 |" in out
    assert (tmp_path / "ablations-t.png").exists()
    status, _, err = run("ablations", "gap", *flags, "--preset", "official")
    assert status == 1
    assert "preset paper, now official" in err


def test_charts_of_ablations() -> None:
    from ablations import panels

    base = "crossmatch:paper"
    rows = [row(base, 0, 0.9), row(f"{base},eta=0.1", 0, 0.8), row(f"{base},perturbation=alpha", 0, 0.7)]
    eta, perturbation = panels(rows, base)
    assert eta.ticks is None
    assert (eta.series[0].name, eta.series[0].x, eta.series[0].y) == ("10 labelled", (0.1, 0.3), (80.0, 90.0))
    assert perturbation.ticks == ["10"]
    assert [(series.name, series.y) for series in perturbation.series] == [("dropout", (90.0,)), ("alpha", (70.0,))]


def test_more_unlabelled_frames_are_another_size() -> None:
    """A file from before there was the choice goes on as it is."""
    from experiments import size_of

    from seg.train.settings import Settings

    plain, cine = (size_of(Settings(("acdc",), "run", cine=cine)) for cine in (False, True))
    assert "cine" not in plain
    assert cine == plain | {"cine": True}
