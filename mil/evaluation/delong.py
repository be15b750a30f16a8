r"""DeLong's variance of the AUROC, and his test between two models on the same slides.

E. DeLong, D. DeLong, D. Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver Operating
Characteristic Curves", Biometrics 44, 1988; by midranks in O(m log m): X. Sun, W. Xu, "Fast Implementation of
DeLong's Algorithm ...", IEEE Signal Processing Letters 21, 2014, equations 6 to 8. For positives x of which
there are p and negatives y of which there are n, the placements and the covariance of models r and s are

.. math::

    V_{10}^r(x_i) = \tfrac1n \sum_j \psi(x_i^r, y_j^r), \qquad
    V_{01}^r(y_j) = \tfrac1p \sum_i \psi(x_i^r, y_j^r), \qquad
    S^{rs} = \tfrac1p \mathrm{cov}(V_{10}^r, V_{10}^s) + \tfrac1n \mathrm{cov}(V_{01}^r, V_{01}^s)

with psi 1, a half, or 0 as x is above, equal to, or below y. This takes slides for independent. Where
patients have several, placements are summed within each patient first (N. Obuchowski, "Nonparametric Analysis
of Clustered ROC Curve Data", Biometrics 53, 1997); with one slide a patient that is the same covariance.

::

    m  slides        k  models        g  patients
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi.errors import MicrotomeError, UsageError


@dataclass(frozen=True, slots=True)
class Areas:
    """AUROCs of k models on the same slides."""

    aucs: NDArray[np.float64]
    """``(k,)``."""
    covariance: NDArray[np.float64]
    """``(k, k)``, of the estimates; 0 for a model that orders all slides rightly, which is no certainty."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The paired test of two AUROCs."""

    difference: float
    """Second minus first."""
    error: float | None
    """Its standard error; None where it cannot be estimated."""
    low: float | None
    """Lower end of its interval."""
    high: float | None
    """Upper end."""
    p: float | None
    """Two-sided, of no difference."""
    note: str | None = None
    """Why something is None, or cannot be taken at its word."""


def delong(labels: ArrayLike, scores: ArrayLike, patients: Sequence[str] | None = None) -> Areas | None:
    """AUROCs and their covariance.

    Parameters
    ----------
    labels
        ``(m,)``: 1 for positive, 0 for negative.
    scores
        ``(k, m)``, higher for more positive.
    patients
        ``m`` names; None where each slide is another patient's.

    Returns
    -------
    None where a class has fewer than two patients: it has no variance then.

    Raises
    ------
    UsageError
        Shapes that do not fit, or other labels.
    MicrotomeError
        NaN among the scores.
    """
    truth, values = _checked(labels, scores)
    positive, negative = values[:, truth], values[:, ~truth]  # (k, p), (k, n)
    p, n = positive.shape[1], negative.shape[1]
    names = range(len(truth)) if patients is None else patients
    _, patient = np.unique(np.asarray(names), return_inverse=True)  # (m,)
    if min(len(np.unique(patient[truth])), len(np.unique(patient[~truth]))) < 2:
        return None
    joint = np.stack([midranks(row) for row in values])  # (k, m)
    v10 = (joint[:, truth] - np.stack([midranks(row) for row in positive])) / n  # (k, p)
    v01 = 1 - (joint[:, ~truth] - np.stack([midranks(row) for row in negative])) / p  # (k, n)
    aucs = v10.mean(axis=1)  # (k,)
    a = _by_patient(v10 - aucs[:, None], patient[truth], patient.max() + 1) / p  # (k, g)
    b = _by_patient(v01 - aucs[:, None], patient[~truth], patient.max() + 1) / n  # (k, g)
    with_both = a @ b.T
    covariance = (
        _correction(patient[truth]) * (a @ a.T)
        + _correction(patient[~truth]) * (b @ b.T)
        + _correction(patient) * (with_both + with_both.T)
    )
    return Areas(aucs, covariance)


