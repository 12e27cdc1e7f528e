"""Every benchmark runs, in its smoke mode, as a user would start it; and the parts whose mistakes no run would show."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

from seg.infer.backends import open_backend
from seg.infer.stitch import window_starts

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = (
    "inference",
    "iteration",
    "hybrid",
    "rescaling",
    "tiles",
    "memory",
    "startup",
    "models",
    "accuracy",
    "ablations",
    "dicom_output",
    "int8_profile",
)
MODULES = {*SCRIPTS, "contenders", "environment", "experiments", "iteration_worker", "reference", "seeds", "trainings"}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other by name, as they do when run."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in MODULES - before:
        sys.modules.pop(name, None)


def run(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(FOLDER / f"{script}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done


def rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table's body."""
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return table[2:]


@pytest.mark.parametrize(
    ("script", "arguments", "count"),
    [
        ("memory", (), 4),
        ("memory", ("--features",), 4),
        ("models", (), 1),
        ("accuracy", (), 5),
        ("ablations", ("perturbation",), 3),
        pytest.param("ablations", ("hstf-attention",), 4, marks=pytest.mark.slow),
        pytest.param("ablations", ("hstf-design",), 5, marks=pytest.mark.slow),
        # Two of its rows make a table of hstf-scale as well: 2 lines, 2 of the next table's head, 4 lines.
        pytest.param("ablations", ("hstf-statistics",), 8, marks=pytest.mark.slow),
        pytest.param("ablations", ("hstf-backbones", "--network", "hstf_t4"), 6, marks=pytest.mark.slow),
    ],
)
def test_smoke(script: str, arguments: tuple[str, ...], count: int) -> None:
    assert len(rows(run(script, "--smoke", *arguments).stdout)) == count


@pytest.mark.slow
def test_hybrid() -> None:
    assert [row[0] for row in rows(run("hybrid", "--smoke").stdout)] == ["vnet", "hstf", "hstf_s"]


def test_startup(tmp_path: Path) -> None:
    from memory import write_network

    write_network(str(tmp_path / "model.onnx"), 2)
    done = run("startup", "--smoke", "--model", str(tmp_path / "model.onnx"))
    first = dict(row[:2] for row in rows(done.stdout.split("\n\n")[0]))
    assert float(first["seg-infer, one small scan"]) > float(first["python -c pass"])
    packages = [row[0] for row in rows(done.stdout.split("\n\n")[2])]
    assert {"openvino", "numpy", "seg"} <= set(packages)
    assert "torch" not in packages


def test_inference() -> None:
    """Random weights."""
    done = run("inference", "--smoke", "--skip", "monai", "nnunet", "ours-bf16")
    table = {row[0]: row for row in rows(done.stdout)}
    assert {"ours-fp32", "ours-windows", "torch-one-pass", "protocol"} <= table.keys()
    for name in ("ours-fp32", "ours-windows", "torch-one-pass", "protocol"):
        assert float(table[name][6]) > 99.9, table[name]
    assert "ours-int8: skipped, no --int8 artifact" in done.stderr


@pytest.mark.slow
def test_inference_of_other_tools() -> None:
    """They are skipped with the reason where they are not installed."""
    done = run("inference", "--smoke")
    table = {row[0]: row for row in rows(done.stdout)}
    for tool in ("monai", "nnunet"):
        assert tool in table or f"{tool}: skipped, ModuleNotFoundError" in done.stderr


def test_int8_profile() -> None:
    """The same layers stand beside each other, and the sums are those of the rows."""
    table = {(row[0], row[1]): row for row in rows(run("int8_profile", "--smoke").stdout)}
    for layers in ("convolution 1 to 8", "convolution 8 to 8", "transposed convolution 16 to 8, double the extent"):
        assert float(table[layers, "32 x 32 x 16"][2]) > 0
    full, below, whole = (float(table[name, "-"][3]) for name in ("all at the scan's extent", "all below", "all"))
    assert full + below == pytest.approx(whole, abs=0.02)
    assert full == pytest.approx(sum(float(row[3]) for (_, extent), row in table.items() if "32 x" in extent), rel=0.05)


def test_dicom_output() -> None:
    """What others read back is the mask that was written."""
    pytest.importorskip("contourpy")
    table = {row[0]: row for row in rows(run("dicom_output", "--smoke").stdout)}
    assert {"ours, SEG", "ours, LABELMAP", "ours, RTSTRUCT", "highdicom, plain"} <= table.keys()
    for name in ("ours, SEG", "ours, LABELMAP", "ours, RTSTRUCT"):
        assert (table[name][5], table[name][7]) == ("0", "0")
        assert int(table[name][6]) > 1000


