"""What is gained by leaving unsure slides to a person: risk against coverage, and what the gate keeps.

Y. Geifman, R. El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017 (arXiv:1705.08500);
the area under the risk-coverage curve (AURC): Y. Geifman, G. Uziel, R. El-Yaniv, ICLR 2019
(arXiv:1805.08206).
"""

from __future__ import annotations

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
    """Lower end of the exact interval; None without cases."""
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


def report_gate(review: ArrayLike, correct: ArrayLike, *, level: float = 0.95) -> GateReport:
    """Shares of slides that need review ``(m,)`` or not, and of right ones ``(m,)`` on either side."""
    asked, right = np.asarray(review, np.bool_), np.asarray(correct, np.bool_)
    return GateReport(
        share(int((~asked).sum()), len(asked), level=level),
        share(int(right[~asked].sum()), int((~asked).sum()), level=level),
        share(int(right[asked].sum()), int(asked.sum()), level=level),
    )


def share(count: int, of: int, *, level: float = 0.95) -> Share:
    """A share with its exact interval (C. Clopper, E. Pearson, Biometrika 26, 1934)."""
    if of == 0:
        return Share(count, of, None, None)
    from scipy.stats import beta  # takes a second to import

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, count, of - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, of - count)) if count < of else 1.0
    return Share(count, of, low, high)
