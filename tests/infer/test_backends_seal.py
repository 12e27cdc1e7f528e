"""The seal: a private key in a private folder, and hashes that no other key and no other bytes give."""

import os
from pathlib import Path

import pytest

from seg.infer.backends.seal import KEY_NAME, private_folder, refuse_unsealed, seal
from seg.infer.errors import Exit, SegError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEG_CACHE", str(tmp_path / "a" / "cache"))
    return tmp_path / "a" / "cache"


def test_key_and_folder_are_private_whatever_the_umask(cache: Path) -> None:
    old = os.umask(0)
    try:
        seal(b"x")
    finally:
        os.umask(old)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert (cache / KEY_NAME).stat().st_mode & 0o777 == 0o600
    assert os.listdir(cache) == [KEY_NAME]


def test_bytes_order_and_borders_count(cache: Path) -> None:
    first = seal(b"ab", b"c")
    assert first == seal(b"ab", b"c")
    assert len({first, seal(b"a", b"bc"), seal(b"abc"), seal(b"c", b"ab"), seal(b"ab", b"d")}) == 5
    refuse_unsealed("f", first, b"ab", b"c")
    for wrong in ("", first[:-1], first.upper(), "é"):
        with pytest.raises(SegError, match="E-UNSEALED") as caught:
            refuse_unsealed("f", wrong, b"ab", b"c")
        assert caught.value.exit == Exit.MODEL


def test_keys_differ_between_folders(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = seal(b"x")
    monkeypatch.setenv("SEG_CACHE", str(tmp_path / "other"))
    assert seal(b"x") != first


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_may_enter(cache: Path, mode: int) -> None:
    seal(b"x")
    cache.chmod(mode)
    with pytest.raises(SegError, match=r"E-CACHE: .*not private"):
        seal(b"x")


def test_a_key_that_others_may_read(cache: Path) -> None:
    seal(b"x")
    (cache / KEY_NAME).chmod(0o640)
    with pytest.raises(SegError, match=r"E-CACHE: .*not private"):
        seal(b"x")


def test_links_are_not_followed(cache: Path, tmp_path: Path) -> None:
    seal(b"x")
    (cache / KEY_NAME).rename(tmp_path / "key")
    (cache / KEY_NAME).symlink_to(tmp_path / "key")
    with pytest.raises(SegError, match="E-CACHE"):
        seal(b"x")
    cache.rename(tmp_path / "moved")
    cache.symlink_to(tmp_path / "moved")
    with pytest.raises(SegError, match="E-CACHE"):
        private_folder()


def test_a_damaged_key(cache: Path) -> None:
    seal(b"x")
    (cache / KEY_NAME).write_bytes(b"short")
    with pytest.raises(SegError, match=r"E-CACHE: .*5 bytes"):
        seal(b"x")