# A checkout with the layout of the official one and a training loop that says what of it ran.
CHECKOUT = {
    "networks/vnet.py": """
from torch import nn
class VNet(nn.Module):
    def __init__(self, n_channels, n_classes, n_filters, normalization, has_dropout, pert_gap):
        super().__init__()
        self.conv = nn.Conv3d(n_channels, n_classes, 3, padding=1)
    def forward(self, x):
        return self.conv(x)
""",
    "utils/losses.py": "dice_loss = lambda score, target: (score * target).mean()",
    "utils/ramps.py": "",
    "train_cross_match.py": """
raise SystemExit("the script itself is not run")
for epoch_num in range(9):
    for batch in loader:
        net = net.cuda()
        weight = args.conf_thresh
        loss = dice_loss(net(img_x.cuda())[:, 1], mask_x == 1) + F.cross_entropy(net(img_u_s1), mask_x) * weight
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        raise SystemExit("what follows the step is not timed")
    raise SystemExit("nor the rest of the epoch")
""",
}


def test_iteration_with_a_checkout(tmp_path: Path) -> None:
    for name, text in CHECKOUT.items():
        path = tmp_path / "LA" / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = run("iteration", "--smoke", "--rows", "crossmatch:fast", "--official", str(tmp_path))
    table = {row[0]: row for row in rows(done.stdout)}
    assert list(table) == ["supervised,labeled_batch=4", "crossmatch:fast", "official"]
    ratio, floor = (float(cell) for cell in table["crossmatch:fast"][3:5])
    assert ratio > 0
    assert floor == pytest.approx(3.26, abs=0.03)  # 9 encoder and 15 decoder samples with gradient, 2 and 2 without
    # 2 samples, twice forward and once backward to the weights, 27 taps from one channel to two
    assert float(table["official"][5]) == pytest.approx(2 * 2 * 2 * 2 * 16**3 * 27 * 2 / 1e9, rel=0.01)
    assert table["official"][7:9] != ["0", "-"]
    assert table["official"][10] == "3.82"


