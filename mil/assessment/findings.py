"""What is found of a cohort, as JSON: every number of a report, with what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil.assessment.cohort import Cohort, select
from mil.assessment.settings import AssessmentSettings
from mil.evaluation.bootstrap import Figure, Resampling, bootstrap, missing_class
from mil.evaluation.delong import auc_interval, bound_of_a_perfect_area, delong
from mil.evaluation.judged import Judged
from mil.evaluation.metrics import confusion_matrices, figures
from mil.evaluation.reliability import Reliability, reliability
from mil.evaluation.selective import Share, report_gate, risk_coverage, share_of
from mil.gate import Decision

FOLD_FIGURES = ("AUROC", "AUPRC", "balanced accuracy", "F1", "accuracy", "Brier score")
"""Those that are also given for each fold."""


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """A cohort, and what is found of it."""

    cohort: Cohort
    """The slides."""
    decisions: tuple[Decision, ...]
    """``m``: what the gate says of each."""
    before: Reliability
    """Confidence against accuracy before calibration."""
    after: Reliability
    """And after it."""
    content: dict[str, Any]
    """All numbers, as JSON."""


def find(cohort: Cohort, settings: AssessmentSettings) -> Finding:
    """Everything that is to be said of a cohort."""
    after = cohort.after
    decisions = tuple(
        settings.gate.decide(values, kept)
        for values, kept in zip(after.probabilities, cohort.sets, strict=True)
    )
    diagrams = tuple(reliability(judged, seed=settings.seed) for judged in (cohort.before, after))
    grouped = after.by_patient()
    content: dict[str, Any] = {
        "slides": after.counts(),
        "figures": figures_as_json(after, settings.resampling),
        "figures_before_calibration": figures_as_json(cohort.before, settings.resampling),
        "figures_by_patient": (
            figures_as_json(grouped, settings.resampling) | {"cases": len(grouped)}
            if len(grouped) < len(after)
            else None
        ),
        "delong": _areas(after, settings.resampling.level),
        "confusion": confusion_matrices(after, np.ones((1, len(after))))[0].astype(int).tolist(),
        "calibration": {
            name: asdict(diagram) for name, diagram in zip(("before", "after"), diagrams, strict=True)
        },
        "conformal": {
            "marginal": _coverage(after, cohort.sets, settings.alpha),
            "class_conditional": _coverage(after, cohort.class_sets, settings.alpha),
        },
        "gate": _gate(after, decisions, settings),
        "folds": _folds(cohort),
        "uncertainty": _uncertainty(cohort),
    }
    return Finding(cohort, decisions, diagrams[0], diagrams[1], content)


def figures_as_json(judged: Judged, resampling: Resampling) -> dict[str, Any]:
    """Each figure with its interval; a perfect AUROC, accuracy or recall with a bound that is not empty."""
    found = {name: as_json(figure) for name, figure in bootstrap(judged, resampling).items()}
    for index in one_against_the_rest(judged):
        area = found["AUROC" if len(judged.classes) == 2 else f"AUROC of {judged.classes[index]}"]
        if area["value"] not in (0.0, 1.0):
            continue
        positive = judged.labels == index
        sides = [
            len({judged.patients[row] for row in np.flatnonzero(side)}) for side in (positive, ~positive)
        ]
        bound = bound_of_a_perfect_area(*sides, level=resampling.level)
        area["interval"] = [bound, 1.0] if area["value"] == 1 else [0.0, 1 - bound]
        area["note"] = "exact bound from disjoint pairs of patients: the bootstrap has no width here"
    rows = {"accuracy": np.ones(len(judged), np.bool_)}
    rows |= {f"recall of {name}": judged.labels == index for index, name in enumerate(judged.classes)}
    for name, counted in rows.items():
        if found[name]["value"] in (0.0, 1.0):
            owners = np.array(judged.patients)[counted]
            exact = share_of(judged.correct[counted], owners, level=resampling.level)
            found[name]["interval"] = [exact.low, exact.high]
            found[name]["note"] = "Clopper-Pearson over patients: the bootstrap has no width here"
    return found


def as_json(figure: Figure) -> dict[str, Any]:
    """A figure for a file: null is unknown, and the note says why."""
    return {
        "value": figure.value,
        "interval": None if figure.low is None else [figure.low, figure.high],
        "undefined_resamples": figure.undefined,
        "note": figure.note,
    }


def one_against_the_rest(judged: Judged) -> list[int]:
    """Classes whose AUROC is a question of its own: the second of two, or each of more."""
    count = len(judged.classes)
    return [1] if count == 2 else list(range(count))


def share_as_json(found: Share) -> dict[str, Any]:
    """A share for a file."""
    return {
        "value": found.value,
        "count": found.count,
        "of": found.of,
        "interval": None if found.low is None else [found.low, found.high],
    }


def _areas(judged: Judged, level: float) -> dict[str, Any]:
    """DeLong's interval of each class against the rest."""
    content = {}
    for index in one_against_the_rest(judged):
        truth = (judged.labels == index).astype(np.int64)
        areas = delong(truth, judged.probabilities[None, :, index], judged.patients)
        interval = (
            auc_interval(float(areas.aucs[0]), float(areas.covariance[0, 0]), level=level) if areas else None
        )
        note = None
        if areas is None:
            note = missing_class(judged) or "a class has fewer than two patients"
        elif interval is None:
            note = "the estimated variance is 0: no interval"
        content[judged.classes[index]] = {
            "AUROC": float(areas.aucs[0]) if areas else None,
            "standard_error": float(np.sqrt(areas.covariance[0, 0])) if areas else None,
            "interval": list(interval) if interval else None,
            "note": note,
        }
    return content


