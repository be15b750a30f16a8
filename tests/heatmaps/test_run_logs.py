"""Laws of the logs' reader: the newest word counts, each log is read once, and a broken one stops nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

import heatmaps.run_logs
from heatmaps.report.spent import read_runs
from heatmaps.run_logs import LastRuns, log_files, read_log
from logged import write_run_log
from tiling.cohort import Outcome, Status
from tiling.output import Output


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the logs that were read."""
    names: list[str] = []

    def reading(path: Path) -> object:
        names.append(path.name)
        return read_log(path)

    monkeypatch.setattr(heatmaps.run_logs, "read_log", reading)
    return names


def write(output: Output, verb: str, path: Path, status: Status = Status.DONE, reason: str = "") -> Path:
    return write_run_log(output, [verb, "slides"], [Outcome("a", str(path), status, reason)])


def test_each_log_is_read_once_and_what_is_new_counts(
    output: Output, tmp_path: Path, read: list[str]
) -> None:
    first = write(output, "tile", tmp_path / "a.svs", Status.FAILED, "it is cut")
    runs = LastRuns(output)
    runs.refresh()
    runs.refresh()
    assert read == [first.name]
    assert (runs.endings["a"].status, runs.endings["a"].reason) == ("failed", "it is cut")
    second = write(output, "tile", tmp_path / "a.svs")
    runs.refresh()
    assert read == [first.name, second.name]
    assert runs.endings["a"].status == "done"
    write(output, "report", tmp_path / "slides" / "a", Status.FAILED, "no report")
    runs.refresh()
    assert runs.endings["a"].status == "done"  # of its results, nothing failed
    second.unlink()
    runs.refresh()
    assert runs.endings["a"].status == "failed"


def test_a_slide_is_sought_where_it_was_last_and_still_is(output: Output, tmp_path: Path) -> None:
    old, new = tmp_path / "old" / "a.svs", tmp_path / "new" / "a.svs"
    (folder := output.root / "slides" / "a.svs").mkdir(parents=True)
    for path in (old, new, folder):
        write(output, "tile", path)
    runs = LastRuns(output)
    runs.refresh()
    assert runs.file("a") is None
    for path in (old, new):  # no log is read again, yet a drive that was mounted meanwhile is seen
        path.parent.mkdir()
        path.touch()
        assert runs.file("a") == path
    assert runs.file("b") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"slides": [1], "command": []}', "[" * 100_000, "\x00"])
def test_a_log_that_cannot_be_read_stops_nobody(output: Output, tmp_path: Path, text: str) -> None:
    (output.root / "runs").mkdir()
    (output.root / "runs" / "0.json").write_text(text)
    write(output, "tile", tmp_path / "a.svs")
    assert len(log_files(output)) == 2
    runs = LastRuns(output)
    runs.refresh()
    assert runs.endings["a"].status == "done"
    assert read_runs(output).unreadable == 1
    assert set(read_runs(output).outcomes) == {"a"}


def test_of_many_logs_the_newest_are_read(output: Output, tmp_path: Path, read: list[str]) -> None:
    paths = [write(output, "tile", tmp_path / "a.svs") for _ in range(5)]
    runs = LastRuns(output, most=3)
    runs.refresh()
    runs.refresh()
    assert read == [path.name for path in paths[2:]]
