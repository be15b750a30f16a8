"""`Finding`: one thing that was looked at, for a person and for a program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    name: str
    """What."""
    value: str
    """What it is like."""
    advice: str = ""
    """What to do; empty where all is well."""
    note: str = ""
    """What is good to know, and needs nothing to be done."""
    figures: Mapping[str, float | int | str] = field(default_factory=lambda: MappingProxyType({}))
    """Numbers behind the value, for programs."""

    def as_json(self) -> dict[str, object]:
        """All of it."""
        told = {"name": self.name, "value": self.value, "advice": self.advice, "note": self.note}
        return {**told, "figures": dict(self.figures)}


def in_words(findings: Iterable[Finding]) -> dict[str, str]:
    """A line for each, by its name."""
    lines: dict[str, str] = {}
    for finding in findings:
        words = [finding.value]
        words += [f"({finding.note})"] if finding.note else []
        words += [f"<- {finding.advice}"] if finding.advice else []
        lines[finding.name] = "  ".join(words)
    return lines


def in_bytes(count: float) -> str:
    """Bytes as people say them.

    >>> in_bytes(512), in_bytes(3 * 2**30), in_bytes(2**41)
    ('512 B', '3.0 GiB', '2.0 TiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def in_time(seconds: float) -> str:
    """Seconds as people say them.

    >>> in_time(5.04), in_time(600), in_time(90_000)
    ('5.0 s', '10 min', '25 h')
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.3g} h"
