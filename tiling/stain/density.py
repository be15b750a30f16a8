"""Optical density, and which pixels of a slide a stain is fitted on: no ink, no glass, more than one stain.

By Beer and Lambert's law a stain's optical density ``-log(intensity / light)`` grows with its concentration,
so the densities of a mixture are sums. As Macenko published it, 1 is added to the intensity before.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tiling.stain.contract import StainError
from wsi.pen import PENS

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

MIN_PIXELS = 2_000
"""Stained pixels below which percentiles mean nothing."""
NOISE_LEVELS = 3.0
"""Grey levels of noise that make two stains out of one. Real sections of two stains spread by 5 and more."""
INK_SHARE = 0.2
"""A doubtful colour of more than this share of what is stained is a stain's: Giemsa is blue as a blue pen."""
BLACK_LIGHTNESS = 60
"""Darker pixels without colour are black pen where there are more of them than of such up to twice as light:
the dark end of a stain, of dense DAB or nuclei, thins out. HLS lightness, 0 to 255."""
BLACK_SHARE = 0.01
"""Less black than this share of what is stained is left to the percentiles: it may be the densest nuclei."""
BLACK_CHROMA = 24


@dataclass(frozen=True, slots=True)
class Sample:
    """The pixels of a slide that are not ink, in an order of their own."""

    channels: NDArray[np.uint8]
    """``(3, n)`` uint8: red, green and blue."""
    density: Floats
    """``(3, n)``: natural optical density."""
    stained: Mask
    """``(n,)``: which pixels have at least the method's least density in every channel."""


def density_table(light: float) -> Floats:
    """Optical density of each of the 256 intensities, ``(256,)``."""
    return np.asarray(-np.log((np.arange(256) + 1) / light))


def take_sample(pixels: NDArray[np.uint8], *, light: float, min_density: float) -> Sample:
    """Drop ink from ``(n, 3)`` uint8 RGB pixels and tell the stained ones.

    The result does not depend on the order of the pixels, to the bit.

    Raises
    ------
    StainError
        Too few stained pixels.
    """
    channels = _sorted(pixels.reshape(-1, 3))
    table = density_table(light)
    # Density falls with intensity: both tests are one comparison of bytes.
    faintest = int(np.count_nonzero(table >= min_density)) - 1
    channels = channels[:, ~_ink(channels, faintest)]
    stained = _either(np.maximum, channels) <= faintest
    found = int(np.count_nonzero(stained))
    if found < MIN_PIXELS:
        raise StainError(f"only {found} stained pixels were found, {MIN_PIXELS} are needed")
    return Sample(channels, np.take(table, channels), stained)


def stain_plane(density: Floats, *, light: float) -> Floats:
    """The plane ``(3, 2)`` in which stained pixels ``(3, n)`` spread most, strongest direction last.

    Raises
    ------
    StainError
        Across the strongest direction there is no more than noise: one stain, or grey.
    """
    middle = density.mean(axis=1, keepdims=True)
    centred = density - middle
    spread, directions = np.linalg.eigh(centred @ centred.T / (density.shape[1] - 1))  # ascending
    # A grey level is worth a density of 1 / intensity, which is the larger the darker a channel is.
    level = directions[:, 1] * np.exp(middle[:, 0]) / light
    levels = np.sqrt(max(float(spread[1]), 0.0)) / float(np.linalg.norm(level))
    if levels < NOISE_LEVELS:
        raise StainError(f"one stain only: no colours but shades of one, to {levels:.1f} grey levels")
    return np.asarray(directions[:, 1:])


def _sorted(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``(3, n)`` channels of the pixels in the order of their colours: sums no longer know the old order."""
    red, green, blue = (pixels[:, i].astype(np.uint32) for i in range(3))
    packed = np.sort(red << 16 | green << 8 | blue)
    return np.stack(
        [(packed >> 16).astype(np.uint8), (packed >> 8).astype(np.uint8), packed.astype(np.uint8)]
    )


def _either(of: np.ufunc, channels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``(n,)``: the largest or smallest of each pixel's ``(3, n)`` channels; quicker than ``max(axis=0)``."""
    red, green, blue = channels
    return np.asarray(of(of(red, green), blue))


def _ink(channels: NDArray[np.uint8], faintest: int) -> Mask:
    """``(n,)``: pixels of a pen's colour (`wsi.pen`), unless that colour is the stain's own."""
    largest, smallest = _either(np.maximum, channels), _either(np.minimum, channels)
    chroma = largest - smallest
    coloured = np.count_nonzero(smallest <= faintest)
    doubt = INK_SHARE * coloured
    ink = _black_ink(largest, smallest, least=BLACK_SHARE * coloured, most=doubt)
    bright = np.flatnonzero(chroma >= min(pen.chroma for pen in PENS))
    if len(bright) == 0:
        return ink
    image = np.ascontiguousarray(channels[:, bright].T)[None]
    hue = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2HLS)[0, :, 0], np.uint8)
    for pen in PENS:
        marks = bright[pen.has_hue(hue) & (chroma[bright] >= pen.chroma)]
        if not pen.doubtful or len(marks) <= doubt:
            ink[marks] = True
    return ink


def _black_ink(largest: NDArray[np.uint8], smallest: NDArray[np.uint8], *, least: float, most: float) -> Mask:
    twice_lightness = largest.astype(np.uint16) + smallest
    colourless = largest - smallest < BLACK_CHROMA
    black: Mask = colourless & (twice_lightness < 2 * BLACK_LIGHTNESS)
    found = np.count_nonzero(black)
    dim = np.count_nonzero(colourless & (twice_lightness < 4 * BLACK_LIGHTNESS)) - found
    return black if dim < found and least < found <= most else np.zeros_like(black)
