"""`Reader`: pixels of a slide at any scale, from the best level and by the best path.

A *plane* is a level, or a level at one to two, four or eight: JPEG tiles can be decoded at these scales in
the transform itself (`wsi.direct`). Tiles come from a half plane only where they are a whole number of its
pixels apart and begin on one, and where JPEG's quantisation is that of a quality below 90: there it is within
0.7 dB of decoding whole and averaging. Elsewhere the half plane would have to be interpolated, which costs
6 to 9 dB (docs/benchmarks.md), so tiles are decoded whole. Previews take any plane that is fine enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from wsi.backends import Backend
from wsi.direct import REDUCTIONS, DirectReader
from wsi.errors import SlideError
from wsi.geometry import Level, Region
from wsi.resample import area_resample
from wsi.stopwatch import Stopwatch

BLOCK_PIXELS = 4096 * 4096
"""Source pixels read at a time: 64 MiB of RGBA, some 200 MiB with its copies, whatever the slide's size."""
RUN_TILES = 8
"""Neighbours in a row that are read together where a general reader would decode what they share twice."""
DRIFT, LEVEL_0_DRIFT = 0.05, 0.25
"""Pixels of a plane, and of level 0, by which the far edge of a tile may be off: ratios so close to a whole
number are one."""
_SMALLEST_LOSS = 32  # pixels of a preview: a damaged spot is narrowed down to this

