"""Stores as torch datasets: tiles in any order for any network, and bags of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mil.features import common_recipe, open_bag
from tiling.store import TileStore
from tiling.tiles import StoredTiles
from wsi.errors import UsageError

Transform = Callable[[Tensor], Any]
"""Makes what a network takes of a ``(3, s, s)`` uint8 tile. A worker that is spawned gets it pickled."""


class TileItem(NamedTuple):
    """One tile; in a batch of a `DataLoader` each field is stacked."""

    tile: Any
    """``(3, s, s)`` uint8 RGB, or what the transform made of it."""
    slide: int
    """Whose tile it is: index into `TileDataset.slide_ids`."""
    row: int
    """Which of that slide's: index into `TileStore.origins` and its features."""


class TileDataset(Dataset[TileItem]):
    """All tiles of one or several stores, by one index: slide after slide, row after row.

    Workers of a `torch.utils.data.DataLoader` may be forked or spawned: files are opened by who reads them.
    Random batches are read a slide at a time (``__getitems__``), forwards through its files.

    Parameters
    ----------
    stores
        The slides. Their tiles must have one size.
    transform
        Applied to each tile; None leaves it ``(3, s, s)`` uint8.

    Raises
    ------
    UsageError
        No slides, a slide without tiles or with tiles that were cut without pixels, or of another size.
    DamagedError
        Tiles are not as committed: on construction, or when a shard is read.

    Examples
    --------
    ::

        dataset = TileDataset(store, transform=lambda tile: tile.float() / 255)
        for tiles, slides, rows in DataLoader(dataset, batch_size=32, shuffle=True):
            ...
    """

    def __init__(
        self, stores: TileStore | Sequence[TileStore], *, transform: Transform | None = None
    ) -> None:
        self.stores = (stores,) if isinstance(stores, TileStore) else tuple(stores)
        self.transform = transform
        if not self.stores:
            raise UsageError("there are no slides", action="Give at least one that was tiled")
        first = self.stores[0]
        for store in self.stores:
            if store.spec.size_px != first.spec.size_px:
                raise UsageError(
                    f"tiles of slides {first.slide_id!r} and {store.slide_id!r} are of {first.spec.size_px} "
                    f"and {store.spec.size_px} px",
                    path=store.output.root,
                    action="Tile all slides with the same settings",
                )
        self._readers = [StoredTiles(store.open_pixels(), store.path("tiles")) for store in self.stores]
        self._starts = np.cumsum([0, *(tiles.reader.shape[0] for tiles in self._readers)])  # (slides + 1,)

    @property
    def slide_ids(self) -> list[str]:
        """Names of the slides, in order."""
        return [store.slide_id for store in self.stores]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> TileItem:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[TileItem]:
        """Several tiles at once, in the order asked for: what a `DataLoader` calls for a batch.

        Raises
        ------
        IndexError
            There is no such tile.
        DamagedError
            A shard is gone, cut, or does not fit its checksum.
        """
        count = len(self)
        if wrong := [index for index in indices if not -count <= index < count]:
            raise IndexError(f"tile {wrong[0]} of {count}")
        places = np.array([index % count for index in indices], np.int64)  # (k,) from 0 to count - 1
        slides = np.searchsorted(self._starts, places, side="right") - 1  # (k,)
        rows = places - self._starts[slides]  # (k,) within the slide
        items: dict[int, TileItem] = {}
        for slide in np.unique(slides).tolist():
            its = np.flatnonzero(slides == slide)
            for place, tile in zip(its.tolist(), self._readers[slide](rows[its]), strict=True):
                items[place] = TileItem(self._transformed(tile), slide, int(rows[place]))
        return [items[place] for place in range(len(places))]

    def _transformed(self, tile: NDArray[np.uint8]) -> Any:
        pixels = torch.from_numpy(tile).permute(2, 0, 1).contiguous()  # (3, s, s)
        return self.transform(pixels) if self.transform else pixels


class FeatureDataset(Dataset[tuple[Tensor, int]]):
    """A bag a slide: item i is its features, ``(n, d)`` float32, and its label.

    Bags have different sizes: give a `DataLoader` ``batch_size=None``, or a ``collate_fn`` of your own.

    Parameters
    ----------
    stores
        The slides.
    encoder
        Key of the features.
    labels
        One class index a slide.
    contexts
        See `mil.features.open_bag`.

    Raises
    ------
    UsageError
        No slides, a slide without such features, slides that were not made alike, or labels that are not
        one a slide.
    """

    def __init__(
        self,
        stores: Sequence[TileStore],
        encoder: str,
        labels: Sequence[int],
        *,
        contexts: Sequence[float] = (),
    ) -> None:
        if len(stores) != len(labels):
            raise UsageError(f"there are {len(stores)} slides and {len(labels)} labels")
        common_recipe(stores, encoder, contexts=contexts)
        self.bags = [
            open_bag(store, encoder, contexts=contexts, label=label)
            for store, label in zip(stores, labels, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        bag = self.bags[index].read()
        assert bag.label is not None  # one a slide was given
        return torch.from_numpy(bag.features.astype(np.float32)), bag.label
