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
    start, stop = ring[:-1], ring[1:]
    along, onward = stop - start, np.roll(stop - start, -1, axis=0)
    if ((_cross(along, onward) == 0) & ((along * onward).sum(axis=1) < 0)).any():
        return True
    low, high = np.minimum(start, stop), np.maximum(start, stop)
    count = len(start)
    for edge in range(count - 2):
        last = count - 1 if edge == 0 else count  # the last edge ends where the first begins
        others = slice(edge + 2, last)
        near = ((low[others] <= high[edge]) & (high[others] >= low[edge])).all(axis=1)
        if near.any() and _meet(start[edge], stop[edge], start[others][near], stop[others][near]):
            return True
    return False


def _on_grid(ring: Ring) -> Ring:
    return np.asarray(np.round(ring, _DECIMALS) + 0.0, np.float64)  # never -0


def _meet(a: Ring, b: Ring, c: Ring, d: Ring) -> bool:
    """Whether the edge a to b meets any edge c to d whose boxes it meets; touching counts."""
    ab, cd = b - a, d - c
    one, other = _cross(ab, c - a), _cross(ab, d - a)
    third, fourth = _cross(cd, a - c), _cross(cd, b - c)
    return bool(((one * other <= 0) & (third * fourth <= 0)).any())


def _cross(one: Ring, other: Ring) -> NDArray[np.float64]:
    crossed: NDArray[np.float64] = one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]
    return crossed
