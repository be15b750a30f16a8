"""Processes that a run has lost sight of end by themselves, and until then keep others off their slide."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import toy_steps as toy

from tiling.cohort import Status
from tiling.manifest import SlideEntry
from tiling.output import Output
from tiling.versions import versions
from tiling.workers import child as childs_side
from tiling.workers import worker as workers_side
from tiling.workers.announce import announced
from tiling.workers.limits import Limits
from tiling.workers.run import run_slides
from tiling.workers.supervisor import Child
from tiling.workers.unit import Died, Done, Held, Orders, Refused, Report, Unit, Work
from tiling.workers.worker import Worker

SLIDE = SlideEntry("sound-1", Path("sound-1.svs"))


def work_of(folder: Path, make: toy.Toy, run: str) -> Work:
    make.log.mkdir(exist_ok=True)
    return Work(Orders(make), folder / "out", Path.cwd(), run, versions())


def until(child: Child, seconds: float) -> Report:
    """What becomes of its unit."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        child.connection.poll(0.1)
        for event in child.hear():
            if isinstance(event, Report):
                return event
        if stopped := child.check():
            return stopped
    raise AssertionError("its unit did not end")


@contextlib.contextmanager
def busy(work: Work, log: Path, *, after: int) -> Iterator[Child]:
    """A process that makes the slide, and has begun with so many of its parts."""
    child = Child(pickle.dumps(work), limits=Limits())
    try:
        child.give(Unit(SLIDE))
        end = time.monotonic() + 30
        while len(toy.attempts(log)) < after:
            child.hear()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield child
    finally:
        child.stop()


def test_a_process_ends_with_its_run_though_nobody_tells_it(tmp_path: Path) -> None:
    """Its machine may be cut off, and the run taken over: it sees that in the work folder."""
    make = toy.Toy(tmp_path / "log", parts=1000, seconds=0.05)
    output, work = Output(tmp_path / "out"), work_of(tmp_path, make, "one")
    with (
        output.lock(),
        announced(output, "one"),
        busy(work, make.log, after=3) as child,
        announced(output, "two"),
    ):
        report = until(child, childs_side.RUN_SECONDS + 10)
    assert isinstance(report.result, Died)
    before = toy.attempts(make.log)
    assert len(before) < 1000
    time.sleep(0.3)
    assert toy.attempts(make.log) == before


def test_whoever_takes_the_lock_ends_it(tmp_path: Path) -> None:
    """Also a command that makes nothing of slides, and sets damaged items aside."""
    make = toy.Toy(tmp_path / "log", parts=1000, seconds=0.05)
    output, work = Output(tmp_path / "out"), work_of(tmp_path, make, "one")
    with contextlib.ExitStack() as stack:
        with output.lock():
            (output.work / "run").write_text("one")
            child = stack.enter_context(busy(work, make.log, after=3))
        with output.lock():
            assert isinstance(until(child, childs_side.RUN_SECONDS + 10).result, Died)


def test_waiting_for_another_process_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiling.workers.supervisor._MISSED_BY", 0.5)
    make = toy.Toy(tmp_path / "log")
    output, work = Output(tmp_path / "out"), work_of(tmp_path, make, "one")
    with output.lock(), announced(output, "one"):
        child = Child(pickle.dumps(work), limits=Limits(stall_seconds=0.5))
        try:
            with output.claim(SLIDE.slide_id):
                child.give(Unit(SLIDE))
                with pytest.raises(AssertionError, match="did not end"):
                    until(child, 4)
            assert isinstance(until(child, 10).result, Done)
        finally:
            child.stop()


def test_also_where_the_run_has_just_ended(tmp_path: Path) -> None:
    make = toy.Toy(tmp_path / "log", parts=1000, seconds=0.05)
    output, work = Output(tmp_path / "out"), work_of(tmp_path, make, "one")
    with contextlib.ExitStack() as stack:
        with output.lock(), announced(output, "one"):
            child = stack.enter_context(busy(work, make.log, after=3))
        assert isinstance(until(child, childs_side.RUN_SECONDS + 10).result, Died)


