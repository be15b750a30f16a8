"""Area resampling: every output pixel is the mean of the source under its footprint."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Region

_ALIGNED = 1e-6  # of a pixel: rounding noise of the division that gave the window
_GROUP = 8  # output pixels whose weights are one small matrix
_STRIP = 128  # output rows at a time: products so small that the BLAS does not split them over threads

Floats = NDArray[np.float32]


def area_resample(image: NDArray[np.uint8], window: Region, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Average the `window` of an image into `size` pixels, exactly, at any fractional offset and ratio.

    Parameters
    ----------
    image
        ``(rows, columns, channels)`` uint8.
    window
        In pixels of `image`; fractions are allowed. It must lie inside the image.
    size
        ``(width, height)`` of the result.

    Returns
    -------
    ``(height, width, channels)`` uint8, rounded to nearest.

    Notes
    -----
    Each source pixel counts by the share of it that lies under the output pixel's footprint: a separable
    box filter. OpenCV's ``INTER_AREA`` is the quickest where whole pixels are averaged. For other ratios it
    is slow and takes no fractional offset; there the two passes are products with small banded matrices.
    """
    width, height = size
    x, y = round(window.x), round(window.y)
    steps = round(window.width / width), round(window.height / height)
    misfit = max(
        abs(window.x - x),
        abs(window.y - y),
        abs(window.width - steps[0] * width),
        abs(window.height - steps[1] * height),
    )
    if misfit < _ALIGNED and min(steps) >= 1:
        crop = image[y : y + steps[1] * height, x : x + steps[0] * width]
        if steps == (1, 1):
            return np.ascontiguousarray(crop)
        return np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), np.uint8)
    return _average(image, window, size)


def _average(image: NDArray[np.uint8], window: Region, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Both passes, some output rows at a time."""
    channels = image.shape[2]
    across = _bands(window.x - math.floor(window.x), window.width / size[0], size[0], channels)
    down = _bands(window.y - math.floor(window.y), window.height / size[1], size[1], 1)
    left, top = math.floor(window.x), math.floor(window.y)
    flat = image.reshape(image.shape[0], -1)[top:, left * channels :]
    result = np.empty((size[1], size[0] * channels), np.uint8)
    rows = np.empty((_STRIP, flat.shape[1]), np.float32)
    both = np.empty((_STRIP, size[0] * channels), np.float32)
    for start in range(0, len(down), _STRIP // _GROUP):
        filled = 0
        for first, weights in down[start : start + _STRIP // _GROUP]:
            source = flat[first : first + weights.shape[0]].astype(np.float32)
            np.matmul(weights[: len(source)].T, source, out=rows[filled : filled + weights.shape[1]])
            filled += weights.shape[1]
        done = 0
        for first, weights in across:
            source = rows[:filled, first : first + weights.shape[0]]
            np.matmul(source, weights[: source.shape[1]], out=both[:filled, done : done + weights.shape[1]])
            done += weights.shape[1]
        at = start * _GROUP
        cv2.convertScaleAbs(both[:filled], dst=result[at : at + filled])  # rounds to nearest
    return result.reshape(size[1], size[0], channels)


@lru_cache(maxsize=32)  # tiles of a slide share theirs
def _bands(start: float, ratio: float, count: int, channels: int) -> list[tuple[int, Floats]]:
    """The weights of `count` footprints of `ratio` pixels from `start` on, some footprints at a time.

    Returns
    -------
    For each group: its first source value, and ``(source values, output values)`` float32 weights. Values of
    different channels lie side by side and do not mix.
    """
    edges = start + np.arange(count + 1) * ratio
    bands = []
    for at in range(0, count, _GROUP):
        here = edges[at : at + _GROUP + 1]
        first, last = math.floor(here[0] + _ALIGNED), math.ceil(here[-1] - _ALIGNED)
        pixels = np.arange(first, last)[:, None]
        overlap = np.minimum(here[1:], pixels + 1) - np.maximum(here[:-1], pixels)
        weights = np.clip(overlap, 0, None)
        weights /= weights.sum(axis=0)
        apart = np.zeros((len(weights), channels, len(here) - 1, channels), np.float32)
        for channel in range(channels):
            apart[:, channel, :, channel] = weights
        bands.append((first * channels, apart.reshape(len(weights) * channels, -1)))
    return bands
