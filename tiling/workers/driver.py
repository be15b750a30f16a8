"""`drive`: units to whoever has room, until every slide has ended; no slide ends another one."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tiling.cohort import Outcome, Status, StepTime
from tiling.manifest import SlideEntry
from tiling.workers.pool import Pool
from tiling.workers.unit import (
    Answer,
    Died,
    Divided,
    Done,
    Ended,
    HandedOver,
    Held,
    Progressed,
    Refused,
    Report,
    Unfit,
    Unit,
)
from wsi.errors import DeviceLostError, MicrotomeError
from wsi.messages import printable

MANY_PARTS = 8
"""A step with more missing parts is shared even where other slides wait: else the largest slide ends last."""
MOST_DEATHS = 2
"""How often a slide may take a process along by itself."""
MOST_STILLBORN = 20
"""How many processes may die before they begin with anything, one after the other; two, if they hang."""
MOST_LOST = 4
"""How often a GPU may fail, one time after the other, without anything being done on one."""
MOST_KILLS = 6
"""How often its process may be killed, by whomever, without having got any further."""

Told = Callable[["SlideEnd"], None]


@dataclass(frozen=True, slots=True)
class SlideEnd:
    """A slide that has ended, and what its work cost."""

    outcome: Outcome
    steps: tuple[StepTime, ...]
    ledger: Mapping[str, Any]
    """Workers that had a hand in it, units, tries beyond the first, seconds at work, most memory in MiB."""


@dataclass(slots=True)
class _Slide:
    """A slide on its way."""

    entry: SlideEntry
    parts: int = 0
    """Parts of a step that are not made yet."""
    divided: dict[int, int] = field(default_factory=dict)
    """Parts that were missing when a step was divided last."""
    steps: dict[str, StepTime] = field(default_factory=dict)
    begun: float | None = None
    over: bool = False
    deaths: Counter[int | None] = field(default_factory=Counter)
    """By part: how often its process ended by itself."""
    kills: Counter[int | None] = field(default_factory=Counter)
    """And how often it was killed since it got anywhere."""
    reached: dict[int | None, tuple[int, int]] = field(default_factory=dict)
    workers: set[str] = field(default_factory=set)
    units: int = 0
    tries: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    def add(self, spent: tuple[StepTime, ...]) -> None:
        """Times of steps; a step that was shared is timed in pieces."""
        for step in spent:
            before = self.steps.get(step.step)
            if before is None:
                self.steps[step.step] = step
                continue
            names = {*before.activities, *step.activities}
            total = {n: before.activities.get(n, 0.0) + step.activities.get(n, 0.0) for n in names}
            made, seconds = before.made or step.made, before.seconds + step.seconds
            self.steps[step.step] = StepTime(step.step, made, seconds, total)

    def ledger(self) -> dict[str, Any]:
        return {
            "workers": sorted(self.workers),
            "units": self.units,
            "tries_again": self.tries,
            "busy_seconds": round(self.seconds, 3),
            "peak_mib": self.peak_bytes >> 20,
        }


def drive(
    pool: Pool,
    slides: Sequence[SlideEntry],
    *,
    ended: Told,
    progressed: Callable[[Progressed], None] = lambda event: None,
) -> list[Outcome]:
    """Have every slide done; the caller closes the pool.

    Parameters
    ----------
    pool
        Who does it.
    slides
        In the order in which they are begun; no two of one id.
    ended
        Hears of each slide when it has ended.
    progressed
        Hears of tiles.

    Returns
    -------
    How each slide ended, in the order in which they did.

    Raises
    ------
    MicrotomeError
        Nothing can be done any more; what is finished stays.
    """
    run = _Run(pool, slides, ended)
    while run.is_on():
        run.give()
        for event in pool.wait():
            if isinstance(event, Report):
                run.take(event)
            elif run.goes_on(event.unit):
                progressed(event)
    return run.outcomes


class _Run:
    """The state of `drive`: slides that are on their way, and units that wait for room."""

    def __init__(self, pool: Pool, slides: Sequence[SlideEntry], ended: Told) -> None:
        self._pool, self._told = pool, ended
        self._slides = {entry.slide_id: _Slide(entry) for entry in slides}
        self._fresh = deque(self._slides)
        self._waiting: dict[bool, deque[Unit]] = {False: deque(), True: deque()}  # by whether a GPU is wanted
        self._stillborn: Counter[bool] = Counter()  # one after the other, by whether a GPU is wanted
        self._lost = 0  # devices, one after the other
        self.outcomes: list[Outcome] = []

    def is_on(self) -> bool:
        return len(self.outcomes) < len(self._slides)

    def goes_on(self, unit: Unit) -> bool:
        """Whether the unit's slide has not ended."""
        return not self._slides[unit.slide_id].over

    def give(self) -> None:
        """Units to whoever has room: first what is begun."""
        for gpu, waiting in self._waiting.items():
            if not waiting and (gpu or not self._fresh):
                continue
            room = self._pool.room(on_gpu=gpu)
            while room > 0 and (waiting or (self._fresh and not gpu)):
                unit = waiting.popleft() if waiting else self._first(self._fresh.popleft())
                room -= 1
                slide = self._slides[unit.slide_id]
                slide.begun = slide.begun or time.monotonic()
                slide.units += 1
                others = len(waiting) + (0 if gpu else len(self._fresh))
                self._pool.give(replace(unit, most_parts=self._most_parts(others, room, gpu=gpu)))

    def take(self, report: Report) -> None:
        """What has become of a unit."""
        unit, slide = report.unit, self._slides[report.unit.slide_id]
        slide.workers |= {report.worker} if report.worker else set()
        slide.seconds += report.seconds
        slide.peak_bytes = max(slide.peak_bytes, report.peak_bytes)
        if isinstance(report.result, Died) and not report.result.began:
            self._start_again(unit, slide, report.result)
            return
        self._stillborn[bool(unit.on_gpu)] = 0
        if unit.on_gpu is not False and not isinstance(report.result, Died):
            self._lost = 0
        result = report.result
        assert not isinstance(result, Answer), "nobody was asked anything"
        if isinstance(result, Refused | Unfit):
            raise result.error
        if slide.over:  # it failed elsewhere while this was made
            return
        if isinstance(result, Died | Held):
            self._bury(unit, slide, result)
            return
        slide.add(result.spent)
        self._go_on(unit, slide, result)

    def _go_on(self, unit: Unit, slide: _Slide, result: Done | Divided | HandedOver | Ended) -> None:
        """What comes next for the slide."""
        match result:
            case Done() if unit.part is not None:
                slide.parts -= 1
                if slide.parts == 0:
                    self._wait(unit.at(unit.step, on_gpu=unit.on_gpu))
            case Done():
                made = any(step.made for step in slide.steps.values())
                self._end(unit, slide, Ended(Status.DONE if made else Status.ALREADY_DONE, ""))
            case Divided() if len(result.parts) >= slide.divided.get(result.step, len(result.parts) + 1):
                reason = f"{slide.entry.path}: parts of it were made, and {len(result.parts)} are not there"
                self._end(unit, slide, Ended(Status.FAILED, printable(f"{reason}. {_SEEN}"), 1))
            case Divided():
                slide.divided[result.step] = slide.parts = len(result.parts)
                for part in reversed(result.parts):
                    self._wait(unit.at(result.step, part=part, on_gpu=unit.on_gpu))
            case HandedOver():
                self._wait(unit.at(result.step, on_gpu=result.to_gpu))
            case Ended():
                self._end(unit, slide, result)

    def _first(self, slide_id: str) -> Unit:
        on_gpu = False if self._pool.width(on_gpu=True) else None
        return Unit(self._slides[slide_id].entry, on_gpu=on_gpu)

    def _most_parts(self, others: int, room: int, *, gpu: bool) -> int | None:
        """Share a large step, and any step where somebody would have nothing to do."""
        if self._pool.width(on_gpu=gpu) <= 1:  # one alone reads ahead from shard to shard
            return None
        return 1 if room > others else MANY_PARTS

    def _wait(self, unit: Unit) -> None:
        self._waiting[bool(unit.on_gpu)].appendleft(unit)

    def _start_again(self, unit: Unit, slide: _Slide, death: Died) -> None:
        """Of a process that died before it began: no slide's fault; but not for ever."""
        kind = bool(unit.on_gpu)
        self._stillborn[kind] += MOST_STILLBORN // 2 if death.hopeless else 1
        if self._stillborn[kind] > MOST_STILLBORN:
            raise MicrotomeError(
                f"worker processes died one after the other before they began with anything ({death.reason})",
                action="Run it with --workers 0, which tells more; memory may be too small for so many",
            )
        if not slide.over:
            slide.tries += 1
            self._wait(unit)

    def _bury(self, unit: Unit, slide: _Slide, end: Died | Held) -> None:
        """Try again, unless it would end so again."""
        death = end if isinstance(end, Died) else Died(end.reason, by_itself=False)
        before = slide.reached.get(unit.part, (-1, 0))
        further = death.reached > before
        slide.reached[unit.part] = max(death.reached, before)
        self._note_device(death)
        if death.by_itself:
            slide.deaths[unit.part] += 1
        else:
            slide.kills[unit.part] = 1 if further else slide.kills[unit.part] + 1
        hopeless = death.hopeless or slide.deaths[unit.part] >= MOST_DEATHS
        if hopeless or slide.kills[unit.part] >= MOST_KILLS:
            reason = f"{slide.entry.path}: {death.reason}. {_ADVICE}"
            self._end(unit, slide, Ended(Status.FAILED, printable(reason), 1))
            return
        slide.tries += 1
        self._wait(unit)

    def _note_device(self, death: Died) -> None:
        """A GPU that fails whatever the slide must not cost all of them."""
        self._lost = self._lost + 1 if death.by_device else 0
        if self._lost > MOST_LOST:
            raise DeviceLostError(
                f"{death.reason}, {self._lost} times one after the other",
                action="See to the GPU, and run the same command again: what is finished is kept",
            )

    def _end(self, unit: Unit, slide: _Slide, last: Ended) -> None:
        slide.over = True
        for kind, waiting in self._waiting.items():
            self._waiting[kind] = deque(other for other in waiting if other.slide_id != unit.slide_id)
        seconds = round(time.monotonic() - (slide.begun or time.monotonic()), 3)
        name, path = printable(unit.slide_id), printable(str(slide.entry.path))
        outcome = Outcome(name, path, last.status, last.reason, last.exit_code, seconds)
        self.outcomes.append(outcome)
        self._told(SlideEnd(outcome, tuple(slide.steps.values()), slide.ledger()))


_SEEN = "See that all machines see the same output folder"
_ADVICE = "The other slides go on; look at this one alone, or leave it out"
