"""The levels of a pyramid: a plane of scores, and the means of it that are half as large, and so on."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

_SMALLEST = 256
"""Long side in pixels from which no further level is made, unless it is the second."""

Levels = Sequence[NDArray[np.float32]]
"""A channel's planes, the whole one first."""


def level_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Return (width, height) of each level: at least two, halving until the long side is at most 256 px.

    >>> level_sizes(1000, 300)
    [(1000, 300), (500, 150), (250, 75)]
    """
    sizes = [(width, height)]
    while len(sizes) < 2 or max(sizes[-1]) > _SMALLEST:
        step = 2 ** len(sizes)
        sizes.append((-(-width // step), -(-height // step)))
    return sizes


def make_levels(scores: NDArray[np.float32]) -> Levels:
    """All levels of (rows, columns) scores, each the `shrink` of the whole."""
    return _shrink_all(scores, level_sizes(*scores.shape[::-1]))


def shrink(scores: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resample (rows, columns) scores to `size` (width, height) by the area mean of what is not NaN.

    The result spans exactly what `scores` spans, also where the sizes do not divide: positions are right in
    readers that take the ratio of sizes for the downsample.
    """
    return _shrink_all(scores, [size])[0]


def _shrink_all(scores: NDArray[np.float32], sizes: Sequence[tuple[int, int]]) -> list[NDArray[np.float32]]:
    whole = scores.shape[::-1]
    if all(size == whole for size in sizes):
        return [scores for _ in sizes]
    known = ~np.isnan(scores)
    weights = known.astype(np.float32)
    totals = np.where(known, scores, np.float32(0))
    del known
    return [scores if size == whole else _mean(totals, weights, size) for size in sizes]


def _mean(
    totals: NDArray[np.float32], weights: NDArray[np.float32], size: tuple[int, int]
) -> NDArray[np.float32]:
    weight = cv2.resize(weights, size, interpolation=cv2.INTER_AREA)
    total = cv2.resize(totals, size, interpolation=cv2.INTER_AREA)
    small = np.full(weight.shape, np.nan, np.float32)
    np.divide(total, weight, out=small, where=weight > 0)
    return small
