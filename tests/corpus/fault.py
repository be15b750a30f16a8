"""What a case of the corpus is: how its input is made, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

Given = Path | list[Path]
"""What is named on the command line."""


class Reader(Enum):
    """Which part of Microtome is given the input; see `corpus.reading`."""

    TILE = "tile"
    LABELS = "labels"
    REGIONS = "regions"
    FEATURES = "features"
    FOREIGN = "foreign"
    MODEL = "model"
    WEIGHTS = "weights"


@dataclass(frozen=True)
class Rejected:
    """One line says what is wrong, where and what to do; nothing comes of the input."""

    says: str
    """A pattern that is found in the line, behind the name of the file."""
    code: int = 1
    """The exit code: 1 for an item of many, 2 where nothing was started."""

    def __str__(self) -> str:
        return "rejected" if self.code == 1 else "rejected before any work"


@dataclass(frozen=True)
class Warned:
    """The input is used, and a warning says what is odd about it."""

    says: str
    """A pattern that is found in the warning, behind the name of the file."""
    holds: Callable[[Any], None] | None = None
    """Asserts what must be true of the result."""

    def __str__(self) -> str:
        return "warned"


@dataclass(frozen=True)
class Processed:
    """The input is used, and there is nothing to say."""

    status: str = "done"
    """How the slide ends."""
    holds: Callable[[Any], None] | None = None
    """Asserts what must be true of the result."""

    def __str__(self) -> str:
        return "processed" if self.status == "done" else f"processed: {self.status}"


Outcome = Rejected | Warned | Processed


@dataclass(frozen=True)
class Fault:
    """One input and its outcome."""

    name: str
    """Short, and unique."""
    what: str
    """In a few words, for the table."""
    make: Callable[[Path], Given]
    """Makes it in an empty folder."""
    outcome: Outcome
    """What must come of it."""
    reader: Reader = Reader.TILE
    """What reads it."""
    words: tuple[str, ...] = ()
    """More of the command line."""


def one_of_each(*groups: tuple[Fault, ...]) -> tuple[Fault, ...]:
    """All of them; no name twice."""
    faults = tuple(fault for group in groups for fault in group)
    names = [fault.name for fault in faults]
    assert len(set(names)) == len(names), sorted({name for name in names if names.count(name) > 1})
    return faults
