"""Ways to read the tiles of a slide, one function each: the same tiles, from level 0, on one thread.

A reader yields ``(size, size, 3)`` uint8 RGB for each origin, in order. Libraries that know no microns get a
whole number of level-0 pixels, which OpenCV then averages. Each is called as its documentation does, or as
turned out to be the fastest: the notes say which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
CALL_BYTES = 4 * 2**20
"""Of the tiles that one call of `Slide.read_tiles` gets, as in `tiling.blocks`; threads share more."""


@dataclass(frozen=True)
class Task:
    """Which tiles to read."""

    path: str
    """The slide file."""
    origins: list[tuple[int, int]]
    """Level-0 (x, y) of their top-left corners, row by row."""
    size_px: int
    """Pixels along each side of a tile."""
    mpp: float
    """Microns per pixel of a tile."""
    source_px: int
    """Level-0 pixels along each side, rounded."""

    def chosen(self, numbers: list[int]) -> Task:
        """Those tiles only."""
        return replace(self, origins=[self.origins[number] for number in numbers])

    def averaged(self, pixels: Bytes) -> Bytes:
        """Level-0 pixels of a tile, ``(rows, columns, 3 or more)``, as a tile."""
        if pixels.shape[0] != self.size_px:
            size = (self.size_px, self.size_px)
            pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        return pixels[..., :3]


Read = Callable[[Task], Iterator[Bytes]]


@dataclass(frozen=True)
class Reader:
    """One way."""

    read: Read
    package: str
    """What has to be installed, by its distribution's name."""


# Peers ------------------------------------------------------------------------------------------------------


def openslide_area(task: Task) -> Iterator[Bytes]:
    """RGBA is averaged as it comes: dropping alpha first costs a copy of the larger picture."""
    import openslide

    side = (task.source_px, task.source_px)
    with openslide.OpenSlide(task.path) as slide:
        for origin in task.origins:
            yield task.averaged(np.asarray(slide.read_region(origin, 0, side)))


def openslide_pil(task: Task) -> Iterator[Bytes]:
    """As many tools read: all in PIL, whose filter is bicubic."""
    import openslide

    side, size = (task.source_px, task.source_px), (task.size_px, task.size_px)
    with openslide.OpenSlide(task.path) as slide:
        for origin in task.origins:
            yield np.asarray(slide.read_region(origin, 0, side).convert("RGB").resize(size))


def tiffslide(task: Task) -> Iterator[Bytes]:
    """Straight to an array."""
    from tiffslide import TiffSlide

    side = (task.source_px, task.source_px)
    with TiffSlide(task.path) as slide:
        for origin in task.origins:
            yield task.averaged(slide.read_region(origin, 0, side, as_array=True))


def tifffile(task: Task) -> Iterator[Bytes]:
    """Its pages' own tiles, through imagecodecs; each region decodes those that it touches."""
    from tifffile import TiffFile

    side = task.source_px
    with TiffFile(task.path) as tiff:
        page = tiff.pages.first
        decode, edge = page.decode, page.tilewidth
        across = math.ceil(page.imagewidth / edge)
        for x, y in task.origins:
            columns = range(x // edge, min(math.ceil((x + side) / edge), across))
            rows = range(y // edge, min(math.ceil((y + side) / edge), math.ceil(page.imagelength / edge)))
            region = np.full((len(rows) * edge, len(columns) * edge, 3), 255, np.uint8)
            for row in rows:
                for column in columns:
                    index = row * across + column
                    tiff.filehandle.seek(page.dataoffsets[index])
                    data = tiff.filehandle.read(page.databytecounts[index])
                    tile = decode(data, index, jpegtables=page.jpegtables)[0][0]
                    top, left = (row - rows.start) * edge, (column - columns.start) * edge
                    region[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
            yield task.averaged(region[y % edge :, x % edge :][:side, :side])


def cucim(task: Task) -> Iterator[Bytes]:
    """On the CPU. Its tile cache and its own batches were no faster."""
    from cucim import CuImage

    side, image = (task.source_px, task.source_px), CuImage(task.path)
    for origin in task.origins:
        yield task.averaged(np.asarray(image.read_region(origin, side, level=0)))


def pyvips(task: Task) -> Iterator[Bytes]:
    """A region that fetches: faster than `crop`, and than shrinking in libvips."""
    import pyvips as vips

    vips.cache_set_max(0)  # or the warm-up's tiles would be there already
    image = vips.Image.new_from_file(task.path, page=0)  # a page: libtiff, and not OpenSlide
    region, side = vips.Region.new(image), task.source_px
    for x, y in task.origins:
        wide, high = min(side, image.width - x), min(side, image.height - y)
        pixels = np.frombuffer(region.fetch(x, y, wide, high), np.uint8).reshape(high, wide, image.bands)
        if (wide, high) != (side, side):
            pixels = np.pad(pixels, ((0, side - high), (0, side - wide), (0, 0)), constant_values=255)
        yield task.averaged(pixels)


def fastslide(task: Task) -> Iterator[Bytes]:
    """With its cache: half as fast again on tiles of 240 px, a tenth slower on 256."""
    from fastslide import FastSlide

    side, slide = (task.source_px, task.source_px), FastSlide.from_file_path(task.path, cache=256 * 2**20)
    for origin in task.origins:
        yield task.averaged(slide.read_region(origin, 0, side).numpy())
    slide.close()


# Ours -------------------------------------------------------------------------------------------------------


def read_tiles(task: Task, *, threads: int = 1, exact: bool = False) -> Iterator[Bytes]:
    """Some at a time, as in cutting: larger arrays are fresh memory each time, which costs a tenth."""
    from wsi.slide import Slide

    size, share = (task.size_px, task.size_px), CALL_BYTES * (8 if threads > 1 else 1)
    step = max(1, share // (3 * task.size_px**2))
    with Slide(task.path) as slide:
        for start in range(0, len(task.origins), step):
            origins = np.array(task.origins[start : start + step])
            yield from slide.read_tiles(origins, size=size, mpp=task.mpp, exact=exact, threads=threads)


def read_one_by_one(task: Task) -> Iterator[Bytes]:
    from wsi.slide import Slide

    size = (task.size_px, task.size_px)
    with Slide(task.path) as slide:
        for x, y in task.origins:
            yield slide.read(x, y, size=size, mpp=task.mpp)


OPENSLIDE = "OpenSlide + area"
OURS = "**`Slide.read_tiles`**"
OURS_TWO = "`Slide.read_tiles`, 2 threads"
PEERS = {
    OPENSLIDE: Reader(openslide_area, "openslide-python"),
    "OpenSlide, PIL": Reader(openslide_pil, "openslide-python"),
    "tiffslide": Reader(tiffslide, "tiffslide"),
    "fastslide": Reader(fastslide, "fastslide"),
    "tifffile, imagecodecs": Reader(tifffile, "tifffile"),
    "cuCIM": Reader(cucim, "cucim-cu13"),
    "pyvips": Reader(pyvips, "pyvips"),
}
OWN = {
    OURS: Reader(read_tiles, "microtome"),
    OURS_TWO: Reader(lambda task: read_tiles(task, threads=2), "microtome"),
    "`Slide.read_tiles`, exact": Reader(lambda task: read_tiles(task, exact=True), "microtome"),
    "`Slide.read`, one by one": Reader(read_one_by_one, "microtome"),
}
READERS = {**PEERS, **OWN}
