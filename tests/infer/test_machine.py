"""Threads and memory that a process may use, from trees of files like those of containers and plain machines."""

import os
import resource
from pathlib import Path

import pytest

from seg.infer.machine import available_memory, usable_threads

GIB = 1 << 30
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = "31 23 0:28 {root} /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n"


def tree(folder: Path, files: dict[str, str]) -> Path:
    """Files below `folder`, as a root for the functions under test."""
    for name, text in {"proc/meminfo": "MemTotal: 67108864 kB\nMemAvailable: 33554432 kB\n", **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(autouse=True)
def many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(32)))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_plain_machine_gives_everything(tmp_path: Path) -> None:
    root = tree(tmp_path, {})
    assert usable_threads(root) == 32
    assert available_memory(root) == 32 * GIB


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert usable_threads(tree(tmp_path, {})) == 2


@pytest.mark.parametrize(
    ("quota", "threads"),
    [("max 100000", 32), ("400000 100000", 4), ("150000 100000", 2), ("5000 100000", 1), ("rubbish", 32), ("", 32)],
)
def test_version_2_quota(tmp_path: Path, quota: str, threads: int) -> None:
    files = {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2, "sys/fs/cgroup/cpu.max": quota}
    assert usable_threads(tree(tmp_path, files)) == threads


@pytest.mark.parametrize(("quota", "threads"), [("-1", 32), ("250000", 3)])
def test_version_1_quota(tmp_path: Path, quota: str, threads: int) -> None:
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/job/7\n",
        "proc/self/mountinfo": V1.format(root="/", name="cpu,cpuacct"),
        "sys/fs/cgroup/cpu,cpuacct/job/7/cpu.cfs_quota_us": quota,
        "sys/fs/cgroup/cpu,cpuacct/job/7/cpu.cfs_period_us": "100000",
    }
    assert usable_threads(tree(tmp_path, files)) == threads


def test_the_tightest_ancestor_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "proc/self/mountinfo": V2,
        "sys/fs/cgroup/a/b/cpu.max": "max 100000",
        "sys/fs/cgroup/a/cpu.max": "300000 100000",
        "sys/fs/cgroup/a/b/memory.max": "max",
        "sys/fs/cgroup/a/b/memory.current": "7",
        "sys/fs/cgroup/a/memory.max": str(4 * GIB),
        "sys/fs/cgroup/a/memory.current": str(3 * GIB),
        "sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {GIB}\n",
    }
    root = tree(tmp_path, files)
    assert usable_threads(root) == 3
    assert available_memory(root) == 2 * GIB


@pytest.mark.parametrize("path", ["/docker/abc", "/docker/abc/inner", "/elsewhere"])
def test_version_1_memory_in_a_container(tmp_path: Path, path: str) -> None:
    """The group is mounted at the container's own place, under a name of the host's."""
    files = {
        "proc/self/cgroup": f"7:memory:{path}\n",
        "proc/self/mountinfo": V1.format(root="/docker/abc", name="memory"),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": str(GIB),
        "sys/fs/cgroup/memory/memory.stat": f"inactive_file 99\ntotal_inactive_file {GIB // 2}\n",
    }
    assert available_memory(tree(tmp_path, files)) == 3 * GIB // 2


def test_version_1_writes_no_limit_as_a_huge_number(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "7:memory:/\n",
        "proc/self/mountinfo": V1.format(root="/", name="memory"),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1",
    }
    assert available_memory(tree(tmp_path, files)) == 32 * GIB


def test_address_space_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (GIB, GIB))
    page = resource.getpagesize()
    assert available_memory(tree(tmp_path, {"proc/self/statm": "1000 500 10 1 0 9 0\n"})) == GIB - 1000 * page
    assert available_memory(tree(tmp_path, {"proc/self/statm": f"{2 * GIB // page} 0 0 0 0 0 0\n"})) == 0


def test_this_machine() -> None:
    assert usable_threads() >= 1
    assert available_memory() > 1 << 20
