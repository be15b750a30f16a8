"""Calibration of a study's members, each on its own validation slides; and of their ensemble."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """Of its calibrated probabilities, one quantile for all classes."""
    class_rule: ConformalRule
    """Likewise, a quantile a class."""
    slides: int
    """Validation slides."""
    patients: int
    """Whose slides they are: so many were calibrated on for the conformal sets, each by its worst slide."""

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "member": self.member,
            "temperature": self.temperature,
            "temperature_note": self.note,
            "conformal": self.rule.as_json(),
            "class_conditional": self.class_rule.as_json(),
            "validation": {"slides": self.slides, "patients": self.patients},
            "coverage_law": coverage_law(self.patients, self.rule.alpha),
        }


@dataclass(frozen=True, slots=True)
class Calibrations:
    """Of all members; and of the ensemble, for slides that no member has seen."""

    members: tuple[MemberCalibration, ...]
    """By member."""
    rule: ConformalRule
    """Of the ensemble's probabilities, fitted as a model's card says; see `mil.study`.

    Its scores are those of the members for the slides that they were tested on, as cross-conformal prediction
    does (V. Vovk, arXiv:1208.0806). The mean of the members is not what was calibrated, so the law holds
    nearly, not exactly; members that disagree make sets larger than needed.
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
    """Fit each member's temperature and conformal rules on its validation slides, and on nothing else.

    The ensemble's rules are for slides that no member has seen; they rest on what each member, so calibrated,
    says of the slides that it was tested on.

    Parameters
    ----------
    predictions
        Of a study. A member without validation slides keeps temperature 1 and rules nothing out; so does an
        ensemble without test slides.
    alpha
        Share of slides whose set may lack the true class.

    Raises
    ------
    UsageError, MicrotomeError
        See `mil.calibration` and `mil.conformal`.
    """
    count = len(predictions.classes)
    fitted = {entry.member: _fit(entry, alpha) for entry in predictions.of(Part.VALIDATION)}
    for member in {entry.member for entry in predictions.members} - fitted.keys():
        fitted[member] = uncalibrated(member, alpha, classes=count)
    members = tuple(fitted[member] for member in sorted(fitted))
    tests = predictions.of(Part.TEST)
    if not tests:
        nothing = uncalibrated(0, alpha, classes=count)
        return Calibrations(members, nothing.rule, nothing.class_rule, 0)
    values = np.concatenate([probabilities(test.logits, fitted[test.member].temperature) for test in tests])
    labels = np.concatenate([test.labels for test in tests])
    patients = [name for test in tests for name in test.patients]
    return Calibrations(members, *_rules(values, labels, patients, alpha), len(set(patients)))


def uncalibrated(member: int, alpha: float, *, classes: int) -> MemberCalibration:
    """Of a member without validation slides: its logits as they are, and sets of all classes."""
    rules = ConformalRule(alpha, (math.inf,)), ConformalRule(alpha, (math.inf,) * classes)
    return MemberCalibration(member, 1.0, "there are no validation slides", *rules, slides=0, patients=0)


def _fit(entry: MemberPredictions, alpha: float) -> MemberCalibration:
    temperature = fit_temperature(entry.logits, entry.labels)
    values = probabilities(entry.logits, temperature)
    rules = _rules(values, entry.labels, entry.patients, alpha)
    return MemberCalibration(
        entry.member,
        temperature,
        why_not_fitted(entry.logits, entry.labels),
        *rules,
        slides=len(entry.labels),
        patients=len(set(entry.patients)),
    )


def _rules(
    values: np.ndarray, labels: np.ndarray, patients: Sequence[str], alpha: float
) -> tuple[ConformalRule, ConformalRule]:
    """The marginal and the class-conditional rule, each on one slide a patient (and class)."""
    found = []
    for per_class in (False, True):
        rows = worst_of_each_patient(values, labels, patients, per_class=per_class)
        found.append(fit_conformal(values[rows], labels[rows], alpha=alpha, per_class=per_class))
    return found[0], found[1]


def coverage_law(patients: int, alpha: float) -> dict[str, float] | None:
    """Mean and deviation of the coverage with so many calibration patients; None if none is ruled out."""
    wanted = rank(patients, alpha)
    if wanted > patients:
        return None
    a, b = wanted, patients + 1 - wanted
    return {"mean": a / (a + b), "deviation": float(np.sqrt(a * b / (a + b + 1)) / (a + b))}
