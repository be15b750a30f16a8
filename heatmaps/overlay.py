"""A heatmap laid over a slide's thumbnail or by itself, with its legend: pictures for a quick look."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from heatmaps.colour import GAP, WHITE, check_range, colour, colour_table, places
from heatmaps.raster import Heatmap

_INK = (60, 60, 60)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LEAST_WIDTH = 320
"""Pixels that the longest numbers need; narrower thumbnails get a white margin on the right."""

_LEAST_PICTURE = 800
"""Pixels along the long side of a plain picture, at least: those of small heatmaps are repeated."""

_STRIP = 256
"""Rows that are coloured at once: in between, a pixel takes more memory than in the picture."""

_Image = NDArray[np.uint8]


def draw_overlay(
    thumbnail: _Image,
    heatmap: Heatmap,
    channel: str,
    *,
    thumbnail_scale: float,
    title: str | None = None,
    vmin: float = 0.0,
    vmax: float = 1.0,
    alpha: float = 0.6,
) -> _Image:
    """Lay one channel over the thumbnail and put a legend below; nothing is interpolated.

    Parameters
    ----------
    thumbnail
        (h, w, 3) uint8 RGB of the whole slide; its pixels are square in microns, as the heatmap's are.
    thumbnail_scale
        Level-0 pixels per thumbnail pixel along x.
    title
        What the colours mean, for the legend; the channel's name by default.
    vmin, vmax
        Scores at the ends of the colour map.
    alpha
        Share of the heatmap's colour in the mixture, 0 to 1. Where no tile lies the thumbnail stays as it is.

    Returns
    -------
    (h + legend, max(w, 320), 3) uint8 RGB; the first h rows and w columns are the slide.

    Raises
    ------
    UsageError
        No such channel, or not `vmin` < `vmax`.
    ValueError
        Not such a thumbnail, or `alpha` or the scale out of range.
    """
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or thumbnail.dtype != np.uint8 or 0 in thumbnail.shape:
        raise ValueError(f"a thumbnail is (h, w, 3) uint8, got {thumbnail.shape} {thumbnail.dtype}")
    check_range(vmin=vmin, vmax=vmax)
    if not (0 <= alpha <= 1 and thumbnail_scale > 0):
        raise ValueError(f"needed: alpha from 0 to 1, scale above 0; got {alpha:g}, {thumbnail_scale:g}")
    height, width = thumbnail.shape[:2]
    found = _sample(heatmap, channel, thumbnail_scale, width=width, height=height, vmin=vmin, vmax=vmax)
    # Under a tile the tissue turns grey, so that hue speaks of the score alone and not of the stain.
    found *= 256
    found += np.asarray(cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY), np.uint8)
    mixed = _mixtures(alpha)[found].view(np.uint8).reshape(height, width, 4)[..., :3]
    known = (found < GAP * 256).astype(np.uint8)
    picture = thumbnail.copy()
    cv2.copyTo(np.ascontiguousarray(mixed), known, picture)
    return _with_legend(picture, title or channel, vmin=vmin, vmax=vmax)


def draw_picture(
    heatmap: Heatmap, channel: str, *, title: str | None = None, vmin: float = 0.0, vmax: float = 1.0
) -> _Image:
    """Colour one channel and put a legend below; white where no tile lies, and nothing is interpolated.

    A pixel of a small heatmap becomes a square of as many as it takes for a picture of 800 pixels.

    Parameters
    ----------
    title, vmin, vmax
        As `draw_overlay` takes them.

    Returns
    -------
    (times * rows + legend, max(times * columns, 320), 3) uint8 RGB.

    Raises
    ------
    UsageError
        No such channel, or not `vmin` < `vmax`.
    """
    check_range(vmin=vmin, vmax=vmax)
    times, scores = -(-_LEAST_PICTURE // max(heatmap.shape)), heatmap.channel(channel)
    picture = np.empty((scores.shape[0] * times, scores.shape[1] * times, 3), np.uint8)
    for first in range(0, len(scores), _STRIP):
        strip = colour(scores[first : first + _STRIP], vmin=vmin, vmax=vmax)
        if times > 1:
            strip = strip.repeat(times, axis=0).repeat(times, axis=1)
        picture[first * times : first * times + len(strip)] = strip
    return _with_legend(picture, title or channel, vmin=vmin, vmax=vmax)


def _with_legend(picture: _Image, title: str, *, vmin: float, vmax: float) -> _Image:
    """A picture, white on its right if it is narrower than the legend needs, and the legend below."""
    height, width = picture.shape[:2]
    legend = _legend(title, vmin=vmin, vmax=vmax, width=max(width, _LEAST_WIDTH))
    if width < _LEAST_WIDTH:
        margin = np.full((height, _LEAST_WIDTH - width, 3), WHITE, np.uint8)
        picture = np.concatenate([picture, margin], axis=1)
    return np.concatenate([picture, legend])


def _sample(
    heatmap: Heatmap,
    channel: str,
    thumbnail_scale: float,
    *,
    width: int,
    height: int,
    vmin: float,
    vmax: float,
) -> NDArray[np.int32]:
    """(height, width) places in the table of colours under the centres of the thumbnail's pixels."""
    step = thumbnail_scale / heatmap.scale  # along y too: both have square pixels
    plane = heatmap.channel(channel)
    rows, row = np.unique(((np.arange(height) + 0.5) * step).astype(np.intp), return_inverse=True)
    columns, column = np.unique(((np.arange(width) + 0.5) * step).astype(np.intp), return_inverse=True)
    # A thumbnail's size is rounded, so its last pixels may look just past the heatmap.
    table = np.full((len(rows), len(columns)), GAP, np.int32)
    rows, columns = rows[rows < plane.shape[0]], columns[columns < plane.shape[1]]
    # Each score is coloured once, be it seen under many pixels.
    table[: len(rows), : len(columns)] = places(plane[rows[:, None], columns], vmin=vmin, vmax=vmax)
    return table[row[:, None], column]


