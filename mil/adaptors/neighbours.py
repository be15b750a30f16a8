"""Which tiles stand around which, without laying out the grid: memory grows with tiles, not distances."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mil.bags import PackedBags


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The G places of all bags that hold a tile, and what stands around each of them."""

    place_of_row: Tensor
    """``(N,)`` int64: the place of each tile. Tiles of a bag that stand at one place share it."""
    neighbours: Tensor
    """``(G, (2 reach + 1) ** 2)`` int64: places around each, row by row from the top left; G for no tile."""


def find_neighbours(bags: PackedBags, *, reach: int) -> Neighbours:
    """The places around each place of a bag's grid, up to `reach` columns and rows away."""
    columns = _closed_up(bags.places[:, 0], reach)  # (N,)
    rows = _closed_up(bags.places[:, 1], reach)  # (N,)
    # With a margin of `reach`, what is left of one row or above one bag is no place of another.
    width, height = int(columns.max()) + 1 + reach, int(rows.max()) + 1 + reach
    keys = (bags.bag_of_row * height + rows) * width + columns  # (N,)
    places, place_of_row = torch.unique(keys, return_inverse=True)  # (G,) ascending, (N,)
    steps = torch.arange(-reach, reach + 1, device=keys.device)  # (2 reach + 1,)
    offsets = (steps[:, None] * width + steps).flatten()  # ((2 reach + 1) ** 2,)
    wanted = places[:, None] + offsets  # (G, (2 reach + 1) ** 2)
    found = torch.searchsorted(places, wanted).clamp(max=len(places) - 1)
    return Neighbours(place_of_row, found.where(places[found] == wanted, len(places)))


def _closed_up(positions: Tensor, reach: int) -> Tensor:
    """Positions ``(N,)`` from 0, with gaps over `reach` closed up to just over it.

    Who is within reach of whom stays as it was; the largest number is at most (reach + 1) N, so that numbers
    of places do not overflow, wherever tiles stand.
    """
    values, inverse = torch.unique(positions, return_inverse=True)  # ascending
    gaps = values.diff().clamp(max=reach + 1)
    return torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])[inverse]
