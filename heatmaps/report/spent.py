"""What the logs of the runs tell: how each slide ended last, and how long its steps took."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heatmaps.report.clock import SlideRun, run_of, time_of
from heatmaps.report.privacy import safe_text
from heatmaps.run_logs import REPORT, RunLog, log_files, read_log
from tiling.output import Output
from wsi.messages import printable

_UNEXPECTED = 70  # exit code of a bug: its message may be any library's


@dataclass(frozen=True, slots=True)
class LastOutcome:
    """How a slide ended when it was last worked on."""

    command: str
    """The verb."""
    status: str
    """Of `tiling.cohort.Status`."""
    reason: str
    """Why it failed, or has no tiles; names no file. Empty where all is well."""


@dataclass(slots=True)
class RunLogs:
    """All logs of an output, the oldest first, by slide."""

    runs: dict[str, list[SlideRun]] = field(default_factory=dict)
    """What each run did to each slide, but runs that made reports: no two reports would be the same."""
    outcomes: dict[str, LastOutcome] = field(default_factory=dict)
    """How each slide ended last, in a run of any command but the report's."""
    reported: dict[str, LastOutcome] = field(default_factory=dict)
    """How the last making of its report ended."""
    unreadable: int = 0
    """Logs that could not be read."""

    def time_of(self, slide_id: str) -> dict[str, Any]:
        """How the time of a slide was spent, as JSON."""
        return time_of(self.runs.get(printable(slide_id), []))


def read_runs(output: Output) -> RunLogs:
    """Read ``OUT/runs``; a log that cannot be read is counted and left out."""
    logs = RunLogs()
    for path in log_files(output):
        log = read_log(path)
        try:
            told = list(_told(log, str(output.root))) if log else None
        except (KeyError, TypeError, ValueError, AttributeError):  # a step that is none
            told = None
        if told is None:
            logs.unreadable += 1
            continue
        for slide_id, outcome, run in told:
            ends = logs.reported if outcome.command == REPORT else logs.outcomes
            ends[slide_id] = outcome
            if outcome.command != REPORT:
                logs.runs.setdefault(slide_id, []).append(run)
    return logs


def _told(log: RunLog, root: str) -> Iterator[tuple[str, LastOutcome, SlideRun]]:
    places = {root, *filter(_is_place, log.words)}
    for one in log.endings:
        path = Path(one.path)
        more = {str(path), str(path.parent), path.name}
        reason = one.reason
        if one.exit_code == _UNEXPECTED:
            reason = f"unexpected {reason.partition('unexpected ')[2]}"
        reason = safe_text(reason, places=places | more, allowed=[one.slide_id])
        outcome = LastOutcome(log.verb, one.status, reason.removeprefix("[file]: "))
        yield one.slide_id, outcome, run_of(log.verb, one)


def _is_place(word: str) -> bool:
    """Whether a word of a command may be a path; numbers, such as 0.5, stand in messages too."""
    return ("/" in word or "." in word.strip(".")) and not re.fullmatch(r"-?[\d.]+(e-?\d+)?", word)
