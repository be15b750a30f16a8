"""What work costs: CPU-seconds of all threads, time on the clock, memory; each way in its own process.

Machines are shared: what else runs on the processor slows work down, up to twofold, for seconds at a time. So
ways take turns many times a second, and what counts is all the time that each took for all that it did: the
same disturbance falls on all of them, and ratios hold where rates do not.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VIPS_CONCURRENCY": "1",
    "TIFFFILE_NUM_THREADS": "1",
}
"""What keeps libraries from starting threads of their own; threads that wait may count as work."""
TURN = 0.05
"""Seconds on the clock of one turn, usually; a unit that was begun is finished."""

# It starts a program and tells what that took. A small process: a program's peak is never below its parent's.
_LAUNCH = """
import json, os, sys, time
start = time.perf_counter()
pid = os.fork()
if pid == 0:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.execv(sys.argv[1], sys.argv[1:])
_, status, used = os.wait4(pid, 0)
wall = time.perf_counter() - start
unit = 1 if sys.platform == "darwin" else 1024
told = {"cpu": used.ru_utime + used.ru_stime, "wall": wall, "peak": used.ru_maxrss * unit}
print(json.dumps(told))
sys.exit(status != 0)
"""


class WayError(Exception):
    """A way that does not work here: its library is missing or cannot read the slide."""


@dataclass(frozen=True)
class Cost:
    """Of so many units of work: tiles, or megapixels."""

    cpu: float
    """Seconds of all threads together."""
    wall: float
    """Seconds on the clock."""
    peak: int
    """Most bytes in memory."""
    units: float = 1.0

    def __add__(self, other: Cost) -> Cost:
        cpu, wall, units = self.cpu + other.cpu, self.wall + other.wall, self.units + other.units
        return Cost(cpu, wall, max(self.peak, other.peak), units)

    @property
    def per_cpu(self) -> float:
        """Units in a CPU-second."""
        return self.units / self.cpu

    @property
    def per_second(self) -> float:
        """Units in a second on the clock."""
        return self.units / self.wall


class Way(Protocol):
    """Something that can be done for a while. Entering it gets it ready; `WayError` says why it cannot."""

    def __enter__(self) -> Self:
        """Get ready; this is not measured."""

    def __exit__(self, *_: object) -> None:
        """Clean up."""

    def turn(self) -> Cost:
        """Work for one turn."""


class Worker:
    """A way that `benchmarks.worker` goes in a process of its own, unit by unit.

    Parameters
    ----------
    kind, request
        See there.
    seconds
        Of one turn: as long as those of the ways that it is compared with.
    """

    def __init__(self, kind: str, *, seconds: float = TURN, **request: Any) -> None:
        self._request = {"kind": kind, **request}
        self._seconds = seconds
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        words = [sys.executable, "-P", "-m", "benchmarks.worker"]
        self._errors = self._stack.enter_context(tempfile.TemporaryFile("w+"))
        self._process = self._stack.enter_context(
            subprocess.Popen(
                words,
                env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        )
        try:
            self._ask(self._request)
        except WayError:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def turn(self) -> Cost:
        """See `Way`."""
        return Cost(**self._ask(self._seconds))

    def _ask(self, question: object) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        answer = ""
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
            while not answer.startswith("{"):  # libraries print too
                answer = self._process.stdout.readline()
                if not answer:
                    raise BrokenPipeError
        except BrokenPipeError as error:
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines()
            raise WayError(lines[-1] if lines else "it ended without a word") from error
        told: dict[str, Any] = json.loads(answer)
        return told


@dataclass(frozen=True)
class Whole:
    """A way that goes from its start to its end in every turn."""

    run: Callable[[], Cost]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def turn(self) -> Cost:
        """See `Way`."""
        return self.run()


def serve(work: Callable[[], Iterator[float]], questions: Iterator[str]) -> None:
    """The other end of `Worker`: for each line with seconds, work as long, and print what it cost.

    `work` yields the units that it has done, again and again; it is begun anew when it ends.
    """
    doing = work()
    for question in questions:
        least, units = json.loads(question), 0.0
        cpu, wall = time.process_time(), time.perf_counter()
        while time.perf_counter() - wall < least:
            done = next(doing, None)
            if done is None:
                doing = work()
            else:
                units += done
        cost = Cost(time.process_time() - cpu, time.perf_counter() - wall, peak_memory(), units)
        print(json.dumps(asdict(cost)), flush=True)


def peak_memory() -> int:
    """Most bytes this process held: Linux's own mark, for its ru_maxrss starts at the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def launched(words: Sequence[str]) -> Cost:
    """Of a whole program, from its start to its end, as one unit."""
    launch = [sys.executable, "-I", "-S", "-c", _LAUNCH, *words]
    done = subprocess.run(launch, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WayError((done.stderr.strip().splitlines() or ["it failed"])[-1])
    return Cost(**json.loads(done.stdout))


@dataclass(frozen=True)
class Measured:
    """What came out of some rounds."""

    costs: Mapping[str, Cost]
    """By way, in the order in which they were given."""
    failed: Mapping[str, str]
    """The reason, by way."""
    rounds: int


def take_turns(ways: Mapping[str, Way], *, seconds: float) -> Measured:
    """Let each way work for a short while, again and again; every second round goes backwards.

    There is one round at least, however long it takes.
    """
    costs: dict[str, Cost] = {}
    failed: dict[str, str] = {}
    rounds = 0
    with ExitStack() as stack:
        ready: dict[str, Way] = {}
        for name, way in ways.items():
            try:
                ready[name] = stack.enter_context(way)
            except WayError as error:
                failed[name] = str(error)
        end = time.monotonic() + seconds
        while rounds == 0 or time.monotonic() < end:
            for name in list(ready)[:: 1 if rounds % 2 == 0 else -1]:
                try:
                    cost = ready[name].turn()
                except WayError as error:
                    failed[name] = str(error)
                    del ready[name]
                    continue
                costs[name] = costs[name] + cost if name in costs else cost
            rounds += 1
    return Measured({name: costs[name] for name in ready}, failed, rounds)
