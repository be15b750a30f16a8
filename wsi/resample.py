"""Area resampling: every output pixel is the mean of the source under its footprint."""

from __future__ import annotations

import math

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
    box filter. OpenCV's ``INTER_AREA`` computes the same, several times faster, but takes no fractional
    offset: it serves windows that start on a pixel, which level-0 tiles do. The two agree to one grey level:
    OpenCV leaves out shares below a thousandth of a pixel.
    """
    width, height = size
    ratio_x, ratio_y = window.width / width, window.height / height
    starts_on_pixel = abs(window.x - round(window.x)) + abs(window.y - round(window.y)) < _ALIGNED
    if starts_on_pixel and min(ratio_x, ratio_y) >= 1 - _ALIGNED:
        x, y = round(window.x), round(window.y)
        right, bottom = math.ceil(x + window.width - _ALIGNED), math.ceil(y + window.height - _ALIGNED)
        crop = image[y:bottom, x:right]
        if crop.shape[:2] == (height, width):
            return np.ascontiguousarray(crop)
        # Given the factors instead of the size, OpenCV keeps the exact ratio; what is cut off at the end are
        # pixels that the window does not fill. But a result of the same size it only copies.
        # A factor above one, by rounding, would turn the area average off.
        fx, fy = min(1.0, 1 / ratio_x), min(1.0, 1 / ratio_y)
        scaled = cv2.resize(crop, None, fx=fx, fy=fy, interpolation=cv2.INTER_AREA)
        if scaled.shape != crop.shape and scaled.shape[0] >= height and scaled.shape[1] >= width:
            return np.ascontiguousarray(scaled[:height, :width], np.uint8)
    rows = _average(image, window.y, window.height, height)  # (height, columns, channels) float32
    both = _average(rows.swapaxes(0, 1), window.x, window.width, width).swapaxes(0, 1)
    return np.ascontiguousarray(np.floor(both + 0.5).astype(np.uint8))


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
