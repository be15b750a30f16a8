"""The patient-level bootstrap: how far a figure might have come out otherwise with other patients.

B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals), with
patients as the units: slides of one patient are alike, and resampling slides would take them for independent
ones. Patients are drawn with all their slides, with replacement, not stratified by class: another cohort
would have other numbers of each class too. A resample that lacks a class has no AUROC; it is left out of that
interval, and counted.

::

    m  slides        P  patients        R  resamples
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mil.evaluation.judged import Judged
from mil.evaluation.metrics import Values, figures
from wsi.errors import UsageError

_NUMBERS_AT_A_TIME = 1 << 20
"""Weights in memory at once: 8 MiB an array."""


@dataclass(frozen=True, slots=True)
class Resampling:
    """How often, and from which seed.

    Raises
    ------
    UsageError
        A number out of range.
    """

    count: int = 2000
    """R: at least 100."""
    seed: int = 0
    """Of the draws."""
    level: float = 0.95
    """Share of resamples inside the interval."""

    def __post_init__(self) -> None:
        if self.count < 100:
            raise UsageError(
                f"{self.count} resamples are too few for an interval; 100 are the least",
                action="Correct --resamples",
            )
        if self.seed < 0:
            raise UsageError(f"the seed is {self.seed}; at least 0 is needed", action="Correct --seed")
        if not 0 < self.level < 1:
            raise UsageError(f"the level is {self.level}; it lies between 0 and 1", action="Correct it")


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, and how far it might have come out otherwise. None is unknown, and `note` says why."""

    value: float | None
    """In this cohort."""
    low: float | None = None
    """Lower end of the interval."""
    high: float | None = None
    """Upper end."""
    undefined: int = 0
    """Resamples that have no such figure, and are not in the interval."""
    note: str | None = None
    """What else must be known to read it."""


def bootstrap(judged: Judged, resampling: Resampling) -> dict[str, Figure]:
    """All figures of `mil.evaluation.metrics.figures`, each with its interval."""
    observed = figures(judged, np.ones((1, len(judged))))
    chunks = [figures(judged, weights) for weights in patient_weights(judged, resampling)]
    drawn = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in observed}
    why = missing_class(judged)
    return {
        name: interval(float(value[0]), drawn[name], judged, resampling, why=why)
        for name, value in observed.items()
    }


def bootstrap_difference(first: Judged, second: Judged, resampling: Resampling) -> dict[str, Figure]:
    """Differences of all figures, second minus first, of two models on the same slides in the same order.

    Both are computed on the same draws of patients, so what the two have in common cancels.
    """
    if (first.slide_ids, first.patients) != (second.slide_ids, second.patients):
        raise UsageError("the two models did not judge the same slides", action="Give them in one order")
    ones = np.ones((1, len(first)))
    observed = _difference(figures(first, ones), figures(second, ones))
    chunks = [
        _difference(figures(first, weights), figures(second, weights))
        for weights in patient_weights(first, resampling)
    ]
    drawn = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in observed}
    why = missing_class(first)
    return {
        name: interval(float(value[0]), drawn[name], first, resampling, why=why)
        for name, value in observed.items()
    }


def patient_weights(judged: Judged, resampling: Resampling) -> Iterator[NDArray[np.float64]]:
    """How often each slide is drawn, some resamples at a time: ``(r, m)``; the same for the same seed."""
    rng = np.random.default_rng(resampling.seed)
    patient_of_row, count = judged.patient_of_row, judged.patient_count
    share = np.full(count, 1 / count)
    step = max(1, _NUMBERS_AT_A_TIME // len(judged))
    for start in range(0, resampling.count, step):
        drawn = rng.multinomial(count, share, size=min(step, resampling.count - start))  # (r, P)
        yield drawn[:, patient_of_row].astype(np.float64)


def interval(
    value: float, drawn: Values, judged: Judged, resampling: Resampling, *, why: str | None = None
) -> Figure:
    """The percentile interval of a figure's resampled values ``(R,)``, or the reason why there is none."""
    if math.isnan(value):
        return Figure(None, note=why or "not defined for this cohort")
    known = drawn[~np.isnan(drawn)]
    undefined = len(drawn) - len(known)
    if judged.patient_count < 2:
        return Figure(value, undefined=undefined, note="no interval: only one patient")
    if len(known) < len(drawn) / 2:
        return Figure(value, undefined=undefined, note="no interval: most resamples lack a class")
    tail = (1 - resampling.level) / 2
    low, high = np.quantile(known, [tail, 1 - tail]).tolist()
    if known.min() == known.max():
        note = "all resamples agree: the bootstrap cannot say how sure this is"
        return Figure(value, undefined=undefined, note=note)
    return Figure(value, low, high, undefined)


def missing_class(judged: Judged) -> str | None:
    """Why figures that compare classes are not defined: which class has no slide."""
    present = sorted(set(judged.labels.tolist()))
    if len(present) == 1:
        return f"only one class ({judged.classes[present[0]]})"
    absent = [name for index, name in enumerate(judged.classes) if index not in present]
    return f"no slide of class {', '.join(absent)}" if absent else None


def _difference(first: Mapping[str, Values], second: Mapping[str, Values]) -> dict[str, Values]:
    return {name: second[name] - first[name] for name in first}