def test_a_new_run_waits_for_it_and_goes_on_from_its_last_part(tmp_path: Path) -> None:
    """Nobody makes a part while the other does, no part is made more than twice, the bytes are the same."""
    make = toy.Toy(tmp_path / "log", parts=10, seconds=0.3)
    output, work = Output(tmp_path / "out"), work_of(tmp_path, make, "one")
    slides = [SLIDE, SlideEntry("sound-2", Path("sound-2.svs"))]
    with contextlib.ExitStack() as stack:
        with output.lock():
            (output.work / "run").write_text("one")  # of a driver that was killed: nothing is tidied up
            child = stack.enter_context(busy(work, make.log, after=4))
        found = run_slides(output, slides, Orders(make), command=["toy"])
        assert isinstance(until(child, 1).result, Died)
    assert {one.status for one in found} == {Status.DONE}
    count = Counter(toy.attempts(make.log))
    assert count.keys() == {f"{slide.slide_id}.{part}" for slide in slides for part in range(10)}
    assert sum(count.values()) - len(count) <= 1  # what it had in hand
    run_slides(Output(tmp_path / "alone"), slides, Orders(replace(make, seconds=0.0)), command=["toy"])
    assert toy.results(output) == toy.results(Output(tmp_path / "alone"))
    assert not list(output.work.iterdir())


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    work = work_of(tmp_path, toy.Toy(tmp_path / "log"), "this run")
    output = Output(work.root)
    with output.lock(), announced(output, work.run):
        yield work


def test_a_slide_that_somebody_works_on_is_not_begun_and_its_parts_are_shared(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_side, "CLAIM_SECONDS", 0.1)
    worker, whole, quiet = Worker(work), Unit(SLIDE), lambda done, total: None
    worker.do(replace(whole, most_parts=1), quiet)
    with worker.output.claim(SLIDE.slide_id, shared=True):
        assert worker.do(whole.at(0, part=0), quiet) != worker.do(whole, quiet)
        held = worker.do(whole, quiet)
        assert isinstance(held, Held)
        assert f"process {os.getpid()} on" in held.reason
    with worker.output.claim(SLIDE.slide_id):
        assert isinstance(worker.do(whole.at(0, part=1), quiet), Held)
        assert isinstance(worker.do(whole, quiet), Held)
        other = Unit(SlideEntry("sound-2", Path("sound-2.svs")))
        assert not isinstance(worker.do(other, quiet), Held)
    assert toy.attempts(work.root.parent / "log") == ["sound-1.0", *(f"sound-2.{n}" for n in range(4))]
    worker.do(whole, quiet)
    assert toy.whole(worker.output, SLIDE.slide_id)


def test_whoever_gets_a_slide_after_the_run_is_over_leaves_it_alone(work: Work) -> None:
    worker = Worker(work)
    (work.root / ".work" / "run").write_text("another")
    assert isinstance(worker.do(Unit(SLIDE), lambda done, total: None), Refused)
    assert not toy.attempts(work.root.parent / "log")
    assert not worker.output.slide_ids()


def test_what_a_process_started_ends_with_it(tmp_path: Path) -> None:
    make = toy.Forks(tmp_path / "log", parts=1)
    output, work = Output(tmp_path / "out"), work_of(tmp_path, make, "one")
    with (
        output.lock(),
        announced(output, "one"),
        busy(work, make.log, after=1) as child,
        announced(output, "two"),
    ):
        until(child, childs_side.RUN_SECONDS + 10)
    grandchild = int((make.log.parent / "grandchild").read_text())
    end = time.monotonic() + 5
    while _lives(grandchild):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_process_whose_child_holds_the_line_is_seen_to_have_died(tmp_path: Path) -> None:
    """Whoever it forked has all that was open, so its end of the line is never closed."""
    make = toy.Forks(tmp_path / "log", parts=1)
    output, work = Output(tmp_path / "out"), work_of(tmp_path, make, "one")
    with output.lock(), announced(output, "one"):
        child = Child(pickle.dumps(work), limits=Limits())
        try:
            child.give(Unit(SlideEntry("leaves-1", Path("leaves-1.svs"))))
            report = until(child, 30)
        finally:
            child.stop()
        os.kill(int((tmp_path / "grandchild").read_text()), signal.SIGKILL)
    assert isinstance(report.result, Died)
    assert "exit code 3" in report.result.reason


def _lives(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIG_DFL)
        return True
    return False
