"""Heatmaps as pyramidal OME-TIFF: scores for machines, colours for people.

Layout: BigTIFF, tiles of 256 px, levels as SubIFDs of the base (OME-TIFF 6.0), deflate. Scores take no
predictor, because Bio-Formats refuses the one for floats. In the coloured file the base directory also points
at the first SubIFD, so that readers which know only the classic chain of directories (OpenSlide) see the
pyramid too. Tiles of the file without any score all point at the same bytes: TIFF could leave them out, but
OpenSlide would then state bounds that leave them out too, by which QuPath crops, and everything would move.
Nothing in a file depends on the clock or on chance: equal heatmaps give equal bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from heatmaps.colour import COLOUR_MAP, WHITE, check_range, colour
from heatmaps.raster import Heatmap
from wsi.durable import open_again, open_new, replacing

_TILE = 256
_SMALLEST = 256
"""Long side in pixels from which no further level is made, unless it is the second."""
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "microtome:heatmap")
_OFFSETS, _COUNTS = 324, 325
"""Tags of a directory: where its tiles are, and how many bytes each has."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a heatmap's numbers become a file's samples."""

    encode: Callable[[NDArray[np.float32]], bytes]
    """A tile of scores, (256, 256), NaN beyond the level's edge, to a tile of the file."""
    axes: str
    """As OME-TIFF names them."""
    layout: dict[str, Any]
    """What the file says of its samples."""
    description: dict[str, Any]
    """What OME-XML says of the image."""


def write_scores(path: Path, heatmap: Heatmap) -> None:
    """Write all channels as float32, NaN where no tile lies, axes CYX, each channel with its name.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    kind = _Kind(
        lambda tile: _deflate(tile.astype("<f4", copy=False)),
        "CYX",
        {"photometric": "minisblack", "dtype": "<f4", "predictor": False},
        {"Name": "Microtome scores", "Channel": {"Name": list(heatmap.channels)}},
    )
    with replacing(path) as temporary:
        _write(temporary, heatmap, heatmap.channels, kind)


def write_colours(
    path: Path,
    heatmap: Heatmap,
    channel: str,
    *,
    vmin: float = 0.0,
    vmax: float = 1.0,
    background: tuple[int, int, int] = WHITE,
    meaning: str = "",
) -> None:
    """Write one channel in colours as RGBA, transparent where no tile lies.

    The range is written into the image's name. Upper levels are coloured means, not means of colours.

    Parameters
    ----------
    path, heatmap, channel
        What to write, and where.
    vmin, vmax
        Scores at the ends of the colour map.
    background
        The colour of what is transparent, for readers that know no transparency, such as QuPath.
    meaning
        What the numbers are where they are not the channel's own, for the image's name.

    Raises
    ------
    UsageError
        No such channel, or not `vmin` < `vmax`.
    OutputError
        The file cannot be written.
    """
    scores = heatmap.only(channel)
    check_range(vmin=vmin, vmax=vmax)

    def encode(tile: NDArray[np.float32]) -> bytes:
        alpha = np.where(np.isnan(tile), 0, 255).astype(np.uint8)
        pixels = np.dstack([colour(tile, vmin=vmin, vmax=vmax, gap=background), alpha])
        return _deflate(imagecodecs.delta_encode(pixels, axis=1))

    named = f"{channel}, {meaning}" if meaning else channel
    kind = _Kind(
        encode,
        "YXS",
        {"photometric": "rgb", "extrasamples": ["unassalpha"], "dtype": "u1", "predictor": True},
        {"Name": f"{named}, {vmin:g} to {vmax:g}, {COLOUR_MAP}", "Channel": {"Name": channel}},
    )
    with replacing(path) as temporary:
        _write(temporary, scores, (channel,), kind)
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


def _deflate(samples: NDArray[Any]) -> bytes:
    return bytes(imagecodecs.deflate_encode(np.ascontiguousarray(samples).tobytes(), level=6))


@dataclass(slots=True)
class _Spool:
    """Encoded tiles on their way into a file, which wants them level by level; they come channel by channel.

    They wait on disk, in a file without a name, so that memory grows neither with levels nor with channels.
    """

    stream: IO[bytes]
    """Where they wait."""
    kind: _Kind
    """How they are encoded."""
    pages: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """Bytes of each tile, by level and channel; 0 for one without any score."""
    starts: dict[tuple[int, int], int] = field(default_factory=dict)
    """Where each such page begins."""
    digest: Any = field(default_factory=hashlib.sha256)
    """SHA-256 of everything that was taken."""

    def take(self, page: tuple[int, int], plane: NDArray[np.float32]) -> None:
        """Encode a plane, row of tiles by row of tiles."""
        self.starts[page], sizes = self.stream.tell(), []
        for tile in _cut(plane):
            data = b"" if np.isnan(tile).all() else self.kind.encode(tile)
            self.stream.write(data)
            sizes.append(len(data))
            self.digest.update(struct.pack("<Q", len(data)) + data)
        self.pages[page] = sizes

    def give(self, level: int, channels: int) -> Iterator[bytes]:
        """The tiles of a level, channel after channel; nothing for those without any score."""
        for channel in range(channels):
            self.stream.seek(self.starts[level, channel])
            for size in self.pages[level, channel]:
                yield self.stream.read(size)


def _cut(plane: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Whole tiles of a plane, NaN beyond its edge."""
    for top in range(0, plane.shape[0], _TILE):
        for left in range(0, plane.shape[1], _TILE):
            part = plane[top : top + _TILE, left : left + _TILE]
            missing = (0, _TILE - part.shape[0]), (0, _TILE - part.shape[1])
            yield np.pad(part, missing, constant_values=np.nan)


