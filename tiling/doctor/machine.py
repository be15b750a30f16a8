"""What this process may use of the machine: processors, memory, open files; not what the machine has."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from tiling.doctor.finding import Finding, in_bytes

LEAST_FILES = 1024
"""Open files: a slide of many files, shards, and the libraries' own."""
LEAST_MEMORY = 4 << 30
"""For one slide at a time and a small network."""

_ROOT = Path("/")


def machine() -> Iterator[Finding]:
    """Look at the limits of this process."""
    yield processors(_affinity(), quota=cpu_quota())
    yield memory(memory_limit(), available=available_memory())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = "" if soft >= LEAST_FILES or soft == resource.RLIM_INFINITY else f"ulimit -n {LEAST_FILES}"
    most = "no limit" if hard == resource.RLIM_INFINITY else str(hard)
    yield Finding("open files allowed", str(soft), advice, f"up to {most} on request")


def usable_processors() -> float:
    """How many processors this process may keep busy: its own mask, and its container's share."""
    quota = cpu_quota()
    return min(_affinity(), quota) if quota else _affinity()


def processors(allowed: int, *, quota: float | None) -> Finding:
    """The processors this process may run on, and its container's share of their time."""
    if quota is None or quota >= allowed:
        return Finding("processors", str(allowed), figures={"processors": allowed})
    most = max(1, int(quota))
    note = f"the container may use {quota:g} of {allowed}: more threads wait, so give --workers {most}"
    return Finding("processors", f"{quota:g}", note=note, figures={"processors": quota})


def memory(limit: int | None, *, available: int | None) -> Finding:
    """The memory that may still be had."""
    known = [amount for amount in (limit, available) if amount is not None]
    if not known:
        return Finding("memory", "not known")
    least = min(known)
    advice = "" if least >= LEAST_MEMORY else "Give it more: a slide takes a GiB, a network some more"
    note = f"the container's limit is {in_bytes(limit)}" if limit is not None else ""
    return Finding("memory", f"{in_bytes(least)} to be had", advice, note, {"bytes": least})


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Processors' worth of time that the container may use (cgroup v1 or v2); None for no limit."""
    found = []
    for folder in _groups(root, "cpu"):
        two = _read(folder / "cpu.max").split()  # "max 100000" or "150000 100000"
        one = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        quota, period = two if len(two) == 2 else one
        if quota.isdecimal() and period.isdecimal() and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def memory_limit(root: Path = _ROOT) -> int | None:
    """Bytes that the container may use (cgroup v1 or v2); None for no limit."""
    texts = [
        _read(folder / name)
        for folder in _groups(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    # Version 1 says "no limit" by a number that no machine has.
    return min((int(text) for text in texts if text.isdecimal() and int(text) < 1 << 60), default=None)


def available_memory(root: Path = _ROOT) -> int | None:
    """Bytes that can be had without swapping; None where the kernel does not say."""
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) << 10
    return None


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders that limit this process: its own and all above it, for each limits it too."""
    top = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and controller not in controllers.split(","):
            continue
        base = top / controllers if controllers else top
        if controllers and not base.is_dir():
            base = top / controller
        inner = base / path.lstrip("/")
        # In a container the path is often that outside of it, and the container's own group is the top.
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(base))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
