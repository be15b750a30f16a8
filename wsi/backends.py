"""Readers behind one contract. Each adapter is small and passes the same suite of tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.errors import SlideError
from wsi.geometry import Level

_DAMAGED = "Re-copy the slide, or leave it out: the other slides go on"


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
    """Slides through OpenSlide (Goode et al. 2013, doi 10.4103/2153-3539.119005)."""

    name = "openslide"

    def __init__(self, path: Path) -> None:
        import openslide  # here: `--help` need not wait for it

        self._path = path
        self._open = openslide.OpenSlide
        self._error = openslide.OpenSlideError
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise SlideError(f"OpenSlide cannot open it ({error})", path=path, action=_DAMAGED) from error
        self.levels = _levels(self._slide.level_dimensions)
        self.properties: Mapping[str, str] = dict(self._slide.properties)
        self.associated = tuple(sorted(self._slide.associated_images))

    def read_level(self, level: int, column: int, row: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """See `Backend`. Right to half a level-0 pixel, the grain of OpenSlide's own positions."""
        # OpenSlide takes level-0 positions and divides them by its own ratio, so that ratio is used here.
        ratio = self._slide.level_downsamples[level]
        x, y = round(column * ratio), round(row * ratio)
        try:
            return _on_white(np.asarray(self._slide.read_region((x, y), level, size)))
        except self._error as error:
            # OpenSlide's errors stick to the handle: without a new one every later read fails too. The old
            # one is dropped, not closed: another thread may be reading through it.
            self._slide = self._open(self._path)
            raise SlideError(
                f"cannot be read at level-0 position ({x}, {y}) ({error})", path=self._path, action=_DAMAGED
            ) from error

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


class TiffSlideBackend:
    """Slides through tiffslide, for the pyramids that OpenSlide does not see (SubIFDs of OME-TIFF)."""

    name = "tiffslide"

    def __init__(self, path: Path) -> None:
        import tiffslide  # here: 0.7 s that most slides need not pay

        self._path = path
        try:
            self._slide: Any = tiffslide.TiffSlide(path)
            dimensions = self._slide.level_dimensions
        except Exception as error:  # tiffslide lets every error of tifffile, zarr and its own parsers through
            raise SlideError(f"tiffslide cannot open it ({error})", path=path, action=_DAMAGED) from error
        self.levels = _levels(dimensions)
        self.properties: Mapping[str, str] = {
            str(key): str(value) for key, value in self._slide.properties.items() if value is not None
        }
        self.associated = tuple(sorted(self._slide.associated_images))

    def read_level(self, level: int, column: int, row: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """See `Backend`."""
        # tiffslide divides level-0 positions by its own ratio and rounds down: go up to the next whole one.
        ratio = self._slide.level_downsamples[level]
        x, y = (math.ceil(index * ratio - 1e-6) for index in (column, row))
        try:
            pixels = np.asarray(self._slide.read_region((x, y), level, size, as_array=True))
        except Exception as error:  # the same breadth as on opening
            raise SlideError(
                f"cannot be read at level-0 position ({x}, {y}) ({error})", path=self._path, action=_DAMAGED
            ) from error
        return np.ascontiguousarray(pixels[..., :3])

    def close(self) -> None:
        """Release the file."""
        self._slide.close()


def _levels(dimensions: tuple[tuple[int, int], ...]) -> tuple[Level, ...]:
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
