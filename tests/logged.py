"""A run's log as a run of so many slides leaves it; `tests` is on the path of all tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiling.cohort import Outcome, RunLog, StepTime
from tiling.output import Output


def write_run_log(
    output: Output, command: Sequence[str], outcomes: Sequence[Outcome], *, spent: Sequence[StepTime] = ()
) -> Path:
    """`spent` is how long the steps of each slide took."""
    log = RunLog(output, command)
    for outcome in outcomes:
        log.add(outcome, spent)
    return log.write()
