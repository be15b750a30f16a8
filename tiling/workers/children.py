"""`Children`: processes on this machine, each held to limits; what one of them does, no other feels."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from tiling.workers.limits import Limits, fair_share
from tiling.workers.supervisor import Child
from tiling.workers.unit import Event, Unit, Work

_LOOK_SECONDS = 0.25
"""How often the limits are looked at."""
_EVERYONE: Mapping[str, str] = {}


@dataclass(slots=True)
class _Place:
    """A process, or the room for one: started when there is something for it to do."""

    environment: Mapping[str, str]
    has_gpu: bool
    threads: int
    child: Child | None = None

    def is_free(self) -> bool:
        return self.child is None or self.child.unit is None


class Children:
    """Processes of this machine.

    Parameters
    ----------
    work
        What they do.
    workers
        How many.
    limits
        What each may take.
    gpus
        Names of GPUs, as ``CUDA_VISIBLE_DEVICES`` takes them: each has one more process for itself, which
        alone does what wants a GPU, with as many threads to read ahead as there are workers.
    """

    def __init__(self, work: Work, *, workers: int, limits: Limits, gpus: tuple[str, ...] = ()) -> None:
        self._work = work
        self._limits = limits if limits.memory_bytes else replace(limits, memory_bytes=fair_share(workers))
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if gpus else _EVERYONE
        self._places = [_Place(hidden, False, work.orders.threads) for _ in range(workers)]
        self._places += [
            _Place({"CUDA_VISIBLE_DEVICES": gpu}, True, max(work.orders.threads, workers)) for gpu in gpus
        ]

    def width(self) -> int:
        """Processes without a GPU."""
        return sum(not place.has_gpu for place in self._places)

    def room(self, *, on_gpu: bool | None) -> int:
        """Processes that have nothing to do."""
        return sum(place.is_free() and place.has_gpu == bool(on_gpu) for place in self._places)

    def has_gpus(self) -> bool:
        """Whether it was given any."""
        return any(place.has_gpu for place in self._places)

    def give(self, unit: Unit) -> None:
        """To a process that has nothing to do: to one that has its slide open, if there is one."""
        free = [place for place in self._places if place.is_free() and place.has_gpu == bool(unit.on_gpu)]
        place = min(free, key=lambda place: _strangeness(place.child, unit))
        if place.child is None:
            work = pickle.dumps(_with_threads(self._work, place.threads))
            place.child = Child(
                work, limits=self._limits, threads=place.threads, environment=place.environment
            )
        place.child.give(unit)

    def wait(self) -> list[Event]:
        """What has happened; whoever is beyond his limits is stopped, who died is replaced when needed."""
        events: list[Event] = []
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


def _with_threads(work: Work, threads: int) -> Work:
    return replace(work, orders=replace(work.orders, threads=threads))
