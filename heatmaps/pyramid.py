"""Heatmaps as pyramidal OME-TIFF: scores for machines, colours for people.

Layout: BigTIFF, tiles of 256 px, levels as SubIFDs of the base (OME-TIFF 6.0), deflate. Scores take no
predictor, because Bio-Formats refuses the one for floats. In the coloured file the base directory also points
at the first SubIFD, so that readers which know only the classic chain of directories (OpenSlide) see the
pyramid too. Tiles of the file without any score all point at the same bytes: TIFF could leave them out, but
OpenSlide would then state bounds that leave them out too, by which QuPath crops, and everything would move.
Nothing in a file depends on the clock or on chance: equal heatmaps give equal bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import struct
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from heatmaps.colour import COLOUR_MAP, WHITE, check_range, colour_with_alpha
from heatmaps.levels import Levels, level_sizes, make_levels
from heatmaps.raster import Heatmap
from wsi.durable import open_again, open_new, replacing

_TILE = 256
_LEVEL = 3
"""Of deflate: 6 makes files a twentieth smaller and takes half as long again; by 1 floats double."""
_THREADS = 2
"""That encode tiles; their number changes no byte."""
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
    with scores_file(path, heatmap) as take:
        for name in heatmap.channels:
            take(make_levels(heatmap.channel(name)))


@contextlib.contextmanager
def scores_file(path: Path, heatmap: Heatmap) -> Iterator[Callable[[Levels], None]]:
    """The same for who has the levels: gives what takes those of each channel, in the heatmap's order."""
    kind = _Kind(
        lambda tile: _deflate(tile.astype("<f4", copy=False)),
        "CYX",
        {"photometric": "minisblack", "dtype": "<f4", "predictor": False},
        {"Name": "Microtome scores", "Channel": {"Name": list(heatmap.channels)}},
    )
    with replacing(path) as temporary, _writing(temporary, heatmap, len(heatmap.channels), kind) as take:
        yield take


def write_colours(
    path: Path,
    heatmap: Heatmap,
    channel: str,
    *,
    vmin: float = 0.0,
    vmax: float = 1.0,
    background: tuple[int, int, int] = WHITE,
    meaning: str = "",
    levels: Levels | None = None,
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
    levels
        The channel's, where the caller has them.

    Raises
    ------
    UsageError
        No such channel, or not `vmin` < `vmax`.
    OutputError
        The file cannot be written.
    """
    check_range(vmin=vmin, vmax=vmax)
    if levels is None or channel not in heatmap.channels:
        levels = make_levels(heatmap.channel(channel))

    def encode(tile: NDArray[np.float32]) -> bytes:
        pixels = colour_with_alpha(tile, vmin=vmin, vmax=vmax, gap=background)
        return _deflate(imagecodecs.delta_encode(pixels, axis=1))

    named = f"{channel}, {meaning}" if meaning else channel
    kind = _Kind(
        encode,
        "YXS",
        {"photometric": "rgb", "extrasamples": ["unassalpha"], "dtype": "u1", "predictor": True},
        {"Name": f"{named}, {vmin:g} to {vmax:g}, {COLOUR_MAP}", "Channel": {"Name": channel}},
    )
    with replacing(path) as temporary:
        with _writing(temporary, heatmap, 1, kind) as take:
            take(levels)
        _chain(temporary)


def _deflate(samples: NDArray[Any]) -> bytes:
    return bytes(imagecodecs.deflate_encode(np.ascontiguousarray(samples).tobytes(), level=_LEVEL))


@dataclass(slots=True)
class _Spool:
    """Encoded tiles on their way into a file, which wants them level by level; they come channel by channel.

    They wait on disk, in a file without a name, so that memory grows neither with levels nor with channels.
    """

    stream: IO[bytes]
    """Where they wait."""
    kind: _Kind
    """How they are encoded."""
    pool: Executor
    """Who encodes them."""
    pages: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """Bytes of each tile, by level and channel; 0 for one without any score."""
    starts: dict[tuple[int, int], int] = field(default_factory=dict)
    """Where each such page begins."""
    digest: Any = field(default_factory=hashlib.sha256)
    """SHA-256 of everything that was taken."""

    def take(self, page: tuple[int, int], plane: NDArray[np.float32]) -> None:
        """Encode a plane, row of tiles by row of tiles."""
        self.starts[page], sizes = self.stream.tell(), []
        for top in range(0, plane.shape[0], _TILE):
            for data in self.pool.map(self._encode, _cut(plane[top : top + _TILE])):
                self.stream.write(data)
                sizes.append(len(data))
                self.digest.update(struct.pack("<Q", len(data)) + data)
        self.pages[page] = sizes

    def _encode(self, tile: NDArray[np.float32]) -> bytes:
        return b"" if np.isnan(tile).all() else self.kind.encode(tile)

    def give(self, level: int, channels: int) -> Iterator[bytes]:
        """The tiles of a level, channel after channel; nothing for those without any score."""
        for channel in range(channels):
            self.stream.seek(self.starts[level, channel])
            for size in self.pages[level, channel]:
                yield self.stream.read(size)


def _cut(row: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Whole tiles of a row of them, NaN beyond the plane's edge."""
    for left in range(0, row.shape[1], _TILE):
        part = row[:, left : left + _TILE]
        if part.shape == (_TILE, _TILE):
            yield part
        else:
            missing = (0, _TILE - part.shape[0]), (0, _TILE - part.shape[1])
            yield np.pad(part, missing, constant_values=np.nan)


@contextlib.contextmanager
def _writing(path: Path, heatmap: Heatmap, channels: int, kind: _Kind) -> Iterator[Callable[[Levels], None]]:
    """Take each channel's levels; then write the base with its OME-XML, and the levels."""
    rows, columns = heatmap.shape
    sizes = level_sizes(columns, rows)
    taken = itertools.count()
    with tempfile.TemporaryFile(dir=path.parent) as stream, ThreadPoolExecutor(_THREADS) as pool:
        spool = _Spool(stream, kind, pool)

        def take(levels: Levels) -> None:
            channel = next(taken)
            for level, plane in enumerate(levels):
                spool.take((level, channel), plane)

        yield take
        _write_directories(path, heatmap, sizes, channels, spool)
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
