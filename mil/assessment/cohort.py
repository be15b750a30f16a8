"""`Cohort`: slides with a known truth, as a study's members judge them before and after calibration.

::

    m  slides        C  classes        k  members
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mil.assessment.calibrating import Calibrations
from mil.calibration import probabilities
from mil.evaluation.judged import Judged
from mil.predictions import MemberPredictions, Part, Predictions
from mil.uncertainty import Spread, spread
from wsi.errors import UsageError

OUT_OF_FOLD, EXTERNAL, NEW = "out-of-fold test slides", "external test slides", "slides of another cohort"
"""What cohorts are called in reports."""


@dataclass(frozen=True, slots=True, eq=False)
class Cohort:
    """Slides that were judged by members that did not learn from them."""

    name: str
    """What they are, in words."""
    before: Judged
    """Probabilities without calibration: softmax, and the mean over members where several judge."""
    after: Judged
    """With each member's temperature."""
    member_of_slide: NDArray[np.int64] | None
    """``(m,)``: the one member that judged each slide; None where all did."""
    spread: Spread | None
    """How far the members are apart; None where only one judged each slide."""
    sets: NDArray[np.bool_]
    """``(m, C)``: conformal sets, one quantile for all classes."""
    class_sets: NDArray[np.bool_]
    """``(m, C)``: class-conditional ones."""
    dropout_deviation: NDArray[np.float64] | None = None
    """``(m,)``: how far the likeliest class's probability wavers with dropout on; None where not tried."""

    def __len__(self) -> int:
        return len(self.after)


def out_of_fold(predictions: Predictions, calibrations: Calibrations) -> Cohort | None:
    """Each slide of the table judged by the one member that was not trained on it; None without such.

    Calibration is that of the member's own validation slides. Members of other folds have other scales: their
    probabilities are comparable after calibration, nearly, and their logits are not.
    """
    entries = predictions.of(Part.TEST)
    if not entries:
        return None
    fits = [calibrations.of(entry.member) for entry in entries]
    before = [probabilities(entry.logits, 1.0) for entry in entries]
    after = [probabilities(entry.logits, fit.temperature) for entry, fit in zip(entries, fits, strict=True)]
    judged = Judged(
        predictions.classes,
        tuple(name for entry in entries for name in entry.slide_ids),
        tuple(name for entry in entries for name in entry.patients),
        np.concatenate([entry.labels for entry in entries]),
        np.concatenate(before),
    )
    return Cohort(
        OUT_OF_FOLD,
        judged,
        replace(judged, probabilities=np.concatenate(after)),
        np.repeat([entry.member for entry in entries], [len(entry.labels) for entry in entries]),
        None,
        np.concatenate([fit.rule.sets(values) for fit, values in zip(fits, after, strict=True)]),
        np.concatenate([fit.class_rule.sets(values) for fit, values in zip(fits, after, strict=True)]),
    )


def by_ensemble(
    name: str, entries: Sequence[MemberPredictions], calibrations: Calibrations, *, classes: tuple[str, ...]
) -> Cohort | None:
    """Slides that no member learnt from, judged by all of them; None without such.

    Parameters
    ----------
    name
        What the slides are.
    entries
        What each member says; all of the same slides.
    calibrations
        Of the members, and of the ensemble.
    classes
        C names.

    Raises
    ------
    UsageError
        Members that judged different slides.
    """
    if not entries:
        return None
    first = entries[0]
    aligned = [_aligned(entry, first) for entry in entries]
    each = np.stack(
        [probabilities(entry.logits, calibrations.of(entry.member).temperature) for entry in aligned]
    )  # (k, m, C)
    raw = np.mean([probabilities(entry.logits, 1.0) for entry in aligned], axis=0)
    judged = Judged(classes, first.slide_ids, first.patients, first.labels, raw)
    mean = each.mean(axis=0)
    return Cohort(
        name,
        judged,
        replace(judged, probabilities=mean),
        None,
        spread(each) if len(each) > 1 else None,
        calibrations.rule.sets(mean),
        calibrations.class_rule.sets(mean),
    )


def external(predictions: Predictions, calibrations: Calibrations) -> Cohort | None:
    """The external test slides that training judged; None without such."""
    entries = predictions.of(Part.EXTERNAL)
    return by_ensemble(EXTERNAL, entries, calibrations, classes=predictions.classes)


def _aligned(entry: MemberPredictions, first: MemberPredictions) -> MemberPredictions:
    """The same slides in the first member's order."""
    if entry.slide_ids == first.slide_ids:
        return entry
    if sorted(entry.slide_ids) != sorted(first.slide_ids):
        raise UsageError(
            f"members {first.member} and {entry.member} judged different slides",
            action="Train the model again, or copy it again",
        )
    place = {name: row for row, name in enumerate(entry.slide_ids)}
    rows = [place[name] for name in first.slide_ids]
    return replace(
        entry,
        slide_ids=first.slide_ids,
        patients=tuple(entry.patients[row] for row in rows),
        labels=entry.labels[rows],
        logits=entry.logits[rows],
    )


def select(judged: Judged, rows: NDArray[np.int64]) -> Judged:
    """Some of the slides, in the order asked for."""
    return Judged(
        judged.classes,
        tuple(judged.slide_ids[row] for row in rows),
        tuple(judged.patients[row] for row in rows),
        judged.labels[rows],
        judged.probabilities[rows],
    )
