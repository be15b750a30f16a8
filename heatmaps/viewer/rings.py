"""Outlines that a hand drew, made such that QuPath reads them: one bad one, and it refuses the whole file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsi.errors import UsageError

Ring = NDArray[np.float64]
"""``(k, 2)`` float64 level-0 (x, y), the last point repeating the first."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, level-0."""

MOST_POINTS = 10_000
_DECIMALS = 2  # QuPath's grid
_AGAIN = "Draw it again"


def ring_of_box(box: Box) -> Ring:
    """The closed outline of a rectangle, on QuPath's grid."""
    left, top, right, bottom = box
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    return _on_grid(np.array(corners, np.float64))


def checked_ring(points: Sequence[Sequence[float]], *, size: tuple[int, int]) -> Ring:
    """The closed outline on a grid of 0.01 px, within the slide, without points twice.

    Raises
    ------
    UsageError
        It is no list of points, encloses nothing, crosses or touches itself, or has too many points.
    """
    try:
        ring = np.array(points, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError("an outline is a list of points (x, y)", action=_AGAIN) from error
    if ring.ndim != 2 or ring.shape[1] != 2 or not np.isfinite(ring).all():
        raise UsageError("an outline is a list of points (x, y)", action=_AGAIN)
    if len(ring) > MOST_POINTS:
        raise UsageError(
            f"an outline has {len(ring)} points, {MOST_POINTS} at most are possible", action=_AGAIN
        )
    ring = _on_grid(np.clip(ring, 0, size))
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    if len(ring) < 3:
        raise UsageError("an outline needs three corners on the slide", action=_AGAIN)
    ring = np.concatenate([ring, ring[:1]])
    if crosses_itself(ring):
        raise UsageError("the outline crosses or touches itself", action=_AGAIN)
    return ring


def crosses_itself(ring: Ring) -> bool:
    """Whether edges of a closed ring meet anywhere but where one follows the other, or double back.

    >>> eight = np.array([[0, 0], [2, 2], [2, 0], [0, 2], [0, 0]], np.float64)
    >>> crosses_itself(eight), crosses_itself(eight[[0, 2, 1, 3, 4]])
    (True, False)
    """
    import shapely

    return not shapely.is_simple(shapely.linearrings(ring))


def _on_grid(ring: Ring) -> Ring:
    return np.asarray(np.round(ring, _DECIMALS) + 0.0, np.float64)  # never -0
