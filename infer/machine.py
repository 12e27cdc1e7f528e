"""What this process may use of the machine: processors and memory, container limits included.

Linux only; a file that is absent or unreadable sets no limit. Limits of control groups hold for the whole subtree, so
every ancestor that is visible is asked. What this does not know: how busy the machine is, and CPU shares (a weight
between neighbours, no limit).
"""

import math
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")
_MOST = 1 << 60  # v1 writes "no limit" as a number near 2^63


def usable_threads(root: Path = ROOT) -> int:
    """Processors this process may keep busy, at least 1: its affinity, cut to the CPU quota of its control groups.

    A quota of 1.5 processors gives 2: the second thread is held back half of the time, which beats not having it.
    """
    quotas = [quota for folder in _groups(root, "cpu") for quota in _cpu_quotas(folder)]
    return max(1, min([len(os.sched_getaffinity(0)), *(math.ceil(quota) for quota in quotas)]))


def cpu_flags(root: Path = ROOT) -> set[str]:
    """What the processor can do, as Linux names it ("avx2", "avx512_vnni"); empty where that is unknown."""
    line = next((line for line in _lines(root / "proc/cpuinfo") if line.startswith("flags")), "")
    return set(line.split())


def available_memory(root: Path = ROOT) -> int:
    """Bytes that can still be allocated without swapping or being killed.

    The least of MemAvailable, each control group's limit minus its usage (file cache that the kernel can drop is not
    counted as used), and RLIMIT_AS minus the address space in use.
    """
    known = [_physical(root)]
    for folder in _groups(root, "memory"):
        known.extend(_left_in_group(folder))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        pages = _numbers(root / "proc/self/statm")
        known.append(limit - (pages[0] if pages else 0) * resource.getpagesize())
    return max(0, min(known))


def _physical(root: Path) -> int:
    """MemAvailable in bytes; the physical memory where /proc is not there."""
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpu_quotas(folder: Path) -> Iterator[float]:
    """Processors that one group may use: cpu.max (v2), cfs_quota (v1; -1 is no limit)."""
    for text in _lines(folder / "cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.strip().isdigit() and int(period) > 0:
            yield int(quota) / int(period)
    quotas, periods = _numbers(folder / "cpu.cfs_quota_us"), _numbers(folder / "cpu.cfs_period_us")
    if quotas and periods and quotas[0] > 0 and periods[0] > 0:
        yield quotas[0] / periods[0]


def _left_in_group(folder: Path) -> Iterator[int]:
    """Bytes left in one group: v2 names, then v1 names."""
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for limit_name, usage_name, cache_name in names:
        limit, usage = _numbers(folder / limit_name), _numbers(folder / usage_name)
        if limit and usage and limit[0] < _MOST:
            cache = 0
            for line in _lines(folder / "memory.stat"):
                name, _, value = line.partition(" ")
                if name == cache_name and value.strip().isdigit():
                    cache = int(value)
            yield limit[0] - max(0, usage[0] - cache)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups that limit this process, its own first, then their ancestors up to the mount."""
    paths = dict(_memberships(root))
    for line in _lines(root / "proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        mounted, point = fields[3], root / fields[4].lstrip("/")
        if kind[0] == "cgroup2":
            path = paths.get("")
        elif kind[0] == "cgroup" and controller in kind[2].split(","):
            path = paths.get(controller)
        else:
            continue
        if path is None:
            continue
        inside = Path(os.path.relpath(path, mounted))
        if ".." in inside.parts:  # a container that sees only its own group: the mount is that group
            inside = Path()
        folder = point / inside
        yield folder
        while folder != point:
            folder = folder.parent
            yield folder


def _memberships(root: Path) -> Iterator[tuple[str, str]]:
    """(controller, path) of this process's groups; the controller is "" for version 2."""
    for line in _lines(root / "proc/self/cgroup"):
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                yield controller, parts[2]


def _lines(path: Path) -> list[str]:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text().splitlines()
    return []


def _numbers(path: Path) -> list[int]:
    """Leading integers of a file's first line; "max" and the like give none."""
    with suppress(ValueError):
        return [int(word) for line in _lines(path)[:1] for word in line.split()]
    return []
