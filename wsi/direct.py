"""The direct path: compressed tiles of a TIFF pyramid, each read and decoded once.

A general reader decodes all tiles under a region anew for every region, at full size. Here a tile is read
from the file by its place in the directory's table, decoded by libjpeg-turbo straight at the scale that is
wanted (`wsi.jpeg`), and kept while its neighbours need it. The *reference*, the backend that opened the
slide, stays the authority: its levels are the slide's levels, a level whose richest sound tile does not
decode to the reference's pixels is left to it, and so is every tile of an unusual kind. Only a tile that says
it is damaged is an error.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsi.backends import Backend
from wsi.cache import TileCache
from wsi.errors import SlideError
from wsi.geometry import Level
from wsi.jpeg import DamagedStreamError, TileStream, UnusualStreamError
from wsi.stopwatch import Stopwatch
from wsi.tiff import Directory, Tiff

CACHE_BYTES = 160 << 20
"""Decoded tiles that are kept at most; usually it is what two rows of output share."""
AGREEMENT = 2.0
"""Mean difference from the reference, in grey levels at an eighth of the size, up to which a level is read
directly. JPEG and JPEG 2000 agree with OpenSlide exactly; colours misread differ by tens."""
COARSE = 12.0
"""Mean quantisation step, that of quality 89. From there on tiles at half scale lose 0.1 to 0.7 dB to tiles
decoded whole and averaged (docs/benchmarks.md). Finer JPEG loses up to 2.3 dB, and is decoded whole."""
REDUCTIONS = (8, 4, 2)
"""Scales, one to, at which tiles are decoded apart from whole."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 259, 262, 277
_PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _TABLES = 284, 322, 323, 324, 325, 347
_JPEG, _JPEG2000_RGB = 7, 33005
_RGB, _YCBCR = 2, 6
_VENDORS = {"aperio", "generic-tiff", "philips"}
"""OpenSlide's names of formats whose tiles neither overlap nor lie at an offset."""
_MOST_TILE_BYTES = 64 << 20
_WITNESSES = 8  # tiles that are tried until one can be compared with the reference

Get = Callable[[tuple[int, ...], Callable[[], NDArray[np.uint8]]], NDArray[np.uint8]]
"""Of `TileCache`."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TiledLevel:
    """One level's table of compressed tiles."""

    columns: int
    """Tiles along x."""
    tile: tuple[int, int]
    """``(width, height)`` of a tile in pixels of the level."""
    offsets: NDArray[np.uint64]
    """Where each tile lies in the file, row by row."""
    counts: NDArray[np.uint64]
    """Its bytes; 0 where nothing was scanned."""
    stream: TileStream | None
    """What its JPEG tiles have in common; None for JPEG 2000."""


