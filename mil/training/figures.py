"""Two figures of slides that were judged: how well they are ordered, and how often the class is right.

For a look at training and for a model's card; `mil.evaluation` has intervals, curves and tests.

::

    m  slides        C  classes
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mil.evaluation.delong import midranks

Labels = NDArray[np.int64]
"""``(m,)``: index of the true class."""
Probabilities = NDArray[np.float64]
"""``(m, C)``."""


def macro_auroc(labels: Labels, probabilities: Probabilities) -> float | None:
    """Area under the ROC curve, the mean over classes of each against the rest.

    With two classes both are the same number. None where a class is missing or has all slides.
    """
    count = probabilities.shape[1]
    classes = range(count) if count > 2 else [1]  # of two classes each is the other's mirror image
    each = [_auroc(labels == c, probabilities[:, c]) for c in classes]
    known = [area for area in each if area is not None]
    return float(np.mean(known)) if len(known) == len(each) else None


def _auroc(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> float | None:
    """The Mann-Whitney statistic: `slide_auc` without the checks, which take longer than an epoch may."""
    above, below = int(positive.sum()), int((~positive).sum())
    if not (above and below):
        return None
    ranks = midranks(scores)  # (m,) from 1
    return float((ranks[positive].sum() - above * (above + 1) / 2) / (above * below))


def balanced_accuracy(labels: Labels, probabilities: Probabilities) -> float:
    """Share of slides whose likeliest class is the true one, the mean over the classes that are there.

    Examples
    --------
    >>> balanced_accuracy(np.array([0, 0, 0, 1]), np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]]))
    0.8333333333333333
    """
    right = probabilities.argmax(axis=1) == labels  # (m,)
    return float(np.mean([right[labels == c].mean() for c in np.unique(labels)]))
