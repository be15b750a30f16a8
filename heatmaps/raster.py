"""Tile scores painted on the slide's frame: the heatmap as data, before any colour."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatmaps.painting import Painting
from heatmaps.settings import Overlap
from wsi.errors import UsageError

_FINEST = 32.0
"""Heatmap pixels per stride at most: a score grid holds no more detail than its stride."""
_LONGEST = 4096
"""Heatmap pixels along the long side at most: this alone bounds memory, whatever the slide."""
_ENOUGH = 0.25 * (1 - 1e-6)
"""A tile paints the pixels of which it covers this share (where tiles are smaller than pixels: this share of
a tile). Wherever it lies, it covers half of some pixel along each axis, so no tile is ever lost."""


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Scores on a regular grid of square pixels over the whole slide, corner on the slide's corner.

    Heatmap pixel (column, row) covers level-0 x from ``column * scale`` to ``(column + 1) * scale``, and y
    likewise with `scale_y`. What `paint` gives is painted a channel at a time, whenever one is asked for, so
    memory does not grow with the channels.
    """

    values: NDArray[np.float32] | Painting
    """(rows, columns, channels) float32; NaN where no tile lies. A `Painting` is read like an array."""
    channels: tuple[str, ...]
    """One name per channel: the class, or ``"attention"`` and the like."""
    scale: float
    """Level-0 pixels per heatmap pixel along x."""
    scale_y: float
    """The same along y; differs only where the slide's microns per pixel differ."""
    mpp: float
    """Microns per heatmap pixel, along both axes."""

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.values.dtype != np.float32 or 0 in self.values.shape:
            raise ValueError(
                f"a heatmap is (rows, columns, channels) float32, got {self.values.shape} {self.values.dtype}"
            )
        if len(self.channels) != self.values.shape[2] or len(set(self.channels)) != len(self.channels):
            raise UsageError(f"{self.values.shape[2]} channels need as many different names: {self.channels}")
        for name in self.channels:
            if not (name.strip() and name.isprintable()):
                raise UsageError(f"{name!r} cannot name a channel", action="Use printable characters")
        for field in ("scale", "scale_y", "mpp"):
            _check_positive(field, getattr(self, field))

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.values.shape[0], self.values.shape[1]

    def channel(self, name: str) -> NDArray[np.float32]:
        """Return the scores of one channel, (rows, columns) float32; UsageError if there is none such."""
        if name not in self.channels:
            known = ", ".join(self.channels)
            raise UsageError(f"the heatmap has no channel {name!r}", action=f"Choose one of {known}")
        index = self.channels.index(name)
        return self.values.plane(index) if isinstance(self.values, Painting) else self.values[:, :, index]

    def only(self, name: str) -> Heatmap:
        """The heatmap of one channel, painted: for who asks for it more than once."""
        return replace(self, values=self.channel(name)[:, :, None], channels=(name,))


def paint(
    origins: ArrayLike,
    values: ArrayLike,
    *,
    channels: tuple[str, ...],
    tile: tuple[float, float],
    stride: tuple[float, float],
    slide_size: tuple[int, int],
    slide_mpp: float,
    overlap: Overlap = Overlap.MEAN,
) -> Heatmap:
    """Paint one value per tile and channel on the tile's footprint.

    Each pixel is the mean of the tiles over it, weighted by the area of the pixel that each covers, or the
    highest of those that cover a quarter of it. A pixel of which no tile covers a quarter stays NaN, so an
    outline is at most 3/4 of a pixel out and a tile's centre at most half a pixel. The pixel grid follows the
    stride: 1/32 of it, or the next power of two with which the long side stays within 4096 pixels. A channel
    takes at most 67 MB, and is painted when it is asked for.

    Parameters
    ----------
    origins
        (n, 2) level-0 (x, y) of each tile's top-left corner, in any order.
    values
        (n, k) float, one column per channel; NaN where a tile has no value in that channel.
    channels
        k names.
    tile, stride
        Level-0 (width, height) of a tile's footprint, and of the step to the next tile; fractions allowed.
        The stride is square in microns: where it is not in pixels, the slide's pixels are not square.
    slide_size
        Level-0 (width, height) of the slide; tiles may overhang its edges.
    slide_mpp
        Microns per level-0 pixel, the mean of both axes.
    overlap
        What a pixel under several tiles shows.

    Raises
    ------
    ValueError
        Shapes that do not fit together, sizes that are not positive, an infinite value, or a tile that lies
        wholly outside the slide (coordinates of another level, or of another slide).

    >>> paint([[0, 0]], [[0.5]], channels=("tumour",), tile=(64, 64), stride=(64, 64),
    ...       slide_size=(128, 64), slide_mpp=0.25).values.shape
    (32, 64, 1)
    """
    scores = _floats(values)
    if scores.ndim != 2 or scores.shape[1] != len(channels):
        raise ValueError(f"values must be (n, {len(channels)}), got {scores.shape}")
    if len(set(channels)) != len(channels):
        raise UsageError(f"{len(channels)} channels need as many different names: {channels}")
    return paint_columns(
        origins,
        dict(zip(channels, scores.T, strict=True)),
        tile=tile,
        stride=stride,
        slide_size=slide_size,
        slide_mpp=slide_mpp,
        overlap=overlap,
    )


