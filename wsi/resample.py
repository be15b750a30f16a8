"""Area resampling: every output pixel is the mean of the source under its footprint."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Region

_ALIGNED = 1e-6  # of a pixel: rounding noise of the division that gave the window


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
    box filter, which is what OpenCV's ``INTER_AREA`` computes for windows on whole pixels. OpenCV takes no
    fractional offset, so it serves the whole-number case only; there both give the same bytes.
    """
    width, height = size
    if _whole(window, width, height):
        x, y = round(window.x), round(window.y)
        crop = image[y : y + round(window.height), x : x + round(window.width)]
        if crop.shape[:2] == (height, width):
            return np.ascontiguousarray(crop)
        return np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), np.uint8)
    rows = _average(image, window.y, window.height, height)  # (height, columns, channels) float32
    both = _average(rows.swapaxes(0, 1), window.x, window.width, width).swapaxes(0, 1)
    return np.ascontiguousarray(np.floor(both + 0.5).astype(np.uint8))


def _whole(window: Region, width: int, height: int) -> bool:
    """Whether the window starts on a pixel and holds a whole number of pixels per output pixel."""
    parts = (window.x, window.y, window.width / width, window.height / height)
    return all(abs(part - round(part)) < _ALIGNED for part in parts) and min(parts[2:]) >= 1 - _ALIGNED


def _average(image: NDArray[np.generic], start: float, length: float, count: int) -> NDArray[np.float32]:
    """Average along the first axis: `count` footprints of ``length / count`` pixels, from `start` on."""
    edges = start + np.arange(count + 1) * (length / count)
    first, last = edges[:-1], edges[1:]
    base = np.floor(first + _ALIGNED).astype(np.int64)
    taps = int(np.ceil(length / count + _ALIGNED)) + 1
    total = np.zeros((count, *image.shape[1:]), np.float32)
    for tap in range(taps):
        pixel = base + tap
        overlap = np.clip(np.minimum(last, pixel + 1) - np.maximum(first, pixel), 0, None)
        weight = (overlap * (count / length)).astype(np.float32).reshape(-1, *[1] * (image.ndim - 1))
        total += weight * image[np.minimum(pixel, image.shape[0] - 1)]
    return total
