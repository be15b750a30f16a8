"""The pictures of a slide's report, as JPEG: the tissue, the tiles, a class's scores, single tiles."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from heatmaps.colour import colour_table
from heatmaps.draw import legend_title
from heatmaps.numbers import RANK, UNCERTAINTY, Frame, exact, ranks
from heatmaps.overlay import draw_overlay
from heatmaps.report.shown import ScoredTiles
from tiling.qc import SlideQuality, draw_map, facts_of
from tiling.store import TileStore
from tiling.survey import read_mask, read_thumbnail
from wsi.picture import encode_jpeg, encode_png

OVERVIEW_PX = 900
"""Long side of a picture of the slide: enough for a page of A4 at half its width."""
TILE_PX = 144
"""Side of a tile's picture, where it has as many pixels."""
MOST_CHANNELS = 8
"""Classes whose scores are drawn: the likeliest ones, where there are more."""
RANGE = (0.0, 1.0)
"""Scores at the ends of the colour map, on every slide."""

_ONE = "scores"  # what is painted is named by the page, where every name can be written
_Image = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Overview:
    """A slide as it is drawn in the report."""

    facts: SlideQuality
    """Its tiles."""
    thumbnail: _Image
    """``(h, w, 3)`` uint8 RGB."""
    scale: tuple[float, float]
    """Level-0 pixels per pixel of it, along x and y."""
    outlined: bytes
    """JPEG: with the outline of the tissue."""
    tiled: bytes
    """JPEG: with the tiles, those that were dropped by the colour of the reason."""


def draw_overview(store: TileStore) -> Overview:
    """The tissue and the tiles of a slide."""
    facts, mask = facts_of(store), read_mask(store)
    thumbnail, scale = read_thumbnail(store)
    height, width = thumbnail.shape[:2]
    share = min(1.0, OVERVIEW_PX / max(height, width))
    if share < 1:
        size = max(1, round(width * share)), max(1, round(height * share))
        thumbnail = np.asarray(cv2.resize(thumbnail, size, interpolation=cv2.INTER_AREA), np.uint8)
        scale = scale[0] * width / size[0], scale[1] * height / size[1]
    tiled = draw_map(facts, thumbnail, scale=scale, mask=mask)
    return Overview(facts, thumbnail, scale, encode_jpeg(mask.look(thumbnail)), encode_jpeg(tiled))


@dataclass(frozen=True, slots=True)
class Channel:
    """Numbers of tiles that are drawn over the slide."""

    name: str
    """The class, the attention's rank or the uncertainty."""
    values: NDArray[np.float32]
    """``(n,)``; NaN for tiles that have none."""
    meaning: str
    """What the colours say."""

    def as_json(self) -> dict[str, Any]:
        """Its range and what it holds."""
        known = self.values[np.isfinite(self.values)]
        return {
            "name": self.name,
            "meaning": self.meaning,
            "colours_from": RANGE[0],
            "colours_to": RANGE[1],
            "tiles": len(known),
            "lowest": exact(known.min()) if len(known) else None,
            "mean": float(known.mean(dtype=np.float64)) if len(known) else None,
            "highest": exact(known.max()) if len(known) else None,
        }


def channels_of(tiles: ScoredTiles, order: list[str], *, of_tiles: bool) -> list[Channel]:
    """What is drawn: the classes, the likeliest first, then attention and uncertainty where there are any."""
    named = [(name, tiles.scores[:, tiles.classes.index(name)]) for name in order[:MOST_CHANNELS]]
    if tiles.attention is not None:
        named.append((RANK, ranks(tiles.attention)))
    if tiles.uncertainty is not None:
        named.append((UNCERTAINTY, tiles.uncertainty))
    return [Channel(name, values, legend_title(name, of_tiles=of_tiles)) for name, values in named]


def draw_channel(store: TileStore, channel: Channel, overview: Overview) -> bytes:
    """One channel over the thumbnail, as JPEG; its legend is the page's."""
    heatmap = Frame.of(store).paint(store.origins, {_ONE: channel.values})
    picture = draw_overlay(
        overview.thumbnail,
        heatmap,
        _ONE,
        thumbnail_scale=overview.scale[0],
        vmin=RANGE[0],
        vmax=RANGE[1],
    )
    height, width = overview.thumbnail.shape[:2]
    return encode_jpeg(np.ascontiguousarray(picture[:height, :width]))


def draw_tiles(tiles: Mapping[int, _Image]) -> dict[int, bytes]:
    """Tiles by row, ``(s, s, 3)`` each, as JPEG no larger than `TILE_PX`."""
    return {row: encode_jpeg(_small(tile)) for row, tile in tiles.items()}


def _small(tile: _Image) -> _Image:
    if tile.shape[0] <= TILE_PX:
        return tile
    return np.asarray(cv2.resize(tile, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA), np.uint8)


def colour_bar() -> bytes:
    """The colour map from its lowest to its highest colour, a PNG of ``(1, 256)``."""
    return encode_png(np.ascontiguousarray(colour_table()[None]))


def as_data(picture: bytes) -> str:
    """A picture's address within the page."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
