"""Bags: a slide as a set of feature vectors; and many bags packed into one array.

::

    N  rows (tiles) of all bags together        B  bags
    n  rows of one bag                          D  length of a feature vector
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi.errors import UsageError

Features = NDArray[np.float16] | NDArray[np.float32]


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

    def _refused(self, reason: str) -> UsageError:
        return UsageError(
            f"slide {self.slide_id!r} {reason}", action="Encode it again, or leave it out of the labels"
        )


@dataclass(frozen=True, slots=True)
class PackedBags:
    """Several bags in one array: no padding, so nothing has to be masked and nothing can leak."""

    features: Tensor
    """``(N, D)`` float32, bag after bag."""
    bag_of_row: Tensor
    """``(N,)`` int64: which bag each row belongs to, ascending."""
    sizes: tuple[int, ...]
    """Rows of each of the B bags."""

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
    features = np.concatenate([bag.features for bag in bags], dtype=np.float32)  # (N, D)
    bag_of_row = np.repeat(np.arange(len(bags)), sizes)  # (N,)
    return PackedBags(torch.from_numpy(features).to(device), torch.from_numpy(bag_of_row).to(device), sizes)


def segment_softmax(logits: Tensor, bag_of_row: Tensor, bag_count: int) -> Tensor:
    """Softmax over the rows of each bag.

    Parameters
    ----------
    logits
        ``(N, K)`` of any float type; computed in float32.
    bag_of_row
        ``(N,)`` int64.
    bag_count
        B.

    Returns
    -------
    ``(N, K)`` float32; over the rows of a bag each of the K columns sums to 1.
    """
    logits = logits.float()
    index = bag_of_row[:, None].expand_as(logits)  # (N, K)
    lowest = logits.new_full((bag_count, logits.shape[1]), -torch.inf)
    # The peak only keeps exp from overflowing; it cancels, so no gradient goes through it.
    peak = lowest.scatter_reduce(0, index, logits.detach(), "amax")  # (B, K)
    exponentials = (logits - peak[bag_of_row]).exp()  # (N, K)
    totals = segment_sum(exponentials, bag_of_row, bag_count)  # (B, K)
    return exponentials / totals[bag_of_row]


def segment_sum(values: Tensor, bag_of_row: Tensor, bag_count: int) -> Tensor:
    """Sum the rows of each bag: ``(N, K)`` to ``(B, K)``, in float32.

    On a CPU rows are added one after the other, so the result has the same bits every time.
    """
    zeros = values.new_zeros((bag_count, values.shape[1]), dtype=torch.float32)
    return zeros.index_add(0, bag_of_row, values.float())
