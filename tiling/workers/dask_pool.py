"""`DaskPool`: the workers of a Dask cluster, each with supervised processes of its own.

No pixel passes through the scheduler: a task is a `Unit`, and its result says what became of it. A slide that
crashes a decoder crashes a child of the worker, and not the worker; so a worker that dies is the machine's
fault, or its operator's, and its units are done again.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import queue
import socket
import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from distributed import Client, KilledWorker, WorkerPlugin, get_worker
from distributed.client import FutureCancelledError

from tiling.workers.limits import Limits, fair_share
from tiling.workers.supervisor import Child
from tiling.workers.unit import Died, Event, Refused, Report, Unit, Work
from wsi.errors import MicrotomeError, SchedulerLostError, UsageError

if TYPE_CHECKING:
    from distributed import Future, Worker

GPU = "GPU"
"""The resource that a worker declares to get the units that want one: ``dask worker --resources GPU=1``."""
_AHEAD = 2
"""Units that each thread has been given: one at work, one that waits for it. The rest waits here."""
_LOOK_SECONDS = 0.25
_LOST_SECONDS = 20.0
_SAY_SECONDS = 300.0


class Crew(WorkerPlugin):  # type: ignore[misc]  # it has no types
    """The processes of one Dask worker: one for each task that runs at a time."""

    def __init__(self, name: str, work: bytes, limits: Limits, threads: int) -> None:
        self.name = name
        self._work, self._limits, self._threads = work, limits, threads

    def setup(self, worker: Worker) -> None:
        """On the worker, when it joins."""
        if self._limits.memory_bytes is None:
            allowed = worker.memory_manager.memory_limit
            share = allowed // worker.state.nthreads if allowed else fair_share(worker.state.nthreads)
            self._limits = replace(self._limits, memory_bytes=int(share))
        self._idle: queue.SimpleQueue[Child] = queue.SimpleQueue()
        self._all: list[Child] = []
        self._closed = False

    def teardown(self, worker: Worker) -> None:
        """On the worker, when the run has ended, in whatever way."""
        self._closed = True
        for child in self._all:
            if not child.gone:
                with contextlib.suppress(OSError):
                    child.stop()

    @contextlib.contextmanager
    def _child(self) -> Iterator[Child]:
        """One that nobody uses."""
        try:
            child = self._idle.get_nowait()
            child.hear()
            if child.gone:  # nobody wanted it for long
                raise queue.Empty
        except queue.Empty:
            child = Child(self._work, limits=self._limits, threads=self._threads)
            self._all = [one for one in self._all if not one.gone] + [child]
        try:
            yield child
        finally:
            if not child.gone:
                self._idle.put(child)

    def do(self, unit: Unit) -> Report:
        """Have a unit done, and wait for it."""
        with self._child() as child:
            child.give(unit)
            while not self._closed:
                child.connection.poll(_LOOK_SECONDS)
                for event in child.hear():
                    if isinstance(event, Report):
                        return event
                if stopped := child.check():
                    return stopped
        return Report(unit, Died("the run was given up", by_itself=False))


def do_unit(crew: str, unit: Unit) -> Report:
    """A task, on a worker."""
    worker = get_worker()
    try:
        report: Report = worker.plugins[crew].do(unit)
    except MicrotomeError as error:  # its processes cannot start
        report = Report(unit, Refused(error))
    where = f"{socket.gethostname()} {worker.name}"
    return Report(unit, report.result, where, report.seconds, report.peak_bytes)


class DaskPool:
    """The workers of a cluster.

    Parameters
    ----------
    client
        Connected to its scheduler.
    work
        What they do.
    limits
        What each of their processes may take.
    say
        Hears that there are no workers yet: a queue may be long.
    """

    def __init__(
        self, client: Client, work: Work, *, limits: Limits, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._client, self._say = client, say
        self._crew = f"microtome-{work.run}"
        self._ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._units: dict[Future, Unit] = {}
        self._numbers = itertools.count()
        self._threads, self._gpus, self._looked = 0, 0, -1e9
        self._closing = contextlib.ExitStack()
        self._lost = False
        self._say_again = time.monotonic() + _LOST_SECONDS
        client.register_plugin(
            Crew(self._crew, pickle.dumps(work), limits, work.orders.threads), name=self._crew
        )

    def width(self) -> int:
        """Threads of all workers."""
        self._count()
        return self._threads

    def room(self, *, on_gpu: bool | None) -> int:
        """Units that the workers can take, and a few to wait for them."""
        self._count()
        of_kind = sum(bool(unit.on_gpu) == bool(on_gpu) for unit in self._units.values())
        return _AHEAD * (self._gpus if on_gpu else self._threads) - of_kind

    def has_gpus(self) -> bool:
        """Whether a worker declares the resource ``GPU``."""
        self._count()
        return self._gpus > 0

    def give(self, unit: Unit) -> None:
        """Submit it: parts of slides that are begun before other slides."""
        with self._reaching():
            future = self._client.submit(
                do_unit,
                self._crew,
                unit,
                key=f"{self._crew}-{next(self._numbers)}",
                pure=False,
                retries=0,
                priority=0 if unit.part is None and unit.step == 0 else 1,
                resources={GPU: 1} if unit.on_gpu else None,
            )
        self._units[future] = unit
        future.add_done_callback(self._ended.put)

    def wait(self) -> list[Event]:
        """What has ended; a future is let go at once, so that nothing that has ended is done again."""
        try:
            future = self._ended.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            self._require_scheduler()
            self._count()
            if self._threads == 0 and time.monotonic() > self._say_again:
                self._say(f"waiting for workers to come to {self._client.scheduler.address}")
                self._say_again = time.monotonic() + _SAY_SECONDS
            return []
        unit = self._units.pop(future)
        with self._reaching():
            report = self._report(future, unit)
            future.release()
        return [report]

    def close(self) -> None:
        """Give up what runs, and end the workers' processes."""
        if not self._lost:  # else each of these would wait for a scheduler to come back
            with contextlib.suppress(Exception):  # whatever the state of the cluster is
                self._client.cancel(list(self._units))
            with contextlib.suppress(Exception):
                self._client.unregister_worker_plugin(self._crew)
        self._closing.close()

    def closing(self, stack: contextlib.ExitStack) -> None:
        """What is to be closed after it."""
        self._closing = stack

    def _report(self, future: Future, unit: Unit) -> Report:
        if future.status == "finished":
            report: Report = future.result(timeout=_LOST_SECONDS)
            return report
        if future.status != "error":
            raise self._gone()
        error = future.exception(timeout=_LOST_SECONDS)
        if isinstance(error, KilledWorker):
            return Report(unit, Died("the Dask workers that did it died", by_itself=False))
        raise UsageError(
            f"the workers cannot do their work ({type(error).__name__}: {error})",
            action="Install the same version of Microtome where they run",
        )

    def _count(self) -> None:
        """Workers come and go: how many there are is asked for from time to time."""
        if time.monotonic() - self._looked < 1.0:
            return
        self._looked = time.monotonic()
        with self._reaching():
            workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        self._threads = sum(int(worker["nthreads"]) for worker in workers)
        self._gpus = sum(int(worker["resources"].get(GPU, 0)) for worker in workers)

    def _require_scheduler(self) -> None:
        if self._client.status != "running":
            raise self._gone()

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Whatever fails on the way to the scheduler and back means that it is gone."""
        try:
            yield
        except MicrotomeError:
            raise
        except (OSError, TimeoutError, RuntimeError, CancelledError, FutureCancelledError) as error:
            raise self._gone() from error

    def _gone(self) -> SchedulerLostError:
        self._lost = True
        return SchedulerLostError(
            "the connection to the Dask scheduler is lost",
            action="Run the same command again when there is one: what is finished is kept",
        )
