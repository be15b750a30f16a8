r"""Conformal prediction sets: the classes that cannot be ruled out, with a coverage that is known exactly.

Split conformal prediction with the score 1 - p of the true class ("LAC"): M. Sadinle, J. Lei, L. Wasserman,
"Least Ambiguous Set-Valued Classifiers with Bounded Error Levels", JASA 2019 (arXiv:1609.00451); the
finite-sample quantile and its law as in A. Angelopoulos, S. Bates, arXiv:2107.07511, sections 1 and 3.2;
class-conditional ("Mondrian") sets: V. Vovk, ACML 2012 (arXiv:1209.2673). With n calibration slides and

.. math::

    l = \lceil (n + 1)(1 - \alpha) \rceil, \qquad
    q = \text{the } l\text{-th smallest of } 1 - p_{i, y_i}, \qquad
    \text{set}(x) = \{ c : 1 - p_c(x) \le q \}

new slides are covered with probability at least 1 - alpha; given the calibration slides, with one drawn from
Beta(l, n + 1 - l). This holds for *exchangeable* slides: calibrate on one slide a patient, judge slides of
the same kind. It does not hold at another site, nor for each kind of patient.

::

    m  slides        C  classes
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mil.calibration import check_labels
from wsi.errors import MicrotomeError, UsageError


@dataclass(frozen=True, slots=True)
class ConformalRule:
    """Which classes are kept in a slide's set.

    Raises
    ------
    UsageError
        `alpha` or a quantile is none.
    """

    alpha: float
    """Share of slides whose true class may be missing from their set; between 0 and 1."""
    quantiles: tuple[float, ...]
    """Largest score 1 - p with which a class is kept: one for all classes, or one a class.

    Infinite where calibration slides are too few to rule out anything.
    """

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UsageError(f"alpha is {self.alpha}; it must lie between 0 and 1", action="Correct alpha")
        if not self.quantiles or any(math.isnan(q) for q in self.quantiles):
            raise UsageError(f"{self.quantiles} are no quantiles", action="Fit the rule again")

    @property
    def per_class(self) -> bool:
        """Whether each class has a quantile of its own."""
        return len(self.quantiles) > 1

    def sets(self, probabilities: ArrayLike) -> NDArray[np.bool_]:
        """Which classes each slide's set holds; none is possible, and so are all.

        Parameters
        ----------
        probabilities
            ``(m, C)``, calibrated as those that the rule was fitted on.

        Returns
        -------
        ``(m, C)`` bool.

        Raises
        ------
        UsageError
            Another number of classes than quantiles.
        MicrotomeError
            NaN among the probabilities.
        """
        values = _checked(probabilities)
        if self.per_class and len(self.quantiles) != values.shape[1]:
            raise UsageError(
                f"the rule has {len(self.quantiles)} classes, the probabilities {values.shape[1]}",
                action="Use the rule with the model that it was fitted for",
            )
        kept: NDArray[np.bool_] = 1 - values <= np.array(self.quantiles)
        return kept

    def as_json(self) -> dict[str, Any]:
        """For a model's card; null is an infinite quantile."""
        return {"alpha": self.alpha, "quantiles": [q if math.isfinite(q) else None for q in self.quantiles]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ConformalRule:
        """Read back what `as_json` gave."""
        quantiles = tuple(math.inf if q is None else float(q) for q in content["quantiles"])
        return cls(float(content["alpha"]), quantiles)


def fit_conformal(
    probabilities: ArrayLike, labels: ArrayLike, *, alpha: float, per_class: bool = False
) -> ConformalRule:
    """Fit a rule on slides that the model did not learn from, one a patient.

    Parameters
    ----------
    probabilities
        ``(m, C)``.
    labels
        ``(m,)``: index of the true class.
    alpha
        Share of slides whose true class may be missing.
    per_class
        Hold the share within each class ("Mondrian"): a rare class is then covered as well as a common one,
        at the price of larger sets.

    Raises
    ------
    UsageError
        Shapes that do not fit, labels out of range, an `alpha` that is none.
    MicrotomeError
        NaN among the probabilities.

    Examples
    --------
    Nine slides are the fewest that can rule out a class with an error of a tenth:

    >>> fit_conformal([[0.2, 0.8]] * 9, [1] * 9, alpha=0.1).quantiles
    (0.19999999999999996,)
    >>> fit_conformal([[0.2, 0.8]] * 8, [1] * 8, alpha=0.1).quantiles
    (inf,)
    """
    values = _checked(probabilities)
    truth = check_labels(labels, values.shape)
    scores = (1 - values)[np.arange(len(truth)), truth]  # (m,): the same arithmetic as in `sets`
    groups = [scores[truth == c] for c in range(values.shape[1])] if per_class else [scores]
    return ConformalRule(alpha, tuple(_quantile(group, alpha) for group in groups))


def worst_of_each_patient(
    probabilities: ArrayLike, labels: ArrayLike, patients: Sequence[str], *, per_class: bool = False
) -> NDArray[np.int64]:
    """Which slides to calibrate on: of each patient the one whose true class has the least probability.

    Slides of a patient are alike, so they are not exchangeable with those of others; patients are. With their
    worst slides the promise is that *all* slides of a new patient are covered at once.

    Parameters
    ----------
    probabilities
        ``(m, C)``.
    labels
        ``(m,)``: index of the true class.
    patients
        ``m`` names.
    per_class
        One slide of each patient and class, for class-conditional sets.

    Returns
    -------
    ``(p,)`` rows, ascending.
    """
    values = _checked(probabilities)
    truth = check_labels(labels, values.shape)
    if len(patients) != len(truth):
        raise UsageError(
            f"{len(patients)} patients do not fit {len(truth)} slides", action="Give one a slide"
        )
    true = values[np.arange(len(truth)), truth]
    worst: dict[tuple[str, int], int] = {}
    for row in np.argsort(true, kind="stable").tolist():
        worst.setdefault((patients[row], int(truth[row]) if per_class else 0), row)
    return np.array(sorted(worst.values()), np.int64)


def rank(count: int, alpha: float) -> int:
    """Which of `count` calibration scores, from the smallest, is the quantile: l; above `count`, none is."""
    exact = (count + 1) * (1 - alpha)
    return math.ceil(exact - 1e-9)  # 0.9 times 10 must not become 10 by its last bit


def fewest(alpha: float) -> int:
    """How many calibration scores are the fewest that rule out anything: the least count with such a `rank`.

    Examples
    --------
    >>> fewest(0.1), fewest(0.05)
    (9, 19)
    """
    count = max(1, math.ceil((1 - alpha) / alpha) - 2)  # but for rounding
    while rank(count, alpha) > count:
        count += 1
    return count


def _quantile(scores: NDArray[np.float64], alpha: float) -> float:
    """The l-th smallest score."""
    if not 0 < alpha < 1:
        raise UsageError(f"alpha is {alpha}; it must lie between 0 and 1", action="Correct alpha")
    wanted = rank(len(scores), alpha)
    return float(np.sort(scores)[wanted - 1]) if wanted <= len(scores) else math.inf


def _checked(probabilities: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(probabilities, np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise UsageError(
            f"probabilities of shape {values.shape} are none of slides and classes",
            action="Give (slides, classes)",
        )
    if not np.isfinite(values).all():
        raise MicrotomeError("there is NaN among the probabilities", action="Train the model again")
    return values
