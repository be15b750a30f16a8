"""Clusters: a scheduler that is there, or workers that a queueing system starts, as a small file says.

::

kind = "slurm"              # or pbs, lsf, sge
jobs = 20                   # how many to ask for
[options]                   # of dask_jobqueue's SLURMCluster, PBSCluster, LSFCluster, SGECluster
cores = 8
memory = "32GB"
walltime = "12:00:00"
worker_extra_args = ["--lifetime", "11h", "--lifetime-stagger", "10m"]
"""

from __future__ import annotations

import contextlib
import logging
import tomllib
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distributed import Client

from tiling.workers.dask_pool import DaskPool
from tiling.workers.limits import Limits
from tiling.workers.unit import Work
from wsi.errors import SchedulerLostError, UsageError

CLUSTERS = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "lsf": "LSFCluster",
    "sge": "SGECluster",
}
"""What a file may call its ``kind``, and dask-jobqueue's class of it."""
_CONNECT_SECONDS = 20
_CLOSE_SECONDS = 5


def open_cluster(
    arguments: Namespace, work: Work, limits: Limits, *, say: Callable[[str], None] = lambda text: None
) -> DaskPool:
    """The workers that ``--scheduler``, ``--scheduler-file`` or ``--cluster`` name.

    Raises
    ------
    UsageError
        The file is wrong, or what it needs is not installed.
    SchedulerLostError
        Nobody answers.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        if arguments.cluster:
            cluster = stack.enter_context(start_cluster(arguments.cluster))
            client = stack.enter_context(connected(address=cluster.scheduler_address))
        elif arguments.scheduler_file:
            client = stack.enter_context(connected(scheduler_file=str(arguments.scheduler_file)))
        else:
            client = stack.enter_context(connected(address=arguments.scheduler))
        say(f"scheduler {client.scheduler.address}, dashboard {client.dashboard_link}")
        pool = DaskPool(client, work, limits=limits, say=say)
        pool.closing(stack.pop_all())
        return pool


@contextlib.contextmanager
def connected(**where: Any) -> Iterator[Client]:
    """A connection to a scheduler."""
    import dask

    try:
        with dask.config.set({"distributed.comm.timeouts.connect": f"{_CONNECT_SECONDS}s"}):
            client = Client(**where, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        address = next(iter(where.values()))
        raise SchedulerLostError(
            f"no Dask scheduler answers at {address} ({_first_line(error)})",
            action="Start 'dask scheduler', or give the address that it says",
        ) from error
    try:
        yield client
    finally:
        with contextlib.suppress(Exception):  # it may be gone
            client.close(timeout=5)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What Dask logs of lost connections, we raise."""
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def start_cluster(path: Path) -> Iterator[Any]:
    """The cluster that a file describes; its jobs end with the run."""
    kind, jobs, options = read_cluster(path)
    try:
        import dask_jobqueue
    except ImportError as error:
        raise UsageError(
            "dask-jobqueue is not installed", path=path, action="pip install 'microtome[cluster]'"
        ) from error
    make = getattr(dask_jobqueue, CLUSTERS[kind])
    try:
        cluster = make(**{"scheduler_options": {"dashboard_address": ":0"}, **options})
    except (TypeError, ValueError, OSError) as error:
        raise UsageError(
            f"{CLUSTERS[kind]} does not take these [options] ({_first_line(error)})",
            path=path,
            action="See dask-jobqueue's documentation of it",
        ) from error
    try:
        _submit(cluster, jobs, path)
        yield cluster
    finally:
        with contextlib.suppress(Exception):  # of jobs that were never submitted, too
            cluster.close(timeout=_CLOSE_SECONDS)


def _submit(cluster: Any, jobs: int, path: Path) -> None:
    """As dask-jobqueue's own `scale`, but that one fails in the background, and tells nobody."""
    try:
        for _ in range(jobs):
            cluster.worker_spec.update(cluster.new_worker_spec())
        cluster.sync(cluster._correct_state)
    except Exception as error:
        raise UsageError(
            f"no job can be submitted ({_first_line(error)})",
            path=path,
            action="Try it with the queueing system's own command, on this machine",
        ) from error


def read_cluster(path: Path) -> tuple[str, int, Mapping[str, Any]]:
    """Kind, number of jobs and options in a file; `UsageError` says what is wrong with it."""

    def wrong(reason: str) -> UsageError:
        kinds = ", ".join(CLUSTERS)
        return UsageError(reason, path=path, action=f"Give kind ({kinds}), jobs, and [options]")

    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise wrong(f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise wrong(f"is no TOML ({_first_line(error)})") from error
    if unknown := sorted(content.keys() - {"kind", "jobs", "options"}):
        raise wrong(f"has {unknown[0]!r}, which means nothing here")
    kind, jobs, options = content.get("kind"), content.get("jobs", 1), content.get("options", {})
    if kind not in CLUSTERS:
        raise wrong(f"its kind is {kind!r}")
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise wrong(f"jobs is {jobs!r}")
    if not isinstance(options, dict):
        raise wrong("options is no table")
    return str(kind), jobs, options


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
