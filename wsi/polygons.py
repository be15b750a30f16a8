"""Polygons on a pixel grid: which pixels have their centre inside.

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


def _centred(ring: Ring, scale_x: float, scale_y: float) -> Ring:
    """The ring in pixels of the grid, counted so that centres are whole numbers."""
    return np.asarray(ring / (scale_x, scale_y) - 0.5, np.float64)


def _inside(ring: Ring, down: slice, across: slice) -> Mask:
    """Which whole-numbered points (column, row) of a window a ring encloses, by the even-odd rule.

    Each edge notes, in every row that it crosses, the first column right of it; a point is inside where an
    odd number of notes lie in its row up to it.
    """
    top, left, width = down.start, across.start, across.stop - across.start
    # Every edge downwards: two polygons that share it find the same crossings, bit for bit.
    x0, y0, x1, y1 = np.concatenate([ring[:-1], ring[1:]], axis=1).T
    up = y0 > y1
    x0, x1 = np.where(up, x1, x0), np.where(up, x0, x1)
    y0, y1 = np.where(up, y1, y0), np.where(up, y0, y1)
    first = np.clip(np.ceil(y0), top, down.stop).astype(np.intp)
    rows = np.clip(np.ceil(y1), top, down.stop).astype(np.intp) - first
    crossing = np.flatnonzero(rows)
    notes = np.zeros((down.stop - top, width + 1), np.uint8)  # counts modulo 256: their parity is right
    for part in _parts(crossing, rows):
        edge = np.repeat(part, rows[part])
        ends = np.cumsum(rows[part])
        row = np.arange(len(edge)) - np.repeat(ends - rows[part] - first[part], rows[part])
        share = (row - y0[edge]) / (y1[edge] - y0[edge])
        x = x0[edge] + share * (x1[edge] - x0[edge])
        column = np.clip(np.ceil(x) - left, 0, width).astype(np.intp)
        np.add.at(notes, (row - top, column), 1)
    odd = np.bitwise_xor.accumulate(notes & 1, axis=1)[:, :width]
    return odd.astype(np.bool_)


def _parts(edges: NDArray[np.intp], rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """The edges in parts of about `_CROSSINGS` crossings (at least one edge)."""
    whole = np.cumsum(rows[edges]) // _CROSSINGS
    return np.split(edges, np.flatnonzero(np.diff(whole)) + 1) if len(edges) else []
