"""The logs of an output's runs (``OUT/runs``): what was run, and how each slide ended.

`tiling.cohort.RunLog` writes them, one a run, named by the time; none is changed later. They may be
from any version, and are needed by nobody: one that cannot be read is passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiling.output import Output

REPORT = "report"
"""The verb whose runs make reports: how they end says nothing of the slides' results."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What one run did with one slide."""

    slide_id: str
    """The slide."""
    path: str
    """Its file; a command that needs results alone logs their folder."""
    status: str
    """Of `tiling.cohort.Status`."""
    reason: str
    """Why it failed, or has no tiles; may name files."""
    exit_code: int
    """Of its error; 0 where all is well."""
    steps: tuple[Mapping[str, Any], ...]
    """How long each step took, see `tiling.cohort.StepTime`; none in old logs."""
    seconds: float = 0.0
    """How long all of it took."""


@dataclass(frozen=True, slots=True)
class RunLog:
    """One run."""

    words: tuple[str, ...]
    """The command; may name files."""
    endings: tuple[Ending, ...]
    """Of its slides."""

    @property
    def verb(self) -> str:
        """What was run, such as ``"tile"``."""
        return next((word for word in self.words if re.fullmatch(r"[a-z]+", word)), "")


def log_files(output: Output) -> list[Path]:
    """All logs, the oldest first."""
    return sorted((output.root / "runs").glob("*.json"))


def read_log(path: Path) -> RunLog | None:
    """A log; None where it cannot be read."""
    try:
        content = json.loads(path.read_bytes())
        endings = tuple(_ending(one) for one in content["slides"])
        return RunLog(tuple(str(word) for word in content["command"]), endings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _ending(content: Mapping[str, Any]) -> Ending:
    return Ending(
        str(content["slide_id"]),
        str(content["path"]),
        str(content["status"]),
        str(content.get("reason", "")),
        int(content.get("exit_code", 0)),
        tuple(content.get("steps", ())),
        float(content.get("seconds", 0.0)),
    )


@dataclass(slots=True)
class LastRuns:
    """How each slide ended last, and where its file was: kept up with the logs, each of which is read once.

    Memory goes with the slides, not with the logs.
    """

    output: Output
    """Whose logs."""
    most: int = 500
    """Of those that are there at first, so many are read: the newest."""
    endings: dict[str, Ending] = field(default_factory=dict)
    """Of each slide, in the last run but those that make reports; without steps."""
    _paths: dict[str, list[str]] = field(default_factory=dict)
    _read: dict[str, tuple[int, int]] = field(default_factory=dict)

    def refresh(self) -> None:
        """Read the logs that are new; all anew where one was changed or taken away."""
        there = {}
        for path in log_files(self.output):
            try:
                found = path.stat()
            except OSError:  # taken away meanwhile
                continue
            there[path.name] = found.st_size, found.st_mtime_ns
        if any(there.get(name) != stamp for name, stamp in self._read.items()):
            self.endings.clear()
            self._paths.clear()
            self._read.clear()
        last = max(self._read, default="")
        for name in [name for name in there if name > last][-self.most :]:
            self._read[name] = there[name]
            if log := read_log(self.output.root / "runs" / name):
                self._take(log)

    def file(self, slide_id: str) -> Path | None:
        """The newest place of the slide where a file is now; None where there is none."""
        places = (Path(path) for path in reversed(self._paths.get(slide_id, ())))
        return next((path for path in places if path.suffix and path.is_file()), None)

    def _take(self, log: RunLog) -> None:
        for one in log.endings:
            places = self._paths.setdefault(one.slide_id, [])
            if one.path in places:
                places.remove(one.path)
            places.append(one.path)  # the newest
            if log.verb != REPORT:
                self.endings[one.slide_id] = Ending(
                    one.slide_id, one.path, one.status, one.reason, one.exit_code, ()
                )
