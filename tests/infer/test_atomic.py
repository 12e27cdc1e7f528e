"""Files are absent or whole: killed writers, full disks, failing calls, links, stale temporary files."""

import errno
import os
import random
import resource
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seg.infer import atomic
from seg.infer.atomic import atomic_file, atomic_text
from seg.infer.errors import Exit, SegError

OLD = b"the old content"
NEW = b"the new content" * 200_000  # 3 MB, more than any buffer


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests use relative paths, so that "as typed" differs from resolved."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str = "out.bin", content: bytes = NEW, overwrite: bool = True) -> None:
    with atomic_file(path, overwrite=overwrite) as file:
        file.write(content)


def in_child(action: Callable[[], Any]) -> int:
    """Run in a forked process; its wait status. A fork costs a millisecond, a new interpreter half a second."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_content_and_mode() -> None:
    previous = os.umask(0o027)
    try:
        write()
        atomic_text("out.txt", "é\n\udcff")
    finally:
        os.umask(previous)
    assert Path("out.bin").read_bytes() == NEW
    assert Path("out.txt").read_bytes() == b"\xc3\xa9\n\\udcff"
    assert {stat.S_IMODE(os.stat(name).st_mode) for name in os.listdir()} == {0o640}
    assert sorted(os.listdir()) == ["out.bin", "out.txt"]


@pytest.mark.parametrize("name", ["a b", "-o", "é", "a\nb", "\udcff", "a" * 255, "./x", "folder/y", "folder/../z"])
def test_any_name(name: str, in_folder: Path) -> None:
    os.mkdir("folder")
    write(name)
    write(str(in_folder / "absolute"))
    assert Path(name).read_bytes() == Path("absolute").read_bytes() == NEW


def test_temporary_file_is_beside_the_target_and_says_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    with atomic_file("patient name.bin") as file:
        file.write(b"x")
        (temp,) = os.listdir()
        assert temp.startswith(".")
        assert "patient" not in temp
        assert str(os.getpid()) in temp
    assert os.listdir() == ["patient name.bin"]


def test_existing_file_needs_overwrite() -> None:
    Path("out.bin").write_bytes(OLD)
    with pytest.raises(SegError) as caught:
        write(overwrite=False)
    assert (caught.value.code, caught.value.exit) == ("E-OUT-EXISTS", Exit.OUTPUT)
    assert Path("out.bin").read_bytes() == OLD


def test_file_that_appears_meanwhile_is_kept() -> None:

    def race() -> None:
        with atomic_file("out.bin") as file:
            file.write(NEW)
            Path("out.bin").write_bytes(OLD)

    with pytest.raises(SegError) as caught:
        race()
    assert caught.value.code == "E-OUT-EXISTS"
    assert Path("out.bin").read_bytes() == OLD
    assert os.listdir() == ["out.bin"]


def test_link_is_replaced_not_followed() -> None:
    Path("victim").write_bytes(OLD)
    os.symlink("victim", "out.bin")
    with pytest.raises(SegError) as caught:
        write(overwrite=False)
    assert caught.value.code == "E-OUT-EXISTS"
    write()
    assert not os.path.islink("out.bin")
    assert Path("out.bin").read_bytes() == NEW
    assert Path("victim").read_bytes() == OLD


def test_planted_link_at_the_temporary_name_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("victim").write_bytes(OLD)
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: "0" * 2 * size)
    with atomic_file("out.bin") as file:
        (temp,) = set(os.listdir()) - {"victim"}
        file.write(b"x")
    os.unlink("out.bin")
    os.symlink("victim", temp)
    with pytest.raises(SegError) as caught:
        write()
    assert caught.value.code == "E-OUT-WRITE"
    assert Path("victim").read_bytes() == OLD


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("absent/out", "E-OUT-DIR"),
        ("file/out", "E-OUT-DIR"),
        ("folder", "E-OUT-DIR"),
        ("a" * 256, "E-OUT-DIR"),
        ("pipe", "E-OUT-KIND"),
        ("/dev/null", "E-OUT-KIND"),
        ("a\0b", "E-OUT-WRITE"),
    ],
)
def test_impossible_targets(path: str, code: str) -> None:
    Path("file").write_bytes(OLD)
    os.mkdir("folder")
    os.mkfifo("pipe")
    before = sorted(os.listdir())
    with pytest.raises(SegError) as caught:
        write(path)
    assert (caught.value.code, caught.value.exit) == (code, Exit.OUTPUT)
    assert str(caught.value).isprintable()
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("overwrite", [True, False])
def test_exception_leaves_nothing(kind: type[BaseException], overwrite: bool) -> None:
    if overwrite:
        Path("out.bin").write_bytes(OLD)

    def interrupted() -> None:
        with atomic_file("out.bin", overwrite=overwrite) as file:
            file.write(NEW)
            raise kind

    with pytest.raises(kind):
        interrupted()
    assert os.listdir() == (["out.bin"] if overwrite else [])
    assert not overwrite or Path("out.bin").read_bytes() == OLD


class Nth:
    """A stand-in for a function that fails in its nth call."""

    def __init__(self, function: Callable[..., Any], nth: int, number: int) -> None:
        self.function, self.left, self.number = function, nth, number

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise OSError(self.number, os.strerror(self.number))
        return self.function(*args, **options)


FULL, WRITE = "E-OUT-FULL", "E-OUT-WRITE"
FAULTS = {errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.EIO: WRITE, errno.EROFS: WRITE, errno.EACCES: WRITE}
FAULTS |= {errno.EMFILE: WRITE, errno.ENOMEM: WRITE, errno.EINTR: WRITE}
CALLS = [("lstat", 1), ("lstat", 2), ("open", 1), ("fdopen", 1), ("fsync", 1), ("replace", 1)]


@pytest.mark.parametrize("number", FAULTS, ids=errno.errorcode.get)
@pytest.mark.parametrize(("call", "nth"), CALLS)
def test_failing_calls_leave_nothing(call: str, nth: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """P05: every call before the file has its name; the old file stays."""
    for old in (None, OLD):
        if old:
            Path("out.bin").write_bytes(old)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, Nth(getattr(os, call), nth, number))
            with pytest.raises(SegError) as caught:
                write()
        assert (caught.value.code, caught.value.exit) == (FAULTS[number], Exit.OUTPUT)
        assert caught.value.path == "out.bin"
        assert os.listdir() == (["out.bin"] if old else [])
        assert not old or Path("out.bin").read_bytes() == old


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_failing_folder_sync_leaves_no_result(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error is reported, so there must be nothing that looks like a result."""
    monkeypatch.setattr(os, "fsync", Nth(os.fsync, 2, number))
    with pytest.raises(SegError) as caught:
        write()
    assert caught.value.code == FAULTS[number]
    assert os.listdir() == []


