"""How long a slide took, out of the logs of the runs: each step, and what no step tells, up to the whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiling.output import Output
from wsi.messages import printable

REPORT, REPORTS = "report", "reports/"
"""Items of this name are reports. What it took to make them is not told in them: no two would be the same."""


@dataclass(frozen=True, slots=True)
class StepSeconds:
    """One step of a run on one slide."""

    step: str
    """The item that it has made."""
    seconds: float
    """By the clock."""
    activities: Mapping[str, float] = field(default_factory=dict)
    """Seconds of all threads together, by activity; none where nobody timed any."""
    made: bool = True
    """Whether it was made; it was there already otherwise."""

    def as_json(self) -> dict[str, Any]:
        """With what is left of the clock: of threads that work at once that is the least it can be."""
        activities = {name: _rounded(seconds) for name, seconds in sorted(self.activities.items())}
        rest = _rounded(max(0.0, self.seconds - sum(self.activities.values())))
        seconds = _rounded(self.seconds)
        return {"step": self.step, "seconds": seconds, "activities": activities, "unmeasured_seconds": rest}


@dataclass(frozen=True, slots=True)
class SlideRun:
    """What one run did to one slide."""

    command: str
    """The verb."""
    seconds: float
    """By the clock, from opening the slide to its end."""
    steps: Sequence[StepSeconds] | None
    """Those that it finished; None in logs of before steps were logged, where something was made."""


@dataclass(slots=True)
class RunTimes:
    """Of all runs of an output but the reports', the oldest first, by slide."""

    runs: dict[str, list[SlideRun]] = field(default_factory=dict)

    def time_of(self, slide_id: str) -> dict[str, Any]:
        """How the time of a slide was spent, as JSON.

        The whole is what those runs took by the clock that made something which was not made again since;
        steps, what is beside them and runs without steps add up to it.
        """
        runs = self.runs.get(printable(slide_id), [])
        last: dict[str, StepSeconds] = {}
        for run in runs:
            last.update({step.step: step for step in run.steps or () if step.made})
        standing = {id(step) for step in last.values()}
        counted = [run for run in runs if any(id(step) in standing for step in run.steps or ())]
        steps = [step.as_json() for step in last.values()]
        whole = sum(run.seconds for run in counted)
        untold: dict[str, float] = {}
        for run in runs:
            if run.steps is None:
                untold[run.command] = untold.get(run.command, 0.0) + run.seconds
        other = _rounded(max(0.0, whole - sum(step["seconds"] for step in steps)))
        told = [{"run": command, "seconds": _rounded(seconds)} for command, seconds in untold.items()]
        total = sum(one["seconds"] for one in (*steps, *told)) + other
        return {"steps": steps, "other_seconds": other, "untold_runs": told, "total_seconds": _rounded(total)}


def read_times(output: Output) -> RunTimes:
    """Read ``OUT/runs``. Logs that cannot be read are left out; `spent.read_runs` counts them."""
    times = RunTimes()
    folder = output.root / "runs"
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            told = list(_told(json.loads(path.read_bytes())))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        for slide_id, run in told:
            times.runs.setdefault(slide_id, []).append(run)
    return times


def _told(content: Mapping[str, Any]) -> Iterator[tuple[str, SlideRun]]:
    words = (str(word) for word in content["command"])
    command = next((word for word in words if re.fullmatch(r"[a-z]+", word)), "")
    if command == REPORT:
        return
    for slide in content["slides"]:
        seconds = float(slide["seconds"])
        if "steps" not in slide:
            if slide["status"] == "done":
                yield str(slide["slide_id"]), SlideRun(command, seconds, None)
            continue
        steps = [
            StepSeconds(str(one["step"]), float(one["seconds"]), _activities(one), bool(one["made"]))
            for one in slide["steps"]
        ]
        of_reports = sum(step.seconds for step in steps if step.step.startswith(REPORTS))
        kept = [step for step in steps if not step.step.startswith(REPORTS)]
        yield str(slide["slide_id"]), SlideRun(command, seconds - of_reports, kept)


def _activities(step: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(seconds) for name, seconds in step["activities"].items()}


def _rounded(seconds: float) -> float:
    return round(float(seconds), 3)
