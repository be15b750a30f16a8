"""Polygons on a pixel grid: which pixels have their centre inside; and which points of any kind do.

A pixel belongs to a polygon where its *centre* does, so a drawn border is right to half a pixel of the grid.
Inside means, as in JTS (the geometry library within QuPath): inside the shell and inside no hole, each ring
by the even-odd rule, so that where a ring crosses itself what it encloses twice is outside. A centre exactly
on an edge belongs to the polygon on its right, or below a level edge: polygons that share an edge
neither overlap nor leave a gap.

``cv2.fillPoly`` is not used: it also draws the border's pixels, and rounds vertices to its own subpixels.

References
----------
M. Shimrat, "Algorithm 112: position of point relative to polygon", Communications of the ACM 5 (1962), for
the even-odd rule; here row by row, as scan conversion does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CROSSINGS = 1 << 20
"""Edges are taken so many crossings of pixel rows at a time: bounds memory for rings that zigzag."""

Ring = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class Polygon:
    """One area with its holes; it may cross itself, and reach off the slide."""

    shell: Ring
    """``(k, 2)`` float64 level-0 (x, y), the last point repeating the first; runs either way."""
    holes: tuple[Ring, ...] = ()
    """Rings of the same kind; what they enclose is not in the polygon."""

    def __post_init__(self) -> None:
        for ring in (self.shell, *self.holes):
            if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 4 or ring.dtype != np.float64:
                raise ValueError(
                    f"a ring is (k, 2) float64 with k of at least 4, got {ring.shape} {ring.dtype}"
                )
            if not np.isfinite(ring).all() or (ring[0] != ring[-1]).any():
                raise ValueError("a ring is finite, and its last point repeats its first")

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the shell, level-0."""
        (left, top), (right, bottom) = self.shell.min(axis=0).tolist(), self.shell.max(axis=0).tolist()
        return left, top, right, bottom

    def shifted(self, x: float, y: float) -> Polygon:
        """The same polygon moved by (x, y) level-0 pixels."""
        way = np.array([x, y], np.float64)
        return Polygon(self.shell + way, tuple(hole + way for hole in self.holes))


