"""Readers behind one contract. Each adapter is small and passes the same suite of tests."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.errors import SlideError
from wsi.geometry import Level
from wsi.tiff import RGB_AGAIN

_DAMAGED = "Re-copy the slide, or leave it out: the other slides go on"
_ROUNDING = 2
"""Pixels by which a level may be larger or smaller than the slide's size over one ratio: writers halve again
and again, and round each time."""
_ANY_DIRECTORY = {"aperio", "generic-tiff", "philips"}
"""OpenSlide's names of formats in which it takes the levels from the directories as they are; of others it
knows better."""
_JPEG2000_YCBCR = 33003  # Aperio's number of a TIFF compression

_log = logging.getLogger(__name__)


class Backend(Protocol):
    """What a reader offers: facts, and the pixels of one level."""

    name: str
    """``"openslide"`` or ``"tiffslide"``."""
    levels: tuple[Level, ...]
    """Finest first; all have the same extent on the slide."""
    properties: Mapping[str, str]
    """The file's own metadata, as text."""
    associated: tuple[str, ...]
    """Names of label, macro and thumbnail images; their pixels are never read by default."""

    def read_level(self, level: int, column: int, row: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """``(height, width, 3)`` RGB: `size` pixels of one level from its pixel (column, row) on.

        All of them lie on the level. What was never scanned is white. `SlideError` names the place that
        cannot be decoded.
        """
        ...

    def close(self) -> None:
        """Release the file."""
        ...


class OpenSlideBackend:
    """Slides through OpenSlide (Goode et al. 2013, doi 10.4103/2153-3539.119005).

    An error of OpenSlide sticks to its handle, and every thread that reads through that handle then fails. So
    the handle is replaced, and a region that failed is read once more through a handle that no other thread
    has: what is said of a region does not depend on its neighbours.
    """

    name = "openslide"

    def __init__(self, path: Path) -> None:
        import openslide  # here: `--help` need not wait for it

        self._path = path
        self._open = openslide.OpenSlide
        self._error = openslide.OpenSlideError
        self._lock = Lock()
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise SlideError(f"OpenSlide cannot open it ({error})", path=path) from error
        self._ratios = self._slide.level_downsamples
        self.properties = _as_text(self._slide.properties)
        vendor = self.properties.get("openslide.vendor")
        sizes = self._slide.level_dimensions
        self._numbers = _of_one_shape(path, sizes) if vendor in _ANY_DIRECTORY else tuple(range(len(sizes)))
        self.levels = _levels([sizes[number] for number in self._numbers])
        self.associated = tuple(sorted(self._slide.associated_images))

    def read_level(self, level: int, column: int, row: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """See `Backend`. Right to half a level-0 pixel, the grain of OpenSlide's own positions."""
        # OpenSlide takes level-0 positions and divides them by its own ratio, so that ratio is used here.
        number = self._numbers[level]
        place = round(column * self._ratios[number]), round(row * self._ratios[number])
        slide = self._slide
        try:
            pixels = slide.read_region(place, number, size)
        except self._error:
            try:
                pixels = self._read_alone(slide, place, number, size)
            except self._error as error:
                raise SlideError(
                    f"cannot be read at level-0 position {place} ({error})", path=self._path, action=_DAMAGED
                ) from error
        return _on_white(np.asarray(pixels))

    def _read_alone(self, failed: Any, place: tuple[int, int], number: int, size: tuple[int, int]) -> Any:
        """The region once more, by itself, after the handle that all threads share was replaced."""
        with self._lock:
            if self._slide is failed:
                # Dropped, not closed: another thread may be reading through it.
                self._slide = self._open(self._path)
        with self._open(self._path) as slide:
            return slide.read_region(place, number, size)

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


class TiffSlideBackend:
    """Slides through tiffslide, for the pyramids that OpenSlide does not see (SubIFDs of OME-TIFF)."""

    name = "tiffslide"

    def __init__(self, path: Path) -> None:
        import tiffslide  # here: 0.7 s that most slides need not pay

        self._path = path
        self._slide: Any = None
        try:
            self._slide, self._process = tiffslide.TiffSlide(path), os.getpid()
            sizes = self._slide.level_dimensions
            self._refuse_misread()
            _fill_with_white(self._slide)
            self.associated = tuple(sorted(self._slide.associated_images))
        except Exception as error:  # tiffslide lets every error of tifffile, zarr and its own parsers through
            if self._slide is not None:
                self._slide.close()
            if isinstance(error, SlideError):
                raise
            raise SlideError(f"tiffslide cannot open it ({error})", path=path) from error
        self._numbers = _of_one_shape(path, sizes)
        self.levels = _levels([sizes[number] for number in self._numbers])
        self.properties: Mapping[str, str] = {
            str(key): str(value) for key, value in self._slide.properties.items() if value is not None
        }

    def read_level(self, level: int, column: int, row: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """See `Backend`."""
        number = self._numbers[level]
        # tiffslide divides level-0 positions by its own ratio and rounds down: go up to the next whole one.
        ratio = self._slide.level_downsamples[number]
        x, y = (math.ceil(index * ratio - 1e-6) for index in (column, row))
        try:
            pixels = np.asarray(self._handle().read_region((x, y), number, size, as_array=True))
            return _as_rgb(pixels, size)
        except Exception as error:  # the same breadth as on opening
            raise SlideError(
                f"cannot be read at level-0 position ({x}, {y}) ({error})", path=self._path, action=_DAMAGED
            ) from error

    def _handle(self) -> Any:
        """The open slide, of this very process: a forked child shares its parent's place in the file.

        Whoever of the two seeks, moves the other one too, which then reads other pixels.
        """
        if self._process != os.getpid():
            import tiffslide

            slide = tiffslide.TiffSlide(self._path)
            _fill_with_white(slide)
            self._slide, self._process = slide, os.getpid()
        return self._slide

    def _refuse_misread(self) -> None:
        """Refuse what tiffslide reads in wrong colours without a word: it takes any numbers for RGB."""
        for page in (level.keyframe for series in _series(self._slide) for level in series.levels):
            if page.compression == _JPEG2000_YCBCR:
                found = "takes its YCbCr in JPEG 2000 (compression 33003) for RGB"
            elif page.dtype != np.uint8:
                found = f"takes its samples for {page.dtype}, not for 8-bit numbers"
            else:
                continue
            raise SlideError(f"tiffslide {found}", path=self._path, action=RGB_AGAIN)

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


def _series(slide: Any) -> list[Any]:
    """The series of tifffile that hold a slide: one, but for Leica's, whose areas are one each."""
    properties, series = slide.properties, slide.ts_tifffile.series
    parts = properties.get("tiffslide.series-composition") or {}
    numbers = parts.get("located_series") or [properties.get("tiffslide.series-index", 0)]
    return [series[number] for number in numbers]


def _fill_with_white(slide: Any) -> None:
    """Have tiles that were never scanned be white: tifffile would make them black."""
    for series in _series(slide):
        series.aszarr = partial(series.aszarr, fillvalue=255)


def _as_text(properties: Mapping[str, str]) -> Mapping[str, str]:
    """OpenSlide's properties, but for those that it lists and does not find: their names are not UTF-8."""
    found = {}
    for key in properties:
        with suppress(KeyError):
            found[key] = properties[key]
    return found


def _as_rgb(pixels: NDArray[Any], size: tuple[int, int]) -> NDArray[np.uint8]:
    """``(height, width, 3)`` of what tiffslide gave; `ValueError` where that is neither grey nor RGB."""
    depth = pixels.shape[-1]
    if pixels.dtype != np.uint8 or pixels.shape != (size[1], size[0], depth) or depth == 2:
        raise ValueError(f"{pixels.shape} {pixels.dtype} is no 8-bit RGB of {size[0]} x {size[1]} pixels")
    return np.ascontiguousarray(pixels[..., :3] if depth > 1 else pixels.repeat(3, axis=2))


def _of_one_shape(path: Path, sizes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """The reader's numbers of the levels that show the slide, and not, as a macro does, something else.

    One ratio must explain both sides of a level, but for `_ROUNDING`. Otherwise its pixels would be taken for
    those of places that they do not show.
    """
    numbers = []
    for number, size in enumerate(sizes):
        most = [full / max(side - _ROUNDING, 1) for full, side in zip(sizes[0], size, strict=True)]
        least = [full / (side + _ROUNDING) for full, side in zip(sizes[0], size, strict=True)]
        if max(least) <= min(most):
            numbers.append(number)
        else:
            _log.info("%s: the picture of %d x %d is of another shape, and no level", path, *size)
    return tuple(numbers)


def _levels(dimensions: Sequence[tuple[int, int]]) -> tuple[Level, ...]:
    full_width, full_height = dimensions[0]
    levels = []
    for width, height in dimensions:
        # A scanner halves and drops (or fills) the odd pixel: 4471 / 4 is stored as 1117 pixels. The true
        # ratio is then 4, not 4471 / 1117, which would put the far edge three pixels off.
        ratio = max(1, round(full_width / width))
        if _halves_to(full_width, width, ratio) and _halves_to(full_height, height, ratio):
            levels.append(Level(width, height, ratio, ratio))
        else:
            levels.append(Level(width, height, full_width / width, full_height / height))
    return tuple(levels)


def _halves_to(full: int, size: int, ratio: int) -> bool:
    return size in {full // ratio, -(-full // ratio)}


def _on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay (h, w, 4) pixels on white: where nothing was scanned OpenSlide answers transparent *black*."""
    if cv2.extractChannel(rgba, 3).min() == 255:
        return np.asarray(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), np.uint8)
    alpha, rgb = rgba[..., 3], rgba[..., :3]
    share = alpha[..., None].astype(np.float32) / 255
    return np.asarray(np.round(rgb * share + 255 * (1 - share)), np.uint8)
