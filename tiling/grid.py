"""Where tiles lie. The grid is laid in physical units, so a tile covers the same tissue on every scanner."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.errors import UsageError
from wsi.geometry import MPP_RANGE, Resolution, footprint

MOST_TILES = 10_000_000
"""A grid takes some 50 bytes a tile; 100,000 x 100,000 px in tiles of 64 px are 2.4 million."""


@dataclass(frozen=True, slots=True)
class TileSpec:
    """What a tile is, independent of any slide."""

    size_px: int = 256
    """Pixels along each side of a tile."""
    mpp: float = 0.5
    """Microns per pixel of a tile."""
    overlap_px: int = 0
    """Pixels that neighbours share along each side."""
    whole_only: bool = False
    """Leave out tiles that overhang the slide's right or lower edge; else white is added to them."""

    def __post_init__(self) -> None:
        if not 8 <= self.size_px <= 2048:
            raise ValueError(f"tile size is {self.size_px} px; needed: 8 to 2048")
        if not MPP_RANGE[0] <= self.mpp <= MPP_RANGE[1]:
            raise ValueError(f"tile mpp is {self.mpp:g}; needed: {MPP_RANGE[0]} to {MPP_RANGE[1]}")
        if not 0 <= self.overlap_px < self.size_px:
            raise ValueError(f"overlap is {self.overlap_px} px; needed: 0 to less than a tile")


@dataclass(frozen=True, slots=True)
class TileGrid:
    """A raster of tiles that covers one slide, row by row from the top-left corner.

    The last column and row may overhang the slide by part of a tile, unless `TileSpec.whole_only` leaves them
    out; what lies beyond the slide is white.

    Examples
    --------
    >>> grid = lay_grid((1000, 600), Resolution(0.25, 0.25, "override"), TileSpec(size_px=256, mpp=0.5))
    >>> grid.columns, grid.rows
    (2, 2)
    >>> grid.origins().tolist()
    [[0, 0], [512, 0], [0, 512], [512, 512]]
    """

    columns: int
    """Tiles along x."""
    rows: int
    """Tiles along y."""
    tile: tuple[float, float]
    """``(width, height)`` of a tile's footprint in level-0 pixels; seldom whole."""
    stride: tuple[float, float]
    """From one origin to the next, likewise."""

    def __len__(self) -> int:
        return self.columns * self.rows

    def origins(self) -> NDArray[np.int32]:
        """``(n, 2)`` level-0 (x, y) of every tile's top-left corner.

        Each is rounded for itself, so no error builds up: off by half a level-0 pixel at most.
        """
        x = np.floor(np.arange(self.columns) * self.stride[0] + 0.5)
        y = np.floor(np.arange(self.rows) * self.stride[1] + 0.5)
        return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.int32)


def lay_grid(slide_size: tuple[int, int], resolution: Resolution, spec: TileSpec) -> TileGrid:
    """Cover a slide of ``(width, height)`` level-0 pixels with tiles.

    Raises
    ------
    UsageError
        There would be more than `MOST_TILES`, or none, because the slide is smaller than a whole tile.
    """
    per_axis = [
        (
            footprint(spec.size_px, mpp=spec.mpp, slide_mpp=slide_mpp),
            footprint(spec.size_px - spec.overlap_px, mpp=spec.mpp, slide_mpp=slide_mpp),
        )
        for slide_mpp in (resolution.x, resolution.y)
    ]
    counts = [
        _whole_tiles_along(length, tile, stride) if spec.whole_only else _tiles_along(length, tile, stride)
        for length, (tile, stride) in zip(slide_size, per_axis, strict=True)
    ]
    if 0 in counts:
        raise UsageError(
            f"the slide of {slide_size[0]} x {slide_size[1]} px is smaller than a whole tile",
            action="Leave out --whole-only, or ask for smaller tiles",
        )
    if counts[0] * counts[1] > MOST_TILES:
        raise UsageError(
            f"the grid would have {counts[0] * counts[1]:,} tiles, {MOST_TILES:,} at most are possible",
            action="Ask for larger tiles, a coarser --mpp, or less overlap",
        )
    (tile_x, stride_x), (tile_y, stride_y) = per_axis
    return TileGrid(counts[0], counts[1], (tile_x, tile_y), (stride_x, stride_y))


def _tiles_along(length: int, tile: float, stride: float) -> int:
    """How many tiles cover `length` pixels; none begins beyond them."""
    # 1e-6: a slide of exactly three tiles must not get a fourth by rounding.
    count = max(1, math.ceil((length - (tile - stride)) / stride - 1e-6))
    # Origins are rounded: the last tile may cover the last fraction of a pixel only, and begin after it.
    return count - 1 if count > 1 and math.floor((count - 1) * stride + 0.5) >= length else count


def _whole_tiles_along(length: int, tile: float, stride: float) -> int:
    """How many tiles lie on `length` pixels; the rounding of an origin is not held against its tile."""
    return max(0, math.floor((length - tile) / stride + 1e-6) + 1)
