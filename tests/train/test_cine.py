"""ACDC's 4-D cines: frames without a file of their own, and frames without a label, by phantoms of the same names."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import save

from seg.infer.errors import Exit, SegError
from seg.train import training
from seg.train.cases import Case, discover
from seg.train.check import check_dataset
from seg.train.cli import app
from seg.train.facts import read_facts
from seg.train.prepare import load_volume
from seg.train.settings import Settings
from seg.train.split import choose_split

SHAPE = (20, 18, 6)
FRAMES, ED, ES = 5, 1, 4
GRID = np.diag([1.5, 1.5, 8.0, 1.0])


def film_of(patient: int) -> np.ndarray:
    """(X, Y, Z, T): frames as alike as those of a heart, in other blocks for every patient."""
    rng = np.random.default_rng(patient)
    blocks = np.kron(rng.normal(500, 150, (5, 6, 3)), np.ones((4, 3, 2)))
    return np.stack([blocks + rng.normal(0, 2, SHAPE) for _ in range(FRAMES)], axis=-1).round().astype(np.int16)


def label_of(patient: int) -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    for value in (1, 2, 3):
        label[4 * value : 4 * value + 4, patient : patient + 5, 1:4] = value
    return label


def write_patient(root: Path, patient: int, *, frames: bool, suffix: str = ".nii.gz", labels: bool = True) -> Path:
    name = f"patient{patient:03}"
    place, film = root / name, film_of(patient)
    save(place / f"{name}_4d{suffix}", film, GRID)
    for number in (ED, ES):
        if frames:
            save(place / f"{name}_frame{number:02}{suffix}", film[..., number - 1], GRID)
        if labels:
            save(place / f"{name}_frame{number:02}_gt{suffix}", label_of(patient), GRID)
    (place / "Info.cfg").write_text(f"ED: {ED}\nES: {ES}\nGroup: DCM\nHeight: 184.0\nNbFrame: {FRAMES}\nWeight: 95.0\n")
    return place


@pytest.fixture
def acdc(tmp_path: Path) -> Path:
    """Five patients: the first two without files of frames, the last of them uncompressed; the third without labels."""
    root = tmp_path / "ACDC" / "training"
    for patient in range(1, 6):
        write_patient(
            root, patient, frames=patient > 2, suffix=".nii" if patient == 2 else ".nii.gz", labels=patient != 3
        )
    return root.parent


def case_of(root: Path, name: str, cine: bool = False) -> Case:
    return next(case for case in discover([str(root)], cine).cases if case.id == name)


def test_phases_come_from_the_cine_where_they_have_no_file(acdc: Path) -> None:
    cases = {case.id: case for case in discover([str(acdc)]).cases}
    assert list(cases) == [f"patient{n:03}_frame{f:02}" for n in range(1, 6) for f in (ED, ES)]
    assert [case.frame for case in cases.values()] == [0, 3, 0, 3, *[None] * 6]
    assert {case.id for case in cases.values() if case.label is None} == {"patient003_frame01", "patient003_frame04"}
    for patient in range(1, 6):
        for number in (ED, ES):
            case = cases[f"patient{patient:03}_frame{number:02}"]
            assert case.patient == f"patient{patient:03}"
            assert np.array_equal(load_volume(case).voxels[0], film_of(patient)[..., number - 1])
            fact, faults = read_facts(case, 1)
            assert not faults
            assert fact is not None
            assert (fact.shape, fact.spacing) == (SHAPE, (1.5, 1.5, 8.0))


def test_the_facts_are_those_of_the_frame(acdc: Path) -> None:
    """Voxel for voxel those of the same frame in a file of its own."""
    found = [read_facts(case_of(acdc, "patient001_frame04"), 1)[0]]
    save(acdc / "training/patient001/patient001_frame04.nii.gz", film_of(1)[..., 3], GRID)
    found.append(read_facts(case_of(acdc, "patient001_frame04"), 1)[0])
    first, second = (fact.sha256 if fact else "" for fact in found)
    assert first == second != ""


def test_other_frames_are_unlabelled_on_request(acdc: Path) -> None:
    cases = discover([str(acdc)], cine=True).cases
    extra = [case for case in cases if case not in discover([str(acdc)]).cases]
    assert [case.id for case in extra] == [f"patient{n:03}_frame{f:02}" for n in range(1, 6) for f in (2, 3, 5)]
    assert all(case.label is None and case.frame == int(case.id[-2:]) - 1 for case in extra)
    assert np.array_equal(load_volume(extra[-1]).voxels[0], film_of(5)[..., 4])


@pytest.mark.parametrize(
    ("split", "train"),
    [
        (None, None),  # all but the one that is held out
        ({"labeled1": ["patient001"], "train": ["patient002"], "val": ["patient005"]}, {1, 2, 3}),  # 4 is not named
        ({"labeled1": ["patient001"], "test": ["patient002", "patient004"], "val": ["patient005"]}, {1, 3}),
    ],
)
def test_no_patient_is_on_both_sides(acdc: Path, split: dict[str, list[str]] | None, train: set[int] | None) -> None:
    """Also where a split names patients: their other frames have no label to train or validate with."""
    if split:
        (acdc / "splits.json").write_text(json.dumps(split))
    found = choose_split(discover([str(acdc)], cine=True), 1, None, 0)
    assert len(found.labeled) == len(found.val) == 2
    held, labelled = found.val[0].patient, found.labeled[0].patient
    patients = {case.patient for case in (*found.labeled, *found.unlabeled)}
    assert patients == {f"patient{n:03}" for n in train or range(1, 6)} - {held}
    assert sum(case.patient == labelled for case in found.unlabeled) == 3
    assert len(found.unlabeled) == (len(patients) - 1) * FRAMES + 3
    assert any("left out" in note and held in note for note in found.notes)
    assert not [finding for finding in check_dataset(found, None).findings if finding.severity == "error"]


def test_a_cine_under_another_patients_name_is_a_copy(acdc: Path) -> None:
    save(acdc / "training/patient004/patient004_4d.nii.gz", film_of(1), GRID)
    split = {"labeled1": ["patient001"], "unlabeled": ["patient004"], "val": ["patient005"]}
    (acdc / "splits.json").write_text(json.dumps(split))
    found = check_dataset(choose_split(discover([str(acdc)], cine=True), 1, None, 0), None).findings
    assert {finding.code for finding in found if finding.severity == "error"} == {"E-DATA-COPY"}


@pytest.mark.parametrize("ids", [["patient005_frame02"], ["patient003"]])
def test_a_frame_without_label_that_is_named_is_refused(acdc: Path, ids: list[str]) -> None:
    (acdc / "splits.json").write_text(json.dumps({"labeled1": ["patient001"], "val": ids}))
    with pytest.raises(SegError, match="cases without a label file"):
        choose_split(discover([str(acdc)], cine=True), 1, None, 0)


def test_slices_of_cines_train_and_the_folder_stays_as_it_was(acdc: Path, tmp_path: Path) -> None:
    def content() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(acdc.rglob("*"))}

    before = content()
    settings = Settings((str(acdc),), str(tmp_path / "run"), method="crossmatch", network="unet2d", cine=True,
                        labeled=2, iterations=1, window=(16, 16, 1), width=2, device="cpu",
                        validate_every=0)  # fmt: skip
    result = training.train(settings, resume=False, say=lambda _: None)
    assert set(result["mean"]) == {"right ventricle", "myocardium", "left ventricle", "foreground"}
    split = json.loads((tmp_path / "run" / "config.json").read_text())["split"]
    assert {name[-2:] for name in split["labeled"] + split["val"]} == {"01", "04"}
    assert {name[-2:] for name in split["unlabeled"]} == {"01", "02", "03", "04", "05"}
    assert content() == before


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_frame_takes_the_memory_of_a_frame(tmp_path: Path, suffix: str) -> None:
    film = np.random.default_rng(0).integers(0, 999, (64, 64, 32, 40), np.int16)
    save(tmp_path / f"patient001/patient001_4d{suffix}", film, GRID)
    (tmp_path / "patient001/Info.cfg").write_text("ED: 1\nES: 40\n")
    case = case_of(tmp_path, "patient001_frame40")
    tracemalloc.start()
    volume = load_volume(case)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(volume.voxels[0], film[..., 39])
    assert film.nbytes // 40 <= peak < film.nbytes / 2


def without_ed(place: Path) -> None:
    (place / "Info.cfg").write_text("ES: 4\nGroup: DCM\n")


def no_number(place: Path) -> None:
    (place / "Info.cfg").write_text("ED: first\nES: 4\n")


def beyond(place: Path) -> None:
    (place / "Info.cfg").write_text(f"ED: 1\nES: {FRAMES + 1}\n")


def from_zero(place: Path) -> None:
    (place / "Info.cfg").write_text("ED: 0\nES: 4\n")


def flat(place: Path) -> None:
    save(place / "patient001_4d.nii.gz", film_of(1)[..., 0], GRID)


def no_film(place: Path) -> None:
    (place / "patient001_4d.nii.gz").unlink()


def cut(place: Path) -> None:
    film = place / "patient001_4d.nii.gz"
    film.write_bytes(film.read_bytes()[:60])


@pytest.mark.parametrize(
    ("fault", "code", "exit_code", "found"),
    [
        (without_ed, "E-DATA-INFO", Exit.INPUT_CORRUPT, "lines ED: N and ES: N"),
        (no_number, "E-DATA-INFO", Exit.INPUT_CORRUPT, "lines ED: N and ES: N"),
        (beyond, "E-DATA-CASES", Exit.INPUT_REFUSED, "patient001_4d.nii.gz has the frames 1 to 5"),
        (from_zero, "E-DATA-CASES", Exit.INPUT_REFUSED, "patient001_4d.nii.gz has the frames 1 to 5"),
        (flat, "E-DATA-CASES", Exit.INPUT_REFUSED, "patient001_4d.nii.gz is no cine: it has one frame"),
        (no_film, "E-DATA-CASES", Exit.INPUT_REFUSED, "patient001_frame01, which Info.cfg names, is not there"),
        (cut, "E-NII-TRUNC", Exit.INPUT_CORRUPT, "patient001_4d.nii.gz"),
    ],
)
def test_what_is_wrong_is_one_line(
    acdc: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: Callable[[Path], None],
    code: str,
    exit_code: Exit,
    found: str,
) -> None:
    fault(acdc / "training" / "patient001")
    with pytest.raises(SystemExit) as caught:
        app([str(acdc), "-o", str(tmp_path / "run"), "--network", "unet2d", "-d", "cpu"])
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == exit_code
    assert code in line
    assert found in line
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_cine_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    place = write_patient(tmp_path, 1, frames=True)
    (place / "patient001_4d.nii.gz").unlink()
    assert len(discover([str(tmp_path)]).cases) == 2
    with pytest.raises(SegError) as caught:
        discover([str(tmp_path)], cine=True)
    assert (caught.value.code, caught.value.exit) == ("E-DATA-CINE", Exit.INPUT_REFUSED)


def test_a_settings_file_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("cine = true\n")
    assert Settings(("data",), "run").with_file(str(tmp_path / "c.toml"), set()).checked().cine
