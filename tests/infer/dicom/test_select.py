"""Which series: by number, by UID, the one that suits the model; and the table of --list."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run
from dicom_files import on, setting, uid, write_series
from known import boxes, plain_spec

from seg.infer.dicom.read import DicomOptions, read, survey
from seg.infer.dicom.select import contrast_words, model_modality, unsuited
from seg.infer.errors import SegError
from seg.infer.spec import ModelSpec

# Along R, A, S the series of `study` are 22 x 12 x 22.5 mm wide, with voxels of 1.1 x 0.8 x 2.5 mm.
FINE = plain_spec(spacing=(1.0, 1.0, 2.0), window=(16, 8, 8), channels=("MRI",))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Four series: CT, T1, FLAIR, and a time series, told apart by their first voxel."""
    for number, (modality, words) in enumerate([("CT", "thorax"), ("MR", "ax_t1w_se"), ("MR", "T2 FLAIR ax")], 1):
        voxels = boxes()
        voxels[0, 0, 0] = number
        write_series(tmp_path / str(number), voxels, modality=modality, series=number, edit=setting(
            SeriesDescription=words))  # fmt: skip
    for time in range(2):
        change = setting(TemporalPositionIdentifier=time)

        def edit(k: int, dataset: object, t: int = time, change: object = change) -> None:
            change(k, dataset)  # type: ignore[operator]
            dataset.SOPInstanceUID = uid("t", t, k)  # type: ignore[attr-defined]

        write_series(tmp_path / "4" / str(time), boxes(), modality="MR", series=4, edit=edit)
    return tmp_path


def chosen(study: Path, spec: ModelSpec) -> int:
    scan = read(str(study), DicomOptions(series="auto"), spec=spec)
    return int(scan.volume.voxels[0, 0, 0, 0])


def refused(study: Path, spec: ModelSpec | None, series: str = "auto") -> str:
    with pytest.raises(SegError) as caught:
        read(str(study), DicomOptions(series=series), spec=spec)
    assert (caught.value.code, caught.value.exit) == ("E-DCM-SERIES", 12)
    return str(caught.value)


def test_by_number_and_by_uid(study: Path) -> None:
    for number in (1, 2, 3):
        for name in (str(number), uid("series", number)):
            scan = read(str(study), DicomOptions(series=name))
            assert scan.volume.voxels[0, 0, 0, 0] == number
    assert "no series has the number" in refused(study, None, "17")
    assert "no series has the number" in refused(study, None, uid("series", 9))
    write_series(study / "twin", boxes(), series=1, edit=on(None, SeriesInstanceUID="1.2.3", SOPInstanceUID="1.2.4"))
    assert "several series have the number" in refused(study, None, "1")


def test_the_contrast_of_the_model(study: Path) -> None:
    assert chosen(study, replace(FINE, channels=("T1",))) == 2
    assert chosen(study, replace(FINE, channels=("FLAIR",))) == 3
    assert chosen(study, replace(FINE, channels=("CT",))) == 1


def test_two_that_suit_are_refused_with_the_table(study: Path) -> None:
    line = refused(study, FINE)
    assert "2 of 4 series suit the model threshold" in line
    assert "series 1 (CT, 9 slices): is CT, not MR" in line
    assert "series 2 (MR, 9 slices): suits" in line
    assert "series 4 (MR, 18 slices): is no volume (E-DCM-TIME)" in line
    assert "none of 4 series suit" in refused(study, replace(FINE, channels=("PET",)))


def test_voxel_size_and_field_of_view(study: Path) -> None:
    t1 = replace(FINE, channels=("T1",))
    assert "voxels of 2.50 mm where the model takes 0.8" in refused(study, replace(t1, spacing=(1.0, 1.0, 0.8)))
    assert "voxels of 0.80 mm where the model takes 2.5" in refused(study, replace(t1, spacing=(1.0, 2.5, 2.0)))
    assert "is 22 mm wide, the model's window 64" in refused(study, replace(t1, window=(64, 8, 8)))
    assert chosen(study, replace(t1, extent=(20.0, 10.0, 30.0))) == 2
    assert "is 22 mm wide, the model saw 200" in refused(study, replace(t1, extent=(200.0, 10.0, 30.0)))
    assert "is 12 mm wide, the model saw 5" in refused(study, replace(t1, extent=(22.0, 5.0, 30.0)))
    assert chosen(study, replace(t1, spacing=(None, None, None), window=(16, 16, 16))) == 2


def test_a_damaged_series_is_not_passed_over(study: Path) -> None:
    """That another series suits as well does not matter: the damaged one may be the right one."""
    (study / "2" / "004.dcm").unlink()
    with pytest.raises(SegError) as caught:
        read(str(study), DicomOptions(series="auto"), spec=replace(FINE, channels=("T1",)))
    assert caught.value.code == "E-DCM-MISSING"
    assert "2 of 4 series suit" in refused(study, FINE)


def test_modalities_and_contrasts_in_names() -> None:
    names = {"CT": "CT", "MRI": "MR", "T1w": "MR", "flair": "MR", "PET": "PT", "image": None, "noCTwork": None}
    for name, modality in names.items():
        assert model_modality(plain_spec(channels=(name,))) == modality, name
    words = {
        "ax_T1_post": {"T1"},
        "T2_FLAIR": {"FLAIR"},
        "t2w": {"T2"},
        "MPRAGE": set(),
        "PD T2": {"PD", "T2"},
        "CAT1": set(),
        "": set(),
    }
    for text, found in words.items():
        assert contrast_words(text) == found, text


def test_one_slice_is_no_volume_for_a_3d_model(tmp_path: Path) -> None:
    write_series(tmp_path, boxes()[..., :1], modality="MR")
    candidate = survey(str(tmp_path))[1][0]
    assert unsuited(candidate, FINE) == "is one slice"
    flat = replace(FINE, dims=2, window=(16, 8, 1), spacing=(1.0, 1.0, None))
    assert unsuited(candidate, flat) == ""


def test_the_table(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (study / "notes.txt").write_text("text")
    (study / "3" / "004.dcm").unlink()
    assert run("--list", str(study)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["series", "modality", "contrast", "slices"]
    rows = [re.split(r"  +", line) for line in lines[1:5]]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0][1:] == ["CT", "9", "20 x 15 x 9", "1.1 x 0.8 x 2.5", "22 x 12 x 22", uid("series", 1), "volume"]
    assert rows[1][2] == "T1"
    assert rows[2][2] == "FLAIR"
    assert "E-DCM-MISSING: 1 of 9 slices are missing" in lines[3]
    assert "E-DCM-TIME: is a time series of 2 time points" in lines[4]
    assert lines[5] == "set aside: 1 files that are not DICOM"
    assert "Doe" not in "".join(lines)
    assert "thorax" not in "".join(lines)


def test_the_table_of_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list", str(tmp_path / "absent")) == 10
    assert "E-IN-MISSING" in capsys.readouterr().err
    np.testing.assert_array_equal(run("--list", str(tmp_path)), 10)
    assert "E-DCM-EMPTY" in capsys.readouterr().err
