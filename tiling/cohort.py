"""Many slides, one after the other: a slide that fails is named at the end, and stops no other."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tiling.commit import canonical
from tiling.output import Output
from tiling.versions import versions
from wsi.durable import make_folder, write_file
from wsi.errors import MicrotomeError, NoTilesError, NoTissueError, OutputBusyError, OutputError, UsageError
from wsi.messages import printable

Work = Callable[[str, Path], bool]
"""Does everything for one slide (id, file); True where something was made, False where all was there."""

_log = logging.getLogger(__name__)


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


def run_cohort(
    slides: Mapping[str, Path],
    work: Work,
    *,
    report: Callable[[Outcome], None] = lambda outcome: None,
    debug: bool = False,
) -> list[Outcome]:
    """Call `work` on every slide; `report` hears of each outcome at once.

    Raises
    ------
    OutputError, OutputBusyError
        Nothing can be written any more: going on would fail every slide. What is finished stays.
    """
    outcomes = []
    for slide_id, path in slides.items():
        outcome = _run_one(slide_id, path, work, debug=debug)
        outcomes.append(outcome)
        report(outcome)
    return outcomes


def _run_one(slide_id: str, path: Path, work: Work, *, debug: bool) -> Outcome:
    start = time.monotonic()
    reason, exit_code = "", 0
    try:
        status = Status.DONE if work(slide_id, path) else Status.ALREADY_DONE
    except NoTissueError as error:
        status = Status.NO_TILES if isinstance(error, NoTilesError) else Status.NO_TISSUE
        reason = str(error)
    except (OutputError, OutputBusyError):
        raise
    except MicrotomeError as error:
        status, reason, exit_code = Status.FAILED, str(error), error.exit_code
    except Exception as error:  # a bug of ours must not cost the other slides
        if debug:
            raise
        _log.debug("unexpected", exc_info=True)
        status, exit_code = Status.FAILED, 70
        reason = f"{path}: unexpected {type(error).__name__}: {error}. Run it with --debug and report it"
    seconds = round(time.monotonic() - start, 3)
    return Outcome(printable(slide_id), printable(str(path)), status, printable(reason), exit_code, seconds)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 if all is well, 70 for a bug of ours, 2 if every slide failed for the settings, else 1."""
    codes = Counter(outcome.exit_code for outcome in outcomes)
    if codes[70]:
        return 70
    if outcomes and codes[UsageError.exit_code] == len(outcomes):
        return UsageError.exit_code
    return 0 if codes[0] == len(outcomes) else 1


def write_run_log(
    output: Output,
    command: Sequence[str],
    outcomes: Sequence[Outcome],
    *,
    spent: Mapping[str, Sequence[StepTime]] = MappingProxyType({}),
) -> Path:
    """Keep what was run, when and how it ended, beside the results (never in them: they tell no time).

    `spent` is how long the finished steps of each slide took, by its id.
    """
    steps = {printable(name): [step.as_json() for step in its] for name, its in spent.items()}
    now = datetime.now(UTC)
    path = output.root / "runs" / f"{now:%Y%m%dT%H%M%S.%fZ}-{os.getpid()}.json"
    content: dict[str, Any] = {
        "command": list(command),
        "ended": now.isoformat(timespec="seconds"),
        "slides": [
            asdict(outcome) | {"status": outcome.status.value, "steps": steps.get(outcome.slide_id, [])}
            for outcome in outcomes
        ],
        "versions": versions("torch", "timm"),
    }
    make_folder(path.parent)
    write_file(path, canonical(content))
    return path
