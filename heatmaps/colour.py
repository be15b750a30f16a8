"""Scores to colours: one perceptually uniform, colour-blind-safe map, over a range that the caller states."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.errors import UsageError

COLOUR_MAP = "viridis"
"""Name of the one map, by S. van der Walt and N. Smith (2015, CC0): lightness rises evenly from end to end,
so that the order of scores survives colour blindness and a grey printer."""
WHITE = (255, 255, 255)


@functools.cache
def colour_table() -> NDArray[np.uint8]:
    """Return the map as (256, 3) uint8 RGB, lowest score first; read-only."""
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    table = np.ascontiguousarray(cv2.applyColorMap(ramp, cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]).astype(np.uint8)
    table.setflags(write=False)
    return table


def colour(
    scores: NDArray[np.float32], *, vmin: float, vmax: float, gap: tuple[int, int, int] = WHITE
) -> NDArray[np.uint8]:
    """Colour scores of any shape; the result is (*shape, 3) uint8 RGB.

    The range is never taken from the data: the same score has the same colour on every slide. Scores beyond
    the range take the colour of its end; NaN takes `gap`.

    Raises
    ------
    UsageError
        Unless `vmin` < `vmax`, both finite.

    >>> colour(np.array([0.0, 1.0, np.nan], np.float32), vmin=0, vmax=1).tolist()
    [[68, 1, 84], [253, 231, 37], [255, 255, 255]]
    """
    check_range(vmin=vmin, vmax=vmax)
    table = np.concatenate([colour_table(), np.array([gap], np.uint8)])
    return table.take(places(scores, vmin=vmin, vmax=vmax), axis=0)


def colour_with_alpha(
    scores: NDArray[np.float32], *, vmin: float, vmax: float, gap: tuple[int, int, int] = WHITE
) -> NDArray[np.uint8]:
    """The same with a fourth sample, (*shape, 4) uint8 RGBA: 255, and 0 where there is no score."""
    check_range(vmin=vmin, vmax=vmax)
    table = np.full((GAP + 1, 4), 255, np.uint8)
    table[:GAP, :3], table[GAP] = colour_table(), (*gap, 0)
    pixels = table.view(np.uint32)[:, 0].take(places(scores, vmin=vmin, vmax=vmax))
    return pixels[..., None].view(np.uint8)


GAP = 256
"""Place in a table of colours where that of no score is: behind those of scores."""


def places(scores: NDArray[np.float32], *, vmin: float, vmax: float) -> NDArray[np.intp]:
    """Where in the table of colours each score's colour is, in the scores' shape; `GAP` for NaN."""
    share = scores.astype(np.float64)
    share -= vmin
    share /= vmax - vmin
    np.clip(share, 0, 1, out=share)
    share *= 255
    np.rint(share, out=share)
    np.copyto(share, GAP, where=np.isnan(share))
    return share.astype(np.intp)


def check_range(*, vmin: float, vmax: float) -> None:
    """Raise UsageError unless `vmin` < `vmax`, both finite."""
    if not (math.isfinite(vmin) and math.isfinite(vmax) and vmin < vmax):
        action = "State a lower and a higher number"
        raise UsageError(f"a colour range needs vmin < vmax, got {vmin:g} to {vmax:g}", action=action)