class DirectReader:
    """Reads the levels of a slide that are tiled JPEG or JPEG 2000.

    Parameters
    ----------
    path
        The slide file.
    reference
        The backend that opened it.
    times
        Told how long reading and decoding take.

    Raises
    ------
    SlideError
        The file's directories cannot be read.
    """

    def __init__(self, path: Path, reference: Backend, *, times: Stopwatch | None = None) -> None:
        self._path, self._reference = path, reference
        self._times = times or Stopwatch()
        self._cache = TileCache(CACHE_BYTES)
        # By level, headers that were found good: its tiles share theirs.
        self._heads: dict[int, tuple[bytes, ...]] = {}
        self._lock = Lock()
        self._agrees: dict[int, bool] = {}
        self._is_coarse: dict[int, bool] = {}  # set before the level agrees
        self._levels = _find_levels(path, reference)
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)) if self._levels else -1

    def close(self) -> None:
        """Release the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def reads(self, level: int, reduce: int = 1, *, is_preview: bool = False) -> bool:
        """Whether a level can be read here at one to `reduce`; some only well enough to look at."""
        found = self._levels.get(level)
        if found is None or found.tile[0] % reduce or found.tile[1] % reduce:
            return False
        if level not in self._agrees:
            with self._lock:
                if level not in self._agrees:
                    self._agrees[level] = self._check(level, found)
        return self._agrees[level] and (reduce == 1 or is_preview or self._is_coarse.get(level, False))

    def read(
        self,
        level: int,
        column: int,
        row: int,
        size: tuple[int, int],
        *,
        reduce: int = 1,
        out: NDArray[np.uint8] | None = None,
        overlap: int | None = None,
    ) -> NDArray[np.uint8]:
        """``(height, width, 3)`` RGB: `size` pixels of a level at one to `reduce`, from (column, row) on.

        All of them lie on the level; with `out` they are put there. `overlap` is by how many pixels the next
        regions, to the right and below, reach into this one: tiles that they do not want are kept no longer.
        None: that is not known. `SlideError` names the place of a damaged tile.
        """
        found = self._levels[level]
        width, height = found.tile[0] // reduce, found.tile[1] // reduce
        result = np.empty((size[1], size[0], 3), np.uint8) if out is None else out
        across, down = _cut_up(column, size[0], width), _cut_up(row, size[1], height)
        if out is not None and size == (width, height) and len(across) == len(down) == 1:
            # One whole tile: nobody else wants a part of it.
            return self._decode(level, across[0][0], down[0][0], reduce=reduce, out=out)
        # What one row of output needs of the next one is kept, and no more: memory that is touched is time.
        self._cache.limit = min(CACHE_BYTES, (len(down) + 1) * found.columns * width * height * 3)
        reach = 0 if overlap is None else overlap
        right, bottom = column + size[0] - reach, row + size[1] - reach
        for tile_row, inside_y, place_y in down:
            for tile_column, inside_x, place_x in across:
                is_last = (tile_column + 1) * width <= right and (tile_row + 1) * height <= bottom
                get = self._cache.take if is_last and overlap is not None else self._cache.get
                tile = self._tile(get, level, tile_column, tile_row, reduce)
                result[place_y, place_x] = tile[inside_y, inside_x]
        return result

    # One tile --------------------------------------------------------------------------------------------

    def _tile(self, get: Get, level: int, column: int, row: int, reduce: int) -> NDArray[np.uint8]:
        return get((level, column, row, reduce), lambda: self._decode(level, column, row, reduce=reduce))

    def _decode(
        self, level: int, column: int, row: int, *, reduce: int, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """A whole tile, at one to `reduce`; by the reference where it is missing or unusual."""
        try:
            return self._decode_here(level, column, row, reduce=reduce, out=out)
        except UnusualStreamError as error:
            _log.debug("%s: tile (%d, %d) of level %d %s", self._path, column, row, level, error)
            tile = self._by_reference(level, column, row, reduce)
        except (DamagedStreamError, OSError) as error:
            x, y = self._place(level, column, row)
            raise SlideError(
                f"the compressed tile at level-0 position ({x}, {y}) of level {level} is damaged ({error})",
                path=self._path,
                action="Re-copy the slide",
            ) from error
        if out is not None:
            out[...] = tile
            return out
        return tile

    def _decode_here(
        self, level: int, column: int, row: int, *, reduce: int, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """A whole tile, or why not: `UnusualStreamError`, `DamagedStreamError`, `OSError` of the disk."""
        found = self._levels[level]
        with self._times.lap("read"):
            data = self._compressed(found, row * found.columns + column)
        if found.stream is not None:
            heads = self._heads.get(level, ())
            if not data.startswith(heads):
                length = found.stream.head(data)
                self._heads[level] = (data[:length], *heads[:15])
            with self._times.lap("decode"):
                return found.stream.decode(data, reduce=reduce, out=out)
        with self._times.lap("decode"):
            tile = _decode_jpeg2000(data, found.tile, reduce)
        if out is None:
            return tile
        out[...] = tile
        return out

    def _compressed(self, found: TiledLevel, index: int) -> bytes:
        """A tile's bytes in the file."""
        count = int(found.counts[index])
        if count == 0 or count > _MOST_TILE_BYTES:
            raise UnusualStreamError(f"has {count} bytes")
        data = os.pread(self._file, count, int(found.offsets[index]))
        if len(data) < count:
            raise DamagedStreamError("the file ends within it")
        return data

    def _by_reference(self, level: int, column: int, row: int, reduce: int) -> NDArray[np.uint8]:
        """The tile as the reference has it, padded with white beyond the level."""
        found, size = self._levels[level], self._reference.levels[level]
        x, y = column * found.tile[0], row * found.tile[1]
        width, height = min(found.tile[0], size.width - x), min(found.tile[1], size.height - y)
        tile = np.full((found.tile[1], found.tile[0], 3), 255, np.uint8)
        if width > 0 and height > 0:
            with self._times.lap("read and decode"):
                tile[:height, :width] = self._reference.read_level(level, x, y, (width, height))
        if reduce == 1:
            return tile
        return np.asarray(
            cv2.resize(tile, None, fx=1 / reduce, fy=1 / reduce, interpolation=cv2.INTER_AREA), np.uint8
        )

    def _place(self, level: int, column: int, row: int) -> tuple[int, int]:
        """Level-0 position of a tile."""
        found, size = self._levels[level], self._reference.levels[level]
        return (
            round(column * found.tile[0] * size.downsample_x),
            round(row * found.tile[1] * size.downsample_y),
        )

    def _check(self, level: int, found: TiledLevel) -> bool:
        """Whether the level decodes to the reference's pixels, by the richest of its tiles that can tell."""
        most = min(_WITNESSES, len(found.counts))
        richest = np.argpartition(found.counts, -most)[-most:]
        damaged = 0
        for index in sorted(richest.tolist(), key=lambda i: (-int(found.counts[i]), i)):
            row, column = divmod(index, found.columns)
            try:
                ours = self._decode_here(level, column, row, reduce=1)
                if found.stream is not None:
                    data = self._compressed(found, index)
                    self._is_coarse[level] = found.stream.coarseness(data) >= COARSE
                theirs = self._by_reference(level, column, row, 1)
            except UnusualStreamError:
                continue
            except (DamagedStreamError, OSError):  # `SlideError` is one
                damaged += 1
                continue
            return self._agree(level, column, row, ours, theirs)
        # A few damaged tiles will be named when they are wanted. Many are of a kind that is not known here.
        return 0 < damaged < _WITNESSES

    def _agree(
        self, level: int, column: int, row: int, ours: NDArray[np.uint8], theirs: NDArray[np.uint8]
    ) -> bool:
        found = self._levels[level]
        size = self._reference.levels[level]
        width, height = size.width - column * found.tile[0], size.height - row * found.tile[1]
        both = (slice(min(height, found.tile[1])), slice(min(width, found.tile[0])))
        difference = float(np.abs(_coarse(ours[both]) - _coarse(theirs[both])).mean())
        if difference > AGREEMENT:
            _log.info(
                "%s: level %d is left to %s: read directly it differs by %.1f grey levels",
                self._path,
                level,
                self._reference.name,
                difference,
            )
        return difference <= AGREEMENT


