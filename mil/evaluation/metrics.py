"""The figures, each for many weightings of the slides at once: a bootstrap resample is a weighting.

No class is "the positive one": a label table does not say which class is the finding. Figures that treat the
two sides of a question unlike are given for each class against the rest, and as the mean over classes.

::

    m  slides        C  classes        R  weightings        g  distinct scores
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from mil.evaluation.judged import Judged

BINS = 15
"""Equal-width bins of confidence for the expected calibration error."""
LEAST_PROBABILITY = 1e-15
"""Smaller ones count as this in the negative log-likelihood, which would otherwise be infinite."""

Weights = NDArray[np.float64]
"""``(R, m)``: how often each slide counts; a row of ones is the cohort itself."""
Values = NDArray[np.float64]
"""``(R,)``: NaN where a figure is not defined for a weighting. It never leaves this package."""

_OfScores = Callable[[NDArray[np.bool_], NDArray[np.float64], Weights], Values]

DEFINITIONS = {
    "AUROC": "chance that a slide of a class gets a higher probability of it than one of another class, ties "
    "half; with more than two classes the mean of each class against the rest",
    "AUPRC": "average precision: the sum over thresholds of precision times the gain in recall; mean over "
    "classes",
    "balanced accuracy": "mean over classes of the share of its slides whose likeliest class is the true one",
    "F1": "harmonic mean of precision and recall of the likeliest class; mean over classes",
    "accuracy": "share of slides whose likeliest class is the true one",
    "Brier score": "mean over slides of the summed squared differences between probabilities and truth, over "
    "all classes: 0 to 2, and twice the one-column score of two classes",
    "negative log-likelihood": "mean of -ln of the true class's probability (natural logarithm)",
    "expected calibration error": f"mean distance between confidence and accuracy over {BINS} equal-width "
    "bins of the likeliest class's probability, by slides; above 0 even for a perfectly calibrated model, "
    "and higher yet in resamples, so its interval lies too high",
}
"""What the names in every report mean."""


def figures(judged: Judged, weights: Weights) -> dict[str, Values]:
    """All figures of a cohort, by name.

    Parameters
    ----------
    judged
        The m slides.
    weights
        ``(R, m)``.

    Returns
    -------
    ``(R,)`` for each name: first those of all classes, in the order of `DEFINITIONS`, then ``<name> of
    <class>``.
    """
    confusion = confusion_matrices(judged, weights)  # (R, C, C)
    hits = np.diagonal(confusion, axis1=1, axis2=2)  # (R, C)
    truths, calls = confusion.sum(axis=2), confusion.sum(axis=1)  # (R, C)
    recall = _ratio(hits, truths)  # (R, C)
    f1 = np.where(truths > 0, _ratio(2 * hits, truths + calls), np.nan)  # (R, C)
    auroc = np.stack([*_against_the_rest(judged, weights, auroc_of)], axis=1)  # (R, C)
    auprc = np.stack([*_against_the_rest(judged, weights, average_precision_of)], axis=1)  # (R, C)
    total = weights.sum(axis=1)
    binary = len(judged.classes) == 2
    found = {
        "AUROC": auroc[:, 1] if binary else auroc.mean(axis=1),
        "AUPRC": auprc.mean(axis=1),
        "balanced accuracy": recall.mean(axis=1),
        "F1": f1.mean(axis=1),
        "accuracy": _ratio(hits.sum(axis=1), total),
        "Brier score": _ratio(weights @ brier_of_slides(judged), total),
        "negative log-likelihood": _ratio(weights @ losses_of_slides(judged), total),
        "expected calibration error": calibration_error(judged.confidence, judged.correct, weights),
    }
    for index, name in enumerate(judged.classes):
        if not binary:
            found[f"AUROC of {name}"] = auroc[:, index]
        found[f"AUPRC of {name}"] = auprc[:, index]
        found[f"recall of {name}"] = recall[:, index]
        found[f"F1 of {name}"] = f1[:, index]
    return found


def confusion_matrices(judged: Judged, weights: Weights) -> NDArray[np.float64]:
    """``(R, C, C)``: slides by true class (rows) and likeliest class (columns)."""
    count = len(judged.classes)
    cell = np.eye(count * count)[judged.labels * count + judged.predicted]  # (m, C * C)
    matrices: NDArray[np.float64] = (weights @ cell).reshape(-1, count, count)
    return matrices


def auroc_of(truth: NDArray[np.bool_], scores: NDArray[np.float64], weights: Weights) -> Values:
    """``(R,)``: area under the ROC curve of scores ``(m,)`` for truth ``(m,)``, ties half.

    In O(m log m) for the sorting, and O(R m) after it.
    """
    positive, negative = _by_score(truth, scores, weights)  # (R, g), ascending scores
    below = np.cumsum(negative, axis=1) - negative
    in_order = (positive * (below + negative / 2)).sum(axis=1)
    return _ratio(in_order, positive.sum(axis=1) * negative.sum(axis=1))


def average_precision_of(truth: NDArray[np.bool_], scores: NDArray[np.float64], weights: Weights) -> Values:
    """``(R,)``: average precision without interpolation, as scikit-learn's; NaN without the other class."""
    positive, negative = (part[:, ::-1] for part in _by_score(truth, scores, weights))  # (R, g), descending
    called = np.cumsum(positive + negative, axis=1)
    precision = np.cumsum(positive, axis=1) / np.maximum(called, 1e-300)  # without a call no gain either
    both = (positive.sum(axis=1) > 0) & (negative.sum(axis=1) > 0)
    return np.where(both, _ratio((positive * precision).sum(axis=1), positive.sum(axis=1)), np.nan)


def brier_of_slides(judged: Judged) -> NDArray[np.float64]:
    """``(m,)``: squared differences between probabilities and truth, summed over classes."""
    truth = np.eye(len(judged.classes))[judged.labels]
    squares: NDArray[np.float64] = ((judged.probabilities - truth) ** 2).sum(axis=1)
    return squares


def losses_of_slides(judged: Judged) -> NDArray[np.float64]:
    """``(m,)``: minus the natural logarithm of the true class's probability."""
    true = judged.probabilities[np.arange(len(judged)), judged.labels]
    losses: NDArray[np.float64] = -np.log(np.maximum(true, LEAST_PROBABILITY))
    return losses


def calibration_error(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], weights: Weights, *, bins: int = BINS
) -> Values:
    """``(R,)``: expected calibration error of confidences ``(m,)`` that were right or not ``(m,)``."""
    member = np.eye(bins)[bin_of(confidence, bins=bins)]  # (m, bins)
    gaps = weights @ (member * (confidence - correct)[:, None])  # (R, bins)
    return _ratio(np.abs(gaps).sum(axis=1), weights.sum(axis=1))


def bin_of(confidence: NDArray[np.float64], *, bins: int = BINS) -> NDArray[np.int64]:
    """``(m,)``: which of the equal-width bins each confidence falls into; 1 is in the last."""
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def _against_the_rest(judged: Judged, weights: Weights, figure: _OfScores) -> Iterator[Values]:
    for index in range(len(judged.classes)):
        yield figure(judged.labels == index, judged.probabilities[:, index], weights)


def _by_score(
    truth: NDArray[np.bool_], scores: NDArray[np.float64], weights: Weights
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights of either side at each distinct score, ascending: ``(R, g)`` and ``(R, g)``."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan))  # NaN differs from all: the first starts
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * truth[order], starts, axis=1)
    negative = np.add.reduceat(ordered * ~truth[order], starts, axis=1)
    return positive, negative


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Their ratio, NaN where `below` is 0."""
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)