@pytest.mark.parametrize(("call", "nth", "number"), [("fsync", 2, errno.EINVAL), ("open", 2, errno.EACCES)])
def test_folder_that_cannot_be_synced(call: str, nth: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems refuse, and some folders cannot be read; the file is still good."""
    fault = Nth(getattr(os, call), nth, number)
    monkeypatch.setattr(os, call, fault)
    write()
    assert fault.left == 0
    assert Path("out.bin").read_bytes() == NEW


def test_folder_that_cannot_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clearing away is a courtesy; a folder may be writable without being readable."""
    fault = Nth(os.listdir, 1, errno.EACCES)
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fault)
        write()
    assert fault.left == 0
    assert Path("out.bin").read_bytes() == NEW


def test_no_descriptor_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    before = os.listdir("/proc/self/fd")
    for call, nth in [*CALLS, ("fsync", 2)]:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, Nth(getattr(os, call), nth, errno.EIO))
            with pytest.raises(SegError):
                write()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("size", [10, len(NEW)])
def test_full_device(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """P05, ENOSPC from the kernel, during a write or only when the buffer is flushed."""
    real = os.open

    def to_full(path: str, flags: int, mode: int = 0o777) -> int:
        os.close(real(path, flags, mode))
        return real("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(os, "open", to_full)
    with pytest.raises(SegError) as caught:
        write(content=NEW[:size])
    assert (caught.value.code, caught.value.exit) == ("E-OUT-FULL", Exit.OUTPUT)
    assert "No space left on device" in str(caught.value)
    assert os.listdir() == []


def test_file_size_limit() -> None:
    """P05, EFBIG from the kernel in the middle of a write."""
    Path("out.bin").write_bytes(OLD)

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(NEW) // 2, len(NEW) // 2))
        try:
            write()
        except SegError as error:
            os._exit(7 if error.code == "E-OUT-FULL" and "ulimit" in error.fix else 8)

    assert os.waitstatus_to_exitcode(in_child(limited)) == 7
    assert os.listdir() == ["out.bin"]
    assert Path("out.bin").read_bytes() == OLD


@pytest.mark.parametrize(("call", "old"), [("fsync", True), ("fsync", False), ("replace", True), ("replace", False)])
def test_kill_at_each_step(call: str, old: bool) -> None:
    """P14: the target is as it was; the next writer removes what the dead one left."""
    if old:
        Path("out.bin").write_bytes(OLD)

    def killed() -> None:
        setattr(os, call, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        write()

    assert os.WTERMSIG(in_child(killed)) == signal.SIGKILL
    left = sorted(set(os.listdir()) - {"out.bin"})
    assert len(left) == 1, "the temporary file of the killed writer"
    assert os.path.exists("out.bin") == old
    assert not old or Path("out.bin").read_bytes() == OLD
    write("another.bin")
    assert set(left) < set(os.listdir()), "only the same target's temporary files are touched"
    write()
    assert sorted(os.listdir()) == ["another.bin", "out.bin"]
    assert Path("out.bin").read_bytes() == NEW


def test_kill_after_the_rename_leaves_a_whole_file() -> None:
    def killed() -> None:
        replace = os.replace

        def then_die(*args: Any) -> None:
            replace(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        os.replace = then_die
        write()

    assert os.WTERMSIG(in_child(killed)) == signal.SIGKILL
    assert os.listdir() == ["out.bin"]
    assert Path("out.bin").read_bytes() == NEW


def test_kills_at_random_moments() -> None:
    """P14: 60 kills of a process that writes one of two contents over and over."""
    generator = random.Random(0)
    contents = (NEW, NEW[::-1])
    torn_temps = 0
    for number in range(60):
        if number % 2 == 0 and os.path.exists("out.bin"):
            os.unlink("out.bin")
        child = os.fork()
        if child == 0:
            while True:
                for content in contents:
                    write(content=content)
        time.sleep(generator.uniform(0.0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        names = set(os.listdir()) - {"out.bin"}
        torn_temps += len(names)
        assert len(names) <= 1, "stale files do not pile up"
        assert not os.path.exists("out.bin") or Path("out.bin").read_bytes() in contents
    assert torn_temps > 0, "no kill came in the middle of a write, so nothing was tested"
    write()
    assert os.listdir() == ["out.bin"]


def test_eight_writers_of_one_file() -> None:
    """P11: the last whole file wins, and no writer disturbs another."""
    contents = [bytes([number]) * 300_000 for number in range(8)]

    def repeat(content: bytes) -> None:
        for _ in range(12):
            write(content=content)

    children = []
    for content in contents:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                repeat(content)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert Path("out.bin").read_bytes() in contents
    assert os.listdir() == ["out.bin"]
