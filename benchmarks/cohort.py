"""What it costs to have many slides done by many processes, and what that means for ten thousand.

    python -m benchmarks.cohort [--slides 12] [--rounds 3] [--units 400]

*Overhead*: steps that commit a few bytes are made by this process alone, by processes of this machine, and by
the workers of a Dask cluster on it; what they take more is what having it done by others costs, for each
slide and for each part of a large one. *Scheduler*: memory of a Dask scheduler before and after so many
slides; units reach it through a window, so it should not depend on their number. *Efficiency*: `microtome
tile` over a cohort, and of one large slide, with one worker and with two, taking turns; 1 is twice as fast.
*Projection*: the arithmetic for 10,000 such slides on 100 workers, from these figures alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.costs import ROOT
from benchmarks.empty_steps import Empty
from benchmarks.report import print_machine
from tiling.cohort import Status
from tiling.manifest import SlideEntry
from tiling.output import Output
from tiling.workers.children import Children
from tiling.workers.clusters import connected
from tiling.workers.dask_pool import DaskPool
from tiling.workers.limits import Limits
from tiling.workers.run import OpenPool, here, run_slides
from tiling.workers.unit import Orders, Work
from wsi.synthetic import write_slide

LIMITS = Limits(memory_bytes=8 << 30)
LARGE = 30_720, 24_576  # pixels of the slide that is shared
SLIDES, WORKERS = 10_000, 100
"""Of the projection."""


@dataclass(frozen=True)
class Overhead:
    """What one way of having things done takes."""

    per_slide: float
    """Seconds on the clock, of slides of one part."""
    per_part: float
    """Of the parts of one slide."""


def measure(pool: OpenPool, *, units: int) -> Overhead:
    """Slides of one part, and one slide of as many parts; without the start of processes."""
    with tempfile.TemporaryDirectory() as folder:
        started = 4
        took = {}
        for slides, parts in ((started, 1), (started + units, 1), (1, 2), (1, units)):
            files = [SlideEntry(f"s{n}", Path(f"s{n}")) for n in range(slides)]
            output = Output(Path(folder) / f"{slides}-{parts}")
            start = time.perf_counter()
            outcomes = run_slides(output, files, Orders(Empty(parts)), command=["benchmark"], pool=pool)
            took[slides, parts] = time.perf_counter() - start
            assert {outcome.status for outcome in outcomes} == {Status.DONE}, outcomes[0].reason
    per_slide = (took[started + units, 1] - took[started, 1]) / units
    return Overhead(per_slide, (took[1, units] - took[1, 2]) / (units - 2))


def children(count: int) -> OpenPool:
    """Processes of this machine."""
    return lambda work, told: Children(work, workers=count, limits=LIMITS)


@contextlib.contextmanager
def cluster(count: int) -> Iterator[tuple[OpenPool, psutil.Process]]:
    """A Dask cluster of so many workers of one thread, and its scheduler's process."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        file = Path(folder) / "scheduler.json"
        common = ["--scheduler-file", str(file), "--no-dashboard"]
        worker = [*common, "--nthreads", "1", "--memory-limit", "0"]
        first = stack.enter_context(_dask("scheduler", *common, "--port", "0", "--host", "127.0.0.1"))
        for _ in range(count):
            stack.enter_context(_dask("worker", *worker))
        with connected(scheduler_file=str(file)) as client:
            client.wait_for_workers(count, timeout=60)

        def pool(work: Work, told: object) -> DaskPool:
            inner = contextlib.ExitStack()
            opened = DaskPool(inner.enter_context(connected(scheduler_file=str(file))), work, limits=LIMITS)
            opened.closing(inner)
            return opened

        yield pool, psutil.Process(first.pid)