def _cut_up(start: int, length: int, tile: int) -> list[tuple[int, slice, slice]]:
    """For each tile under an interval: its number, the part of it, and where that part goes."""
    parts = []
    for number in range(start // tile, -(-(start + length) // tile)):
        edge = number * tile
        first, last = max(start, edge), min(start + length, edge + tile)
        parts.append((number, slice(first - edge, last - edge), slice(first - start, last - start)))
    return parts


def _coarse(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An eighth of the size: OpenSlide's positions on a level of odd ratio are off by part of a pixel."""
    size = max(1, tile.shape[1] // 8), max(1, tile.shape[0] // 8)
    small = cv2.resize(tile.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)


# The file ---------------------------------------------------------------------------------------------------


def _find_levels(path: Path, reference: Backend) -> Mapping[int, TiledLevel]:
    """Which directory holds each level: the one of its size, or, of Philips, of its size in whole tiles."""
    vendor = reference.properties.get("openslide.vendor", "generic-tiff")
    if vendor not in _VENDORS:
        return {}
    with path.open("rb") as file:
        tiff = Tiff(file, path, os.fstat(file.fileno()).st_size)
        directories = [d for d, _ in tiff.directories() if _WIDTH in d.fields]
        found = {}
        for index, level in enumerate(reference.levels):
            # Also of those that cannot be read here: of two pictures of one size, either may be the level.
            fitting = [d for d in directories if _fits(tiff, d, level, padded=vendor == "philips")]
            if len(fitting) != 1 or not _is_readable(tiff, fitting[0]):
                continue
            try:
                found[index] = _tiled_level(tiff, fitting[0])
            except UnusualStreamError as error:
                _log.info("%s: level %d %s", path, index, error)
    return found


def _is_readable(tiff: Tiff, directory: Directory) -> bool:
    """Whether a directory is tiled, 8-bit, RGB or YCbCr JPEG, or RGB JPEG 2000, its samples interleaved."""
    if (
        not {_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS}
        <= directory.fields.keys()
    ):
        return False
    compression = tiff.value(directory, _COMPRESSION, 1)
    colours = {_JPEG: (_RGB, _YCBCR), _JPEG2000_RGB: (_RGB,)}.get(compression, ())
    return (
        tiff.value(directory, _PHOTOMETRIC, -1) in colours
        and tiff.value(directory, _SAMPLES, 1) == 3
        and tiff.values(directory, _BITS, 3) == {8}
        and tiff.value(directory, _PLANAR, 1) == 1
    )


def _fits(tiff: Tiff, directory: Directory, level: Level, *, padded: bool) -> bool:
    width, height = tiff.value(directory, _WIDTH, 0), tiff.value(directory, _HEIGHT, 0)
    if not padded:
        return (width, height) == (level.width, level.height)
    across, down = tiff.value(directory, _TILE_WIDTH, 1), tiff.value(directory, _TILE_HEIGHT, 1)
    return 0 <= width - level.width < across and 0 <= height - level.height < down


def _tiled_level(tiff: Tiff, directory: Directory) -> TiledLevel:
    tile = tiff.value(directory, _TILE_WIDTH, 0), tiff.value(directory, _TILE_HEIGHT, 0)
    columns = -(-tiff.value(directory, _WIDTH, 0) // tile[0])
    count = columns * -(-tiff.value(directory, _HEIGHT, 0) // tile[1])
    offsets, counts = (
        np.concatenate(list(tiff.chunks(directory, tag, count))) for tag in (_TILE_OFFSETS, _TILE_COUNTS)
    )
    stream = None
    if tiff.value(directory, _COMPRESSION, 1) == _JPEG:
        stream = TileStream(tile, _tables(tiff, directory), tiff.value(directory, _PHOTOMETRIC, 0) == _RGB)
    return TiledLevel(columns, tile, offsets, counts, stream)


def _tables(tiff: Tiff, directory: Directory) -> bytes:
    """JPEGTables: an abbreviated stream, from its start marker to its end marker."""
    field = directory.fields.get(_TABLES)
    if field is None or field.count < 4:
        return b""
    return tiff.read(field.position, min(field.count, 1 << 16), f"the JPEG tables of {directory.name}")


def _decode_jpeg2000(data: bytes, size: tuple[int, int], reduce: int) -> NDArray[np.uint8]:
    """A JPEG 2000 tile, whole or from the low-resolution part of its wavelets.

    That part is sampled at every second pixel and not between them: half a pixel off an area average, so it
    is good for previews only.
    """
    _check_codestream(data, size)
    try:
        pixels = imagecodecs.jpeg2k_decode(data) if reduce == 1 else _reduced_jpeg2000(data, reduce)
    except (ValueError, RuntimeError, OSError) as error:
        raise DamagedStreamError(str(error)) from error
    expected = (size[1] // reduce, size[0] // reduce, 3)
    if pixels.shape != expected or pixels.dtype != np.uint8:
        raise UnusualStreamError(f"decodes to {pixels.shape} {pixels.dtype}")
    return np.ascontiguousarray(pixels, np.uint8)


def _reduced_jpeg2000(data: bytes, reduce: int) -> NDArray[np.uint8]:
    from PIL import Image  # here: only previews of such files need it

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG2000",)) as picture:
            picture.reduce = reduce.bit_length() - 1  # type: ignore[method-assign, assignment]
            picture.load()
            return np.asarray(picture)
    except OSError:  # also where the wavelets have fewer steps than that
        whole = imagecodecs.jpeg2k_decode(data)
        size = whole.shape[1] // reduce, whole.shape[0] // reduce
        return np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), np.uint8)


def _check_codestream(data: bytes, size: tuple[int, int]) -> None:
    """Check that it is 8-bit RGB of a tile's size, before a decoder makes room for it, and that it ends.

    The decoder takes a stream that is cut off for a blurred one. Markers are those of ITU-T T.800, annex A.
    """
    # Start, SIZ and its length, then capabilities; size, origin, size and origin of inner tiles; components.
    plain = data[:4] == b"\xff\x4f\xff\x51" and data[40:51] == b"\0\x03" + b"\x07\x01\x01" * 3
    found = tuple(int.from_bytes(data[at : at + 4], "big") for at in (8, 12, 16, 20))
    if not plain or found != (*size, 0, 0):
        raise UnusualStreamError("is no JPEG 2000 of 8-bit RGB in the size of a tile")
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise DamagedStreamError("its end is missing")
