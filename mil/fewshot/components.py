"""`principal_components`: the axes along which features vary most.

::

    N  rows (tiles)       D  length of a feature vector       K  axes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mil.bags import Features

_ROWS_AT_ONCE = 8192  # that a copy in float64 is held of: 100 MiB of 1,536 features


@dataclass(frozen=True, eq=False, slots=True)
class Components:
    """Where features lie, and along which axes they vary most."""

    mean: NDArray[np.float32]
    """``(D,)``: of each feature."""
    axes: NDArray[np.float32]
    """``(K, D)``: rows are orthogonal and of length 1, the one of most variance first."""
    deviation: np.float32
    """One for all axes: the root of the mean of their variances. 1 where nothing varies."""


def principal_components(features: Features, count: int) -> Components:
    """The axes of most variance, in float64 but for the result, over a few thousand rows at a time.

    An axis' sign is such that the largest of its values is positive. Axes along which nothing varies, where
    there are fewer rows than axes for instance, are any.

    Parameters
    ----------
    features
        ``(N, D)``.
    count
        K, at most D.

    Raises
    ------
    ValueError
        No rows, or more axes than features have values.
    """
    from scipy.linalg import eigh  # here: it takes a while to import

    rows, dim = features.shape
    if not rows or not 1 <= count <= dim:
        raise ValueError(f"{count} axes of {rows} rows of {dim} values")
    mean = mean_of_rows(features)
    covariance = np.zeros((dim, dim))
    for start in range(0, rows, _ROWS_AT_ONCE):
        centred = features[start : start + _ROWS_AT_ONCE] - mean  # float64
        covariance += centred.T @ centred
    variances, vectors = eigh(covariance / rows, subset_by_index=(dim - count, dim - 1))  # ascending
    axes = vectors.T[::-1]  # (K, D)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)  # (K, 1)
    deviation = float(np.sqrt(max(variances.mean(), 0.0))) or 1.0
    return Components(
        mean.astype(np.float32), (axes * np.sign(largest)).astype(np.float32), np.float32(deviation)
    )


def mean_of_rows(features: Features) -> NDArray[np.float64]:
    """``(D,)``: mean of each feature of ``(N, D)``; exact for one that never varies."""
    first = features[0].astype(np.float64)  # what a constant feature differs from by 0
    starts = range(0, len(features), _ROWS_AT_ONCE)
    sums = sum((features[start : start + _ROWS_AT_ONCE] - first).sum(axis=0) for start in starts)
    mean: NDArray[np.float64] = first + sums / len(features)
    return mean
