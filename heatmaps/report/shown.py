"""The tiles that score highest and lowest, with their numbers: those of the store, to the last digit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatmaps.numbers import exact, read_numbers
from tiling.store import TileStore

TILES = 6
"""Shown at each end of each class."""
MOST_CLASSES = 4
"""Whose tiles are shown: the likeliest ones, where there are more."""


@dataclass(frozen=True, eq=False, slots=True)
class ScoredTiles:
    """What is known of a slide's n tiles."""

    classes: tuple[str, ...]
    """C, in the order of the scores."""
    origins: NDArray[np.int32]
    """``(n, 2)`` level-0 (x, y)."""
    footprint: tuple[float, float]
    """``(width, height)`` of a tile in level-0 pixels."""
    tissue: NDArray[np.float32]
    """``(n,)`` share of each that is tissue."""
    scores: NDArray[np.float32]
    """``(n, C)``."""
    attention: NDArray[np.float32] | None
    """``(n,)``; None by a model that judges tiles."""
    uncertainty: NDArray[np.float32] | None
    """``(n,)``; None for scores of before there was any."""


def read_scored(store: TileStore, model: str) -> ScoredTiles:
    """The tiles of a slide with a model's scores; errors of `TileStore.require`."""
    numbers = read_numbers(store, model)
    width, height = store.record["tile_level0"]
    return ScoredTiles(
        classes=numbers.classes,
        origins=store.origins,
        footprint=(float(width), float(height)),
        tissue=store.tissue,
        scores=numbers.scores,
        attention=numbers.attention,
        uncertainty=numbers.uncertainty,
    )


def choose_tiles(tiles: ScoredTiles, order: Sequence[str]) -> list[dict[str, Any]]:
    """Of each shown class the highest and the lowest tiles, as JSON.

    Parameters
    ----------
    tiles
        All of them. Those without a score are at neither end; of equal scores the first rows are taken.
    order
        The classes, the likeliest first. Of two classes only the likeliest is shown: the scores of the other
        are what is left to 1, so its ends are the same tiles.
    """
    shown = order[:1] if len(order) == 2 else order[:MOST_CLASSES]
    found = []
    for name in shown:
        scores = tiles.scores[:, tiles.classes.index(name)]
        known = np.flatnonzero(np.isfinite(scores))
        top = known[np.argsort(-scores[known], kind="stable")[:TILES]]
        bottom = known[np.argsort(scores[known], kind="stable")[:TILES]]
        found.append(
            {
                "class": name,
                "highest": [_tile(tiles, row) for row in top.tolist()],
                "lowest": [_tile(tiles, row) for row in bottom.tolist()],
            }
        )
    return found


def rows_of(chosen: Sequence[Mapping[str, Any]]) -> list[int]:
    """All rows that are shown, each once, sorted."""
    return sorted({tile["row"] for one in chosen for end in ("highest", "lowest") for tile in one[end]})


def _tile(tiles: ScoredTiles, row: int) -> dict[str, Any]:
    x, y = tiles.origins[row].tolist()
    scores = zip(tiles.classes, tiles.scores[row], strict=True)
    return {
        "row": row,
        "x": x,
        "y": y,
        "width": tiles.footprint[0],
        "height": tiles.footprint[1],
        "tissue": exact(tiles.tissue[row]),
        "scores": {name: exact(score) for name, score in scores},
        "attention": None if tiles.attention is None else exact(tiles.attention[row]),
        "uncertainty": None if tiles.uncertainty is None else exact(tiles.uncertainty[row]),
    }
