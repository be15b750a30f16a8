"""What is gained by leaving unsure slides to a person: risk against coverage, and what the gate keeps.

Y. Geifman, R. El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017 (arXiv:1705.08500);
the area under the risk-coverage curve (AURC): Y. Geifman, G. Uziel, R. El-Yaniv, ICLR 2019
(arXiv:1805.08206).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """The error among the surest slides, for every number of them."""

    coverage: NDArray[np.float64]
    """``(m,)``: 1/m, 2/m, ... 1."""
    risk: NDArray[np.float64]
    """``(m,)``: share of errors among so many surest slides; the mean over their orders where slides tie."""
    area: float
    """AURC: the mean of the risks. 0 is best; a model whose confidence is of no use has its overall error."""


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many, and how far the share might have come out otherwise."""

    count: int
    """Successes."""
    of: int
    """Cases."""
    low: float | None
    """Lower end of the interval, see `share` and `share_of`; None without cases."""
    high: float | None
    """Upper end."""

    @property
    def value(self) -> float | None:
        """The share; None without cases."""
        return self.count / self.of if self.of else None


@dataclass(frozen=True, slots=True)
class GateReport:
    """What a gate keeps, and how good that is."""

    kept: Share
    """Slides that are confirmed, of all."""
    accuracy_kept: Share
    """Right ones of those."""
    accuracy_review: Share
    """Right ones of those that a person has to look at."""


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """The curve of confidences ``(m,)`` that were right or not ``(m,)``.

    Examples
    --------
    >>> risk_coverage([0.9, 0.6, 0.8], [True, False, True]).risk.round(3).tolist()
    [0.0, 0.0, 0.333]
    """
    sure, right = np.asarray(confidence, np.float64), np.asarray(correct, np.bool_)
    order = np.argsort(-sure, kind="stable")
    starts = np.flatnonzero(np.diff(-sure[order], prepend=np.nan))
    sizes = np.diff(starts, append=len(sure))
    shares = np.add.reduceat(~right[order], starts, dtype=np.float64) / sizes  # of errors, where slides tie
    numbers = np.arange(1, len(sure) + 1)
    risk = np.cumsum(np.repeat(shares, sizes)) / numbers
    return RiskCoverage(numbers / len(sure), risk, float(risk.mean()))


def report_gate(
    review: ArrayLike, correct: ArrayLike, patients: Sequence[str], *, level: float = 0.95
) -> GateReport:
    """Shares of slides that need review ``(m,)`` or not, and of right ones ``(m,)`` on either side.

    `patients` are m names: whose slides they are.
    """
    asked, right, owner = np.asarray(review, np.bool_), np.asarray(correct, np.bool_), np.asarray(patients)
    return GateReport(
        share_of(~asked, owner, level=level),
        share_of(right[~asked], owner[~asked], level=level),
        share_of(right[asked], owner[asked], level=level),
    )


def share(count: int, of: int, *, level: float = 0.95) -> Share:
    """A share of independent cases with its exact interval (C. Clopper, E. Pearson, Biometrika 26, 1934)."""
    return Share(count, of, *_exact(count, of, level))


def share_of(hits: ArrayLike, patients: ArrayLike, *, level: float = 0.95) -> Share:
    r"""A share of slides, of which a patient may have several, with an interval that counts patients.

    Slides of a patient are alike, and taken for independent they make the interval much too narrow. E. Korn,
    B. Graubard, "Confidence Intervals for Proportions with Small Expected Number of Positive Counts Estimated
    from Survey Data", Survey Methodology 24, 1998: the exact interval, of as many independent slides as would
    have the variance of this share p. With :math:`x_i` of the :math:`n_i` slides of patient i, P patients and
    n slides

    .. math::

        v = \frac{P}{P - 1} \sum_i \frac{(x_i - p\,n_i)^2}{n^2}, \qquad
        n^* = \frac{p (1 - p)}{v} \left( \frac{t_{n - 1}}{t_{P - 1}} \right)^2

    and never more than n. Where all slides agree v says nothing, and each patient counts once. Where each
    patient has one slide it is the exact interval.

    Parameters
    ----------
    hits
        ``(m,)`` bool: the slides that are counted.
    patients
        ``(m,)`` names.
    level
        Of the interval.
    """
    found = np.asarray(hits, np.bool_)
    count, of = int(found.sum()), len(found)
    owner = np.unique(np.asarray(patients), return_inverse=True)[1]
    sizes = np.bincount(owner)  # (P,)
    number = len(sizes)
    if number == of:
        return share(count, of, level=level)
    effective = float(number)
    value = count / of
    if 0 < count < of and number > 1:
        from scipy.stats import t

        apart = np.bincount(owner, found) - value * sizes  # (P,)
        variance = number / (number - 1) * float(apart @ apart) / of**2
        quantiles = t.ppf((1 + level) / 2, [of - 1, number - 1])
        effective = value * (1 - value) * float(quantiles[0] / quantiles[1]) ** 2
        effective = min(float(of), effective / variance) if variance > effective / of else float(of)
    elif 0 < count < of:
        effective = 1.0  # one patient says nothing of others
    return Share(count, of, *_exact(value * effective, effective, level))


def _exact(count: float, of: float, level: float) -> tuple[float | None, float | None]:
    """Clopper and Pearson's interval; of numbers that need not be whole."""
    if of == 0:
        return None, None
    from scipy.stats import beta  # takes a second to import

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, count, of - count + 1)) if count > 0 else 0.0
    high = float(beta.ppf(1 - tail, count + 1, of - count)) if count < of else 1.0
    return low, high
