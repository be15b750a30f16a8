"""`Pool`: who does units. One process, this machine's, or a cluster's: whoever drives them cannot tell."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from tiling.workers.unit import Died, Event, Progressed, Report, Unit, Work
from tiling.workers.worker import Worker
from wsi.errors import DeviceLostError


class Pool(Protocol):
    """Does units, several at a time."""

    def width(self, *, on_gpu: bool) -> int:
        """How many units are done at a time by workers that have a GPU for themselves, or by the others.

        Where nobody has one, nobody asks who wants one.
        """

    def room(self, *, on_gpu: bool | None) -> int:
        """How many units of this kind can be given now without their waiting for long."""

    def give(self, unit: Unit) -> None:
        """Have a unit done."""

    def wait(self) -> list[Event]:
        """What has happened since, after a moment's wait at most.

        Raises
        ------
        MicrotomeError
            Nobody can do anything any more.
        """

    def close(self) -> None:
        """Stop everybody at once; what is not finished is lost."""


class Here:
    """The process itself, one unit after the other. No other is started, and nothing is held to limits."""

    def __init__(self, work: Work, *, told: Callable[[Event], None] = lambda event: None) -> None:
        self._worker = Worker(work)
        self._told = told
        self._waiting: deque[Unit] = deque()

    def width(self, *, on_gpu: bool) -> int:
        """One; it has what GPUs there are, and shares them with nobody."""
        return 0 if on_gpu else 1

    def room(self, *, on_gpu: bool | None) -> int:
        """One, if it has none."""
        return 1 - len(self._waiting)

    def give(self, unit: Unit) -> None:
        """Keep it for `wait`."""
        self._waiting.append(unit)

    def wait(self) -> list[Event]:
        """Do what was given."""
        events: list[Event] = []
        while self._waiting:
            unit, start = self._waiting.popleft(), time.monotonic()

            def progress(done: int, total: int, unit: Unit = unit) -> None:
                self._told(Progressed(unit, done, total))

            result = self._worker.do(unit, progress)
            if isinstance(result, Died):  # and we with it: there is no other process
                raise DeviceLostError(
                    result.reason, action="Run the same command again: what is finished is kept"
                )
            events.append(Report(unit, result, self._worker.name, time.monotonic() - start))
        return events

    def close(self) -> None:
        """Close the slide that is open."""
        self._worker.let_go()