def test_groups_are_scaled_to_the_first_ones_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as slow a machine in the second group; SASSNet's row has the paper's figures beside it."""
    import iteration

    unit, fact = iteration.UNIT, {"flop": 1e9, "parameters": 1e6, "peak_bytes": 1e6}
    turns = iter([{unit: [1.0, 1.0], "sassnet": [2.0, 2.0]}, {unit: [2.0, 2.0], "dtc": [2.0, 1.8]}])

    def take_turns(names: list[str], _: object) -> tuple[dict[str, list[float]], dict[str, object]]:
        found = next(turns)
        assert list(found) == names
        return found, dict.fromkeys(names, fact)

    monkeypatch.setattr(iteration, "take_turns", take_turns)
    names = [unit, "sassnet", "dtc"]
    seconds, facts = iteration.in_groups(names, argparse.Namespace(at_once=1))
    assert seconds == {unit: [1.0, 1.0], "sassnet": [2.0, 2.0], "dtc": [1.0, 0.9]}
    table = {row[0]: row for row in rows(iteration.iteration_table(names, seconds, facts))}
    assert (table["sassnet"][3], table["dtc"][3]) == ("2.00", "0.95")
    assert table["sassnet"][10:] == ["1.91", "501", "22.8", "20.463", "249.194"]


@pytest.mark.slow
def test_iteration_in_groups() -> None:
    """V-Net is timed in each group; SASSNet's row counts the discriminator and has the paper's figures beside it."""
    options = ("--rows", "supervised,labeled_batch=4", "sassnet", "dtc", "--at-once", "1")
    table = {row[0]: row for row in rows(run("iteration", "--smoke", "--clock", "cpu", *options).stdout)}
    assert list(table) == ["supervised,labeled_batch=4", "sassnet", "dtc"]
    assert float(table["dtc"][4]) == pytest.approx(1.0, abs=0.01)
    assert float(table["dtc"][9]) == pytest.approx(float(table["dtc"][3]) / float(table["dtc"][4]), abs=0.02)
    assert float(table["sassnet"][6]) == pytest.approx(0.149 + 11.02, abs=0.01)
    assert table["sassnet"][10:] == ["1.91", "501", "22.8", "20.463", "249.194"]


def test_every_method_has_a_row_and_a_floor() -> None:
    from iteration import METHODS, OFFICIAL_FLOOR, PAPER

    from seg.train import methods

    named = {row.split(",")[0] for row in METHODS}
    assert {row.split(":")[0] for row in named} == methods.METHODS.keys() - {"distill"}  # which needs a teacher
    assert named - {"crossmatch:fast", "hstf", "hstf_crossmatch:all"} == OFFICIAL_FLOOR.keys() - {"crossmatch:official"}
    assert PAPER.keys() < methods.METHODS.keys()


@pytest.mark.slow
def test_step_alone_and_with_loading() -> None:
    (row,) = rows(run("iteration", "--smoke", "--loading", "--rows", "supervised").stdout)
    assert len(row) == 4
    assert all(float(cell) > 0 for cell in row[1:])


@pytest.mark.slow
def test_loading_of_real_scans_in_memory_and_mapped(tmp_path: Path) -> None:
    from experiments import write_phantoms

    data = write_phantoms(tmp_path / "data")
    (row,) = rows(run("iteration", "--smoke", "--loading", "--data", data, "--rows", "supervised").stdout)
    assert len(row) == 6
    assert all(float(cell) > 0 for cell in row[1:])


def test_runs_may_have_an_equals_sign_in_their_names(tmp_path: Path) -> None:
    from rescaling import named

    run = tmp_path / "method-csc=off_10"
    run.mkdir()
    assert named(f"without={run}") == ("without", run)
    assert named(str(run)) == (run.name, run)


def test_the_fall_is_against_factor_1_asked_for_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rescaling

    monkeypatch.setattr(rescaling, "curve", lambda run, data, factors, cases: {f: 0.8 * f for f in factors})
    words = ["rescaling", "a=runs/a", "--data", str(tmp_path), "--factors", "0.5", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    rescaling.main()
    assert json.loads((tmp_path / "rescaling.json").read_text())["dice"]["a"] == {"0.5": 0.4, "1": 0.8}


def test_tiles_end_at_the_scan_and_slices_are_single(tmp_path: Path) -> None:
    import nibabel as nib
    import numpy as np
    from tiles import tiled

    from seg.infer.spec import ModelSpec, Normalisation
    from seg.train.cases import discover

    (tmp_path / "images").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((60, 30, 20), np.int16), np.eye(4)), tmp_path / "images" / "a.nii.gz")
    (case,) = discover([str(tmp_path)]).cases
    grid = ((1.0, 1.0, 1.0), Normalisation(), (32, 32, 32), (16, 16, 16))
    spec = ModelSpec("m", ("a", "b"), ("MR",), *grid)
    assert (tiled(spec, 1.5, case).window, tiled(spec, 1.5, case).tiling) == ((48, 32, 32), "window")
    assert tiled(spec, 4.0, case).window == (64, 32, 32)
    flat = ModelSpec("m", ("a", "b"), ("MR",), grid[0], grid[1], (32, 32, 1), (16, 16, 1), dims=2)
    assert tiled(flat, 1.5, case).window == (48, 32, 1)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_question(script: str) -> None:
    assert "?" in run(script, "--help").stdout


def test_the_result_names_the_machine_but_not_whose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import environment

    command = [
        "/home/someone/bench/x.py",
        "--run",
        "/home/someone/runs/la",
        str(FOLDER / "inference.py"),
        "--runs",
        "3",
    ]
    found = environment.machine(command)
    assert found["command"] == "x.py --run la benchmarks/inference.py --runs 3"
    assert found["threads"] >= 1
    assert {"seg-toolkit", "openvino"} <= found["packages"].keys()
    environment.report("x", {"points": [1]}, environment.table(("a", "b"), [["1", "2"]]), tmp_path)
    assert capsys.readouterr().out == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["points"] == [1]
    assert str(Path.home()) not in json.dumps(written)


def test_a_workers_peak_is_its_own() -> None:
    """Not that of the process that started it, which is what ru_maxrss would tell."""
    import environment

    ballast = np.ones(100_000_000, np.uint8)
    program = "import environment as e, json; print(json.dumps({'peak': e.peak_bytes()}))"
    _, found = environment.fresh([sys.executable, "-c", program], environment={"PYTHONPATH": str(FOLDER)})
    assert 1e6 < found["peak"] < 80e6 < ballast.nbytes < environment.peak_bytes()


def test_a_failing_worker_tells_why() -> None:
    import environment

    with pytest.raises(environment.Failed, match="no such thing"):
        environment.fresh([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_medians_leave_out_what_is_no_number() -> None:
    import environment

    runs = [{"a": 1, "b": "x", "c": True}, {"a": 5}, {"a": 2, "d": 7.0}]
    assert environment.medians(runs) == {"a": 2, "d": 7.0}


@pytest.mark.parametrize(("extent", "window", "step"), list(product((32, 33, 47, 60), (16, 32), (4, 7, 16))))
def test_windows_stand_where_the_tools_put_them(extent: int, window: int, step: int) -> None:
    from reference import starts

    flush = list(starts(extent, window, step, even=False))
    assert tuple(flush) == window_starts(extent, window, min(step, window))
    even = list(starts(extent, window, step, even=True))
    assert (even[0], even[-1], len(even)) == (0, extent - window, len(flush))
    assert all(b - a <= step for a, b in pairwise(even))


@pytest.mark.parametrize("features", [False, True])
def test_the_synthetic_network_is_what_its_golden_pair_says(tmp_path: Path, features: bool) -> None:
    from memory import write_network

    from seg.infer.artifact import load

    write_network(str(tmp_path / "m.onnx"), 5, features=features)
    artifact = load(str(tmp_path / "m.onnx"))
    assert artifact.golden is not None
    x = artifact.golden.x.astype(np.float32)
    logits = open_backend("openvino", artifact.path).run(x).copy()
    np.testing.assert_allclose(logits, artifact.golden.logits, atol=1e-4)
    assert (artifact.head is not None) is features
    if artifact.head is not None:
        hidden = open_backend("openvino", artifact.path, output="features").run(x)
        scores = np.einsum("kf,nfxyz->nkxyz", artifact.head.weight, hidden) + artifact.head.bias.reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(scores, logits, atol=1e-4)
