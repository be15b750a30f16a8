"""`Limits`: what a process may take before it is stopped, so that it takes nobody along."""

from __future__ import annotations

from dataclasses import dataclass

from tiling.doctor.machine import memory_limit, usable_processors

STALL_SECONDS = 600.0
_SHARE = 0.9
"""Of the memory there is, for all processes together."""
_LEAST = 1 << 30
GPU_SHARES = 4
"""Of memory that a process with a GPU has: CUDA alone takes some GiB, and it reads ahead for all."""
_ENDLESS = 1 << 62


@dataclass(frozen=True, slots=True)
class Limits:
    """What stops a process."""

    memory_bytes: int | None = None
    """Most memory that it may hold; None: as much as there is."""
    stall_seconds: float = STALL_SECONDS
    """How long it may show no progress."""


def usable_cores() -> int:
    """Cores that this process may use."""
    return max(1, int(usable_processors()))


def fair_share(processes: int) -> int:
    """Bytes of memory for each of so many processes, of what this machine, or this container, has."""
    return max(_LEAST, int(_SHARE * machine_memory() / processes))


def machine_memory() -> int:
    """Bytes of memory that there are: those of the machine, or fewer where a control group says so."""
    import psutil

    return min(int(psutil.virtual_memory().total), memory_limit() or _ENDLESS)
