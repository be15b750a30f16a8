"""Options of the command line that say who does the work, beside what they set."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from wsi.errors import UsageError

if TYPE_CHECKING:
    from tiling.workers.ask import Ask
    from tiling.workers.limits import Limits
    from tiling.workers.pool import Pool
    from tiling.workers.run import OpenPool
    from tiling.workers.unit import Event, Work

WORKERS_VARIABLE = "MICROTOME_WORKERS"
_GIB = 1 << 30
_THREADS_HERE = 2


def add_crew(parser: ArgumentParser) -> None:
    """Who does the work, and what each may take."""
    group = parser.add_argument_group("workers")
    group.add_argument(
        "--workers",
        metavar="N",
        type=int,
        help=f"processes on this machine (default ${WORKERS_VARIABLE}, or the cores; 0: this one alone)",
    )
    group.add_argument("--threads", metavar="N", type=int, help="threads of each worker (default 1)")
    group.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://host:8786")
    group.add_argument(
        "--scheduler-file", metavar="FILE", type=Path, help="the file that 'dask scheduler' wrote"
    )
    group.add_argument(
        "--cluster", metavar="TOML", type=Path, help="start workers by SLURM, PBS, LSF or SGE as it says"
    )
    group.add_argument(
        "--memory-limit",
        metavar="GIB",
        type=float,
        help="memory of a worker; the slide of one that needs more fails (default: a fair share)",
    )
    group.add_argument(
        "--stall-seconds", metavar="S", type=float, help="a slide fails that shows no progress for so long"
    )


def threads(arguments: Namespace) -> int:
    """Threads of each worker."""
    if arguments.threads is not None and arguments.threads < 1:
        raise UsageError(f"--threads is {arguments.threads}", action="Give 1 or more")
    return arguments.threads or (_THREADS_HERE if _is_here(arguments) else 1)


def crew(
    arguments: Namespace, *, wants_gpu: bool = False, say: Callable[[str], None] = lambda text: None
) -> OpenPool:
    """What `add_crew` says: opens the pool of those who do the work.

    With `wants_gpu` each GPU of this machine has a worker of its own, as far as ``arguments.device`` allows.
    `say` hears where a cluster's dashboard is.
    """
    from tiling.workers.run import here

    named = [name for name in ("scheduler", "scheduler_file", "cluster") if getattr(arguments, name)]
    if len(named) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in named)
        raise UsageError(f"{options} name two clusters", action="Give one of them")
    limits = _limits(arguments)
    if named:
        if arguments.workers is not None:
            raise UsageError("--workers is for this machine", action=f"Leave it out, or --{named[0]}")
        from tiling.workers.clusters import open_cluster

        return lambda work, told: open_cluster(arguments, work, limits, say=say)
    if _is_here(arguments):
        return here
    gpus = local_gpus(arguments.device) if wants_gpu else ()
    count = _workers(arguments)

    def open_children(work: Work, told: Callable[[Event], None]) -> Pool:
        from tiling.workers.children import Children

        return Children(work, workers=count, limits=limits, gpus=gpus)

    return open_children


def asking() -> Ask:
    """How slides are looked at by commands that make nothing: apart, unless the variable says 0 workers."""
    from tiling.workers.ask import ask_each, ask_here

    return ask_here if os.environ.get(WORKERS_VARIABLE) == "0" else ask_each


def local_gpus(
    device: str, *, drivers: Path = Path("/proc/driver/nvidia/gpus")
) -> tuple[Mapping[str, str], ...]:
    """An environment for each of this machine's GPUs that `device` means: for a process that sees it alone.

    ``cuda:N`` is one, which sees them all: numbers count as the command itself would count.
    """
    if device.startswith("cuda:"):
        return ({},)
    if device not in {"auto", "cuda"} or version("torch").endswith("+cpu"):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name for name in visible.split(",") if name and name != "-1"]
    else:
        names = [str(number) for number in range(len(list(drivers.iterdir())) if drivers.is_dir() else 0)]
    return tuple({"CUDA_VISIBLE_DEVICES": name} for name in names)


def _is_here(arguments: Namespace) -> bool:
    return not (arguments.scheduler or arguments.scheduler_file or arguments.cluster) and (
        _workers(arguments) == 0
    )


def _workers(arguments: Namespace) -> int:
    from tiling.workers.limits import usable_cores

    count, name = arguments.workers, "--workers"
    if count is None and (said := os.environ.get(WORKERS_VARIABLE)):
        name = WORKERS_VARIABLE
        try:
            count = int(said)
        except ValueError as error:
            raise UsageError(f"{name} is {said!r}", action="Give a whole number") from error
    if count is not None and count < 0:
        raise UsageError(f"{name} is {count}", action="Give 0 or more")
    return usable_cores() if count is None else count


def _limits(arguments: Namespace) -> Limits:
    from tiling.workers.limits import STALL_SECONDS, Limits

    for name in ("memory_limit", "stall_seconds"):
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} is {value:g}", action="Give more than 0")
    most = int(arguments.memory_limit * _GIB) if arguments.memory_limit else None
    return Limits(most, arguments.stall_seconds or STALL_SECONDS)
