"""The slide that `benchmarks/tiling.py` measures on: 1.2 gigapixels, in the layout of Aperio's scanner.

Nothing in it repeats in the file: every tile is encoded for itself, so that the file is as large as a real
one. Only a band of level 0 and the second level are in memory at a time.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi.slide import Slide
from wsi.specimen import MASK_SCALE, Specimen, draw_specimen, draw_stains, paint
from wsi.tissue import find_tissue

SIZE = (40_000, 30_000)
MPP = 0.25
DOWNSAMPLES = (1, 4, 16)
TISSUE = 0.35
"""Share of the slide that is tissue."""
BITS = 1.7
"""Per pixel of tissue: light H&E scans from Aperio's scanners hold 1.6 to 1.8."""

_TEXTURE_PX = 2048
_CELL = 64  # level-0 pixels under one pixel of the outline
_GLASS = 243

Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]


def draw_texture() -> Bytes:
    """(2048, 2048, 3): tissue as `wsi.specimen` paints it, and nothing else."""
    everywhere = np.ones((_TEXTURE_PX // MASK_SCALE,) * 2, np.bool_)
    specimen = Specimen(size=(_TEXTURE_PX,) * 2, mpp=MPP, tissue=everywhere, lesion=~everywhere)
    rng = np.random.default_rng(0)
    return paint(rng, specimen, draw_stains(rng))


def read_texture(path: Path) -> Bytes:
    """(up to 2048, up to 2048, 3): the square of a slide, at its own resolution, that holds most tissue."""
    with Slide(path) as slide:
        found = find_tissue(slide)
        size = min(_TEXTURE_PX, slide.size[0]), min(_TEXTURE_PX, slide.size[1])
        window = max(1, int(size[0] / found.scale_x)), max(1, int(size[1] / found.scale_y))
        share = cv2.boxFilter(found.mask.astype(np.float32), -1, window, anchor=(0, 0))
        inside = share[: share.shape[0] - window[1] + 1, : share.shape[1] - window[0] + 1]
        row, column = np.unravel_index(np.argmax(inside), inside.shape)
        x = min(int(column * found.scale_x), slide.size[0] - size[0])
        y = min(int(row * found.scale_y), slide.size[1] - size[1])
        return slide.read(x, y, size=size, mpp=slide.require_resolution().mpp)


def write_aperio(
    path: Path, texture: Bytes, *, tile_px: int, size: tuple[int, int] = SIZE, bits: float = BITS
) -> Path:
    """Write the slide, its tissue filled with `texture`, mirrored again and again.

    Parameters
    ----------
    path
        Where to.
    texture
        ``(rows, columns, 3)`` uint8 RGB.
    tile_px
        Edge of the tiles; Aperio's scanners write 240 and 256.
    size
        ``(width, height)`` of level 0, multiples of 16.
    bits
        Per pixel of tissue; the quality of the JPEG is chosen for it.
    """
    jpeg = _Jpeg.of(texture[:tile_px, :tile_px], quality=_quality_for(texture, tile_px, bits))
    step = DOWNSAMPLES[1]
    second = np.empty((size[1] // step, size[0] // step, 3), np.uint8)

    def base() -> Iterator[bytes]:
        outline = _outline(size)
        for top in range(0, size[1], tile_px):
            band = _band(texture, outline, range(top, min(top + tile_px, size[1])), width=size[0])
            second[top // step : (top + len(band)) // step] = _shrink(band, step)
            yield from _encoded(band, tile_px, jpeg)

    def title(shown: str = "") -> str:
        kind = f"({tile_px}x{tile_px}) {shown}JPEG/YCC Q={jpeg.quality}|AppMag = {10 / MPP:.4g}|MPP = {MPP}"
        return f"Aperio Image Library v12.0.0 (drawn)\r\n{size[0]}x{size[1]} [0,0 {size[0]}x{size[1]}] {kind}"

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(base(), **_fields(size, tile_px, jpeg), description=title())
        third = _shrink(second, DOWNSAMPLES[2] // step)
        small = _shrink(third, 4)
        options = {"photometric": "rgb", "compression": "jpeg", "metadata": None, "software": False}
        tiff.write(small, rowsperstrip=16, description=title("thumbnail "), **options)
        for level in (second, third):
            shown = level.shape[1], level.shape[0]
            words = title(f"-> {shown[0]}x{shown[1]} ")
            tiff.write(_encoded(level, tile_px, jpeg), **_fields(shown, tile_px, jpeg), description=words)
    return path


def _fields(size: tuple[int, int], tile_px: int, jpeg: _Jpeg) -> dict[str, Any]:
    """A level of tiles that are encoded already."""
    return {
        "shape": (size[1], size[0], 3),
        "dtype": np.uint8,
        "tile": (tile_px, tile_px),
        "photometric": "ycbcr",
        "subsampling": (2, 2),
        "compression": "jpeg",
        "jpegtables": jpeg.tables,
        "metadata": None,
        "software": False,
    }


def _outline(size: tuple[int, int]) -> Bools:
    """Where tissue is, a pixel for each cell of 64: of a few drawn outlines, the one nearest to `TISSUE`."""
    cells = math.ceil(size[0] / _CELL) * MASK_SCALE, math.ceil(size[1] / _CELL) * MASK_SCALE
    drawn = [draw_specimen(np.random.default_rng(seed), size=cells, mpp=MPP).tissue for seed in range(12)]
    return min(drawn, key=lambda mask: abs(float(mask.mean()) - TISSUE))


def _band(texture: Bytes, outline: Bools, rows: range, *, width: int) -> Bytes:
    """(rows, width, 3) of level 0."""
    y = np.array(rows)
    around = y % (2 * len(texture))
    strip = texture[np.minimum(around, 2 * len(texture) - 1 - around)]  # to and fro
    pair = np.concatenate([strip, strip[:, ::-1]], axis=1)
    picture = np.concatenate([pair] * math.ceil(width / pair.shape[1]), axis=1)[:, :width]
    shown = np.repeat(outline[y // _CELL].astype(np.uint8), _CELL, axis=1)[:, :width]
    return np.asarray(cv2.copyTo(picture, shown, np.full_like(picture, _GLASS)))


def _shrink(picture: Bytes, factor: int) -> Bytes:
    size = picture.shape[1] // factor, picture.shape[0] // factor
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


# JPEG -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Jpeg:
    """How tiles are encoded: as Aperio does, with the tables once for the level and not in the tiles."""

    quality: int
    tables: bytes
    """A stream of nothing but the tables."""

    @classmethod
    def of(cls, example: Bytes, *, quality: int) -> _Jpeg:
        tables, _ = _split(_jpeg_bytes(example, quality))
        return cls(quality, tables)

    def encode(self, tile: Bytes) -> bytes:
        tables, stream = _split(_jpeg_bytes(tile, self.quality))
        assert tables == self.tables, "tables that depend on the picture"
        return stream


def _jpeg_bytes(tile: Bytes, quality: int) -> bytes:
    return bytes(
        imagecodecs.jpeg8_encode(tile, quality, colorspace="rgb", outcolorspace="ycbcr", subsampling="420")
    )


def _split(stream: bytes) -> tuple[bytes, bytes]:
    """The tables of a JPEG stream, and the stream without them (ISO 10918-1, annex B)."""
    start, end = b"\xff\xd8", b"\xff\xd9"
    tables, rest, place = start, start, 2
    while stream[place + 1] != 0xDA:  # start of scan: pixels follow
        marker, length = struct.unpack_from(">HH", stream, place)
        segment = stream[place : place + 2 + length]
        if marker in (0xFFDB, 0xFFC4):  # quantisation, Huffman codes
            tables += segment
        else:
            rest += segment
        place += len(segment)
    return tables + end, rest + stream[place:]


def _encoded(picture: Bytes, tile_px: int, jpeg: _Jpeg) -> Iterator[bytes]:
    """The tiles of a picture, row by row; those at the edge are filled up with its last pixels."""
    height, width = picture.shape[:2]
    for top in range(0, height, tile_px):
        for left in range(0, width, tile_px):
            tile = picture[top : top + tile_px, left : left + tile_px]
            missing = tile_px - tile.shape[0], tile_px - tile.shape[1]
            if any(missing):
                tile = np.pad(tile, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
            yield jpeg.encode(np.ascontiguousarray(tile))


def _quality_for(texture: Bytes, tile_px: int, bits: float) -> int:
    """The quality at which tissue takes `bits` a pixel."""
    corners = np.linspace(0, min(texture.shape[:2]) - tile_px, 5).astype(int)
    tiles = [texture[y : y + tile_px, x : x + tile_px] for y in corners for x in corners]

    def found(quality: int) -> float:
        sizes = [len(_split(_jpeg_bytes(np.ascontiguousarray(tile), quality))[1]) for tile in tiles]
        return 8 * sum(sizes) / (len(tiles) * tile_px**2)

    return min(range(30, 97), key=lambda quality: abs(found(quality) - bits))