def _write(path: Path, heatmap: Heatmap, channels: Sequence[str], kind: _Kind) -> None:
    """Encode each channel with its levels; then write the base with its OME-XML, and the levels."""
    rows, columns = heatmap.shape
    sizes = level_sizes(columns, rows)
    with tempfile.TemporaryFile(dir=path.parent) as stream:
        spool = _Spool(stream, kind)
        for number, name in enumerate(channels):
            scores = heatmap.channel(name)
            for level, size in enumerate(sizes):
                spool.take((level, number), shrink(scores, size))
        _write_directories(path, heatmap, sizes, len(channels), spool)
    _share_empty(path, kind.encode(np.full((_TILE, _TILE), np.nan, np.float32)))


def _write_directories(
    path: Path, heatmap: Heatmap, sizes: list[tuple[int, int]], channels: int, spool: _Spool
) -> None:
    rows, columns = heatmap.shape
    kind = spool.kind
    metadata = {
        **kind.description,
        "axes": kind.axes,
        "UUID": str(_content_id(heatmap, spool)),  # tifffile's default holds the clock
        "Creator": "Microtome",
        "PhysicalSizeX": heatmap.mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": heatmap.mpp,
        "PhysicalSizeYUnit": "µm",
        "MapAnnotation": {"Level0PixelsPerPixelX": heatmap.scale, "Level0PixelsPerPixelY": heatmap.scale_y},
    }
    with open_new(path) as stream, tifffile.TiffWriter(stream, bigtiff=True, ome=True, byteorder="<") as tif:
        for level, (width, height) in enumerate(sizes):
            lengths = {"C": channels, "Y": height, "X": width, "S": 4}
            per_cm = 10_000 / (heatmap.mpp * columns / width), 10_000 / (heatmap.mpp * rows / height)
            of_level: dict[str, Any] = {"subfiletype": 1, "metadata": None}
            of_base: dict[str, Any] = {"subifds": len(sizes) - 1, "metadata": metadata}
            tif.write(
                spool.give(level, channels),
                shape=tuple(lengths[axis] for axis in kind.axes),
                tile=(_TILE, _TILE),
                compression="adobe_deflate",
                resolution=per_cm,
                resolutionunit="CENTIMETER",
                software="Microtome",
                **kind.layout,
                **(of_level if level else of_base),
            )


def _content_id(heatmap: Heatmap, spool: _Spool) -> uuid.UUID:
    """Identify the file by what is in it: the same heatmap has the same id, another has another."""
    digest = spool.digest.copy()
    frame = [float(number) for number in (heatmap.scale, heatmap.scale_y, heatmap.mpp)]
    digest.update(repr((heatmap.shape, frame, sorted(spool.kind.description.items()))).encode())
    return uuid.uuid5(_NAMESPACE, digest.hexdigest())


def _share_empty(path: Path, empty: bytes) -> None:
    """Let all tiles that were left out point at one that is written at the file's end."""
    with open_again(path) as stream, tifffile.TiffFile(stream) as tif:
        pages = [page for base in tif.pages for page in (base, *(base.pages or ()))]
        gaps = [page for page in pages if 0 in page.tags[_COUNTS].value]
        if not gaps:
            return
        stream.seek(0, 2)
        offset = stream.tell()
        stream.write(empty)
        for page in gaps:
            counts = page.tags[_COUNTS].value
            for tag, shared in ((_OFFSETS, offset), (_COUNTS, len(empty))):
                old = page.tags[tag].value
                page.tags[tag].overwrite(
                    [value if count else shared for value, count in zip(old, counts, strict=True)]
                )


def _chain(path: Path) -> None:
    """Chain the base and its SubIFDs by their "next"; only some versions of tifffile chain the SubIFDs.

    A BigTIFF directory is a count (8 bytes), that many entries of 20 bytes, and the offset of the next.
    """
    with open_again(path) as stream, tifffile.TiffFile(stream) as tif:
        base = tif.pages.first
        assert len(tif.pages) == 1
        assert base.subifds
        order = tif.byteorder
        for here, following in itertools.pairwise([base.offset, *base.subifds]):
            stream.seek(here)
            (entries,) = struct.unpack(f"{order}Q", stream.read(8))
            stream.seek(here + 8 + 20 * entries)
            stream.write(struct.pack(f"{order}Q", following))
