"""What is known of a slide's tiles, as the page draws and tells it: numbers, never colours.

The page gets a channel as a raster of raw float32 and colours it itself, so that a slider need not ask the
server. The raster is `heatmaps.raster.paint`'s, thinned where neighbouring pixels are alike throughout: of
tiles that lie side by side one pixel each is left, and a million tiles are four megabytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatmaps.draw import legend_title
from heatmaps.numbers import Frame, exact, ranks, read_numbers
from heatmaps.raster import Heatmap
from tiling.quality import MEANING, NO_MEANING
from tiling.store import TileStore, judges_tiles
from wsi.errors import UsageError

QUALITY_LAYER = "tile quality"
_RANGES = {"sharpness": (0.0, 8000.0)}
"""Fixed, so that a colour means the same on every slide; all else goes from 0 to 1. Sections in focus have
medians of 960 to 7900 (`tiling.quality`)."""
_LIKELY = 4096
"""The best tiles are sought among so many first: sorting a million is slow."""
_THINNINGS = (64, 32, 16, 8, 4, 2)

Numbers = NDArray[np.float32]


@dataclass(frozen=True, eq=False, slots=True)
class Footprints:
    """Where a slide's n tiles lie, in level-0 pixels."""

    origins: NDArray[np.int32]
    """``(n, 2)`` (x, y) of the top-left corners."""
    tile: tuple[float, float]
    """``(width, height)`` of each."""
    stride: tuple[float, float]
    """From one to the next, along x and y."""
    slide_size: tuple[int, int]
    """``(width, height)`` of the slide."""
    slide_mpp: float
    """Microns per pixel, the mean of both axes."""

    @classmethod
    def of(cls, store: TileStore) -> Footprints:
        """Of the tiles that were cut."""
        frame = Frame.of(store)
        return cls(store.origins, frame.tile, frame.stride, frame.slide_size, frame.slide_mpp)

    def box(self, row: int) -> tuple[float, float, float, float]:
        """Left, top, width and height of a tile; `UsageError` where there is none such."""
        if not 0 <= row < len(self.origins):
            raise UsageError(f"there is no tile {row}")
        x, y = self.origins[row].tolist()
        return float(x), float(y), *self.tile

    def own_cell(self, row: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the place that is nearest to this tile's centre, and to no other's.

        A mark on it marks this tile alone, by the rule of `tiling.marks`, also where tiles overlap.
        """
        x, y, width, height = self.box(row)
        half = [min(t, s) / 2 for t, s in zip(self.tile, self.stride, strict=True)]
        centre = x + width / 2, y + height / 2
        left, top = max(0.0, centre[0] - half[0]), max(0.0, centre[1] - half[1])
        right = min(float(self.slide_size[0]), centre[0] + half[0])
        bottom = min(float(self.slide_size[1]), centre[1] + half[1])
        return left, top, max(right, left + 1), max(bottom, top + 1)

    def at(self, x: float, y: float) -> int | None:
        """The tile over a position, of several the one whose centre is nearest; None where there is none."""
        top = self.origins[:, 1]
        band = np.flatnonzero((top <= y) & (top > y - self.tile[1]))  # of a million tiles, a thousand
        ways = np.array([x, y]) - self.origins[band]
        over = band[((ways >= 0) & (ways < self.tile)).all(axis=1)]
        if not len(over):
            return None
        from_centre = np.abs(np.array([x, y]) - self.origins[over] - np.array(self.tile) / 2).sum(axis=1)
        return int(over[from_centre.argmin()])

    def best(self, values: Numbers, count: int, *, lowest: bool = False) -> list[int]:
        """Rows of the `count` highest tiles (or lowest), best first; none overlaps another."""
        known = np.flatnonzero(~np.isnan(values))
        keys = values[known] if lowest else -values[known]
        first = (
            keys <= np.partition(keys, _LIKELY)[_LIKELY] if len(keys) > _LIKELY else np.ones(len(keys), bool)
        )
        for among in (first, np.ones(len(keys), bool)):
            chosen: list[int] = []
            for row in known[among][np.argsort(keys[among], kind="stable")].tolist():
                apart = np.abs(self.origins[chosen] - self.origins[row]) >= np.array(self.tile) - 1
                if not chosen or apart.any(axis=1).all():
                    chosen.append(row)
                if len(chosen) == count:
                    return chosen
            if among.all():
                break
        return chosen

    def paint(self, name: str, values: Numbers) -> Heatmap:
        """One channel on the slide's frame."""
        frame = Frame(self.tile, self.stride, self.slide_size, self.slide_mpp)
        return frame.paint(self._unrounded(), {name: values})

    def _unrounded(self) -> NDArray[np.float64]:
        """Origins as they were before they were rounded to whole pixels, where they follow the stride.

        Else neighbours would overlap by half a pixel here and there, and no two rows of the raster be alike.
        """
        laid = np.rint(self.origins / self.stride) * self.stride
        return laid if (np.abs(laid - self.origins) < 0.51).all() else self.origins.astype(np.float64)


@dataclass(frozen=True, eq=False, slots=True)
class Channel:
    """One number of every tile."""

    name: str
    title: str
    """What its colours mean."""
    values: Numbers
    """``(n,)``; NaN where a tile has none."""
    low: float = 0.0
    """At the lower end of the colours, on every slide."""
    high: float = 1.0
    """At the upper end."""

    def ranked(self) -> Channel:
        """The same as ranks within this slide, 0 to 1; the title says so."""
        values, known = np.full(len(self.values), np.nan, np.float32), ~np.isnan(self.values)
        if known.any():
            values[known] = ranks(self.values[known])
        title = f"{self.title}, as rank within this slide: not to be compared between slides"
        return Channel(self.name, title, values)

    def as_json(self) -> dict[str, Any]:
        """For the page."""
        return {"name": self.name, "title": self.title, "low": self.low, "high": self.high}


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """What a model says of every tile, or what is known without one."""

    name: str
    """The model's, or `QUALITY_LAYER`."""
    channels: tuple[Channel, ...]
    classes: tuple[str, ...] = ()
    """Of a model; they are its first channels, in this order."""
    told: Mapping[str, Numbers] | None = None
    """``(n,)`` numbers that are told of a tile and not drawn, by name."""

    def channel(self, number: int) -> Channel:
        """By its number; `UsageError` where there is none such."""
        if not 0 <= number < len(self.channels):
            raise UsageError(f"there is no channel {number}")
        return self.channels[number]

    def of_tile(self, row: int) -> list[tuple[str, float | None]]:
        """Names and numbers of one tile; None where it has none."""
        named = {channel.name: channel.values for channel in self.channels} | dict(self.told or {})
        return [(name, exact(values[row])) for name, values in named.items()]

    def shown_class(self, row: int) -> tuple[str, float]:
        """The class that a tile scores highest in, and the score: the shown result.

        Raises
        ------
        UsageError
            This layer is no model's, or the model has no score of the tile.
        """
        scores = np.array([channel.values[row] for channel in self.channels[: len(self.classes)]], np.float64)
        if not self.classes or not np.isfinite(scores).all():
            raise UsageError(
                "no model has judged this tile", action="Choose a model's layer, or another tile"
            )
        best = int(scores.argmax())
        return self.classes[best], float(scores[best])


def model_layer(store: TileStore, model: str) -> Layer:
    """A model's scores, and what goes with them.

    Raises
    ------
    UsageError, RecipeError, DamagedError
        See `TileStore.require`.
    """
    of_tiles, numbers = judges_tiles(store.require(f"scores/{model}")), read_numbers(store, model)
    channels = [
        Channel(name, legend_title(name, of_tiles=of_tiles), values)
        for name, values in numbers.channels().items()
    ]
    if numbers.disagreement is not None:
        title = "disagreement of the model's members: 0 none"
        channels.append(Channel("disagreement", title, numbers.disagreement))
    told = None if numbers.attention is None else {"attention": numbers.attention}
    return Layer(model, tuple(channels), numbers.classes, told)


def quality_layer(store: TileStore) -> Layer:
    """What is known of tiles without a model: how much of each is tissue, and how good it is to look at."""
    channels = [Channel("tissue", MEANING["tissue"], store.tissue)]
    quality = store.quality
    for place, name in enumerate(store.record["measures"] if quality is not None else ()):
        assert quality is not None
        low, high = _RANGES.get(name, (0.0, 1.0))
        channels.append(
            Channel(name, f"{name}: {MEANING.get(name, NO_MEANING)}", quality[:, place], low, high)
        )
    return Layer(QUALITY_LAYER, tuple(channels))


def pack(heatmap: Heatmap, name: str) -> bytes:
    """A channel for the page: the length of a JSON head (uint32), the head, and rows of float32.

    All is little-endian. The head has ``columns``, ``rows``, and level-0 pixels per pixel ``scale``; NaN
    is where no tile lies.
    """
    plane, step = thinned(heatmap.channel(name))
    scale = [heatmap.scale * step, heatmap.scale_y * step]
    head = json.dumps({"columns": plane.shape[1], "rows": plane.shape[0], "scale": scale}).encode()
    head += b" " * (-(len(head) + 4) % 4)  # the numbers begin on a multiple of their size
    return struct.pack("<I", len(head)) + head + plane.astype("<f4").tobytes()


def thinned(plane: Numbers) -> tuple[Numbers, int]:
    """One pixel for each block of alike ones, and how many pixels a block has along each side.

    >>> thinned(np.repeat(np.repeat(np.float32([[1, 2]]), 4, axis=0), 4, axis=1))
    (array([[1., 2.]], dtype=float32), 4)
    """
    bits = plane.view(np.uint32)  # NaN compares like any number
    middle = bits[bits.shape[0] // 256 * 128 :][:256]  # a look at some rows tells most steps off
    for step in _THINNINGS:
        if _alike(middle, step) and _alike(bits, step):
            return np.ascontiguousarray(plane[::step, ::step]), step
    return plane, 1


def _alike(bits: NDArray[np.uint32], step: int) -> bool:
    """Whether every block of `step` times `step` pixels holds one number."""
    return all(
        np.array_equal(bits[i::step], bits[::step][: len(bits[i::step])]) for i in range(1, step)
    ) and all(
        np.array_equal(bits[:, i::step], bits[:, ::step][:, : bits[:, i::step].shape[1]])
        for i in range(1, step)
    )
