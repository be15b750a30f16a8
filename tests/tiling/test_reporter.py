"""On a terminal a batch shows how many slides have ended, how fast, and what is left; elsewhere nothing."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from tiling.cohort import Outcome, Status
from tiling.manifest import SlideEntry
from tiling.output import Output
from tiling.reporter import Reporter
from tiling.workers.unit import Progressed, Unit


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def unit(name: str) -> Unit:
    return Unit(SlideEntry(name, Path(f"{name}.svs")))


def failed(name: str) -> Outcome:
    return Outcome(name, f"{name}.svs", Status.FAILED, f"{name}.svs: is damaged. Copy it again", 1)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def test_many_slides_have_one_bar_with_a_rate_and_the_time_left(tmp_path: Path) -> None:
    terminal = Terminal()
    reporter = Reporter(io.StringIO(), terminal)
    with reporter.cohort(4, Output(tmp_path)) as shown:
        shown.progressed(Progressed(unit("a"), 10, 100))
        shown.progressed(Progressed(unit("b"), 20, 100))
        assert "0/4" in terminal.getvalue()
        assert "2 at work" in terminal.getvalue()
        shown.ended(failed("a"))
        shown.bar.refresh()
        assert re.search(r"1/4 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+(slide/s|s/slide)", terminal.getvalue())
    assert "ERROR a.svs: is damaged" in terminal.getvalue()


def test_the_only_slide_has_a_bar_of_its_tiles(tmp_path: Path) -> None:
    terminal = Terminal()
    with Reporter(io.StringIO(), terminal).cohort(1, Output(tmp_path)) as shown:
        shown.progressed(Progressed(unit("a"), 30, 100))
        shown.bar.refresh()
        assert "30/100" in terminal.getvalue()
        shown.progressed(Progressed(unit("a"), 5, 200))  # the next step of the same slide
        shown.bar.refresh()
        assert "5/200" in terminal.getvalue()


@pytest.mark.parametrize("silent", [{"as_json": True}, {"quiet": True}, {}])
def test_elsewhere_there_is_no_bar(silent: dict[str, bool], tmp_path: Path) -> None:
    messages = Terminal() if silent else io.StringIO()
    with Reporter(io.StringIO(), messages, **silent).cohort(3, Output(tmp_path)) as shown:
        shown.progressed(Progressed(unit("a"), 30, 100))
        assert shown.bar is None
    assert messages.getvalue() == ""
