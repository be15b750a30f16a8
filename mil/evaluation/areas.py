"""The area under the ROC curve, of slides and of tiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

LESION_SHARE = 0.5
"""Share of a tile from which on it counts as lesion."""


def slide_auc(labels: Sequence[int] | NDArray[np.int64], scores: ArrayLike) -> float | None:
    """Area under the ROC curve: the chance that a positive slide scores above a negative one, ties half.

    Parameters
    ----------
    labels
        ``(m,)``: 1 for positive, 0 for negative.
    scores
        ``(m,)``, higher for more positive.

    Returns
    -------
    0 to 1, or None where only one class is there: there is nothing to tell apart then, and no number says so.
    """
    truth, values = np.asarray(labels), np.asarray(scores, np.float64)
    if len(np.unique(truth)) < 2:
        return None
    from sklearn.metrics import roc_auc_score  # takes a second to import

    return float(roc_auc_score(truth, values))


def localisation_auc(tile_scores: ArrayLike, lesion_share: ArrayLike) -> float | None:
    """How well tile scores tell lesion from the rest: the AUC over tiles.

    A tile is positive from half its area in a lesion on, negative without any, and left out in between: its
    truth is then a matter of where the grid fell. Within one slide this measures localisation alone. Over
    the tiles of several slides together, negative ones among them, it also rewards knowing which slide is
    ill: state which was done. Tiles of a slide are no independent sample, so no interval goes with it.

    Parameters
    ----------
    tile_scores
        ``(n,)``, higher for lesion.
    lesion_share
        ``(n,)``: share of each tile's area that lies in a lesion.

    Returns
    -------
    0 to 1, or None without both kinds of tile.
    """
    share, scores = np.asarray(lesion_share, np.float64), np.asarray(tile_scores, np.float64)
    sure = (share >= LESION_SHARE) | (share == 0)
    return slide_auc((share[sure] >= LESION_SHARE).astype(np.int64), scores[sure])
