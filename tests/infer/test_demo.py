"""`seg-infer --demo`: what it makes, and whose files it leaves alone."""

from pathlib import Path

import pytest
from commands import run

NAMES = {"scan.nii.gz", "mask.nii.gz", "preview.png", "statistics.json"}


def test_twice_into_the_same_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "deep" / "demo"
    for _ in range(2):
        assert run("--demo", str(folder)) == 0
        assert {path.name for path in folder.iterdir()} == NAMES
    assert "against the phantom's known truth" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(NAMES))
def test_somebodys_files_stay(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"theirs")
    assert run("--demo", str(tmp_path)) == 30
    assert "E-OUT-EXISTS" in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"theirs"]


def test_a_file_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"theirs")
    assert run("--demo", str(tmp_path / "file")) == 30
    assert "E-OUT-DIR" in capsys.readouterr().err
