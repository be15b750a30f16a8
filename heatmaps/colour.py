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
    known = ~np.isnan(scores)
    share = (np.where(known, scores, vmin).astype(np.float64) - vmin) / (vmax - vmin)
    pixels = colour_table()[np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)]
    pixels[~known] = gap
    return pixels


def check_range(*, vmin: float, vmax: float) -> None:
    """Raise UsageError unless `vmin` < `vmax`, both finite."""
    if not (math.isfinite(vmin) and math.isfinite(vmax) and vmin < vmax):
        action = "State a lower and a higher number"
        raise UsageError(f"a colour range needs vmin < vmax, got {vmin:g} to {vmax:g}", action=action)
