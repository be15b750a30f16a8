"""How long a slide took, out of the logs of the runs: each step, and what no step tells, up to the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from heatmaps.run_logs import Ending

REPORTS = "reports/"
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
        activities = {name: rounded(seconds) for name, seconds in sorted(self.activities.items())}
        rest = rounded(max(0.0, self.seconds - sum(self.activities.values())))
        seconds = rounded(self.seconds)
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


def run_of(verb: str, ending: Ending) -> SlideRun:
    """What one run did to one slide, without the making of reports, so that no report tells of itself.

    Raises
    ------
    KeyError, TypeError, ValueError, AttributeError
        The log holds steps that are none.
    """
    told = ending.steps or ending.status != "done"  # where something was made there was a step
    steps = [_step(one) for one in ending.steps]
    seconds = ending.seconds - sum(step.seconds for step in steps if step.step.startswith(REPORTS))
    kept = [step for step in steps if not step.step.startswith(REPORTS)]
    return SlideRun(verb, seconds, kept if told else None)


def _step(content: Mapping[str, Any]) -> StepSeconds:
    activities = {str(name): float(seconds) for name, seconds in content["activities"].items()}
    return StepSeconds(str(content["step"]), float(content["seconds"]), activities, bool(content["made"]))


def time_of(runs: Sequence[SlideRun]) -> dict[str, Any]:
    """How the time of a slide was spent, as JSON; `runs` are all that worked on it, the oldest first.

    The whole is what those runs took by the clock that made something which was not made again since; steps,
    what is beside them, and runs without steps add up to it.
    """
    last: dict[str, StepSeconds] = {}
    untold: dict[str, float] = {}
    for run in runs:
        if run.steps is None:
            untold[run.command] = untold.get(run.command, 0.0) + run.seconds
        last.update({step.step: step for step in run.steps or () if step.made})
    standing = {id(step) for step in last.values()}
    counted = [run for run in runs if any(id(step) in standing for step in run.steps or ())]
    steps = [step.as_json() for step in last.values()]
    other = rounded(max(0.0, sum(run.seconds for run in counted) - sum(step["seconds"] for step in steps)))
    told = [{"run": command, "seconds": rounded(seconds)} for command, seconds in untold.items()]
    total = rounded(sum(one["seconds"] for one in (*steps, *told)) + other)
    return {"steps": steps, "other_seconds": other, "untold_runs": told, "total_seconds": total}


def rounded(seconds: float) -> float:
    """To a millisecond, as in the logs."""
    return round(float(seconds), 3)
