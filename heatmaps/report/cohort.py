"""What a cohort's report says, as JSON, out of the reports of its slides and the logs of the runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from heatmaps.report.chosen import Chosen
from heatmaps.report.content import FORMAT, VERSION
from heatmaps.report.html import counted
from heatmaps.report.make import CONTENT, report_item
from heatmaps.report.privacy import safe_text
from heatmaps.report.spent import LastOutcome, RunLogs
from tiling.commit import damaged
from tiling.output import Output
from tiling.store import TileStore
from tiling.versions import versions
from wsi.errors import MicrotomeError
from wsi.messages import printable

BINS = 20
"""Bars of a distribution, from 0 to 1."""
REVIEW = "review required"
FINE = frozenset({"done", "already done"})

Content = Mapping[str, Any]


def read_reports(
    output: Output, slides: Iterable[str], chosen: Chosen | None, logs: RunLogs
) -> tuple[list[Content], dict[str, LastOutcome]]:
    """The JSON of every slide's report that is current, and, by id, what is wrong with which slides.

    Wrong is that the last run that worked on a slide failed or left it without tiles, or that there is no
    report of what is there now.
    """
    reports: list[Content] = []
    others = {name: last for name, last in logs.outcomes.items() if last.status not in FINE}
    for slide_id in sorted(slides):
        store = TileStore(output, slide_id)
        try:
            item = report_item(chosen)
            store.require(item)
            reports.append(_read(store.path(item)))
        except MicrotomeError as error:
            name = printable(slide_id)
            reason = safe_text(error.reason, places=[str(output.root)], allowed=[slide_id])
            last = logs.reported.get(name)
            failed = last if last and last.status not in FINE else LastOutcome("report", "failed", reason)
            others.setdefault(name, failed)
    return reports, others


def _read(item: Path) -> Content:
    try:
        content: Content = json.loads((item / CONTENT).read_bytes())
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(item, f"{CONTENT} cannot be read") from error


def cohort_content(
    reports: Sequence[Content],
    others: Mapping[str, LastOutcome],
    *,
    chosen: Chosen | None,
    logs: RunLogs,
) -> dict[str, Any]:
    """All that a cohort's report says.

    Parameters
    ----------
    reports
        Of its slides, of one model.
    others
        What is wrong with slides, whether they have a report or not.
    chosen
        The model.
    logs
        Of the runs.
    """
    known = {printable(report["slide"]) for report in reports}
    rows = [_row(report) | _wrong(others.get(printable(report["slide"]))) for report in reports]
    rows += [_other(*pair) for pair in others.items() if pair[0] not in known]
    scored = [report for report in reports if report["model"]]
    warnings = []
    if logs.unreadable:
        warnings.append(
            f"{counted(logs.unreadable, 'log')} of runs cannot be read: times and failures are missing."
        )
    if len({report["model"]["weights_sha256"] for report in scored}) > 1:
        warnings.append(
            "The slides were scored by different models of one name: their scores do not compare."
        )
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": "cohort",
        "made_by": {"microtome": versions()["microtome"]},
        "model": scored[0]["model"] if scored and chosen else None,
        "slides": sorted(rows, key=_urgency),
        "counts": _counts(rows),
        "distributions": _distributions(scored),
        "warnings": warnings,
        "software": _software(reports),
        "time": _time(reports),
    }


def _row(report: Content) -> dict[str, Any]:
    """One slide with a report."""
    said, shares, decision = report["prediction"], report["shares"], report["decision"]
    scores: Mapping[str, float] = {}
    prediction = confidence = None
    if said:
        scores = {one["name"]: one["probability"] for one in said["classes"]}
        prediction = said["likeliest"]
        confidence = decision["confidence"] if decision else scores[prediction]
    elif shares:
        scores = shares["shares"]
    return {
        "slide": report["slide"],
        "status": report["status"],
        "has_report": True,
        "prediction": prediction,
        "confidence": confidence,
        "scores": dict(scores),
        "feedback": report["feedback"],
        "decision": (decision["status"] if decision else REVIEW) if said else None,
        "reasons": list(decision["reasons"]) if decision else ["the model is not calibrated"] if said else [],
        "tiles": report["quality"]["tiles_kept"],
        "tiles_dropped": sum(report["quality"]["tiles_dropped"].values()),
        "tissue_mm2": report["quality"]["tissue_mm2"],
        "warnings": list(report["warnings"]),
        "seconds": report["time"]["total_seconds"],
        "message": "",
    }


def _wrong(last: LastOutcome | None) -> dict[str, str]:
    return {"status": last.status, "message": last.reason} if last else {}


def _other(slide_id: str, last: LastOutcome) -> dict[str, Any]:
    """One slide without."""
    nothing = dict.fromkeys(
        (
            "prediction",
            "confidence",
            "decision",
            "feedback",
            "tiles",
            "tiles_dropped",
            "tissue_mm2",
            "seconds",
        )
    )
    return {
        "slide": slide_id,
        "has_report": False,
        **nothing,
        "scores": {},
        "reasons": [],
        "warnings": [],
        **_wrong(last),
    }


def _urgency(row: Mapping[str, Any]) -> tuple[int, float, str]:
    """Failures first, then what a person has to look at, the least sure first."""
    if row["status"] == "failed":
        return 0, 0.0, row["slide"]
    if row["decision"] == REVIEW:
        return 1, row["confidence"], row["slide"]
    if row["confidence"] is not None:
        return 2, row["confidence"], row["slide"]
    return (3 if row["has_report"] else 4), 0.0, row["slide"]


def _counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "slides": len(rows),
        "by_status": dict(sorted(Counter(row["status"] for row in rows).items())),
        "by_prediction": dict(
            sorted(Counter(row["prediction"] for row in rows if row["prediction"]).items())
        ),
        "by_decision": dict(sorted(Counter(row["decision"] for row in rows if row["decision"]).items())),
        "by_feedback": _counts_of_feedback(rows),
        "with_warnings": sum(bool(row["warnings"]) for row in rows),
    }


def _counts_of_feedback(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Of how many slides a person agreed or disagreed with what was shown of the slide as a whole."""
    said = ({one["verdict"] for one in row["feedback"]["slide"]} for row in rows if row["feedback"])
    return dict(sorted(Counter(f"{verdict}d" for verdicts in said for verdict in verdicts).items()))


