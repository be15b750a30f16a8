"""A few-shot report as text: for spreadsheet, reader and terminal, and for whoever recomputes it."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from typing import Any

from mil.fewshot.evaluating import FewshotFigures
from mil.training.records import table_bytes

_COLUMNS = (
    *("shots", "method", "accuracy", "low", "high", "patients_low", "patients_high", "log_loss"),
    *("to_prototypes", "to_prototypes_low", "to_prototypes_high"),
    *("best_baseline", "to_best", "to_best_low", "to_best_high", "corrected_low", "corrected_high"),
    *("to_best_patients_low", "to_best_patients_high", "verdict"),
)


def table_csv(content: Mapping[str, Any]) -> bytes:
    """A line for every number of shots and method; blank where there is no such figure."""
    rows = (_row(found, one) for found in content["shots"] for one in found["methods"])
    return table_bytes(_COLUMNS, rows)


def _row(found: Mapping[str, Any], one: Mapping[str, Any]) -> list[str]:
    first, best = one["to_prototypes"], one["to_best"]
    return [
        str(found["shots"]),
        one["method"],
        *_numbers(one["accuracy"], "mean", "low", "high"),
        *_numbers(one["over_patients"], "low", "high"),
        repr(one["log_loss"]),
        *_numbers(first and first["over_tasks"], "mean", "low", "high"),
        found["best_baseline"],
        *_numbers(best and best["over_tasks"], "mean", "low", "high"),
        *_numbers(best and best["corrected"], "low", "high"),
        *_numbers(best and best["over_patients"], "low", "high"),
        verdict(one),
    ]


def _numbers(found: Mapping[str, float] | None, *names: str) -> list[str]:
    return [repr(found[name]) if found else "" for name in names]


def verdict(one: Mapping[str, Any]) -> str:
    """Of a method beside the best baseline, in a word."""
    return str(one["to_best"]["verdict"]) if one["to_best"] else "the best baseline"


def tasks_csv(figures: FewshotFigures) -> bytes:
    """A line for every task and method, gzip-compressed: of these all intervals over tasks are made."""
    rows: list[Sequence[str]] = []
    for shots, accuracy, log_loss in zip(figures.shots, figures.accuracy, figures.log_loss, strict=True):
        for task in range(figures.episodes):
            for name, right, loss in zip(figures.methods, accuracy[:, task], log_loss[:, task], strict=True):
                rows.append((str(shots), str(task), name, repr(float(right)), repr(float(loss))))
    return gzip.compress(table_bytes(("shots", "task", "method", "accuracy", "log_loss"), rows), mtime=0)


def patients_csv(figures: FewshotFigures) -> bytes:
    """A line for every patient who was asked about: of these all intervals over patients are made."""
    rows: list[Sequence[str]] = []
    for shots, asked, right in zip(figures.shots, figures.asked, figures.right, strict=True):
        for patient, name in enumerate(figures.patient_ids):
            if asked[patient]:
                rows.append((str(shots), name, str(asked[patient]), *map(str, right[:, patient].tolist())))
    return table_bytes(("shots", "patient", "asked", *(f"right: {name}" for name in figures.methods)), rows)


def report_md(content: Mapping[str, Any]) -> bytes:
    """The report for a reader: who wins, the figures, and what they do not say."""
    tasks = content["tasks"]
    lines = [
        f"# Few-shot learning on {content['bags']} {content['judges']} of {content['patients']} patients",
        "",
        f"{tasks['episodes']} tasks for each number of shots, each of {tasks['ways']} classes with "
        f"{tasks['queries']} queries a class. Classes: {', '.join(content['classes'])}. By chance "
        f"{1 / tasks['ways']:.3f} would be right.",
        "",
        "## Which wins",
        "",
    ]
    lines += [f"- **{_shots(found['shots'])}:** {'; '.join(found['words'])}." for found in content["shots"]]
    for found in content["shots"]:
        lines += ["", f"## {_shots(found['shots'])}", "", *_markdown(found)]
    lines += ["", "![Accuracy over shots](accuracy.png)", "", "## How to read it", ""]
    lines += [f"- **{name}:** {text}." for name, text in content["definitions"].items()]
    if content["cautions"]:
        lines += ["", "## What must be known", ""]
        lines += [f"- {text[0].upper()}{text[1:]}." for text in content["cautions"]]
    return ("\n".join(lines) + "\n").encode()


def _markdown(found: Mapping[str, Any]) -> list[str]:
    best = found["best_baseline"]
    lines = [
        f"| method | accuracy | over patients | log loss | less prototypes | less {best} | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found["methods"]:
        to_prototypes, to_best = one["to_prototypes"], one["to_best"]
        cells = [
            f"**{one['method']}**" if one["method"] == found["winner"] else one["method"],
            estimate(one["accuracy"]),
            _ends(one["over_patients"]),
            f"{one['log_loss']:.3f}",
            estimate(to_prototypes["over_tasks"], signed=True) if to_prototypes else "",
            estimate(to_best["corrected"], signed=True) if to_best else "",
            verdict(one),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def blocks(content: Mapping[str, Any]) -> list[dict[str, str]]:
    """All that a terminal shows of a report, in paragraphs."""
    shown = []
    for found in content["shots"]:
        lines = {_shots(found["shots"]): f"{content['tasks']['episodes']} tasks"}
        lines |= {f"  {one['method']}": _line(one) for one in found["methods"]}
        first, *more = found["words"]
        lines |= {"  which wins": first} | {f"  note {n}": text for n, text in enumerate(more, start=1)}
        shown.append(lines)
    if content["cautions"]:
        shown.append({f"note {number}": text for number, text in enumerate(content["cautions"], start=1)})
    return shown


def _line(one: Mapping[str, Any]) -> str:
    line = f"{estimate(one['accuracy'])}, log loss {one['log_loss']:.3f}"
    if one["to_prototypes"]:
        line += f"; to prototypes {estimate(one['to_prototypes']['over_tasks'], signed=True)}"
    if one["to_best"] and one["to_best"]["other"] != "prototypes":
        line += f"; to {one['to_best']['other']} {estimate(one['to_best']['corrected'], signed=True)}"
    return f"{line}; {verdict(one)}"


def estimate(found: Mapping[str, float], *, signed: bool = False) -> str:
    """A mean with its interval, as ``0.900 (0.880 to 0.920)``."""
    sign = "+" if signed else ""
    return f"{found['mean']:{sign}.3f} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"


def _ends(found: Mapping[str, float] | None) -> str:
    return f"{found['low']:.3f} to {found['high']:.3f}" if found else "n/a: one patient"


def _shots(shots: int) -> str:
    return f"{shots} shot{'s' if shots > 1 else ''}"