Damage = Callable[[SlideError, float], None]
"""Told of a spot that cannot be decoded: why, and which share of the whole picture it is."""
_Lost = Callable[[SlideError, tuple[int, int]], None]  # the same, by the spot's (width, height)
Pair = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Plane:
    """A level at one to `reduce`."""

    level: int
    reduce: int
    size: Level
    """Its own size and level-0 pixels per pixel."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """What tiles of one size and scale are cut from."""

    whole: Plane
    """The level, decoded whole."""
    scale: Pair
    """Level-0 pixels per pixel, made even where that is as good."""
    half: Plane | None
    """The level at half scale, for those tiles that begin on one of its pixels; None where it will not do."""


class Reader:
    """Reads what `Slide` asks for, from one open file. Safe for threads.

    Parameters
    ----------
    path
        The slide file.
    backend
        The reader that opened it.
    is_tiff
        Whether it is a TIFF file, whose tiles may be read directly.
    times
        Told how long reading, decoding and resampling take.
    """

    def __init__(
        self, path: Path, backend: Backend, *, is_tiff: bool, times: Stopwatch | None = None
    ) -> None:
        self._path, self._backend = path, backend
        self._is_tiff = is_tiff
        self._times = times or Stopwatch()
        self._direct: DirectReader | None = None
        self._choices: dict[tuple[tuple[int, int], Pair, bool], _Choice] = {}
        self._lock = Lock()

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            if self._direct is not None:
                self._direct.close()
            self._direct, self._is_tiff = None, False

    def read(
        self, x: float, y: float, size: tuple[int, int], scale: Pair, *, exact: bool
    ) -> NDArray[np.uint8]:
        """``(height, width, 3)``: `size` pixels of `scale` level-0 pixels each; white beyond the slide."""
        plane, scale = self._plane_of_tile(x, y, size, scale, exact=exact)
        return self._in_blocks(x, y, size, scale, plane, self._cut)

    def read_run(
        self,
        places: Sequence[tuple[int, int]],
        size: tuple[int, int],
        scale: Pair,
        out: NDArray[np.uint8],
        *,
        exact: bool,
    ) -> None:
        """Fill ``out[i]`` with ``read(*places[i], …)``; neighbours in a row are read at once."""
        plane, snapped = self._plane_of_tile(*places[0], size, scale, exact=exact)
        apart = plane.level > 0 or self._is_direct(plane) or len(places) == 1
        width, height = size[0] * snapped[0], size[1] * snapped[1]
        x0, y0 = places[0]
        union = Region(x0, y0, places[-1][0] - x0 + width, height)
        if apart or union.width * union.height > BLOCK_PIXELS:
            # What neighbours share, to a pixel where positions are rounded; rows share as much. Of a tile
            # alone nothing is known.
            overlap = None
            if len(places) > 1:
                overlap = width - (places[1][0] - x0) + (0 if width % 1 == 0 else 1)
            for place, tile in zip(places, out, strict=True):
                self._read_into(tile, *place, size, scale, overlap, exact=exact)
            return
        # Level 0 only: positions on coarser levels are rounded by the backend, and would depend on the run.
        pixels, _, _ = self._fetch(union, plane)
        columns = math.ceil(width - 1e-9)
        for (x, _), tile in zip(places, out, strict=True):
            # A copy: sums in another shape may differ in the last bit, and a tile by its neighbours.
            alone = np.ascontiguousarray(pixels[:, x - x0 : x - x0 + columns])
            with self._times.lap("resample"):
                tile[...] = area_resample(alone, Region(0, 0, width, height), size)

    def _read_into(
        self,
        out: NDArray[np.uint8],
        x: float,
        y: float,
        size: tuple[int, int],
        scale: Pair,
        overlap: float | None,
        *,
        exact: bool,
    ) -> None:
        """`read`, without a copy on the way where the pixels of the plane are those that are wanted."""
        plane, snapped = self._plane_of_tile(x, y, size, scale, exact=exact)
        here = plane.size
        shared = None if overlap is None else max(0, math.ceil(overlap / here.downsample_x - 1e-9))
        left, top = x / here.downsample_x, y / here.downsample_y
        if (
            snapped == (here.downsample_x, here.downsample_y)
            and left.is_integer()
            and top.is_integer()
            and 0 <= left <= here.width - size[0]
            and 0 <= top <= here.height - size[1]
            and self._is_direct(plane)
            and (direct := self._open_direct())
        ):
            where = plane.level, int(left), int(top), size
            direct.read(*where, reduce=plane.reduce, out=out, overlap=shared)
        else:
            cut = partial(self._cut, overlap=shared)
            out[...] = self._in_blocks(x, y, size, snapped, plane, cut)

    def preview(self, size: tuple[int, int], scale: Pair, damage: Damage | None) -> NDArray[np.uint8]:
        """The slide from its corner on, from any plane that is fine enough.

        A spot that cannot be decoded is taken from a finer level; where none can be, `damage` is told and the
        spot is white, or, without `damage`, the error is raised.
        """
        plane = self._plane_of_preview(scale)
        pixels = size[0] * size[1]

        def lost(error: SlideError, spot: tuple[int, int]) -> None:
            if damage is None:
                raise error
            damage(error, spot[0] * spot[1] / pixels)

        def cut(region: Region, block: tuple[int, int], plane: Plane) -> NDArray[np.uint8]:
            return self._cut_or_finer(region, block, plane, lost)

        return self._in_blocks(0, 0, size, scale, plane, cut)

    # Planes ----------------------------------------------------------------------------------------------

    def _level_for(self, scale: Pair) -> int:
        """The coarsest level that is no coarser than asked (1 % for ratios such as 4.0027)."""
        levels = self._backend.levels
        fine = [
            i
            for i, level in enumerate(levels)
            if level.downsample_x <= scale[0] * 1.01 and level.downsample_y <= scale[1] * 1.01
        ]
        return max(fine, key=lambda i: levels[i].downsample_x, default=0)

    def _plane_of_tile(
        self, x: float, y: float, size: tuple[int, int], scale: Pair, *, exact: bool
    ) -> tuple[Plane, Pair]:
        """The plane that a tile is cut from, and the scale, made even where it is as good as even."""
        choice = self._choices.get((size, scale, exact))
        if choice is None:
            choice = self._choices[size, scale, exact] = self._choose(size, scale, exact=exact)
        if (half := choice.half) is not None:
            here, (across, down) = half.size, choice.scale
            left, top = x / here.downsample_x, y / here.downsample_y
            right = left + size[0] * across / here.downsample_x
            bottom = top + size[1] * down / here.downsample_y
            begins = abs(left - round(left)) < 1e-6 and abs(top - round(top)) < 1e-6
            if begins and left >= 0 and top >= 0 and right <= here.width and bottom <= here.height:
                return half, choice.scale
        return choice.whole, choice.scale

    def _choose(self, size: tuple[int, int], scale: Pair, *, exact: bool) -> _Choice:
        level = self._level_for(scale)
        whole = self._plane(level)
        ratios = scale[0] / whole.size.downsample_x, scale[1] / whole.size.downsample_y
        steps = round(ratios[0]), round(ratios[1])
        drifts = [abs(r - n) * count for r, n, count in zip(ratios, steps, size, strict=True)]
        coarsest = max(whole.size.downsample_x, whole.size.downsample_y)
        if max(drifts) > min(DRIFT, LEVEL_0_DRIFT / coarsest) or min(steps) < 1:
            return _Choice(whole, scale, None)
        snapped = steps[0] * whole.size.downsample_x, steps[1] * whole.size.downsample_y
        # Of JPEG 2000 and of fine JPEG the direct reader offers half scale for previews only.
        if exact or steps[0] % 2 or steps[1] % 2 or not self._offers(level, 2, is_preview=False):
            return _Choice(whole, snapped, None)
        return _Choice(whole, snapped, self._plane(level, 2))

    def _plane_of_preview(self, scale: Pair) -> Plane:
        level = self._level_for(scale)
        whole = self._plane(level)
        ratio = min(scale[0] / whole.size.downsample_x, scale[1] / whole.size.downsample_y)
        for reduce in REDUCTIONS:
            if reduce <= ratio * 1.01 and self._offers(level, reduce, is_preview=True):
                return self._plane(level, reduce)
        return whole

    def _plane(self, level: int, reduce: int = 1) -> Plane:
        full = self._backend.levels[level]
        if reduce == 1:
            return Plane(level, 1, full)
        size = max(1, full.width // reduce), max(1, full.height // reduce)
        return Plane(level, reduce, Level(*size, full.downsample_x * reduce, full.downsample_y * reduce))

    def _offers(self, level: int, reduce: int, *, is_preview: bool) -> bool:
        direct = self._open_direct()
        return direct is not None and direct.reads(level, reduce, is_preview=is_preview)

    def _is_direct(self, plane: Plane) -> bool:
        return plane.reduce > 1 or self._offers(plane.level, 1, is_preview=False)

    def _open_direct(self) -> DirectReader | None:
        if self._direct is None and self._is_tiff:
            with self._lock:
                if self._direct is None and self._is_tiff:
                    self._direct = DirectReader(self._path, self._backend, times=self._times)
        return self._direct

    # Regions ---------------------------------------------------------------------------------------------

    def _in_blocks(
        self,
        x: float,
        y: float,
        size: tuple[int, int],
        scale: Pair,
        plane: Plane,
        cut: Callable[[Region, tuple[int, int], Plane], NDArray[np.uint8]],
    ) -> NDArray[np.uint8]:
        """Read in blocks, so that memory stays bounded.

        A block is a whole number of output pixels, so that the borders of blocks leave no trace.
        """
        # Plane pixels per pixel.
        across, down = scale[0] / plane.size.downsample_x, scale[1] / plane.size.downsample_y
        columns = min(size[0], max(1, int(BLOCK_PIXELS / across)))
        rows = min(size[1], max(1, int(BLOCK_PIXELS / (columns * across) / down)))
        if (columns, rows) == size:
            return cut(Region(x, y, size[0] * scale[0], size[1] * scale[1]), size, plane)
        image = np.empty((size[1], size[0], 3), np.uint8)
        for left, top, block in _blocks(size, columns, rows):
            corner = x + left * scale[0], y + top * scale[1]
            region = Region(*corner, block[0] * scale[0], block[1] * scale[1])
            image[top : top + block[1], left : left + block[0]] = cut(region, block, plane)
        return image

    def _cut(
        self, region: Region, size: tuple[int, int], plane: Plane, overlap: int | None = None
    ) -> NDArray[np.uint8]:
        """Cut the region out of one plane: whole pixels around it, then the exact average."""
        pixels, left, top = self._fetch(region, plane, overlap)
        here = plane.size
        window = Region(left, top, region.width / here.downsample_x, region.height / here.downsample_y)
        with self._times.lap("resample"):
            return area_resample(pixels, window, size)

    def _cut_or_finer(
        self, region: Region, size: tuple[int, int], plane: Plane, lost: _Lost
    ) -> NDArray[np.uint8]:
        try:
            return self._cut(region, size, plane)
        except SlideError as error:
            if max(size) > _SMALLEST_LOSS:
                return self._cut_in_quarters(region, size, plane, lost)
            if plane.level > 0:
                return self._cut_or_finer(region, size, self._plane(plane.level - 1), lost)
            lost(error, size)
            return np.full((size[1], size[0], 3), 255, np.uint8)

    def _cut_in_quarters(
        self, region: Region, size: tuple[int, int], plane: Plane, lost: _Lost
    ) -> NDArray[np.uint8]:
        image = np.empty((size[1], size[0], 3), np.uint8)
        scale = region.width / size[0], region.height / size[1]
        for left, top, block in _blocks(size, max(1, -(-size[0] // 2)), max(1, -(-size[1] // 2))):
            corner = region.x + left * scale[0], region.y + top * scale[1]
            part = Region(*corner, block[0] * scale[0], block[1] * scale[1])
            image[top : top + block[1], left : left + block[0]] = self._cut_or_finer(part, block, plane, lost)
        return image

    def _fetch(
        self, region: Region, plane: Plane, overlap: int | None = None
    ) -> tuple[NDArray[np.uint8], float, float]:
        """Whole pixels of a plane that cover the region, white beyond the plane; and its corner in them."""
        here = plane.size
        across = _span(region.x, region.right, here.downsample_x, here.width)
        down = _span(region.y, region.bottom, here.downsample_y, here.height)
        if across.count == 0 or down.count == 0:  # all of it overhangs
            shape = down.before + down.count + down.after, across.before + across.count + across.after, 3
            return np.full(shape, 255, np.uint8), across.offset, down.offset
        place, size = (across.first, down.first), (across.count, down.count)
        direct = self._open_direct() if self._is_direct(plane) else None
        if direct is not None:
            pixels = direct.read(plane.level, *place, size, reduce=plane.reduce, overlap=overlap)
        else:
            with self._times.lap("read and decode"):  # in one call: nobody can tell them apart
                pixels = self._backend.read_level(plane.level, *place, size)
        if across.before or across.after or down.before or down.after:
            margins = ((down.before, down.after), (across.before, across.after), (0, 0))
            pixels = np.pad(pixels, margins, constant_values=255)
        return pixels, across.offset, down.offset


def find_runs(places: Sequence[tuple[int, int]], *, width: float, most: int = RUN_TILES) -> list[slice]:
    """Ranges of places that follow one another in a row without a gap, `most` at most in each."""
    most = min(most, RUN_TILES)
    runs, start = [], 0
    for i in range(1, len(places) + 1):
        if i < len(places) and i - start < most:
            (x0, y0), (x1, y1) = places[i - 1], places[i]
            if y0 == y1 and 0 < x1 - x0 <= width + 1:
                continue
        runs.append(slice(start, i))
        start = i
    return runs if places else []


def _blocks(size: tuple[int, int], columns: int, rows: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """(left, top, (width, height)) of the blocks that cover `size`, row by row."""
    for top in range(0, size[1], rows):
        for left in range(0, size[0], columns):
            yield left, top, (min(columns, size[0] - left), min(rows, size[1] - top))


@dataclass(frozen=True, slots=True)
class _Span:
    """Along one axis: which pixels to read for a region, and where it starts in them."""

    first: int
    """First pixel to read."""
    count: int
    """How many to read; all lie on the plane."""
    before: int
    """White pixels to add in front, for what overhangs."""
    after: int
    """The same behind."""
    offset: float
    """The region's edge, in pixels of what was read and padded."""


def _span(start: float, stop: float, downsample: float, length: int) -> _Span:
    """Cover the level-0 interval [start, stop) with whole pixels of a plane that has `length` of them."""
    wanted_first, wanted_stop = math.floor(start / downsample + 1e-9), math.ceil(stop / downsample - 1e-9)
    first = min(max(wanted_first, 0), max(wanted_stop, 0), length)
    last = max(min(wanted_stop, length), first)
    if last == first:  # all of it overhangs
        return _Span(first, 0, wanted_stop - wanted_first, 0, start / downsample - wanted_first)
    return _Span(
        first, last - first, first - wanted_first, wanted_stop - last, start / downsample - wanted_first
    )
