"""Tiles with their pixels: from the slide, or from the store that has them; the same bytes either way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.commit import damaged
from tiling.grid import TileSpec
from tiling.identity import identify
from tiling.shards import ShardReader
from tiling.stain import Normalizer, normalizer_from_json
from tiling.store import TileStore
from wsi.errors import SlideError, UsageError
from wsi.slide import Slide

ReadTiles = Callable[[slice], NDArray[np.uint8]]
"""Gives the tiles ``(k, size, size, 3)`` of a range of rows. Those of this file may be called by several
threads at once."""


@dataclass(frozen=True, slots=True)
class StoredTiles:
    """Reads tiles out of a store that holds their pixels, often: the item is checked when it is opened."""

    reader: ShardReader
    """Of the pixels; see `TileStore.open_pixels`."""
    item: Path
    """The folder of the tiles."""

    def __call__(self, rows: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """``(k, size, size, 3)``, in the order asked for; `DamagedError` where they are not as committed."""
        try:
            return self.reader.read(rows)
        except (ValueError, OSError) as error:
            raise damaged(self.item, f"pixels cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class TileCutter:
    """Reads tiles out of an open slide."""

    slide: Slide
    """Where from."""
    spec: TileSpec
    """Size and resolution."""
    exact: bool
    """See `wsi.reader`."""
    normalizer: Normalizer | None
    """The slide's fitted stain; None leaves colours alone."""

    def scanned(self, origins: NDArray[np.int32], *, threads: int = 1) -> NDArray[np.uint8]:
        """``(k, size, size, 3)`` with the colours of the scan; `SlideError` where one cannot be decoded."""
        size = (self.spec.size_px, self.spec.size_px)
        return self.slide.read_tiles(origins, size=size, mpp=self.spec.mpp, exact=self.exact, threads=threads)

    def normalized(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The same with the reference's colours."""
        if self.normalizer is None:
            return tiles
        with self.slide.times.lap("stain"):
            return self.normalizer(tiles)


def open_cutter(store: TileStore, slide: Slide, *, mpp: float | None = None) -> TileCutter:
    """What reads tiles out of a store's slide as they were cut, or at another scale.

    Parameters
    ----------
    store, slide
        Tiles, and the slide that they were cut from.
    mpp
        Microns per pixel; by default the tiles' own. Size, stain and the way of decoding are the tiles' own.

    Raises
    ------
    SlideError
        It is not the slide that the store was cut from.
    UsageError
        It was opened with another resolution than it was cut with.
    """
    commit = store.tiles
    if asdict(identify(slide.path)) != commit.recipe["slide"]:
        raise SlideError(
            f"is not the file that the tiles of {store.slide_id!r} were cut from",
            path=slide.path,
            action="Give the same file, or cut it anew with 'microtome tile --overwrite'",
        )
    then, now = commit.recipe["resolution"], slide.require_resolution()
    if (then["x"], then["y"]) != (now.x, now.y):
        raise UsageError(
            f"was cut at {then['x']:g} x {then['y']:g} µm per level-0 pixel ({then['source']}), "
            f"and is opened at {now.x:g} x {now.y:g} ({now.source})",
            path=slide.path,
            action="Give the same --mpp-override or --trust-objective as then",
        )
    stain = commit.record["stain"]
    normalizer = normalizer_from_json(stain) if stain else None
    spec = store.spec if mpp is None else replace(store.spec, mpp=mpp)
    return TileCutter(slide, spec, commit.recipe["exact"], normalizer)


def read_on_the_fly(store: TileStore, slide: Slide, *, threads: int = 1) -> ReadTiles:
    """A reader of a store's tiles out of its slide: the bytes that storing them would have stored.

    Raises
    ------
    SlideError, UsageError
        See `open_cutter`.
    """
    cutter, origins = open_cutter(store, slide), store.origins

    def read(rows: slice) -> NDArray[np.uint8]:
        return cutter.normalized(cutter.scanned(origins[rows], threads=threads))

    return read


def tile_reader(store: TileStore, slide: Slide | None = None, *, threads: int = 1) -> ReadTiles:
    """How a store's tiles are to be had: from it, or, where it holds places only, from the slide.

    Raises
    ------
    UsageError
        It holds places only, and no slide was given.
    SlideError
        See `read_on_the_fly`, also for another `UsageError`.
    """
    if store.has_pixels:
        return StoredTiles(store.open_pixels(), store.path("tiles"))
    if slide is None:
        raise UsageError(
            f"the tiles of slide {store.slide_id!r} were cut without pixels",
            path=store.output.root,
            action=f"Say where {slide_name(store)} is, with --slides; or cut it with pixels",
        )
    return read_on_the_fly(store, slide, threads=threads)


def slide_name(store: TileStore) -> str:
    """Name of the file that a store's tiles were cut from."""
    return Path(store.record["slide_name"]).name
