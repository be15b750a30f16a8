"""`Stopwatch`: where the time of a run goes. What it says is for run logs, never for results."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


class Stopwatch:
    """Seconds by activity, added up over all threads that are at it: with two at work, two a second.

    Time only what has no other timed activity inside, or it is counted twice. For any number of threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._seconds: dict[str, float] = {}
        self._begun: dict[str, float] = {}

    @contextmanager
    def lap(self, activity: str) -> Iterator[None]:
        """Time what is inside, also where it raises."""
        start = self._begun[activity] = time.perf_counter()
        try:
            yield
        finally:
            self._begun.pop(activity, None)
            self.add(activity, time.perf_counter() - start)

    def running(self, activity: str) -> float:
        """Seconds since the last lap of it began; 0 where that has ended."""
        now = time.perf_counter()
        return now - self._begun.get(activity, now)

    def add(self, activity: str, seconds: float) -> None:
        """Seconds that were measured otherwise."""
        with self._lock:
            self._seconds[activity] = self._seconds.get(activity, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """What was added up so far, by activity."""
        with self._lock:
            return dict(self._seconds)

    def since(self, before: dict[str, float]) -> dict[str, float]:
        """What was added since `seconds` said `before`; nothing of activities that nobody was at."""
        now = self.seconds()
        return {name: now[name] - before.get(name, 0.0) for name in now if now[name] > before.get(name, 0.0)}
