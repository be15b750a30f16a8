"""`Children`: processes on this machine, each held to limits; what one of them does, no other feels."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from tiling.workers.limits import GPU_SHARES, Limits, fair_share
from tiling.workers.supervisor import Child
from tiling.workers.unit import Died, Event, Report, Unit, Work

_LOOK_SECONDS = 0.25
"""How often the limits are looked at."""
NO_GPU: Mapping[str, str] = {"CUDA_VISIBLE_DEVICES": ""}
"""The environment of processes that are to leave the GPUs to others."""


@dataclass(slots=True)
class _Place:
    """A process, or the room for one."""

    environment: Mapping[str, str]
    has_gpu: bool
    threads: int
    child: Child | None = None

    def is_free(self) -> bool:
        return self.child is None or self.child.unit is None


class Children:
    """Processes of this machine, started when there is something for them to do.

    Parameters
    ----------
    work
        What they do.
    workers
        How many.
    limits
        What each may take.
    gpus
        An environment for each GPU that is used: for one more process, which has that GPU for itself, and
        alone does what wants one. It reads ahead with as many threads as there are workers, and is started
        at once: so an encoder that cannot be loaded is known before any slide is cut.
    """

    def __init__(
        self, work: Work, *, workers: int, limits: Limits, gpus: Sequence[Mapping[str, str]] = ()
    ) -> None:
        self._work = work
        share = fair_share(workers + GPU_SHARES * len(gpus))
        self._limits = limits if limits.memory_bytes else replace(limits, memory_bytes=share)
        more = GPU_SHARES * share
        self._gpu_limits = limits if limits.memory_bytes else replace(limits, memory_bytes=more)
        self._unborn: list[Event] = []
        self._put_off: list[Unit] = []
        hidden = NO_GPU if gpus else {}
        self._places = [_Place(hidden, False, work.orders.threads) for _ in range(workers)]
        for gpu in gpus:
            self._places.append(_Place(gpu, True, max(work.orders.threads, workers)))
            with contextlib.suppress(OSError):  # it is tried again when it is needed
                self._start(self._places[-1])

    def width(self, *, on_gpu: bool) -> int:
        """Processes of that kind."""
        return sum(place.has_gpu == on_gpu for place in self._places)

    def room(self, *, on_gpu: bool | None) -> int:
        """Processes that have nothing to do."""
        free = sum(place.is_free() and place.has_gpu == bool(on_gpu) for place in self._places)
        return free - sum(bool(unit.on_gpu) == bool(on_gpu) for unit in self._put_off)

    def give(self, unit: Unit) -> None:
        """To a process that has nothing to do: to one that has its slide open, if there is one."""
        kind = [place for place in self._places if place.has_gpu == bool(unit.on_gpu)]
        place = min((one for one in kind if one.is_free()), key=lambda one: _strangeness(one.child, unit))
        try:
            child = place.child or self._start(place)
        except OSError as error:  # no memory, or too many processes
            if any(one.child for one in kind):  # then it is done when one of them has ended its unit
                self._put_off.append(unit)
            else:
                self._unborn.append(Report(unit, cannot_start(error)))
        else:
            child.give(unit)

    def _start(self, place: _Place) -> Child:
        orders = replace(self._work.orders, threads=place.threads)
        kind = place.has_gpu if self.width(on_gpu=True) else None
        work = pickle.dumps(replace(self._work, orders=orders, on_gpu=kind))
        limits = self._gpu_limits if place.has_gpu else self._limits
        place.child = Child(work, limits=limits, threads=place.threads, environment=place.environment)
        return place.child

    def wait(self) -> list[Event]:
        """What has happened; whoever is beyond his limits is stopped, who died is replaced when needed."""
        events, self._unborn = self._unborn, []
        running = {place.child.connection: place for place in self._places if place.child}
        for connection in wait(list(running), timeout=_LOOK_SECONDS):
            place = running[cast("Connection[Any, Any]", connection)]
            assert place.child is not None
            events += place.child.hear()
        for place in self._places:
            if place.child and not place.child.gone and (stopped := place.child.check()):
                events.append(stopped)
            if place.child and place.child.gone:
                place.child = None
        put_off, self._put_off = self._put_off, []
        for unit in put_off:
            self.give(unit)
        return events

    def close(self) -> None:
        """Kill them."""
        for place in self._places:
            if place.child:
                with contextlib.suppress(OSError):
                    place.child.stop()
                place.child = None


def _strangeness(child: Child | None, unit: Unit) -> int:
    """0 for a process that has the unit's slide open, 2 for one that would have to be started."""
    if child is None:
        return 2
    return int(child.last_slide != unit.slide_id)


def cannot_start(error: OSError) -> Died:
    """What becomes of a unit for which no process can be started."""
    return Died(f"no process can be started ({error.strerror or error})", by_itself=False, began=False)