def _distributions(scored: Sequence[Content]) -> list[dict[str, Any]]:
    """Of each class, how many slides have which probability, or share of tiles: counts in equal steps."""
    found = []
    for name in scored[0]["model"]["classes"] if scored else ():
        values = [row["scores"][name] for row in map(_row, scored) if name in row["scores"]]
        counts, _ = np.histogram(values, BINS, (0.0, 1.0))
        found.append({"class": name, "from": 0, "to": 1, "counts": counts.tolist(), "slides": len(values)})
    return found


def _software(reports: Sequence[Content]) -> list[dict[str, Any]]:
    """Packages and versions, with how many slides each was used for."""
    used = Counter(
        pair
        for report in reports
        for pair in {pair for item in report["run"]["items"] for pair in item["versions"].items()}
    )
    return [{"package": p, "version": v, "slides": count} for (p, v), count in sorted(used.items())]


def _time(reports: Sequence[Content]) -> dict[str, Any]:
    """Seconds of each step over all slides, and of what no step tells."""
    each = [report["time"] for report in reports]
    steps: dict[str, list[Mapping[str, Any]]] = {}
    untold: dict[str, list[float]] = {}
    for time in each:
        for step in time["steps"]:
            steps.setdefault(step["step"], []).append(step)
        for run in time["untold_runs"]:
            untold.setdefault(run["run"], []).append(run["seconds"])
    items = Counter(item for time in each for item in time["untold_items"])
    return {
        "steps": [_step(name, those) for name, those in steps.items()],
        "other_seconds": _sum(time["other_seconds"] for time in each),
        "untold_runs": [
            {"run": n, "slides": len(those), "seconds": _sum(those)} for n, those in untold.items()
        ],
        "untold_items": [{"item": name, "slides": count} for name, count in sorted(items.items())],
        "total_seconds": _sum(time["total_seconds"] for time in each),
    }


def _step(name: str, those: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    activities: Counter[str] = Counter()
    for step in those:
        activities.update(step["activities"])
    return {
        "step": name,
        "slides": len(those),
        "seconds": _sum(step["seconds"] for step in those),
        "activities": {n: round(s, 3) for n, s in sorted(activities.items())},
        "unmeasured_seconds": _sum(step["unmeasured_seconds"] for step in those),
    }


def _sum(seconds: Iterable[float]) -> float:
    return round(sum(seconds), 3)
