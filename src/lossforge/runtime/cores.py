"""The cores that this process may use, and which of them a thread runs on."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def available_cores() -> int:
    """Cores that this process may use: its CPU affinity, and the quota of its control groups (containers)."""
    if hasattr(os, "process_cpu_count"):
        cores = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cgroup_cores(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))))


def cgroup_cores(memberships: Path, mount: Path) -> float:
    """The tightest CPU quota among the process's control groups and their parents; inf if there is none."""
    try:
        lines = memberships.read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / "cpu" if controllers else mount  # version 1 : version 2
        folder = root / group.lstrip("/")
        # Inside a container the group's path may be the host's, of which only the root is mounted.
        quotas += [_cgroup_quota(f) for f in (folder, *folder.parents) if f.is_relative_to(root)]
    return min(quotas)


def _cgroup_quota(folder: Path) -> float:
    """Run time per period that the kernel grants this group (cgroup v2 `cpu.max`, v1 `cpu.cfs_*_us`)."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(quota) / int(period) if quota not in ("max", "-1") else math.inf
    except (OSError, ValueError):
        return math.inf


def this_core() -> int | None:
    """The core that the calling thread runs on; None where the system does not tell, or lets nobody choose."""
    number = _sched_getcpu()
    return None if number is None else number()


@cache
def _sched_getcpu() -> Callable[[], int] | None:
    if not hasattr(os, "sched_setaffinity"):
        return None
    try:
        function = ctypes.CDLL(None).sched_getcpu
    except AttributeError:  # a C library without it
        return None
    function.restype = ctypes.c_int
    return function


def keep_off(core: int, threads: Iterable[int]) -> None:
    """Let threads, given by their native numbers, run on the caller's cores but for one."""
    others = os.sched_getaffinity(0) - {core}
    if not others:
        return
    # No more than a wish: a thread may have gone, or be another's to place.
    with suppress(OSError):
        for thread in threads:
            os.sched_setaffinity(thread, others)