@contextlib.contextmanager
def _dask(name: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.dask_{name}", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def overhead_table(units: int) -> Overhead:
    """Print what each way costs; returns the cluster's."""
    print(
        "\n### Overhead\n\n| done by | ms a slide | ms a part of a large slide |\n|---|---|---|", flush=True
    )
    ways = {"this process": here, "one other process": children(1), "two": children(2)}
    for name, pool in ways.items():
        found = measure(pool, units=units)
        print(f"| {name} | {1e3 * found.per_slide:.1f} | {1e3 * found.per_part:.1f} |", flush=True)
    with cluster(2) as (pool, _):
        found = measure(pool, units=units)
    print(f"| two Dask workers | {1e3 * found.per_slide:.1f} | {1e3 * found.per_part:.1f} |", flush=True)
    print(f"\n{units} slides, and {units} parts, each a file and a commit of some bytes that are synced.")
    return found


def scheduler_table(units: int) -> float:
    """Print the scheduler's memory; returns the bytes by which it grew for each thousand slides."""
    print("\n### Scheduler\n\n| slides done | scheduler, MiB |\n|---|---|", flush=True)
    held = {}
    with cluster(2) as (pool, scheduler), tempfile.TemporaryDirectory() as folder:
        done = 0
        for batch in (100, units, units, 2 * units):
            files = [SlideEntry(f"s{done + n}", Path(f"s{n}")) for n in range(batch)]
            run_slides(Output(Path(folder)), files, Orders(Empty(1)), command=["benchmark"], pool=pool)
            done += batch
            held[done] = scheduler.memory_info().rss
            print(f"| {done} | {held[done] / 2**20:.1f} |", flush=True)
    grown = (held[done] - held[100]) / (done - 100) * 1000
    print(f"\n{grown / 2**20:.2f} MiB more for each 1,000 slides.")
    return grown


def efficiency_table(slides: int, rounds: int) -> tuple[float, float]:
    """Print one worker against two; returns a slide's seconds by one worker, and the efficiency of two."""
    print("\n### Efficiency\n\n| | 1 worker, s | in two, s | efficiency |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        many, half, large = (folder / name for name in ("many", "half", "large"))
        for path in (many, half, large):
            path.mkdir()
        write_slide(many / "s0.svs", seed=1, lesion=True, size=(6144, 4096))
        for number in range(1, slides):
            os.link(many / "s0.svs", many / f"s{number}.svs")
        for number in range(slides // 2):
            os.link(many / "s0.svs", half / f"s{number}.svs")
        write_slide(large / "s.svs", seed=2, lesion=True, size=LARGE)
        start = min(_tile(folder, (folder / "none", 1)) for _ in range(rounds))
        ways = {"one": [(many, 1)], "two": [(many, 2)], "halves": [(half, 1), (half, 1)]}
        ways |= {"large": [(large, 1)], "large by two": [(large, 2)]}
        took = dict.fromkeys(ways, 0.0)
        for _ in range(rounds):
            for way, commands in ways.items():
                took[way] += _tile(folder, *commands) / rounds
    one, two = took["one"], took["two"]
    _efficiency("a cohort, by two workers", one, two)
    _efficiency("the same by two commands, of half the slides each", one, took["halves"])
    _efficiency("the first without start and imports", one - start, two - start)
    _efficiency("one large slide, by two workers", took["large"], took["large by two"])
    _efficiency("the same without start and imports", took["large"] - start, took["large by two"] - start)
    print(
        f"\n{slides} slides of 6,144 x 4,096 px, one of {LARGE[0]:,} x {LARGE[1]:,}; means of {rounds} turns."
    )
    print("What two commands reach that know nothing of each other, is what the machine has.")
    print(f"Start and imports: {start:.2f} s.")
    return (one - start) / slides, (one - start) / (2 * (two - start))


def _efficiency(name: str, one: float, two: float) -> None:
    print(f"| {name} | {one:.2f} | {two:.2f} | {one / (2 * two):.2f} |", flush=True)


def _tile(folder: Path, *commands: tuple[Path, int]) -> float:
    """Seconds of commands that run at once, each over a folder of slides with so many workers."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        begun = time.perf_counter()
        running = []
        for number, (path, workers) in enumerate(commands):
            words = [sys.executable, str(ROOT / "cli.py"), "tile", str(path), "--quiet"]
            words += ["-o", f"{out}/{number}", "--workers", str(workers)]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            running.append(subprocess.Popen(words, **quiet))
        for one in running:
            one.wait()
        return time.perf_counter() - begun


def project(seconds: float, efficiency: float, overhead: Overhead, grown: float) -> None:
    """Print the arithmetic."""
    work = SLIDES * seconds / WORKERS / efficiency
    given = SLIDES * overhead.per_slide
    print(f"\n### {SLIDES:,} such slides on {WORKERS} workers\n")
    print(f"Work: {SLIDES:,} x {seconds:.2f} s / {WORKERS} / {efficiency:.2f} = {work / 60:.1f} min.")
    print(
        f"One driver gives and takes {SLIDES:,} x {1e3 * overhead.per_slide:.1f} ms = {given / 60:.1f} min,"
    )
    print(f"beside the work: the {'work' if work > given else 'driver'} decides.")
    busy = seconds / overhead.per_slide
    print(f"A driver keeps {busy:.0f} workers busy with slides of this size, more with larger ones.")
    more = grown / 2**20
    print(f"Scheduler: {SLIDES / 1000:.0f} x {more:.2f} MiB = {SLIDES / 1000 * more:.0f} MiB more.")
    print("Shared storage and its network are not in this; they are what a cluster is first short of.")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--slides", type=int, default=12, help="of the cohort (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns (default %(default)s)")
    parser.add_argument("--units", type=int, default=400, help="of next to nothing (default %(default)s)")
    asked = parser.parse_args()
    print_machine(["distributed"])
    overhead = overhead_table(asked.units)
    grown = scheduler_table(asked.units)
    seconds, efficiency = efficiency_table(asked.slides, asked.rounds)
    project(seconds, efficiency, overhead, grown)


if __name__ == "__main__":
    main()
