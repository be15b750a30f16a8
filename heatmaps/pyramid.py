"""Heatmaps as pyramidal OME-TIFF: scores for machines, colours for people.

Layout: BigTIFF, tiles of 256 px, levels as SubIFDs of the base (OME-TIFF 6.0), deflate. Scores take no
predictor, because Bio-Formats refuses the one for floats. In the coloured file the base directory also points
at the first SubIFD, so that readers which know only the classic chain of directories (OpenSlide) see the
pyramid too. Nothing in a file depends on the clock or on chance: equal heatmaps give equal bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from heatmaps.colour import COLOUR_MAP, WHITE, check_range, colour
from heatmaps.raster import Heatmap
from wsi.durable import replacing

_TILE = 256
_SMALLEST = 256
"""Long side in pixels from which no further level is made, unless it is the second."""
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "microtome:heatmap")

_Tiles = Callable[[tuple[int, int]], Iterator[NDArray[Any]]]
"""Gives the tiles of the level of this (width, height), channel after channel, row by row."""


def write_scores(path: Path, heatmap: Heatmap) -> None:
    """Write all channels as float32, NaN where no tile lies, axes CYX, each channel with its name.

    Raises
    ------
    OutputError
        The file cannot be written.
    """

    def tiles(size: tuple[int, int]) -> Iterator[NDArray[Any]]:
        for name in heatmap.channels:
            yield from _cut(shrink(heatmap.channel(name), size))

    description = {"Name": "Microtome scores", "Channel": {"Name": list(heatmap.channels)}, "axes": "CYX"}
    layout = {"photometric": "minisblack", "predictor": False, "dtype": np.float32}
    with replacing(path) as temporary:
        _write(temporary, heatmap, tiles, description=description, layout=layout)


def write_colours(
    path: Path,
    heatmap: Heatmap,
    channel: str,
    *,
    vmin: float = 0.0,
    vmax: float = 1.0,
    background: tuple[int, int, int] = WHITE,
) -> None:
    """Write one channel in colours as RGB, with `background` where no tile lies.

    The range is written into the image's name. Upper levels are coloured means, not means of colours.

    Raises
    ------
    UsageError
        No such channel, or not `vmin` < `vmax`.
    OutputError
        The file cannot be written.
    """
    scores = heatmap.channel(channel)
    check_range(vmin=vmin, vmax=vmax)

    def tiles(size: tuple[int, int]) -> Iterator[NDArray[Any]]:
        for scores_tile in _cut(shrink(scores, size)):
            yield colour(scores_tile, vmin=vmin, vmax=vmax, gap=background)

    name = f"{channel}, {vmin:g} to {vmax:g}, {COLOUR_MAP}"
    description = {"Name": name, "Channel": {"Name": channel}, "axes": "YXS"}
    layout = {"photometric": "rgb", "predictor": True, "dtype": np.uint8}
    with replacing(path) as temporary:
        _write(temporary, heatmap, tiles, description=description, layout=layout)
        _chain(temporary)


def level_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Return (width, height) of each level: at least two, halving until the long side is at most 256 px.

    >>> level_sizes(1000, 300)
    [(1000, 300), (500, 150), (250, 75)]
    """
    sizes = [(width, height)]
    while len(sizes) < 2 or max(sizes[-1]) > _SMALLEST:
        step = 2 ** len(sizes)
        sizes.append((-(-width // step), -(-height // step)))
    return sizes


def shrink(scores: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resample (rows, columns) scores to `size` (width, height) by the area mean of what is not NaN.

    The result spans exactly what `scores` spans, also where the sizes do not divide: positions are right in
    readers that take the ratio of sizes for the downsample.
    """
    if size == scores.shape[::-1]:
        return scores
    known = ~np.isnan(scores)
    weight = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    total = cv2.resize(np.where(known, scores, np.float32(0)), size, interpolation=cv2.INTER_AREA)
    small = np.full(weight.shape, np.nan, np.float32)
    np.divide(total, weight, out=small, where=weight > 0)
    return small


def _cut(plane: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for top in range(0, plane.shape[0], _TILE):
        for left in range(0, plane.shape[1], _TILE):
            yield np.ascontiguousarray(plane[top : top + _TILE, left : left + _TILE])


def _write(
    path: Path, heatmap: Heatmap, tiles: _Tiles, *, description: dict[str, Any], layout: dict[str, Any]
) -> None:
    """Write the base with its OME-XML, then the levels into its SubIFDs."""
    rows, columns, _ = heatmap.values.shape
    sizes = level_sizes(columns, rows)
    axes = {"C": len(heatmap.channels), "S": 3}
    metadata = {
        **description,
        "UUID": str(_content_id(heatmap, description)),  # tifffile's default holds the clock
        "Creator": "Microtome",
        "PhysicalSizeX": heatmap.mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": heatmap.mpp,
        "PhysicalSizeYUnit": "µm",
        "MapAnnotation": {"Level0PixelsPerPixelX": heatmap.scale, "Level0PixelsPerPixelY": heatmap.scale_y},
    }
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as tif:
        for number, (width, height) in enumerate(sizes):
            lengths = {**axes, "Y": height, "X": width}
            per_cm = 10_000 / (heatmap.mpp * columns / width), 10_000 / (heatmap.mpp * rows / height)
            of_level: dict[str, Any] = {"subfiletype": 1, "metadata": None}
            of_base: dict[str, Any] = {"subifds": len(sizes) - 1, "metadata": metadata}
            tif.write(
                tiles((width, height)),
                shape=tuple(lengths[axis] for axis in description["axes"]),
                tile=(_TILE, _TILE),
                compression="adobe_deflate",
                resolution=per_cm,
                resolutionunit="CENTIMETER",
                software="Microtome",
                **layout,
                **(of_level if number else of_base),
            )


def _content_id(heatmap: Heatmap, description: dict[str, Any]) -> uuid.UUID:
    """Identify the file by what is in it: the same heatmap has the same id, another has another."""
    digest = hashlib.sha256(np.ascontiguousarray(heatmap.values).data)
    frame = [float(number) for number in (heatmap.scale, heatmap.scale_y, heatmap.mpp)]
    digest.update(repr((heatmap.values.shape, frame, sorted(description.items()))).encode())
    return uuid.uuid5(_NAMESPACE, digest.hexdigest())


def _chain(path: Path) -> None:
    """Chain the base and its SubIFDs by their "next"; only some versions of tifffile chain the SubIFDs.

    A BigTIFF directory is a count (8 bytes), that many entries of 20 bytes, and the offset of the next.
    """
    with tifffile.TiffFile(path, mode="r+b") as tif:
        base = tif.pages.first
        assert len(tif.pages) == 1
        assert base.subifds
        order, stream = tif.byteorder, tif.filehandle
        for here, following in itertools.pairwise([base.offset, *base.subifds]):
            stream.seek(here)
            (entries,) = struct.unpack(f"{order}Q", stream.read(8))
            stream.seek(here + 8 + 20 * entries)
            stream.write(struct.pack(f"{order}Q", following))