def _mixtures(alpha: float) -> NDArray[np.uint32]:
    """(257 * 256,) pixels, RGB and an empty byte: each colour, and that of no score, with each grey."""
    tints, greys = alpha * colour_table()[:, None], (1 - alpha) * np.arange(256)[:, None]
    pixels = np.zeros((GAP + 1, 256, 4), np.uint8)
    pixels[:GAP, :, :3] = np.rint(tints + greys)
    return pixels.view(np.uint32).ravel()


def _legend(title: str, *, vmin: float, vmax: float, width: int) -> _Image:
    """One line: what the colours mean, vmin, the bar of colours, vmax."""
    size = float(np.clip(width / 1000, 0.45, 1.2))  # of the letters, in OpenCV's units
    gap, line = round(14 * size), round(30 * size)
    image = np.full((line + 2 * gap, width, 3), WHITE, np.uint8)
    low, high = f"{vmin:g}", f"{vmax:g}"
    bar = width // 4
    name = _fitted(title, size, width - bar - 5 * gap - _text_width(low, size) - _text_width(high, size))
    x = gap
    for text, space in ((name, 2 * gap), (low, gap)):
        x = _write(image, text, x, size) + space
    image[gap : gap + line, x : x + bar] = colour_table()[np.linspace(0, 255, bar).round().astype(int)]
    _write(image, high, x + bar + gap, size)
    return image


def _write(image: _Image, text: str, x: int, size: float) -> int:
    """Write one line of text at the image's middle height, from `x` on; return where it ends."""
    (width, height), _ = cv2.getTextSize(text, _FONT, size, 1)
    position = (x, (image.shape[0] + height) // 2)
    cv2.putText(image, text, position, _FONT, size, _INK, 1, cv2.LINE_AA)
    return x + width


def _fitted(text: str, size: float, space: int) -> str:
    """Shorten a name that is too long; letters that OpenCV 4 cannot draw become question marks."""
    plain = text.encode("ascii", "replace").decode()
    if _text_width(plain, size) <= space:
        return plain
    while plain and _text_width(plain + "...", size) > space:
        plain = plain[:-1]
    return plain + "..." if plain else ""


def _text_width(text: str, size: float) -> int:
    return int(cv2.getTextSize(text, _FONT, size, 1)[0][0])
