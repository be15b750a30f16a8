"""Markdown tables of what ways cost, and which goals are reached."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.costs import Measured, Way, take_turns
from tiling.versions import versions


@dataclass(frozen=True)
class Goal:
    """A ratio that is wanted."""

    text: str
    found: float
    wanted: float

    @property
    def is_reached(self) -> bool:
        """Whether it came out so."""
        return self.found >= self.wanted


@dataclass
class Report:
    """Prints tables as they are measured, and keeps what the goals are about."""

    seconds: float
    """For each table."""
    goals: list[Goal] = field(default_factory=list)

    def take_turns(self, title: str, ways: Mapping[str, Way], *, times: float = 1) -> Measured:
        """Measure what the next table is about, for so many times the usual time."""
        print(f"\n### {title}\n", flush=True)
        return take_turns(ways, seconds=times * self.seconds)

    def table(
        self, unit: str, measured: Measured, *, base: str, off: Mapping[str, str] | None = None
    ) -> None:
        """Print rates, and ratios to the way named `base`; `off` says how far pixels are from the truth."""
        first = measured.costs.get(base)
        head, rule = (" off by |", "---|") if off else ("", "")
        print(f"| way | {unit} per CPU-s | ratio | {unit} per s | ratio | peak, MB |{head}")
        print(f"|---|---|---|---|---|---|{rule}")
        for name, cost in measured.costs.items():
            ratios = math.nan, math.nan
            if first:
                ratios = cost.per_cpu / first.per_cpu, cost.per_second / first.per_second
            cells = f"{cost.per_cpu:.1f} | {ratios[0]:.2f} | {cost.per_second:.1f} | {ratios[1]:.2f}"
            last = f" {off.get(name, '')} |" if off else ""
            print(f"| {name} | {cells} | {cost.peak / 1e6:.0f} |{last}")
        left_out = "".join(f"\n{name} is left out: {reason}" for name, reason in measured.failed.items())
        print(f"\n{measured.rounds} turns each.{left_out}", flush=True)

    def want(self, text: str, found: float, wanted: float) -> None:
        """Hold a ratio against its goal."""
        self.goals.append(Goal(text, found, wanted))

    def print_goals(self) -> None:
        """All of them, at the end."""
        if not self.goals:
            return
        print("\n### Goals\n\n| goal | wanted | measured | |\n|---|---|---|---|")
        for goal in self.goals:
            word = "reached" if goal.is_reached else "**missed**"
            print(f"| {goal.text} | {goal.wanted:g} | {goal.found:.2f} | {word} |")


def print_machine(packages: Iterable[str]) -> None:
    """The processor, how busy it is, and what is installed."""
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    load = os.getloadavg()[0]
    print(f"{model or platform.processor()}, {os.cpu_count()} cores; load {load:.1f} at the start")
    found = [f"{name} {number}" for name, number in versions(*packages).items() if number != "not installed"]
    print(", ".join([f"Python {platform.python_version()}", *found]), flush=True)