def _coverage(judged: Judged, sets: NDArray[np.bool_], alpha: float) -> dict[str, Any]:
    """How often sets hold the true class, and how large they are."""
    held = sets[np.arange(len(judged)), judged.labels]
    sizes, owner = sets.sum(axis=1), np.array(judged.patients)
    by_class = {
        name: share_as_json(share_of(held[judged.labels == c], owner[judged.labels == c]))
        for c, name in enumerate(judged.classes)
    }
    return {
        "wanted": 1 - alpha,
        "coverage": share_as_json(share_of(held, owner)),
        "coverage_by_class": by_class,
        "mean_size": float(sizes.mean()),
        "slides_by_size": {str(size): int((sizes == size).sum()) for size in range(len(judged.classes) + 1)},
    }


def _gate(judged: Judged, decisions: Sequence[Decision], settings: AssessmentSettings) -> dict[str, Any]:
    review = np.array([decision.review for decision in decisions])
    found = report_gate(review, judged.correct, judged.patients, level=settings.resampling.level)
    curve = risk_coverage(judged.confidence, judged.correct)
    return {
        "threshold": settings.gate.threshold,
        "confirmed": share_as_json(found.kept),
        "accuracy_of_confirmed": share_as_json(found.accuracy_kept),
        "accuracy_of_review": share_as_json(found.accuracy_review),
        "area_under_risk_coverage": curve.area,
        "error_without_gate": 1 - float(judged.correct.mean()),
        "below_threshold": int((judged.confidence < settings.gate.threshold).sum()),
    }


def _folds(cohort: Cohort) -> dict[str, Any] | None:
    """Figures of each fold, and their mean and deviation; None where all members judged all slides."""
    if cohort.member_of_slide is None:
        return None
    each: dict[str, dict[str, float | None]] = {}
    sizes = {}
    for member in np.unique(cohort.member_of_slide).tolist():
        part = select(cohort.after, np.flatnonzero(cohort.member_of_slide == member))
        values = figures(part, np.ones((1, len(part))))
        each[str(member)] = {name: _known(float(values[name][0])) for name in FOLD_FIGURES}
        sizes[str(member)] = {"slides": len(part), "patients": part.patient_count}
    return {
        "each": each,
        "sizes": sizes,
        "over_folds": {name: _over_folds([row[name] for row in each.values()]) for name in FOLD_FIGURES},
    }


def _over_folds(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean and deviation over folds. Folds share training slides, so no standard error follows from it."""
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "deviation": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "folds": len(known),
    }


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _uncertainty(cohort: Cohort) -> dict[str, Any]:
    """Means over right and over wrong slides: uncertainty is worth something where these differ."""
    content: dict[str, Any] = {"ensemble": None, "mc_dropout": None}
    correct = cohort.after.correct
    if cohort.spread is not None:
        content["ensemble"] = {
            "deviation": _by_correct(cohort.spread.deviation, correct),
            "mutual_information": _by_correct(cohort.spread.information, correct),
        }
    if cohort.dropout_deviation is not None:
        content["mc_dropout"] = {"deviation": _by_correct(cohort.dropout_deviation, correct)}
    return content


def _by_correct(values: NDArray[np.float64], correct: NDArray[np.bool_]) -> Mapping[str, Any]:
    parts = {"all": values, "right": values[correct], "wrong": values[~correct]}
    return {
        name: {"mean": float(part.mean()) if len(part) else None, "slides": len(part)}
        for name, part in parts.items()
    }
