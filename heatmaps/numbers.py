"""What is known of a slide's tiles, as the store has it: for files, for the viewer and for reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatmaps.raster import Heatmap, paint_columns
from heatmaps.settings import Overlap
from tiling.class_names import CHANNELS
from tiling.store import TileStore, judges_tiles
from wsi.errors import UsageError

RANK, UNCERTAINTY = CHANNELS


@dataclass(frozen=True, eq=False, slots=True)
class TileNumbers:
    """What is known of each of a slide's n tiles, and is drawn."""

    classes: tuple[str, ...]
    """C, in the order of the scores."""
    scores: NDArray[np.float32]
    """``(n, C)``, 0 to 1."""
    attention: NDArray[np.float32] | None = None
    """``(n,)``, summing to 1; None by a model that judges tiles, which looks at each for itself."""
    uncertainty: NDArray[np.float32] | None = None
    """``(n,)``, 0 sure, 1 no idea; None for scores of before there was any."""
    disagreement: NDArray[np.float32] | None = None
    """``(n,)``, 0 to 1, likewise: how far the members of the model are apart."""

    def channels(self) -> dict[str, NDArray[np.float32]]:
        """``(n,)`` numbers from 0 to 1 by the name of the channel that shows them."""
        named = {name: self.scores[:, i] for i, name in enumerate(self.classes)}
        if self.attention is not None:
            named[RANK] = ranks(self.attention)
        if self.uncertainty is not None:
            named[UNCERTAINTY] = self.uncertainty
        if len(named) != len(self.classes) + (self.attention is not None) + (self.uncertainty is not None):
            raise UsageError(
                f"a class has the name of another channel ({RANK} or {UNCERTAINTY})",
                action="Give the class another name, and train the model again",
            )
        return named

    def measurements(self) -> dict[str, NDArray[np.float32]]:
        """For QuPath. Not "probability": of a slide's model a tile's score is none, and is not calibrated."""
        named = {f"Tile score: {name}": self.scores[:, i] for i, name in enumerate(self.classes)}
        if self.attention is not None:
            named |= {"Attention": self.attention, "Attention rank": ranks(self.attention)}
        if self.uncertainty is not None:
            named["Uncertainty"] = self.uncertainty
        if self.disagreement is not None:
            named["Disagreement"] = self.disagreement
        return named


def read_numbers(store: TileStore, model: str) -> TileNumbers:
    """A model's scores and what goes with them; errors of `TileStore.require`."""
    commit = store.require(f"scores/{model}")
    scores, attention = store.scores(model)
    return TileNumbers(
        tuple(commit.recipe["model"]["classes"]),
        scores,
        None if judges_tiles(commit) else attention,
        *(store.uncertainty(model) or ()),
    )


@dataclass(frozen=True, slots=True)
class Frame:
    """How a slide's tiles lie on it, in level-0 pixels."""

    tile: tuple[float, float]
    """``(width, height)`` of each."""
    stride: tuple[float, float]
    """From one to the next, along x and y."""
    slide_size: tuple[int, int]
    """``(width, height)`` of the slide."""
    slide_mpp: float
    """Microns per pixel, the mean of both axes."""

    @classmethod
    def of(cls, store: TileStore) -> Frame:
        """Of the tiles that were cut."""
        record, resolution = store.record, store.tiles.recipe["resolution"]
        return cls(
            _pair(record["tile_level0"]),
            _pair(record["stride_level0"]),
            (int(record["slide_size"][0]), int(record["slide_size"][1])),
            (resolution["x"] + resolution["y"]) / 2,
        )

    def paint(
        self,
        origins: ArrayLike,
        columns: Mapping[str, NDArray[np.float32]],
        *,
        overlap: Overlap = Overlap.MEAN,
    ) -> Heatmap:
        """Numbers ``(n,)`` by the name of their channel, of tiles at these ``(n, 2)`` origins."""
        return paint_columns(
            origins,
            columns,
            tile=self.tile,
            stride=self.stride,
            slide_size=self.slide_size,
            slide_mpp=self.slide_mpp,
            overlap=overlap,
        )


def ranks(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rank of each tile's number within the slide, ``(n,)`` in [0, 1]; equal ones share their mean rank.

    NaN has none. Attention is always shown so: a softmax over thousands of tiles has no absolute scale, for
    its sum is one whatever the slide shows.
    """
    found, known = np.full(len(numbers), np.nan, np.float32), ~np.isnan(numbers)
    if known.sum() == 1:
        found[known] = 1
        return found
    _, inverse, counts = np.unique(numbers[known], return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    mean_rank = last - (counts - 1) / 2
    found[known] = mean_rank[inverse] / (known.sum() - 1)
    return found


def exact(value: np.float32) -> float | None:
    """A float32 as the shortest number that reads back as the same float32; None for what is not finite.

    >>> exact(np.float32(0.1))
    0.1
    """
    return float(str(np.float32(value))) if np.isfinite(value) else None


def _pair(values: Any) -> tuple[float, float]:
    return float(values[0]), float(values[1])
