"""How slides end, and the log of it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tiling.commit import canonical
from tiling.output import Output
from tiling.versions import versions
from wsi.durable import make_folder, write_file
from wsi.errors import UsageError

NOTHING: Mapping[str, Any] = MappingProxyType({})
_WRITTEN_EVERY = 60.0  # seconds


class Status(Enum):
    """How a slide ended."""

    DONE = "done"
    ALREADY_DONE = "already done"
    NO_TISSUE = "no tissue"
    NO_TILES = "no tiles"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one slide ended, and why."""

    slide_id: str
    path: str
    status: Status
    reason: str = ""
    exit_code: int = 0
    """What the process should end with if this slide were the only one."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StepTime:
    """How long one step of one slide took."""

    step: str
    """The item that it has made."""
    made: bool
    """Whether it was made; it was there already otherwise."""
    seconds: float
    """By the clock."""
    activities: Mapping[str, float]
    """Seconds of all threads together, by activity; see `wsi.stopwatch`. What is not listed was not timed."""

    def as_json(self) -> dict[str, Any]:
        """For the log, to a millisecond."""
        activities = {name: round(seconds, 3) for name, seconds in sorted(self.activities.items())}
        return asdict(self) | {"seconds": round(self.seconds, 3), "activities": activities}


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 if all is well, 70 for a bug of ours, 2 if every slide failed for the settings, else 1."""
    codes = Counter(outcome.exit_code for outcome in outcomes)
    if codes[70]:
        return 70
    if outcomes and codes[UsageError.exit_code] == len(outcomes):
        return UsageError.exit_code
    return 0 if codes[0] == len(outcomes) else 1


@dataclass(slots=True)
class RunLog:
    """What was run, when and how it ended, kept beside the results (never in them: they tell no time).

    Parameters
    ----------
    output
        In whose ``runs/`` it is kept.
    command
        What was typed.
    """

    output: Output
    command: Sequence[str]
    _slides: list[dict[str, Any]] = field(default_factory=list)
    _begun: datetime = field(default_factory=lambda: datetime.now(UTC))
    _written: float = field(default_factory=time.monotonic)

    def add(
        self, outcome: Outcome, steps: Sequence[StepTime] = (), *, ledger: Mapping[str, Any] = NOTHING
    ) -> None:
        """A slide that has ended, how long its steps took, and what else its work cost."""
        times = [step.as_json() for step in steps]
        told = asdict(outcome) | {"status": outcome.status.value, "steps": times}
        self._slides.append(told | ({"work": dict(ledger)} if ledger else {}))
        if time.monotonic() - self._written > _WRITTEN_EVERY:
            self.write()

    def close(self) -> None:
        """Write it for the last time; of a run that ended before any slide did, there is nothing to tell."""
        if self._slides:
            self.write()

    def write(self) -> Path:
        """Write it anew; so a run that is killed leaves the log of some moment before."""
        self._written = time.monotonic()
        path = self.output.root / "runs" / f"{self._begun:%Y%m%dT%H%M%S.%fZ}-{os.getpid()}.json"
        content: dict[str, Any] = {
            "command": list(self.command),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "slides": self._slides,
            "versions": versions("torch", "timm"),
        }
        make_folder(path.parent)
        write_file(path, canonical(content))
        return path
