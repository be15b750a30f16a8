"""Bags: a slide as a set of feature vectors; and many bags packed into one array.

::

    N  rows (tiles) of all bags together        B  bags
    n  rows of one bag                          D  length of a feature vector
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi.errors import UsageError

Features = NDArray[np.float16] | NDArray[np.float32]
Rows = NDArray[np.int64]
"""``(k,)`` numbers of tiles within a bag."""


class BagSource(Protocol):
    """A slide whose features can be read, whole or in part: in memory (`Bag`) or on disk (`StoredBag`)."""

    @property
    def slide_id(self) -> str:
        """Name of the slide."""

    @property
    def label(self) -> int | None:
        """Index of the class; None where it is unknown."""

    @property
    def patient(self) -> str | None:
        """Whose slide it is; None where that is unknown."""

    @property
    def dim(self) -> int:
        """Length of a feature vector."""

    def __len__(self) -> int:
        """Tiles, n."""

    def read(self, rows: Rows | None = None) -> Bag:
        """The bag, or one of some of its tiles, in the order asked for."""


@dataclass(frozen=True, slots=True)
class Bag:
    """One slide's features and what is known of it. Never empty, and never without finite numbers.

    Raises
    ------
    UsageError
        No tiles, NaN or infinity among the features, shapes that do not fit. The slide is named.
    """

    slide_id: str
    """Name of the slide."""
    features: Features
    """``(n, D)`` float16 or float32, one row a tile."""
    origins: NDArray[np.int32]
    """``(n, 2)`` level-0 (x, y) of each tile's top-left corner."""
    label: int | None = None
    """Index of the class; None where it is unknown."""
    patient: str | None = None
    """Whose slide it is; None where that is unknown, and the slide then stands for itself."""

    def __post_init__(self) -> None:
        shape = self.features.shape
        if self.features.ndim != 2 or 0 in shape:
            raise self._refused(f"has features of shape {shape}: one row a tile is needed, and at least one")
        if self.features.dtype not in (np.float16, np.float32):
            raise self._refused(f"has features of type {self.features.dtype}, not float16 or float32")
        if self.origins.shape != (len(self), 2):
            raise self._refused(f"has {shape[0]} feature rows and origins of shape {self.origins.shape}")
        bad = np.flatnonzero(~np.isfinite(self.features).all(axis=1))
        if len(bad):
            x, y = self.origins[bad[0]].tolist()
            raise self._refused(
                f"has NaN or infinite features in {len(bad)} of {len(self)} tiles, first at ({x}, {y})"
            )

    def __len__(self) -> int:
        return len(self.features)

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return int(self.features.shape[1])

    @property
    def places(self) -> NDArray[np.int64]:
        """``(n, 2)`` column and row of each tile in the slide's grid, from 0; see `grid_places`."""
        return grid_places(self.origins)

    def read(self, rows: Rows | None = None) -> Bag:
        """Itself, or a bag of some of its tiles, in the order asked for."""
        if rows is None:
            return self
        return replace(self, features=self.features[rows], origins=self.origins[rows])

    def _refused(self, reason: str) -> UsageError:
        return UsageError(
            f"slide {self.slide_id!r} {reason}", action="Encode it again, or leave it out of the labels"
        )


def grid_places(origins: NDArray[np.int32]) -> NDArray[np.int64]:
    """Column and row of each tile, from its level-0 origin; the first column and the first row are 0.

    The step is the median distance between neighbouring columns and rows. Origins are rounded to whole
    pixels, and regions may have grids of their own: places are where a tile stands, to the nearest step.

    Parameters
    ----------
    origins
        ``(n, 2)`` level-0 (x, y).

    Returns
    -------
    ``(n, 2)`` int64.

    Examples
    --------
    >>> grid_places(np.array([[100, 50], [356, 50], [100, 306], [868, 306]], np.int32)).tolist()
    [[0, 0], [1, 0], [0, 1], [3, 1]]
    """
    gaps = np.concatenate([np.diff(np.unique(origins[:, axis])) for axis in (0, 1)])  # (g,)
    step = float(np.median(gaps)) if len(gaps) else 1.0
    return np.asarray(np.rint((origins - origins.min(axis=0)) / step), np.int64)


@dataclass(frozen=True, slots=True)
class PackedBags:
    """Several bags in one array: no padding, so nothing has to be masked and nothing can leak."""

    features: Tensor
    """``(N, D)`` float32, bag after bag."""
    bag_of_row: Tensor
    """``(N,)`` int64: which bag each row belongs to, ascending."""
    places: Tensor
    """``(N, 2)`` int64: column and row of each tile in its slide's grid."""
    sizes: tuple[int, ...]
    """Rows of each of the B bags, none of them 0."""

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or sum(self.sizes) != len(self.features):
            raise ValueError(f"{len(self.features)} rows are no bags of {self.sizes[:5]} rows")

    def __len__(self) -> int:
        return len(self.sizes)


def pack(bags: Sequence[Bag], *, device: torch.device | None = None) -> PackedBags:
    """Concatenate bags.

    Raises
    ------
    UsageError
        No bags, or feature vectors of different lengths.
    """
    if not bags:
        raise UsageError("there are no bags to pack", action="Give at least one slide with features")
    for bag in bags:
        if bag.dim != bags[0].dim:
            raise UsageError(
                f"slides {bags[0].slide_id!r} and {bag.slide_id!r} have features of length "
                f"{bags[0].dim} and {bag.dim}",
                action="Encode all slides with the same encoder",
            )
    sizes = tuple(len(bag) for bag in bags)
    only = bags[0].features
    if len(bags) == 1 and only.dtype == np.float32 and only.flags.writeable:
        features = only  # (N, D): not copied, for nobody writes to it
    else:
        features = np.concatenate([bag.features for bag in bags], dtype=np.float32)  # (N, D)
    bag_of_row = np.repeat(np.arange(len(bags)), sizes)  # (N,)
    places = np.concatenate([bag.places for bag in bags])  # (N, 2)
    return PackedBags(
        torch.from_numpy(features).to(device),
        torch.from_numpy(bag_of_row).to(device),
        torch.from_numpy(places).to(device),
        sizes,
    )


def pack_in_parts(bags: Sequence[Bag], *, rows: int, device: torch.device | None = None) -> list[PackedBags]:
    """`pack` bags in order, at most so many rows together; a larger bag is a part by itself."""
    parts: list[list[Bag]] = []
    for bag in bags:
        if parts and sum(map(len, parts[-1])) + len(bag) <= rows:
            parts[-1].append(bag)
        else:
            parts.append([bag])
    return [pack(part, device=device) for part in parts]


def each_alone(features: Tensor) -> PackedBags:
    """A bag for each of N rows: what a head says of these is what each tile speaks for by itself."""
    count = len(features)
    places = features.new_zeros((count, 2), dtype=torch.int64)
    return PackedBags(features, torch.arange(count, device=features.device), places, (1,) * count)
