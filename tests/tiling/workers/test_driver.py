"""Whatever becomes of units, and in whatever order: every slide ends, once, and as its units did."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiling.cohort import Status, StepTime
from tiling.manifest import SlideEntry
from tiling.workers import driver
from tiling.workers.driver import MANY_PARTS, SlideEnd, drive
from tiling.workers.unit import (
    Died,
    Divided,
    Done,
    Ended,
    Event,
    HandedOver,
    Held,
    Progressed,
    Refused,
    Report,
    Unit,
)
from wsi.errors import DeviceLostError, MicrotomeError, OutputError

PARTS = 12


class Fate:
    """A pool without processes, whose units end as a generator of random numbers says."""

    def __init__(self, seed: int, *, width: int, gpus: bool, deadly: float) -> None:
        self.rng = random.Random(seed)
        self._width, self._gpus, self._deadly = width, gpus, deadly
        self.at_work: list[Unit] = []
        self.made: set[tuple[str, int]] = set()
        self.divided: set[str] = set()
        self.finished: set[str] = set()
        self.failed: set[str] = set()

    def width(self, *, on_gpu: bool) -> int:
        return self._width if self._gpus or not on_gpu else 0

    def room(self, *, on_gpu: bool | None) -> int:
        return self._width - sum(bool(unit.on_gpu) == bool(on_gpu) for unit in self.at_work)

    def give(self, unit: Unit) -> None:
        assert self.room(on_gpu=unit.on_gpu) > 0
        assert unit not in self.at_work
        # Nobody begins with what is divided while others still make its parts.
        others = [other for other in self.at_work if other.slide_id == unit.slide_id]
        assert not others or (unit.part is not None and all(other.part is not None for other in others))
        self.at_work.append(unit)

    def wait(self) -> list[Event]:
        unit = self.at_work.pop(self.rng.randrange(len(self.at_work)))
        if self.rng.random() < self._deadly:
            return [
                Report(unit, Died("SIGKILL", by_itself=False, reached=(unit.step, self.rng.randrange(99))))
            ]
        return [Report(unit, self._result(unit))]

    def close(self) -> None:
        raise AssertionError("the caller closes it")

    def _result(self, unit: Unit) -> Done | Divided | HandedOver | Ended:
        """Two steps, the second of which wants a GPU; each may be divided once."""
        name, times = unit.slide_id, (StepTime("tiles", True, 1.0, {}),)
        if unit.part is not None:
            self.made.add((f"{name}.{unit.step}", unit.part))
            return Done(times)
        for step in range(unit.step, 2):
            if unit.on_gpu is not None and bool(step) != unit.on_gpu:
                return HandedOver(step, bool(step))
            key = f"{name}.{step}"
            if unit.most_parts is not None and key not in self.divided and self.rng.random() < 0.5:
                assert unit.most_parts in {1, MANY_PARTS}
                self.divided.add(key)
                return Divided(step, tuple(range(PARTS)))
            if key in self.divided:
                assert all((key, part) in self.made for part in range(PARTS))
        if self.rng.random() < 0.2:
            self.failed.add(name)
            return Ended(Status.FAILED, "is damaged", 1)
        self.finished.add(name)
        return Done(times)


def slides(count: int) -> list[SlideEntry]:
    return [SlideEntry(f"s{n}", Path(f"s{n}.svs")) for n in range(count)]


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 12),
    width=st.integers(1, 5),
    gpus=st.booleans(),
    deadly=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_every_slide_ends_once_and_as_its_units_did(
    seed: int, count: int, width: int, gpus: bool, deadly: float
) -> None:
    pool, ends = Fate(seed, width=width, gpus=gpus, deadly=deadly), []
    outcomes = drive(pool, slides(count), ended=ends.append)
    assert sorted(outcome.slide_id for outcome in outcomes) == sorted(f"s{n}" for n in range(count))
    assert [end.outcome for end in ends] == outcomes
    assert {o.slide_id for o in outcomes if o.status is Status.DONE} == pool.finished
    killed = {o.slide_id for o in outcomes if "SIGKILL" in o.reason}
    assert {o.slide_id for o in outcomes if o.status is Status.FAILED} == pool.failed | killed
    assert deadly or not killed
    if width == 1:
        assert not pool.divided


class Always:
    """A pool in which one slide always ends in one way, and others are done."""

    def __init__(self, bad: str, *results: Died | Held | Refused) -> None:
        self._bad, self._results, self.tries = bad, list(results), 0
        self._waiting: list[Unit] = []

    def width(self, *, on_gpu: bool) -> int:
        return 0 if on_gpu else 1

    def room(self, *, on_gpu: bool | None) -> int:
        return 1 - len(self._waiting)

    def give(self, unit: Unit) -> None:
        self._waiting.append(unit)

    def wait(self) -> list[Event]:
        unit = self._waiting.pop()
        if unit.slide_id != self._bad:
            return [Report(unit, Done())]
        self.tries += 1
        return [Report(unit, self._results[min(self.tries, len(self._results)) - 1])]

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("deaths", "tries"),
    [
        ([Held("process 7 on a node is at work on it")], driver.MOST_KILLS),
        ([Died("stalled", by_itself=True, hopeless=True)], 1),
        ([Died("SIGSEGV", by_itself=True)], driver.MOST_DEATHS),
        ([Died("SIGKILL", by_itself=False)], driver.MOST_KILLS),
        # Who gets any further is given all the tries again.
        ([Died("SIGKILL", by_itself=False, reached=(1, n)) for n in range(9)], 8 + driver.MOST_KILLS),
    ],
)
def test_a_slide_whose_process_dies_is_tried_as_often_as_it_may_help(
    deaths: list[Died | Held], tries: int
) -> None:
    pool, ends = Always("s1", *deaths), list[SlideEnd]()
    outcomes = {outcome.slide_id: outcome for outcome in drive(pool, slides(3), ended=ends.append)}
    assert pool.tries == tries
    assert outcomes["s1"].status is Status.FAILED
    assert deaths[0].reason in outcomes["s1"].reason
    assert {outcomes[name].status for name in ("s0", "s2")} == {Status.ALREADY_DONE}
    (ledger,) = (end.ledger for end in ends if end.outcome.slide_id == "s1")
    assert ledger["tries_again"] == tries - 1


def test_processes_that_die_before_they_begin_are_no_slides_fault_and_do_not_go_on_for_ever() -> None:
    unborn = Died("SIGKILL", by_itself=False, began=False)
    pool = Always("s0", unborn)
    with pytest.raises(MicrotomeError, match=r"worker processes died .*SIGKILL"):
        drive(pool, slides(1), ended=lambda end: None)
    assert pool.tries == driver.MOST_STILLBORN + 1
    few = Always("s0", *[unborn] * 10, Died("SIGSEGV", by_itself=True))
    (outcome,) = drive(few, slides(1), ended=lambda end: None)
    assert few.tries == 10 + driver.MOST_DEATHS
    assert "SIGSEGV" in outcome.reason


def test_where_nothing_can_be_written_the_run_ends() -> None:
    full = OutputError("cannot be written (No space left on device)", path="out")
    with pytest.raises(OutputError, match="No space left"):
        drive(Always("s1", Refused(full)), slides(3), ended=lambda end: None)


def test_parts_that_are_made_and_never_there_do_not_go_on_for_ever() -> None:
    """As where machines see different folders by one name."""

    class Forgets(Always):
        def wait(self) -> list[Event]:
            unit = self._waiting.pop()
            self.tries += 1
            assert self.tries < 100
            return [Report(unit, Divided(0, (0, 1, 2)) if unit.part is None else Done())]

    outcomes = drive(Forgets("nobody"), slides(2), ended=lambda end: None)
    assert {one.status for one in outcomes} == {Status.FAILED}
    assert all("3 are not there" in one.reason for one in outcomes)


def test_a_gpu_that_fails_whatever_the_slide_ends_the_run_and_costs_no_slide() -> None:
    lost = Died("cuda:0 failed", by_itself=True, by_device=True)

    class AllLost(Always):
        def wait(self) -> list[Event]:
            self.tries += 1
            return [Report(self._waiting.pop(), lost)]

    ends, pool = list[SlideEnd](), AllLost("nobody")
    with pytest.raises(DeviceLostError, match=r"cuda:0 failed, 5 times"):
        drive(pool, slides(9), ended=ends.append)
    assert pool.tries == driver.MOST_LOST + 1
    assert len(ends) <= 2
    # Of one slide alone it is that slide's.
    outcomes = {one.slide_id: one for one in drive(Always("s1", lost), slides(9), ended=lambda end: None)}
    assert {name for name, one in outcomes.items() if one.status is Status.FAILED} == {"s1"}


def test_processes_that_hang_at_their_start_are_given_up_sooner() -> None:
    pool = Always("s0", Died("it hung at its start", by_itself=True, hopeless=True, began=False))
    with pytest.raises(MicrotomeError, match="hung at its start"):
        drive(pool, slides(1), ended=lambda end: None)
    assert pool.tries == 3


def test_of_a_slide_that_has_ended_no_progress_is_told() -> None:
    class Late(Always):
        def wait(self) -> list[Event]:
            unit = self._waiting[-1]
            progress = Progressed(unit, 1, 2)
            return [progress, *super().wait(), progress]

    heard: list[Progressed] = []
    drive(Late("nobody"), slides(3), ended=lambda end: None, progressed=heard.append)
    assert [event.unit.slide_id for event in heard] == ["s0", "s1", "s2"]


def test_what_wants_a_gpu_is_shared_by_those_that_have_one_and_by_no_others() -> None:
    """One alone reads ahead from shard to shard, however many there are without one."""

    class OneGpu(Always):
        def __init__(self, gpus: int) -> None:
            super().__init__("nobody")
            self.gpus, self.noted = gpus, dict[bool | None, set[int | None]]()

        def width(self, *, on_gpu: bool) -> int:
            return self.gpus if on_gpu else 8

        def room(self, *, on_gpu: bool | None) -> int:
            return self.width(on_gpu=bool(on_gpu)) - len(self._waiting)

        def give(self, unit: Unit) -> None:
            self.noted.setdefault(unit.on_gpu, set()).add(unit.most_parts)
            super().give(unit)

        def wait(self) -> list[Event]:
            unit = self._waiting.pop()
            return [Report(unit, HandedOver(1, True) if unit.step == 0 else Done())]

    one, two = OneGpu(1), OneGpu(2)
    for pool in (one, two):
        drive(pool, slides(3), ended=lambda end: None)
    assert one.noted == {False: {1}, True: {None}}
    assert None not in two.noted[True]


def test_a_few_slides_are_shared_and_many_are_not_unless_they_are_large() -> None:
    class Noting(Always):
        def __init__(self) -> None:
            super().__init__("nobody")
            self.noted: list[int | None] = []

        def width(self, *, on_gpu: bool) -> int:
            return 4

        def room(self, *, on_gpu: bool | None) -> int:
            return 4 - len(self._waiting)

        def give(self, unit: Unit) -> None:
            self.noted.append(unit.most_parts)
            super().give(unit)

    few, many = Noting(), Noting()
    drive(few, slides(2), ended=lambda end: None)
    assert few.noted == [1, 1]
    drive(many, slides(10), ended=lambda end: None)
    assert many.noted == [MANY_PARTS] * 10  # nobody was ever without a slide of his own
