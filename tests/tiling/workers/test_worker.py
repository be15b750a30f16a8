"""A worker takes part only where its results would be the same, and go to the same place."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import toy_steps as toy

from tiling.manifest import SlideEntry
from tiling.output import Output
from tiling.pipeline import Job, Step
from tiling.versions import versions
from tiling.workers.announce import announced
from tiling.workers.limits import Limits, fair_share, machine_memory
from tiling.workers.unit import Done, Orders, Refused, Unit, Work
from tiling.workers.worker import Worker
from wsi.errors import SlideError, UsageError
from wsi.slide import Slide


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    (tmp_path / "log").mkdir()
    output = Output(tmp_path / "out")
    with output.lock(), announced(output, "this run"):
        yield Work(Orders(toy.Toy(tmp_path / "log")), output.root, tmp_path, "this run", versions())


def test_a_worker_of_other_versions_or_of_another_folder_is_refused(work: Work, tmp_path: Path) -> None:
    Worker(work)
    with pytest.raises(UsageError, match=r"has numpy .* was started with 1\.0.*same versions"):
        Worker(replace(work, versions=versions() | {"numpy": "1.0"}))
    with pytest.raises(UsageError, match="does not see the folder"):
        Worker(replace(work, root=tmp_path / "not-mounted"))
    with pytest.raises(UsageError, match="does not see the folder"):
        Worker(replace(work, run="of yesterday"))


def test_a_slide_stays_open_from_part_to_part_and_no_longer(work: Work, tmp_path: Path) -> None:
    opened: list[SlideEntry] = []
    closed: list[SlideEntry] = []

    class Watched:
        def __init__(self, file: SlideEntry) -> None:
            from wsi.stopwatch import Stopwatch

            opened.append(file)
            self.file, self.times = file, Stopwatch()

        def close(self) -> None:
            closed.append(self.file)

    orders = replace(work.orders, open_slide=Watched)  # type: ignore[arg-type]
    worker = Worker(replace(work, orders=orders))
    one, two = (Unit(SlideEntry(name, tmp_path / name)) for name in ("sound-1", "sound-2"))
    for unit in (replace(one, most_parts=1), one.at(0, part=0), one.at(0, part=3), one, two):
        worker.do(unit, lambda done, total: None)
    assert [file.path.name for file in opened] == ["sound-1", "sound-2"]
    worker.do(Unit(SlideEntry("damaged-1", two.slide.path)), lambda done, total: None)
    assert len(closed) == 3  # its errors might stick to the handle
    worker.do(two, lambda done, total: None)
    worker.let_go()
    assert len(opened) == len(closed) == 4


def test_what_is_kept_of_a_slide_is_not_taken_for_another_one(work: Work, tmp_path: Path) -> None:
    """Also where steps start from the store, so that no slide is opened and closed between them."""
    worker = Worker(replace(work, orders=Orders(toy.Keeps(tmp_path / "log"))))
    one, two = (Unit(SlideEntry(name, tmp_path / name)) for name in ("sound-1", "sound-2"))
    for unit in (one, two):
        worker.do(replace(unit, most_parts=1), lambda done, total: None)
    for unit in (one.at(0, part=0), two.at(0, part=1), one.at(0, part=2)):
        worker.do(unit, lambda done, total: None)
    assert toy.attempts(tmp_path / "log") == ["sound-1.0", "sound-1.2", "sound-2.1"]
    journals = sorted((work.root / ".work").glob("*.journal-*"))
    assert [journal.read_text().count("\n") for journal in journals] in ([1, 2], [2, 1])


def test_a_fair_share_leaves_something_for_the_others() -> None:
    total = machine_memory()
    assert 0 < total <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2 * fair_share(2) <= total
    assert fair_share(10**9) == 1 << 30
    assert Limits().memory_bytes is None


class QuietFor:
    """Takes so long as a call may, and says nothing."""

    def __init__(self, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        self.worker, self.now = worker, 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def lives(self, seconds: float) -> bool:
        before = self.worker.busy_seconds()
        self.now += seconds
        return self.worker.busy_seconds() != before


def test_a_network_may_take_its_time_and_a_decoder_may_not(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(work)
    quiet = QuietFor(worker, monkeypatch)
    assert not quiet.lives(10)
    with worker._times.lap("decode"):
        assert not quiet.lives(10)  # it may hang
    assert quiet.now  # a call that has ended is a sign
    with worker._times.lap("encode"):
        assert quiet.lives(10)
        assert quiet.lives(3500)
        quiet.lives(3600)
        assert not quiet.lives(10)  # an hour is enough
    assert not quiet.lives(10)
    before = worker.busy_seconds()
    with worker._times.lap("read"):
        quiet.now += 1
    assert worker.busy_seconds() != before


def test_a_step_that_reads_no_slide_may_take_its_time(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(work)
    seen: list[bool] = []
    for reads in (True, False):
        quiet = QuietFor(worker, monkeypatch)

        def make(job: Job, quiet: QuietFor = quiet) -> None:
            seen.append(quiet.lives(10))

        worker.steps = [Step("tiles", make, reads_slide=reads)]
        worker.do(Unit(SlideEntry("sound-1", tmp_path / "sound-1")), lambda done, total: None)
    assert seen == [False, True]


def test_a_slide_that_hangs_when_it_is_opened_shows_no_sign_of_life(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def open_slide(file: SlideEntry) -> Slide:
        seen.append(quiet.lives(700))
        raise SlideError("hung", path=file.path)

    worker = Worker(replace(work, orders=replace(work.orders, open_slide=open_slide)))
    quiet = QuietFor(worker, monkeypatch)
    worker.do(Unit(SlideEntry("sound-1", tmp_path / "sound-1")), lambda done, total: None)
    assert seen == [False]


def test_a_stale_name_of_the_run_is_read_again_and_what_cannot_be_read_is_no_slides_fault(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, unit = Worker(work), Unit(SlideEntry("sound-1", tmp_path / "sound-1"))
    read, codes = Path.read_bytes, [errno.ESTALE, errno.ESTALE]

    def fails(path: Path) -> bytes:
        if path.name == "run" and codes:
            raise OSError(codes.pop(), "of a file server")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fails)
    assert isinstance(worker.do(unit, lambda done, total: None), Done)
    codes[:] = [errno.EIO]
    result = worker.do(unit, lambda done, total: None)
    assert isinstance(result, Refused)
    assert result.error.exit_code == 74
