"""Tiles on a grid of pixels: a plane of scores is painted when it is asked for, row of tiles by row of tiles.

Tiles of one height above the slide's edge share their rows of pixels, so a row of tiles is summed along x
first, in one dimension, and then laid on the rows that it covers. That costs a few operations per tile and
not one per pixel of it, and nothing but a band of rows is ever held in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatmaps.settings import Overlap

_BAND_ROWS = 256

_Rows = tuple[int, NDArray[np.float64]]
"""What `_coverage` gives."""
_Columns = tuple[NDArray[np.intp], NDArray[np.float64]]
"""What `_overlaps` gives."""


@dataclass(frozen=True, eq=False)
class Painting:
    """The scores of n tiles as an array (rows, columns, channels) float32 that is painted when it is read.

    Indexing and `numpy.asarray` paint all of it; `plane` paints a channel and forgets it.
    """

    boxes: NDArray[np.float64]
    """(n, 4) left, top, right, bottom in pixels of the grid, all of one size; they may overhang it."""
    columns: tuple[NDArray[np.floating[Any]], ...]
    """A channel each, (n,); NaN where a tile has no value."""
    size: tuple[int, int]
    """(rows, columns) of the grid."""
    enough: float
    """Share of a pixel from which a tile that covers it paints it."""
    overlap: Overlap = Overlap.MEAN
    """Where several tiles paint a pixel."""
    _order: NDArray[np.intp] = field(init=False, repr=False)
    """(n,): which tile each box is."""

    def __post_init__(self) -> None:
        # By row and then from the left: the same tiles give the same bytes, in whatever order they came.
        order = np.lexsort((self.boxes[:, 0], self.boxes[:, 1]))
        object.__setattr__(self, "boxes", self.boxes[order])
        object.__setattr__(self, "_order", order)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, columns, channels)."""
        return (*self.size, len(self.columns))

    @property
    def ndim(self) -> int:
        """3."""
        return 3

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """float32."""
        return np.dtype(np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("it has to be painted: it cannot be had without a copy")
        out = np.empty(self.shape, np.float32)
        for index in range(len(self.columns)):
            out[:, :, index] = self.plane(index)
        return out.astype(dtype or np.float32, copy=False)

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self)[key]

    def plane(self, index: int) -> NDArray[np.float32]:
        """Paint one channel: (rows, columns) float32, NaN where no tile lies."""
        scores = self.columns[index][self._order].astype(np.float64)
        chosen = ~np.isnan(scores)
        boxes, scores = (self.boxes, scores) if chosen.all() else (self.boxes[chosen], scores[chosen])
        plane = np.full(self.size, np.nan, np.float32)
        # First tile of each row of tiles, and how many pixels down it begins and ends.
        starts = np.flatnonzero(np.diff(boxes[:, 1], prepend=-np.inf))
        stops = np.append(starts[1:], len(boxes))
        tops, bottoms = boxes[starts, 1], boxes[starts, 3]
        for first in range(0, self.size[0], _BAND_ROWS):
            band = plane[first : first + _BAND_ROWS]
            low = np.searchsorted(bottoms, first, "right")
            high = np.searchsorted(tops, first + len(band), "left")
            if low == high:
                continue
            canvas = _Mean(band, self.enough) if self.overlap is Overlap.MEAN else _Max(band, self.enough)
            for row in range(low, high):
                tiles = slice(starts[row], stops[row])
                down = _coverage(tops[row] - first, bottoms[row] - first, pixels=len(band))
                across = _overlaps(boxes[tiles, 0], boxes[tiles, 2], pixels=self.size[1])
                canvas.lay(down, across, scores[tiles])
            canvas.finish()
        return plane


class _Mean:
    """The mean of the tiles over each pixel of a band, weighted by the area that each covers."""

    def __init__(self, band: NDArray[np.float32], enough: float) -> None:
        self.band, self.enough = band, enough
        self.total = np.zeros(band.shape)
        self.weight = np.zeros(band.shape)
        self.painted = np.zeros(band.shape, bool)

    def lay(self, rows: _Rows, columns: _Columns, scores: NDArray[np.float64]) -> None:
        """Lay a row of m tiles, all of one height: where they lie as `_coverage` and `_overlaps` say."""
        (first, down), (column, across) = rows, columns
        origin = int(column.min())
        pixel, share = (column - origin).ravel(), across.ravel()
        weight = np.bincount(pixel, share)
        total = np.bincount(pixel, (across * scores[:, None]).ravel())
        most = np.zeros(len(weight))
        np.maximum.at(most, pixel, share)
        where = np.s_[first : first + len(down), origin : origin + len(weight)]
        self.total[where] += down[:, None] * total
        self.weight[where] += down[:, None] * weight
        self.painted[where] |= down[:, None] * most >= self.enough

    def finish(self) -> None:
        """Put the means into the band."""
        self.band[self.painted] = self.total[self.painted] / self.weight[self.painted]


class _Max:
    """The highest of the tiles that paint a pixel of a band."""

    def __init__(self, band: NDArray[np.float32], enough: float) -> None:
        self.band, self.enough = band, enough
        self.best = np.full(band.shape, -np.inf)

    def lay(self, rows: _Rows, columns: _Columns, scores: NDArray[np.float64]) -> None:
        """See `_Mean.lay`."""
        (first, down), (column, across) = rows, columns
        origin = int(column.min())
        width = int(column.max()) + 1 - origin
        each = np.broadcast_to(scores[:, None], across.shape)
        for share in np.unique(down):  # three at most: the first row, the last, and those between
            paints = share * across >= self.enough
            best = np.full(width, -np.inf)
            np.maximum.at(best, column[paints] - origin, each[paints])
            for row in first + np.flatnonzero(down == share):
                here = self.best[row, origin : origin + width]
                np.maximum(here, best, out=here)

    def finish(self) -> None:
        """Put what was found into the band."""
        painted = self.best > -np.inf
        self.band[painted] = self.best[painted]


def _coverage(start: float, stop: float, *, pixels: int) -> _Rows:
    """The first pixel that an interval touches, and how much it covers of that and of each after it."""
    start, stop = max(start, 0.0), min(stop, float(pixels))
    index = np.arange(int(start), max(int(start) + 1, int(np.ceil(stop))))
    return int(start), np.minimum(stop, index + 1) - np.maximum(start, index)


def _overlaps(start: NDArray[np.float64], stop: NDArray[np.float64], *, pixels: int) -> _Columns:
    """Pixels that each interval touches, and how much of each it covers: two arrays (n, most touched).

    Intervals that touch fewer are filled up with pixels inside the raster at weight 0.
    """
    start, stop = np.clip(start, 0, pixels), np.clip(stop, 0, pixels)
    first = np.floor(start)
    most = int((np.ceil(stop) - first).max(initial=1))
    index = first[:, None] + np.arange(most)
    weight = np.minimum(stop[:, None], index + 1) - np.maximum(start[:, None], index)
    return np.minimum(index, pixels - 1).astype(np.intp), np.maximum(weight, 0)