def fill(polygons: Iterable[Polygon], *, shape: tuple[int, int], scale_x: float, scale_y: float) -> Mask:
    """The pixels whose centre lies in any of the polygons.

    Parameters
    ----------
    shape
        ``(rows, columns)`` of the grid; pixel (0, 0) has its corner at level-0 (0, 0).
    scale_x, scale_y
        Level-0 pixels per pixel of the grid.

    Returns
    -------
    ``shape`` bool. Beside it memory is bounded by the largest polygon's rectangle on the grid.

    >>> square = Polygon(np.array([[1, 1], [3, 1], [3, 2], [1, 2], [1, 1]], np.float64))
    >>> fill([square], shape=(3, 4), scale_x=1, scale_y=1).astype(int).tolist()
    [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    mask = np.zeros(shape, np.bool_)
    for polygon in polygons:
        shell = _centred(polygon.shell, scale_x, scale_y)
        # Centres are whole numbers now. A ring whose box holds none of the grid's is empty here.
        first = np.clip(np.ceil(shell.min(axis=0)), 0, shape[::-1]).astype(np.intp)
        stop = np.clip(np.ceil(shell.max(axis=0)), 0, shape[::-1]).astype(np.intp)
        if (first >= stop).any():
            continue
        (left, top), (right, bottom) = first.tolist(), stop.tolist()
        window = slice(top, bottom), slice(left, right)
        inside = _inside(shell, *window)
        for hole in polygon.holes:
            inside &= ~_inside(_centred(hole, scale_x, scale_y), *window)
        mask[window] |= inside
    return mask


def contains(polygons: Iterable[Polygon], points: NDArray[np.float64]) -> Mask:
    """The points that lie in any of the polygons, by the rule of `fill`.

    Parameters
    ----------
    points
        ``(k, 2)`` float64 level-0 (x, y), in any order.

    Returns
    -------
    ``(k,)`` bool. The time goes with the edges and with the points near each polygon, not with their product.

    >>> square = Polygon(np.array([[1, 1], [3, 1], [3, 2], [1, 2], [1, 1]], np.float64))
    >>> contains([square], np.array([[1, 1], [2.5, 1.5], [3, 1.5]], np.float64)).tolist()
    [True, True, False]
    """
    found = np.zeros(len(points), np.bool_)
    order = np.argsort(points[:, 1], kind="stable")
    x, y = points[order].T
    for polygon in polygons:
        left, top, right, bottom = polygon.extent
        first, stop = np.searchsorted(y, (top, bottom)).tolist()
        near = first + np.flatnonzero((x[first:stop] >= left) & (x[first:stop] <= right))
        inside = _enclosed(polygon.shell, x[near], y[near])
        for hole in polygon.holes:
            inside &= ~_enclosed(hole, x[near], y[near])
        found[order[near]] |= inside
    return found


def interior_point(polygon: Polygon) -> tuple[float, float]:
    """A point (x, y) well inside: the middle of the widest piece of a level line halfway down the polygon.

    Of a rectangle or an ellipse it is the centre. Where that line meets no inside (a ring may cross itself
    there), others are tried; of a polygon that is too thin for any, the middle of its extent is given. After
    JTS, ``InteriorPointArea``.
    """
    left, top, right, bottom = polygon.extent
    for share in (0.5, 0.25, 0.75, 0.375, 0.625):
        level = top + share * (bottom - top)
        crossings = np.sort(np.concatenate([_crossings(r, level) for r in (polygon.shell, *polygon.holes)]))
        middles = (crossings[:-1] + crossings[1:]) / 2
        points = np.stack([middles, np.full(len(middles), level)], axis=1)
        widths = np.where(contains([polygon], points), np.diff(crossings), 0)
        if widths.any():
            return float(middles[widths.argmax()]), level
    return (left + right) / 2, (top + bottom) / 2


def _crossings(ring: Ring, level: float) -> NDArray[np.float64]:
    """Where along x a ring crosses a level line; in no order."""
    x0, y0, x1, y1 = _downwards(ring)
    edge = np.flatnonzero((y0 <= level) & (level < y1))
    return _crossed_at(x0[edge], y0[edge], x1[edge], y1[edge], level)


def _enclosed(ring: Ring, x: NDArray[np.float64], y: NDArray[np.float64]) -> Mask:
    """Which points a ring encloses, by the even-odd rule; `y` ascends. As `_inside`, edge by edge."""
    x0, y0, x1, y1 = _downwards(ring)
    first = np.searchsorted(y, y0)
    levels = np.searchsorted(y, y1) - first  # points with y0 <= y < y1
    odd = np.zeros(len(y), np.bool_)
    for part in _parts(np.flatnonzero(levels), levels):
        edge = np.repeat(part, levels[part])
        ends = np.cumsum(levels[part])
        point = np.arange(len(edge)) - np.repeat(ends - levels[part] - first[part], levels[part])
        right = _crossed_at(x0[edge], y0[edge], x1[edge], y1[edge], y[point]) <= x[point]
        odd ^= (np.bincount(point[right], minlength=len(y)) & 1).astype(np.bool_)
    return odd


def _downwards(ring: Ring) -> tuple[NDArray[np.float64], ...]:
    """``x0, y0, x1, y1`` of every edge, downwards: two polygons that share it find the same crossings."""
    x0, y0, x1, y1 = np.concatenate([ring[:-1], ring[1:]], axis=1).T
    up = y0 > y1
    return np.where(up, x1, x0), np.where(up, y1, y0), np.where(up, x0, x1), np.where(up, y0, y1)


def _crossed_at(
    x0: NDArray[np.float64],
    y0: NDArray[np.float64],
    x1: NDArray[np.float64],
    y1: NDArray[np.float64],
    level: float | NDArray[np.floating[Any] | np.integer[Any]],
) -> NDArray[np.float64]:
    """Where along x edges are at a level of theirs."""
    crossed: NDArray[np.float64] = x0 + (level - y0) / (y1 - y0) * (x1 - x0)
    return crossed


def _centred(ring: Ring, scale_x: float, scale_y: float) -> Ring:
    """The ring in pixels of the grid, counted so that centres are whole numbers."""
    return np.asarray(ring / (scale_x, scale_y) - 0.5, np.float64)


def _inside(ring: Ring, down: slice, across: slice) -> Mask:
    """Which whole-numbered points (column, row) of a window a ring encloses, by the even-odd rule.

    Each edge notes, in every row that it crosses, the first column right of it; a point is inside where an
    odd number of notes lie in its row up to it.
    """
    top, left, width = down.start, across.start, across.stop - across.start
    x0, y0, x1, y1 = _downwards(ring)
    first = np.clip(np.ceil(y0), top, down.stop).astype(np.intp)
    rows = np.clip(np.ceil(y1), top, down.stop).astype(np.intp) - first
    crossing = np.flatnonzero(rows)
    notes = np.zeros((down.stop - top, width + 1), np.uint8)  # counts modulo 256: their parity is right
    for part in _parts(crossing, rows):
        edge = np.repeat(part, rows[part])
        ends = np.cumsum(rows[part])
        row = np.arange(len(edge)) - np.repeat(ends - rows[part] - first[part], rows[part])
        x = _crossed_at(x0[edge], y0[edge], x1[edge], y1[edge], row)
        column = np.clip(np.ceil(x) - left, 0, width).astype(np.intp)
        np.add.at(notes, (row - top, column), 1)
    odd = np.bitwise_xor.accumulate(notes & 1, axis=1)[:, :width]
    return odd.astype(np.bool_)


def _parts(edges: NDArray[np.intp], rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """The edges in parts of about `_CROSSINGS` crossings (at least one edge)."""
    whole = np.cumsum(rows[edges]) // _CROSSINGS
    return np.split(edges, np.flatnonzero(np.diff(whole)) + 1) if len(edges) else []
