"""Rows of times add up to what the runs took, and what no log tells is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from heatmaps.report.clock import SlideRun, StepSeconds
from heatmaps.report.html import Markup, section
from heatmaps.report.run_parts import time_parts
from heatmaps.report.spent import RunLogs, read_runs
from logged import write_run_log
from tiling.cohort import Outcome, Status, StepTime
from tiling.output import Output


def log(output: Output, command: str, seconds: float, *steps: StepTime) -> None:
    outcome = Outcome("one", "/x/one.svs", Status.DONE, seconds=seconds)
    write_run_log(output, [command, "out"], [outcome], spent=steps)


def rows_of(time: dict[str, Any], parsed: Any, untold: tuple[str, ...] = ()) -> Any:
    return parsed(section("t", *map(Markup, time_parts(time, untold))))


def test_rows_add_up_to_the_runs_that_made_what_is_there(tmp_path: Path, parsed: Any) -> None:
    output = Output(tmp_path)
    tissue = StepTime("tissue", True, 1.0, {"read": 0.25, "decode": 0.5})
    log(output, "tile", 9.0, tissue, StepTime("tiles", True, 7.0, {}))
    log(
        output, "tile", 5.0, StepTime("tissue", False, 0.125, {}), StepTime("tiles", True, 4.0, {"read": 6.0})
    )
    log(output, "tile", 100.0, StepTime("tissue", False, 50.0, {}))  # nothing was to be done
    log(output, "report", 100.0, StepTime("reports/m", True, 50.0, {}))
    log(output, "qc", 2.5, StepTime("qc", True, 2.0, {}), StepTime("reports/m", True, 0.25, {}))
    time = read_runs(output).time_of("one")
    told = {step["step"]: (step["seconds"], step["unmeasured_seconds"]) for step in time["steps"]}
    assert told == {"tissue": (1.0, 0.25), "tiles": (4.0, 0.0), "qc": (2.0, 2.0)}
    assert time["total_seconds"] == 9 + 5 + 2.25
    assert time["other_seconds"] == time["total_seconds"] - 7
    page = rows_of(time, parsed)
    shown = {row[0]: float(row[1]) for row in page.rows[1:]}
    assert shown.pop("all of it") == 16.2  # cut to a tenth, as all from ten seconds on
    assert sum(shown.values()) == 16.25
    assert "Nobody timed the activities of: qc." in page.words


def test_runs_and_items_of_which_no_log_tells_are_named(tmp_path: Path, parsed: Any) -> None:
    output = Output(tmp_path)
    log(output, "qc", 2.5, StepTime("qc", True, 2.0, {}))
    for number, status in enumerate(("done", "already done", "failed")):
        slide = {"slide_id": "one", "path": "/x", "status": status, "seconds": 8.0}
        path = tmp_path / "runs" / f"2020010{number}T000000.000000Z-1.json"
        path.write_text(json.dumps({"command": ["-v", "predict", "out"], "slides": [slide]}))
    (tmp_path / "runs" / "20200201T000000.000000Z-1.json").write_text("{")
    time = read_runs(output).time_of("one")
    assert time["untold_runs"] == [{"run": "predict", "seconds": 8.0}]
    assert time["total_seconds"] == 10.5
    page = rows_of(time, parsed, ("scores/m",))
    assert page.row("'predict', whose log tells no steps")[0] == "8.000"
    assert "No log tells how long these took: scores/m." in page.words
    assert RunLogs().time_of("one")["total_seconds"] == 0


def test_reading_and_decoding_in_one_call_is_said_to_be(parsed: Any) -> None:
    def words(*activities: str) -> str:
        step = StepSeconds("tiles", 1.0, dict.fromkeys(activities, 0.25))
        page = rows_of(RunLogs({"one": [SlideRun("tile", 1.0, [step])]}).time_of("one"), parsed)
        assert page.rows[0][2:-1] == list(activities)
        return str(page.words)

    assert "OpenSlide has one call for both" in words("read and decode")
    assert "OpenSlide" not in words("read", "decode")
