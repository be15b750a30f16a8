"""`run_slides`: a command's steps over many slides, under the output's lock, logged, by whoever there is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tiling.cohort import Outcome, RunLog
from tiling.manifest import SlideEntry
from tiling.output import Output
from tiling.versions import versions
from tiling.workers.announce import announced
from tiling.workers.driver import SlideEnd, drive
from tiling.workers.pool import Here, Pool
from tiling.workers.unit import Event, Orders, Progressed, Work

OpenPool = Callable[[Work, Callable[[Event], None]], Pool]
"""Who does the work; the function hears of progress that the pool's events would tell too late."""


def here(work: Work, told: Callable[[Event], None]) -> Pool:
    """No process but this one."""
    return Here(work, told=told)


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who hears how a run goes."""

    ended: Callable[[Outcome], None] = lambda outcome: None
    progressed: Callable[[Progressed], None] = lambda event: None


NOBODY = Watcher()


def run_slides(
    output: Output,
    slides: Sequence[SlideEntry],
    orders: Orders,
    *,
    command: Sequence[str],
    pool: OpenPool = here,
    watcher: Watcher = NOBODY,
) -> list[Outcome]:
    """All steps for every slide.

    Parameters
    ----------
    output
        Where to write.
    slides
        In the order in which they are begun; no two of one id.
    orders
        What is done to each.
    command
        For the log.
    pool
        Who does it.
    watcher
        Who hears of it.

    Returns
    -------
    How each slide ended, in the order in which they did.

    Raises
    ------
    OutputError, OutputBusyError
        Nothing can be written; what is finished stays.
    MicrotomeError
        The steps cannot be made, or nobody is there any more to make them.
    """
    run, log = os.urandom(8).hex(), RunLog(output, command)
    with output.lock(), announced(output, run):
        output.clean()
        work = Work(orders, output.root.absolute(), Path.cwd(), run, versions())

        def ended(end: SlideEnd) -> None:
            log.add(end.outcome, end.steps, ledger=end.ledger)
            watcher.ended(end.outcome)

        def told(event: Event) -> None:
            if isinstance(event, Progressed):
                watcher.progressed(event)

        try:
            with _open(pool, work, told) as workers:
                return drive(workers, slides, ended=ended, progressed=watcher.progressed)
        finally:
            log.close()


@contextmanager
def _open(pool: OpenPool, work: Work, told: Callable[[Event], None]) -> Iterator[Pool]:
    opened = pool(work, told)
    try:
        yield opened
    finally:
        opened.close()
