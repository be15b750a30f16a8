"""`Worker`: does one unit after the other in this process, and says what became of each."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from functools import partial

from tiling.blocks import Progress
from tiling.cohort import Status, StepTime
from tiling.ensure import ensure, find_whole, setting_aside
from tiling.manifest import SlideEntry
from tiling.output import Output
from tiling.pipeline import Job, Step
from tiling.store import TileStore
from tiling.versions import versions
from tiling.workers.announce import is_on
from tiling.workers.unit import Died, Divided, Done, Ended, HandedOver, Held, Refused, Result, Unit, Work
from wsi.durable import output_errors
from wsi.errors import (
    DeviceLostError,
    MicrotomeError,
    NoTilesError,
    NoTissueError,
    OutputBusyError,
    OutputError,
    UnfitError,
)
from wsi.messages import printable
from wsi.slide import Slide
from wsi.stopwatch import Stopwatch

Reached = Callable[[int], None]
"""Called with the number of a step when it begins."""

CLAIM_SECONDS = 20.0
"""How long a unit waits for a process that its run has lost sight of, and that is at work on the slide."""
LONGEST_QUIET_SECONDS = 3600.0
"""How long what needs no sign of life may take before that counts as silence."""
_log = logging.getLogger(__name__)


class Worker:
    """Makes its steps once, and keeps the slide that it read last open.

    Parameters
    ----------
    work
        What to do.

    Raises
    ------
    MicrotomeError
        The steps cannot be made: wrong settings, no such encoder.
    UnfitError
        Other versions are installed here, or the output folder is not the one that the run writes to.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.name = os.urandom(4).hex()
        self.output = Output(work.root)
        _require_alike(work)
        self.steps = list(work.orders.make_steps())
        for step in self.steps:
            if work.on_gpu is None or work.on_gpu == step.wants_gpu:
                step.prepare()
        self._open: tuple[SlideEntry, Slide] | None = None
        self._kept: dict[str, object] = {}
        self._kept_of: SlideEntry | None = None
        self._times = Stopwatch()
        self._quiet_since: float | None = None

    def do(self, unit: Unit, progress: Progress, *, reached: Reached = lambda step: None) -> Result:
        """Do a unit; whatever goes wrong with a slide is a result. `progress` hears of tiles."""
        spent: list[StepTime] = []
        try:
            return self._do_alone(unit, progress, reached, spent)
        except NoTissueError as error:
            status = Status.NO_TILES if isinstance(error, NoTilesError) else Status.NO_TISSUE
            return Ended(status, printable(str(error)), 0, tuple(spent))
        except (OutputError, OutputBusyError) as error:
            return Refused(error)
        except DeviceLostError as error:  # in a process of its own it is tried again
            return Died(error.reason, by_itself=True, by_device=True)
        except MicrotomeError as error:
            self.let_go()  # OpenSlide's errors stick to its handle
            return Ended(Status.FAILED, printable(str(error)), error.exit_code, tuple(spent))
        except Exception as error:  # a bug of ours must not cost the other slides
            self.let_go()
            if self.work.orders.debug:
                _log.exception("%s", unit.slide_id)
            reason = f"{unit.slide.path}: unexpected {type(error).__name__}: {error}"
            reason += ". Run it with --debug and report it"
            return Ended(Status.FAILED, printable(reason), 70, tuple(spent))

    def busy_seconds(self) -> float:
        """Changes as long as anything goes on: what says nothing for long, hangs. For any thread.

        A call that ends is a sign of life. So are, for an hour, what waits for another process, a network at
        work on a batch, and steps that read no slide: they may take their time. A decoder that does not come
        back is none.
        """
        slide, quiet = self._open, self._quiet_since
        times = slide[1].times if slide else self._times
        patient = times.running("encode") if quiet is None else time.monotonic() - quiet
        return sum(times.seconds().values()) + min(patient, LONGEST_QUIET_SECONDS)

    def let_go(self) -> None:
        """Close the slide that is open."""
        self._kept.clear()
        if self._open:
            self._open[1].close()
            self._open = None

    def _do_alone(self, unit: Unit, progress: Progress, reached: Reached, spent: list[StepTime]) -> Result:
        """Do it while nobody else works on the slide, but those who make other parts."""
        with contextlib.ExitStack() as stack:
            self._quiet_since = time.monotonic()
            try:
                claim = self.output.claim(unit.slide_id, shared=unit.part is not None, patience=CLAIM_SECONDS)
                stack.enter_context(claim)
            except OutputBusyError as error:
                return Held(error.reason)
            with output_errors(self.output.root):
                goes_on = is_on(self.output, self.work.run)
            if not goes_on:  # nobody waits for this any more, and others may begin
                return Refused(OutputBusyError("the run is over", path=self.output.root))
            self._quiet_since = None  # a file that is opened is a decoder's
            return self._do(unit, progress, reached, spent)

    def _do(self, unit: Unit, progress: Progress, reached: Reached, spent: list[StepTime]) -> Result:
        if unit.slide != self._kept_of:  # also where steps start from the store, and no slide is open
            self._kept.clear()
            self._kept_of = unit.slide
        store = TileStore(self.output, unit.slide_id, overwrite=self.work.orders.overwrite, run=self.work.run)
        slide = self._slide(unit)
        times = slide.times if slide else self._times
        whole = Job(store, slide, progress, times, self.work.orders.threads)
        if unit.part is not None:
            self._begin(unit.step, reached)
            helping = Job(store, slide, progress, times, self.work.orders.threads, self.name, self._kept)
            return self._part(self.steps[unit.step], helping, unit.part)
        self._kept.clear()
        for number in range(unit.step, len(self.steps)):
            step = self.steps[number]
            if unit.on_gpu is not None and step.wants_gpu != unit.on_gpu:
                return HandedOver(number, step.wants_gpu, tuple(spent))
            self._begin(number, reached)
            if parts := self._too_many(step, whole, unit.most_parts):
                return Divided(number, parts, tuple(spent))
            spent.append(_timed(step, whole))
        return Done(tuple(spent))

    def _begin(self, step: int, reached: Reached) -> None:
        self._quiet_since = None if self.steps[step].reads_slide else time.monotonic()
        reached(step)

    def _slide(self, unit: Unit) -> Slide | None:
        if self.work.orders.open_slide is None:
            return None
        if self._open is None or self._open[0] != unit.slide:
            self.let_go()
            self._open = unit.slide, self.work.orders.open_slide(unit.slide)
        return self._open[1]

    def _too_many(self, step: Step, job: Job, most: int | None) -> tuple[int, ...]:
        """The missing parts of a step, where they are more than one process is to make."""
        if most is None or step.parts is None:
            return ()
        find_whole(job.store, step.item)
        with setting_aside(job.store):
            found = tuple(step.parts.missing(job))
        return found if len(found) > most else ()

    def _part(self, step: Step, job: Job, part: int) -> Result:
        assert step.parts is not None, f"{step.item} has no parts"
        start, before = time.perf_counter(), job.times.seconds()
        with setting_aside(job.store):
            step.parts.make(job, part)
        seconds = time.perf_counter() - start
        return Done((StepTime(step.item, True, seconds, job.times.since(before)),))


def _timed(step: Step, job: Job) -> StepTime:
    start, before = time.perf_counter(), job.times.seconds()
    made = ensure(job.store, step.item, partial(step.make, job))
    return StepTime(step.item, made, time.perf_counter() - start, job.times.since(before))


def _require_alike(work: Work) -> None:
    """Refuse to take part where results would differ, or go astray."""
    ours = versions()
    for name, wanted in work.versions.items():
        if ours.get(name) != wanted:
            raise UnfitError(
                f"the worker on {socket.gethostname()} has {name} {ours.get(name)}, the run was started "
                f"with {wanted}",
                action="Install the same versions on all machines",
            )
    with contextlib.suppress(OSError):
        if is_on(Output(work.root), work.run):
            return
    raise UnfitError(  # a folder of that name on another machine, or one that is not mounted
        f"the worker on {socket.gethostname()} does not see the folder that the run writes to",
        path=work.root,
        action="Give a folder that all machines share, by the same path",
    )
