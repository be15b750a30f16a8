"""Two models on the same slides: DeLong's test, and beside it the bootstrap of every difference."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from mil.assessment.cohort import Cohort, select
from mil.assessment.findings import as_json, one_against_the_rest
from mil.assessment.settings import AssessmentSettings
from mil.evaluation.bootstrap import bootstrap_difference, missing_class
from mil.evaluation.delong import compare
from mil.evaluation.judged import Judged
from wsi.errors import UsageError


def compare_cohorts(first: Cohort, second: Cohort, settings: AssessmentSettings) -> dict[str, Any]:
    """What differs between two models, second minus first, on the slides that both judged.

    Raises
    ------
    UsageError
        Other classes, no slide in common, or a slide with another label or patient.
    """
    ours, theirs = _paired(first.after, second.after)
    content: dict[str, Any] = {
        "slides": ours.counts(),
        "left_out": {"first": len(first) - len(ours), "second": len(second) - len(ours)},
        "delong": {},
    }
    for index in one_against_the_rest(ours):
        truth = (ours.labels == index).astype(np.int64)
        level = settings.resampling.level
        scores = ours.probabilities[:, index], theirs.probabilities[:, index]
        test = compare(truth, *scores, ours.patients, level=level)
        why = missing_class(ours) or "a class has fewer than two patients"
        content["delong"][ours.classes[index]] = (
            asdict(test) if test else {"difference": None, "p": None, "note": why}
        )
    differences = bootstrap_difference(ours, theirs, settings.resampling)
    content["differences"] = {name: as_json(figure) for name, figure in differences.items()}
    return content


def _paired(first: Judged, second: Judged) -> tuple[Judged, Judged]:
    """The slides that both judged, in the first one's order."""
    if first.classes != second.classes:
        raise UsageError(
            f"the models have other classes: {', '.join(first.classes)} and {', '.join(second.classes)}",
            action="Compare models of the same labels",
        )
    place = {name: row for row, name in enumerate(second.slide_ids)}
    rows = np.array([row for row, name in enumerate(first.slide_ids) if name in place], np.int64)
    if not len(rows):
        raise UsageError(
            "the two models judged no slide in common",
            action="Compare models trained on the same label table",
        )
    ours = select(first, rows)
    theirs = select(second, np.array([place[name] for name in ours.slide_ids]))
    differ = np.flatnonzero(
        (ours.labels != theirs.labels) | (np.array(ours.patients) != np.array(theirs.patients))
    )
    if len(differ):
        raise UsageError(
            f"slide {ours.slide_ids[differ[0]]!r} has another label or patient in the other model's table",
            action="Train both models on the same label table",
        )
    return ours, theirs