def _by_patient(
    deviations: NDArray[np.float64], patient: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """``(k, g)``: sums of ``(k, s)`` over the slides of each patient."""
    return np.stack([np.bincount(patient, weights=row, minlength=count) for row in deviations])


def _correction(patient: NDArray[np.int64]) -> float:
    """The factor g / (g - 1) for the g patients that there are."""
    count = len(np.unique(patient))
    return count / (count - 1)


def auc_interval(area: float, variance: float, *, level: float = 0.95) -> tuple[float, float] | None:
    """The normal interval of an AUROC, cut at 0 and 1; None where the variance is 0."""
    if variance <= 0:
        return None
    half = _quantile(level) * math.sqrt(variance)
    return max(0.0, area - half), min(1.0, area + half)


def compare(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    patients: Sequence[str] | None = None,
    *,
    level: float = 0.95,
) -> Comparison | None:
    """Test whether two models' AUROCs on the same slides differ.

    Parameters
    ----------
    labels
        ``(m,)``: 1 for positive, 0 for negative.
    first, second
        ``(m,)`` scores each.
    patients
        See `delong`.
    level
        Of the interval.

    Returns
    -------
    None where a class has fewer than two patients. Models that order the slides alike differ by 0 with p 1.
    Where the estimated variance is 0 and the difference is not, both separate the slides without exception in
    one way or the other, and nothing tells how sure that is: p is None.
    """
    scores = np.stack([np.asarray(first, np.float64), np.asarray(second, np.float64)])
    areas = delong(labels, scores, patients)
    if areas is None:
        return None
    difference = float(areas.aucs[1] - areas.aucs[0])
    variance = float(areas.covariance[0, 0] + areas.covariance[1, 1] - 2 * areas.covariance[0, 1])
    if variance <= 1e-15:  # of numbers of the order of 1: nothing but rounding
        if abs(difference) < 1e-12:
            return Comparison(0.0, 0.0, 0.0, 0.0, 1.0, "both order the slides alike, as far as the test sees")
        note = "the estimated variance is 0: the test is not defined; see the bootstrap"
        return Comparison(difference, None, None, None, None, note)
    error = math.sqrt(variance)
    half = _quantile(level) * error
    p = math.erfc(abs(difference) / error / math.sqrt(2))
    return Comparison(difference, error, difference - half, difference + half, p)


def midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(m,)``: ranks from 1, equal values sharing the mean of theirs.

    Examples
    --------
    >>> midranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def bound_of_a_perfect_area(positive: int, negative: int, *, level: float = 0.95) -> float:
    """Lower bound of an AUROC that came out as 1: DeLong and the bootstrap give no width there.

    Of `positive` and `negative` independent patients, as many disjoint pairs as the fewer can be formed; each
    is in order with the probability that the AUROC is, independently of the others, and all of them were.
    This is the exact bound of Clopper and Pearson (1934) for so many successes out of so many. It wastes
    pairs, so it is on the safe side. By symmetry 1 minus it is the upper bound of an AUROC that came out as
    0.

    Examples
    --------
    >>> round(bound_of_a_perfect_area(20, 30), 3)
    0.832
    """
    return float(((1 - level) / 2) ** (1 / max(1, min(positive, negative))))


def _quantile(level: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + level) / 2)


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    truth, values = np.asarray(labels), np.asarray(scores, np.float64)
    if values.ndim != 2 or truth.shape != values.shape[1:]:
        raise UsageError(
            f"{truth.shape} labels do not fit scores of shape {values.shape}",
            action="Give (models, slides) scores, and one label a slide",
        )
    if not np.isin(truth, (0, 1)).all():
        raise UsageError("labels other than 0 and 1 were given", action="Give one class against the rest")
    if not np.isfinite(values).all():
        raise MicrotomeError("there is NaN among the scores", action="Train the model again")
    return truth.astype(np.bool_), values
