"""Calibration of a study's members, each on its own validation slides; and conformal rules beside it.

A member's temperature is fitted on its validation slides. Conformal rules rest on out-of-fold slides, each
judged by the member that was tested on it, so calibrated: those for slides that no member has seen on all of
them, those for the slides of a fold on the ones of the *other* folds (cross-conformal prediction, V. Vovk,
arXiv:1208.0806). Validation slides would do too, but an epoch was chosen by them, and a fold seldom has the
patients that rule anything out. The scores of several members are not quite those of one, so the exact law of
split conformal prediction holds nearly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mil.calibration import fit_temperature, probabilities, why_not_fitted
from mil.conformal import ConformalRule, fit_conformal, rank, worst_of_each_patient
from mil.predictions import MemberPredictions, Part, Predictions


@dataclass(frozen=True, slots=True)
class MemberCalibration:
    """What a member's validation slides say of how sure it may be."""

    member: int
    """Which one."""
    temperature: float
    """Divides its logits."""
    note: str | None
    """Why its temperature was not fitted; None where it was."""
    rule: ConformalRule
    """For the slides that it was tested on: one quantile for all classes."""
    class_rule: ConformalRule
    """Likewise, a quantile a class."""
    slides: int
    """Validation slides."""
    patients: int
    """Whose slides they are."""
    calibrated_on: int
    """Patients of other folds that the conformal rules rest on, each by its worst slide."""

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "member": self.member,
            "temperature": self.temperature,
            "temperature_note": self.note,
            "conformal": self.rule.as_json(),
            "class_conditional": self.class_rule.as_json(),
            "validation": {"slides": self.slides, "patients": self.patients},
            "calibrated_on": {"patients": self.calibrated_on},
            "coverage_law": coverage_law(self.calibrated_on, self.rule.alpha),
        }


@dataclass(frozen=True, slots=True)
class Calibrations:
    """Of all members; and of the ensemble, for slides that no member has seen."""

    members: tuple[MemberCalibration, ...]
    """By member."""
    rule: ConformalRule
    """Of the ensemble's probabilities; the one that a model's card holds.

    The mean of the members is not what was calibrated: members that disagree make sets larger than needed.
    """
    class_rule: ConformalRule
    """Likewise, a quantile a class."""
    patients: int
    """Patients that the ensemble's rules rest on."""

    def of(self, member: int) -> MemberCalibration:
        """One member's."""
        return next(entry for entry in self.members if entry.member == member)

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "members": [entry.as_json() for entry in self.members],
            "ensemble": {
                "conformal": self.rule.as_json(),
                "class_conditional": self.class_rule.as_json(),
                "tested": {"patients": self.patients},
            },
        }


def calibrate(predictions: Predictions, *, alpha: float) -> Calibrations:
    """Fit each member's temperature on its validation slides, and conformal rules on slides of other folds.

    Parameters
    ----------
    predictions
        Of a study. A member without validation slides keeps temperature 1; without out-of-fold slides nothing
        is ruled out.
    alpha
        Share of slides whose set may lack the true class.

    Raises
    ------
    UsageError, MicrotomeError
        See `mil.calibration` and `mil.conformal`.
    """
    classes = len(predictions.classes)
    tests = predictions.of(Part.TEST)
    fits = {number: _Fit.of(predictions, number) for number in {m.member for m in predictions.members}}
    members = []
    for number, fit in sorted(fits.items()):
        tested = any(entry.member == number for entry in tests)
        others = [entry for entry in tests if entry.member != number] if tested else []
        rule, class_rule, patients = _rules(others, fits, alpha, classes=classes)
        members.append(
            MemberCalibration(
                number, fit.temperature, fit.note, rule, class_rule, fit.slides, fit.patients, patients
            )
        )
    return Calibrations(tuple(members), *_rules(tests, fits, alpha, classes=classes))


def uncalibrated(member: int, alpha: float, *, classes: int) -> MemberCalibration:
    """Of a member without validation slides: its logits as they are, and sets of all classes."""
    rule, class_rule, _ = _rules([], {}, alpha, classes=classes)
    return MemberCalibration(member, 1.0, _NO_SLIDES, rule, class_rule, 0, 0, 0)


_NO_SLIDES = "there are no validation slides"


@dataclass(frozen=True, slots=True)
class _Fit:
    """What one member's validation slides give."""

    temperature: float
    note: str | None
    slides: int
    patients: int

    @classmethod
    def of(cls, predictions: Predictions, member: int) -> _Fit:
        for entry in predictions.of(Part.VALIDATION):
            if entry.member == member:
                temperature = fit_temperature(entry.logits, entry.labels)
                note = why_not_fitted(entry.logits, entry.labels)
                return cls(temperature, note, len(entry.labels), len(set(entry.patients)))
        return cls(1.0, _NO_SLIDES, 0, 0)


def _rules(
    tests: Sequence[MemberPredictions], fits: Mapping[int, _Fit], alpha: float, *, classes: int
) -> tuple[ConformalRule, ConformalRule, int]:
    """The marginal and the class-conditional rule, on a slide a patient (and class); and the patients."""
    if not tests:
        return ConformalRule(alpha, (math.inf,)), ConformalRule(alpha, (math.inf,) * classes), 0
    values = np.concatenate([probabilities(test.logits, fits[test.member].temperature) for test in tests])
    labels = np.concatenate([test.labels for test in tests])
    patients = [name for test in tests for name in test.patients]
    found = []
    for per_class in (False, True):
        rows = worst_of_each_patient(values, labels, patients, per_class=per_class)
        found.append(fit_conformal(values[rows], labels[rows], alpha=alpha, per_class=per_class))
    return found[0], found[1], len(set(patients))


def coverage_law(patients: int, alpha: float) -> dict[str, float] | None:
    """Mean and deviation of the coverage with so many calibration patients; None if none is ruled out."""
    wanted = rank(patients, alpha)
    if wanted > patients:
        return None
    a, b = wanted, patients + 1 - wanted
    return {"mean": a / (a + b), "deviation": float(np.sqrt(a * b / (a + b + 1)) / (a + b))}
