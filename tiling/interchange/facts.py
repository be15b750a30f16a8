"""What both exporters need to know of a store."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiling.grid import TileSpec
from tiling.store import TileStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class TileFacts:
    """A slide's tiles, as their places are told to others."""

    slide_id: str
    """Name of the slide, and of its files."""
    origins: NDArray[np.int32]
    """``(n, 2)`` level-0 (x, y)."""
    spec: TileSpec
    """Size, resolution and overlap."""
    tile: tuple[float, float]
    """``(width, height)`` of a tile's footprint in level-0 pixels."""
    slide_size: tuple[int, int]
    """``(width, height)`` in level-0 pixels."""
    mpp_x: float
    """Microns per level-0 pixel along x: what TRIDENT tells a slide's magnification by."""

    @classmethod
    def of(cls, store: TileStore) -> TileFacts:
        """Read them; `UsageError` where the store has no tiles."""
        record, resolution = store.record, store.tiles.recipe["resolution"]
        return cls(
            slide_id=store.slide_id,
            origins=store.origins,
            spec=store.spec,
            tile=(float(record["tile_level0"][0]), float(record["tile_level0"][1])),
            slide_size=(int(record["slide_size"][0]), int(record["slide_size"][1])),
            mpp_x=float(resolution["x"]),
        )

    @property
    def side_level0(self) -> int:
        """The side of the square of whole level-0 pixels that comes nearest to a tile."""
        return max(1, round(sum(self.tile) / 2))

    def warn_of_rounding(self) -> None:
        """A word where that square is more than half a pixel wider or higher than the tile."""
        width, height = self.tile
        if max(abs(width - self.side_level0), abs(height - self.side_level0)) > 0.5 + 1e-6:
            _log.warning(
                "%s: tiles of %.2f x %.2f level-0 px are exported as squares of %d: "
                "the slide's pixels are not square",
                self.slide_id,
                width,
                height,
                self.side_level0,
            )
