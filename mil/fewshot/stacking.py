"""Bags of several tasks side by side, for `torch.func.vmap`: it wants tensors of one shape.

Bags of one tile are so already. Others are filled up: the last rows of each task belong to a bag of their
own, which nobody asks about. What a head says of a bag depends on no other bag, so that changes nothing.

::

    T  tasks       n  bags of a task       N  its rows, filled up       D  length of a feature vector
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mil.bags import PackedBags, each_alone

MOST_ROWS = 1 << 15
"""Of all tasks together that are computed side by side: second derivatives of so many take some gigabytes."""


class Filled(NamedTuple):
    """The bags of a task, or with an axis of T in front of each tensor those of T tasks."""

    features: Tensor
    """``(N, D)`` float32."""
    bag_of_row: Tensor
    """``(N,)`` int64; n for the rows that fill up, of which there is one at least."""
    places: Tensor
    """``(N, 2)`` int64."""
    sizes: Tensor
    """``(n,)`` int64: rows of each bag."""


Bags = Tensor | Filled | PackedBags
"""``(n, D)`` float32 features of n bags of one tile each, or filled bags, which can be stacked; or packed
bags."""


def plain(bags: PackedBags) -> Bags:
    """The features alone where every bag is one tile, else the bags."""
    return bags.features if len(bags) == len(bags.features) else bags


def packed(bags: Bags) -> tuple[PackedBags, int]:
    """As a head takes them, and how many of them are asked about: all but the one that fills up."""
    if isinstance(bags, PackedBags):
        return bags, len(bags)
    if isinstance(bags, Tensor):
        return each_alone(bags), len(bags)
    count, rows = len(bags.sizes), len(bags.features)
    # What a bag's size is depends on the task, and vmap knows tensors only: heads that read more than how
    # many there are do not stack (`Head.stacks`).
    sizes = (1,) * count + (rows - count,)
    return PackedBags(bags.features, bags.bag_of_row, bags.places, sizes), count


def stack(tasks: Sequence[PackedBags], *, fill: bool = True) -> Tensor | Filled | None:
    """The bags of T tasks with an axis of T in front, if they can be had so.

    Parameters
    ----------
    tasks
        Of each its bags.
    fill
        Whether bags of several tiles may be filled up; see `Head.stacks`.

    Returns
    -------
    ``(T, n, D)`` features where all bags have one tile; else filled bags. None where the tasks have not the
    same number of bags, more than `MOST_ROWS` rows together, or would have to be filled up and may not be.
    """
    if len({len(bags) for bags in tasks}) > 1:
        return None
    if all(len(bags) == len(bags.features) for bags in tasks):
        return torch.stack([bags.features for bags in tasks])
    rows = 1 + max(len(bags.features) for bags in tasks)
    if not fill or rows * len(tasks) > MOST_ROWS:
        return None
    filled = [_fill(bags, rows) for bags in tasks]
    return Filled(*(torch.stack(values) for values in zip(*filled, strict=True)))


def _fill(bags: PackedBags, rows: int) -> Filled:
    features = bags.features.new_zeros((rows, bags.features.shape[1]))
    bag_of_row = bags.bag_of_row.new_full((rows,), len(bags))
    places = bags.places.new_zeros((rows, 2))
    count = len(bags.features)
    features[:count], bag_of_row[:count], places[:count] = bags.features, bags.bag_of_row, bags.places
    return Filled(features, bag_of_row, places, torch.tensor(bags.sizes, device=features.device))
