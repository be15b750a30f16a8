"""What work costs: CPU-seconds of all threads, time on the clock, memory; each way in its own process."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VIPS_CONCURRENCY": "1",
    "TIFFFILE_NUM_THREADS": "1",
}
"""What keeps libraries from starting threads of their own; threads that wait may count as work."""

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
    """Of one unit of work: a tile, or a megapixel."""

    cpu: float
    """Seconds of all threads together."""
    wall: float
    """Seconds on the clock."""
    peak: int
    """Most bytes in memory."""

    def per(self, units: float) -> Cost:
        """What one of `units` costs, where all of them cost this."""
        return Cost(self.cpu / units, self.wall / units, self.peak)

    def or_less(self, other: Cost) -> Cost:
        """The better of two rounds, figure by figure; memory is that of the worse."""
        return Cost(min(self.cpu, other.cpu), min(self.wall, other.wall), max(self.peak, other.peak))


Way = Callable[[], Cost]


def timed(work: Callable[[], object]) -> Cost:
    """Of all of `work`, in this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall, peak_memory())


def peak_memory() -> int:
    """Most bytes this process held: Linux's own mark, for its ru_maxrss starts at the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def apart(kind: str, *, variables: Mapping[str, str] = ONE_THREAD, **request: Any) -> dict[str, Any]:
    """Have `benchmarks.worker` do one piece of work in a process of its own; what it tells.

    Raises
    ------
    WayError
        It failed.
    """
    words = [sys.executable, "-P", "-m", "benchmarks.worker"]
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    request["kind"] = kind
    done = subprocess.run(
        words, input=json.dumps(request), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise WayError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def launched(words: Sequence[str]) -> Cost:
    """Of a whole program, from its start to its end."""
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
    """The least that each way cost in any round, so that other work on the machine disturbs all alike.

    Every second round goes backwards. There is one round at least, however long it takes.
    """
    end, rounds = time.monotonic() + seconds, 0
    best: dict[str, Cost] = {}
    failed: dict[str, str] = {}
    while rounds == 0 or time.monotonic() < end:
        names = list(ways)[:: 1 if rounds % 2 == 0 else -1]
        for name in names:
            if name in failed:
                continue
            try:
                cost = ways[name]()
            except WayError as error:
                failed[name] = str(error)
                continue
            best[name] = cost.or_less(best.get(name, cost))
        rounds += 1
    whole = {name: best[name] for name in ways if name in best and name not in failed}
    return Measured(whole, failed, rounds)
