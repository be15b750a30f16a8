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
import threading
import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distributed import Client, KilledWorker, WorkerPlugin, get_worker
from distributed.client import FutureCancelledError

from tiling.workers.children import NO_GPU, cannot_start
from tiling.workers.limits import GPU_SHARES, Limits, fair_share
from tiling.workers.supervisor import Child
from tiling.workers.unit import Died, Event, Report, Unfit, Unit, Work
from wsi.errors import MicrotomeError, SchedulerLostError, UnfitError, UsageError

if TYPE_CHECKING:
    from distributed import Future, Worker

GPU = "GPU"
"""The resource that a worker declares to get the units that want one: ``dask worker --resources GPU=1``."""
_AHEAD = 2
"""Units that each thread has been given: one at work, one that waits for it. The rest waits here."""
_LOOK_SECONDS = 0.25
_LOST_SECONDS = 20.0
_SAY_SECONDS = 300.0
_CLOSE_SECONDS = 5.0
_MOST_UNBORN = 3
"""Processes of a worker that may die, one after the other, before they begin with anything."""
_FIT_SECONDS = 60.0
"""How long a run goes on where no worker that is there can take part: the first of many may be wrong."""


class Crew(WorkerPlugin):  # type: ignore[misc]  # it has no types
    """The processes of one Dask worker: one for each task that runs at a time.

    Tasks run in threads of the worker, and its end is told in another one: `_lock` is for what they share.
    """

    def __init__(self, name: str, work: Work, limits: Limits) -> None:
        self.name, self._limits, self._gpu_limits = name, limits, limits
        self._threads = work.orders.threads
        # Pickled here: the worker itself imports nothing of what its processes do.
        self._work = {kind: pickle.dumps(replace(work, on_gpu=kind)) for kind in (None, False, True)}

    def setup(self, worker: Worker) -> None:
        """On the worker, when it joins."""
        if self._limits.memory_bytes is None:
            allowed = worker.memory_manager.memory_limit
            gpus = int(worker.state.total_resources.get(GPU, 0))
            most = worker.state.nthreads + GPU_SHARES * gpus
            share = int(allowed // most if allowed else fair_share(most))
            self._limits = replace(self._limits, memory_bytes=share)
            self._gpu_limits = replace(self._limits, memory_bytes=GPU_SHARES * share)
        self._lock = threading.Lock()
        self._idle: dict[bool | None, list[Child]] = {None: [], False: [], True: []}  # by `Work.on_gpu`
        self._all: list[Child] = []
        self._over = threading.Event()

    def teardown(self, worker: Worker) -> None:
        """On the worker, when the run has ended, in whatever way."""
        with self._lock:
            self._over.set()
            children = self._all
        for child in children:
            _stop(child)

    @contextlib.contextmanager
    def _child(self, on_gpu: bool | None) -> Iterator[Child]:
        """One that nobody uses."""
        child = self._from_idle(on_gpu) or self._start(on_gpu)
        try:
            yield child
        except MicrotomeError:  # it cannot make the steps, and ends
            _stop(child)
            raise
        finally:
            if not child.gone:
                with self._lock:
                    self._idle[on_gpu].append(child)

    def _from_idle(self, on_gpu: bool | None) -> Child | None:
        while True:
            with self._lock:
                if not self._idle[on_gpu]:
                    return None
                child = self._idle[on_gpu].pop()
            child.hear()
            if not child.gone:  # nobody wanted it for long
                return child

    def _start(self, on_gpu: bool | None) -> Child:
        child = Child(
            self._work[on_gpu],
            limits=self._gpu_limits if on_gpu else self._limits,
            threads=self._threads,
            environment=NO_GPU if on_gpu is False else {},
        )
        with self._lock:
            self._all = [*(one for one in self._all if not one.gone), child]
            late = self._over.is_set()
        if late:  # whoever ended it has not seen this one
            _stop(child)
        return child

    def do(self, unit: Unit) -> Report:
        """Have a unit done, and wait for it; `Unfit` where processes do not even begin here."""
        reason = ""
        for _ in range(_MOST_UNBORN):
            report = self._try(unit)
            died = report.result
            if not isinstance(died, Died) or died.began:
                return report
            reason = died.reason
            if died.hopeless:  # it hung, and so may the next one
                break
            time.sleep(_LOOK_SECONDS)
        said = f"processes on {socket.gethostname()} end before they begin ({reason})"
        return Report(unit, Unfit(UnfitError(said, action="See what is wrong with that machine")))

    def _try(self, unit: Unit) -> Report:
        given_up = Report(unit, Died("the run was given up", by_itself=False))
        if self._over.is_set():
            return given_up
        try:
            with self._child(unit.on_gpu) as child:
                child.give(unit)
                while not self._over.is_set():
                    child.connection.poll(_LOOK_SECONDS)
                    for event in child.hear():
                        if isinstance(event, Report):
                            return event
                    if stopped := child.check():
                        return stopped
        except MicrotomeError as error:  # its processes cannot make the steps
            return Report(unit, Unfit(error))
        except OSError as error:
            return given_up if self._over.is_set() else Report(unit, cannot_start(error))
        return given_up


def _stop(child: Child) -> None:
    if not child.gone:
        with contextlib.suppress(OSError):
            child.stop()


def do_unit(crew: str, unit: Unit) -> tuple[str, Report]:
    """A task, on a worker: its address, and what became of the unit."""
    worker = get_worker()
    report: Report = worker.plugins[crew].do(unit)
    where = f"{socket.gethostname()} {worker.name}"
    return worker.address, Report(unit, report.result, where, report.seconds, report.peak_bytes)


def _send(client: Client, crew: Crew) -> None:
    """A crew to all workers, those that come later too; `UnfitError` names those that know no such thing."""
    try:
        client.register_plugin(crew, name=crew.name)
    except (OSError, TimeoutError):
        raise
    except Exception as error:  # whatever a worker raised, as it was pickled there or as text
        answers = client.run(_is_there, on_error="return")
        names = sorted(address for address, answer in answers.items() if answer is not True)
        who = ", ".join(names) or "its workers"
        raise UnfitError(
            f"Microtome cannot be imported by {who} ({error})",
            action="Install the same version where they run, or stop them",
        ) from error


def _within(seconds: float, act: Callable[[], object]) -> None:
    """Do it, but wait no longer than that for its end; what it raises until then is raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]


def _is_there() -> bool:
    return True


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
        self._tied: dict[Future, frozenset[str]] = {}
        self._numbers = itertools.count()
        self._workers: Mapping[str, Mapping[str, Any]] = {}
        self._looked = -1e9
        self._unfit: set[tuple[str, bool]] = set()  # addresses, and whether for what wants a GPU
        self._fit_until = {False: 0.0, True: 0.0}
        self._closing = contextlib.ExitStack()
        self._lost = False
        self._say_again = time.monotonic() + _LOST_SECONDS
        with self._reaching():
            # A worker that does not answer gets it when it does; the others have it.
            _within(_LOST_SECONDS, lambda: _send(client, Crew(self._crew, work, limits)))

    def width(self, *, on_gpu: bool) -> int:
        """Threads of all workers that can take part, or the GPUs that they declare."""
        self._look()
        fit = self._fit(on_gpu=on_gpu).values()
        return sum(int(worker["resources"][GPU] if on_gpu else worker["nthreads"]) for worker in fit)

    def room(self, *, on_gpu: bool | None) -> int:
        """Units that the workers can take, and a few to wait for them."""
        of_kind = sum(bool(unit.on_gpu) == bool(on_gpu) for unit in self._units.values())
        width = self.width(on_gpu=bool(on_gpu))
        self._say_if_missing(bool(on_gpu), width)
        return _AHEAD * width - of_kind

    def give(self, unit: Unit) -> None:
        """Submit it: parts of slides that are begun before other slides."""
        # Where some are left out, to those that are not; where all are, to any: they may have got over it.
        tied = frozenset(self._fit(on_gpu=bool(unit.on_gpu)) if self._unfit else ())
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
                workers=sorted(tied) or None,
            )
        self._units[future], self._tied[future] = unit, tied
        future.add_done_callback(self._ended.put)

    def wait(self) -> list[Event]:
        """What has ended; a future is let go at once, so that nothing that has ended is done again."""
        try:
            future = self._ended.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            self._require_scheduler()
            for kind in {bool(unit.on_gpu) for unit in self._units.values()}:
                self._say_if_missing(kind, self.width(on_gpu=kind))
            return []
        unit = self._units.pop(future, None)
        self._tied.pop(future, None)
        if unit is None:  # it was given to others
            return []
        with self._reaching():
            address, report = self._report(future, unit)
            future.release()
        if isinstance(report.result, Unfit):
            self._leave_out(address, report, report.result.error)
            self.give(unit)
            return []
        self._unfit.discard((address, bool(unit.on_gpu)))  # it has got over it
        return [report]

    def close(self) -> None:
        """Give up what runs, and end the workers' processes."""
        if not self._lost:  # else each of these would wait for a scheduler to come back
            with contextlib.suppress(Exception):  # whatever the state of the cluster is
                _within(_CLOSE_SECONDS, lambda: self._client.cancel(list(self._units)))
            with contextlib.suppress(Exception):  # who does not hear of it, sees that the run is over
                _within(_CLOSE_SECONDS, lambda: self._client.unregister_worker_plugin(self._crew))
        self._closing.close()

    def closing(self, stack: contextlib.ExitStack) -> None:
        """What is to be closed after it."""
        self._closing = stack

    def _report(self, future: Future, unit: Unit) -> tuple[str, Report]:
        if future.status == "finished":
            report: tuple[str, Report] = future.result(timeout=_LOST_SECONDS)
            return report
        if future.status != "error":
            raise self._gone()
        error = future.exception(timeout=_LOST_SECONDS)
        if isinstance(error, KilledWorker):
            return "", Report(unit, Died("the Dask workers that did it died", by_itself=False))
        raise UsageError(
            f"the workers cannot do their work ({type(error).__name__}: {error})",
            action="Install the same version of Microtome where they run",
        )

    def _leave_out(self, address: str, report: Report, error: MicrotomeError) -> None:
        """Go on without a worker that cannot begin; where there is no other one, what it said is the end."""
        kind = bool(report.unit.on_gpu)
        if (address, kind) not in self._unfit:
            if not self._unfit:
                self._fit_until = dict.fromkeys(self._fit_until, time.monotonic())
            self._unfit.add((address, kind))
            self._say(f"worker {report.worker} is left out: {error}")
        self._looked = -1e9
        if self.width(on_gpu=kind):
            return
        if not isinstance(error, UnfitError) or time.monotonic() - self._fit_until[kind] > _FIT_SECONDS:
            raise error
        time.sleep(_LOOK_SECONDS)

    def _fit(self, *, on_gpu: bool) -> Mapping[str, Mapping[str, Any]]:
        """Workers that can take part, by address: all of them, or those with a GPU."""
        return {
            address: worker
            for address, worker in self._workers.items()
            if (address, on_gpu) not in self._unfit and (not on_gpu or worker["resources"].get(GPU))
        }

    def _look(self) -> None:
        """Workers come and go: who is there is asked for from time to time."""
        if time.monotonic() - self._looked < 1.0:
            return
        with self._reaching():
            self._workers = self._client.scheduler_info(n_workers=-1)["workers"]
        self._looked = time.monotonic()
        for kind in (False, True):
            if self._fit(on_gpu=kind):
                self._fit_until[kind] = self._looked
        for future in [one for one, tied in self._tied.items() if tied and not tied & self._workers.keys()]:
            self._tied.pop(future)  # those that it was for have left
            unit = self._units.pop(future)
            with self._reaching():
                future.cancel()
            self.give(unit)

    def _say_if_missing(self, on_gpu: bool, width: int) -> None:
        if width == 0 and time.monotonic() > self._say_again:
            kind = f"workers with the resource {GPU}" if on_gpu else "workers"
            self._say(f"waiting for {kind} to come to {self._client.scheduler.address}")
            self._say_again = time.monotonic() + _SAY_SECONDS

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