def paint_columns(
    origins: ArrayLike,
    columns: Mapping[str, ArrayLike],
    *,
    tile: tuple[float, float],
    stride: tuple[float, float],
    slide_size: tuple[int, int],
    slide_mpp: float,
    overlap: Overlap = Overlap.MEAN,
) -> Heatmap:
    """The same from (n,) numbers by the channel's name; those of float32 or float64 are not copied."""
    corners = _checked_origins(origins)
    scores = tuple(_checked_column(column, len(corners)) for column in columns.values())
    for name, pair in (("tile", tile), ("stride", stride), ("slide size", slide_size)):
        for number in pair:
            _check_positive(name, number)
    _check_positive("slide mpp", slide_mpp)
    scale, scale_y = pixel_scale(stride=stride, slide_size=slide_size)
    shape = _pixels(slide_size[1], scale_y), _pixels(slide_size[0], scale)
    boxes = _footprints(corners, tile, slide_size) / (scale, scale_y, scale, scale_y)
    enough = _ENOUGH * min(1.0, tile[0] / scale) * min(1.0, tile[1] / scale_y)
    # A heatmap pixel is square in microns, so the mean resolution fixes its side on both axes.
    mpp = 2 * slide_mpp / (1 / scale + 1 / scale_y)
    painting = Painting(boxes, scores, shape, enough, overlap)
    return Heatmap(painting, tuple(columns), scale, scale_y, float(mpp))


def pixel_scale(*, stride: tuple[float, float], slide_size: tuple[int, int]) -> tuple[float, float]:
    """Return level-0 pixels per heatmap pixel (x, y) that `paint` takes for this stride and slide.

    >>> pixel_scale(stride=(256.0, 256.0), slide_size=(100_000, 80_000))
    (32.0, 32.0)
    """
    per_stride = _FINEST
    while max(_pixels(s, step / per_stride) for s, step in zip(slide_size, stride, strict=True)) > _LONGEST:
        per_stride /= 2
    return float(stride[0] / per_stride), float(stride[1] / per_stride)


def _pixels(length: float, scale: float) -> int:
    """Heatmap pixels that cover `length`; the small allowance keeps 3.0000000001 from becoming 4."""
    return max(1, math.ceil(length / scale - 1e-9))


def _check_positive(name: str, number: Any) -> None:
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be a positive number, got {number}")


def _floats(numbers: ArrayLike) -> NDArray[np.floating[Any]]:
    array = np.asarray(numbers)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def _checked_origins(origins: ArrayLike) -> NDArray[np.float64]:
    """(n, 2) float64, or a ValueError."""
    corners = np.asarray(origins, np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2:
        raise ValueError(f"origins must be (n, 2), got {corners.shape}")
    return corners


def _checked_column(column: ArrayLike, count: int) -> NDArray[np.floating[Any]]:
    """(count,) float32 or float64, or a ValueError."""
    scores = _floats(column)
    if scores.shape != (count,):
        raise ValueError(f"values must be {count} a channel, got {scores.shape}")
    if np.isinf(scores).any():
        raise ValueError("values hold infinity; use NaN for a tile without a value")
    return scores


def _footprints(
    corners: NDArray[np.float64], tile: tuple[float, float], slide_size: tuple[int, int]
) -> NDArray[np.float64]:
    """(n, 4) left, top, right, bottom in level-0 pixels; tiles may overhang the slide, not leave it."""
    boxes = np.concatenate([corners, corners + tile], axis=1)
    outside = (boxes[:, :2] >= slide_size).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
    if outside.any():
        x, y = corners[outside][0]
        raise ValueError(
            f"a tile at ({x:g}, {y:g}) lies outside the slide of {slide_size[0]} x {slide_size[1]} px; "
            "origins are level-0 pixels"
        )
    return boxes
