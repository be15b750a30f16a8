"""`Limits`: what a process may take before it is stopped, so that it takes nobody along."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

STALL_SECONDS = 600.0
_SHARE = 0.9
"""Of the memory there is, for all processes together."""
_LEAST = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """What stops a process."""

    memory_bytes: int | None = None
    """Most memory that it may hold; None: as much as there is."""
    stall_seconds: float = STALL_SECONDS
    """How long it may show no progress."""


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fair_share(processes: int) -> int:
    """Bytes of memory for each of so many processes, of what this machine, or this container, has."""
    return max(_LEAST, int(_SHARE * machine_memory() / processes))


def machine_memory() -> int:
    """Bytes of memory that there are: those of the machine, or fewer where a control group says so."""
    import psutil

    found = int(psutil.virtual_memory().total)
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            found = min(found, int((Path("/sys/fs/cgroup") / name).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return found
