"""A slide as DeepZoom tiles: the pyramid of powers of two that OpenSeadragon asks for.

The page shows square microns. Where a slide's pixels are not square, a *picture pixel* is as long as their
longer side; `Frame` has the ratio along each axis, so positions stay level-0 pixels everywhere else. The
whole slide is shown, as all positions count from its corner, also where only its bounds were scanned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from threading import BoundedSemaphore, Lock

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from wsi.errors import UsageError
from wsi.slide import Slide

TILE_PX = 512
"""A multiple of the tiles of all scanners but one, so that few are decoded twice."""
OVERVIEW_PX = 1024
"""Levels no longer than this are made of one picture of the slide: without a pyramid each would read all."""
QUALITY = 88

_Image = NDArray[np.uint8]
Borrow = Callable[[], AbstractContextManager[Slide]]
"""Gives the open slide for as long as it is read from."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The picture that is shown: where its pixels lie on the slide."""

    size: tuple[int, int]
    """Picture pixels, ``(width, height)``; the last may overhang the slide."""
    scale: tuple[float, float]
    """Level-0 pixels per picture pixel, along x and y."""
    mpp: float
    """Microns per picture pixel, along both axes."""

    @classmethod
    def of(cls, slide: Slide) -> Frame:
        """The finest picture with square pixels."""
        resolution = slide.require_resolution()
        mpp = max(resolution.x, resolution.y)
        scale_x, scale_y = slide.scale(mpp)
        width, height = (_ceil(n / s) for n, s in zip(slide.size, (scale_x, scale_y), strict=True))
        return cls((width, height), (scale_x, scale_y), mpp)

    @property
    def finest_level(self) -> int:
        """Number of the level that is the picture itself; level 0 is one pixel."""
        return max(0, math.ceil(math.log2(max(self.size))))

    @property
    def coarsest_level(self) -> int:
        """The finest level of one tile: nobody needs less."""
        fits = (n for n in range(self.finest_level, -1, -1) if max(self.level_size(n)) <= TILE_PX)
        return next(fits, 0)

    def level_size(self, level: int) -> tuple[int, int]:
        """Pixels of a level, rounded up."""
        step = 1 << (self.finest_level - level)
        return -(-self.size[0] // step), -(-self.size[1] // step)

    def tile_box(self, level: int, column: int, row: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of a tile in pixels of its level.

        Raises
        ------
        UsageError
            There is no such tile.
        """
        if 0 <= level <= self.finest_level:
            width, height = self.level_size(level)
            left, top = column * TILE_PX, row * TILE_PX
            if 0 <= left < width and 0 <= top < height:
                return left, top, min(TILE_PX, width - left), min(TILE_PX, height - top)
        raise UsageError(f"there is no tile {column}, {row} on level {level}")


class DeepZoom:
    """Tiles of an open slide.

    Parameters
    ----------
    frame
        The picture.
    borrow
        Gives the slide.
    readers
        How many threads may read at a time, of all slides.
    """

    def __init__(self, frame: Frame, borrow: Borrow, readers: BoundedSemaphore) -> None:
        self.frame = frame
        self._borrow, self._readers = borrow, readers
        self._lock = Lock()

    def read(self, level: int, column: int, row: int) -> _Image:
        """The pixels of a tile; what overhangs the slide is white.

        Raises
        ------
        UsageError
            There is no such tile.
        SlideError
            It cannot be decoded.
        """
        frame = self.frame
        left, top, width, height = frame.tile_box(level, column, row)
        if max(frame.level_size(level)) <= OVERVIEW_PX:
            return self._of_overview(level)[top : top + height, left : left + width]
        step = 1 << (frame.finest_level - level)
        x, y = left * step * frame.scale[0], top * step * frame.scale[1]
        return self.region(x, y, size=(width, height), mpp=frame.mpp * step)

    def region(self, x: float, y: float, *, size: tuple[int, int], mpp: float) -> _Image:
        """What `Slide.read` gives."""
        with self._readers, self._borrow() as slide:
            return slide.read(x, y, size=size, mpp=mpp)

    def _of_overview(self, level: int) -> _Image:
        with self._lock:  # others wait, rather than read the slide too
            image = self._overview
        image_level = self._overview_level
        return halved(image, image_level - level)

    @property
    def _overview_level(self) -> int:
        levels = range(self.frame.finest_level, -1, -1)
        return next((n for n in levels if max(self.frame.level_size(n)) <= OVERVIEW_PX), 0)

    @cached_property
    def _overview(self) -> _Image:
        """The whole slide; spots that cannot be decoded are white, so that a damaged slide opens."""
        step = 1 << (self.frame.finest_level - self._overview_level)
        with self._readers, self._borrow() as slide:
            return slide.thumbnail(self.frame.mpp * step, damage=lambda error, share: None)


class StillPicture:
    """The same of a slide whose file is not at hand: the thumbnail that was committed."""

    def __init__(self, image: _Image, scale: tuple[float, float], mpp: float) -> None:
        self.frame = Frame((image.shape[1], image.shape[0]), scale, mpp)
        self._image = image

    def read(self, level: int, column: int, row: int) -> _Image:
        """As `DeepZoom.read`."""
        left, top, width, height = self.frame.tile_box(level, column, row)
        picture = halved(self._image, self.frame.finest_level - level)
        return picture[top : top + height, left : left + width]


def halved(image: _Image, times: int) -> _Image:
    """The picture at one to two, four and so on: each pixel the mean of what lies under it, white beyond.

    >>> halved(np.zeros((2, 3, 3), np.uint8), 1)[0, :, 0].tolist()
    [0, 128]
    """
    if times == 0:
        return image
    step = 1 << times
    down, across = -image.shape[0] % step, -image.shape[1] % step
    padded = np.pad(image, ((0, down), (0, across), (0, 0)), constant_values=255)
    rows, columns = padded.shape[0] // step, padded.shape[1] // step
    means = padded.reshape(rows, step, columns, step, 3).mean(axis=(1, 3))
    return np.asarray(np.rint(means), np.uint8)


def as_jpeg(image: _Image) -> bytes:
    """The picture as JPEG, colours at full resolution: nuclei are blue spots of a few pixels."""
    pixels = np.ascontiguousarray(image)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorspace="RGB", colorsubsampling="444"))


def _ceil(number: float) -> int:
    """Rounded up; the small allowance keeps 3.0000000001 from becoming 4."""
    return max(1, math.ceil(number - 1e-9))
