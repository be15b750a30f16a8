"""The order in which a head that knows of positions takes tiles: row by row, as one reads a page."""

from __future__ import annotations

import torch
from torch import Tensor

from mil.bags import PackedBags

_ROWS_AT_A_TIME = 4096


def raster_order(bags: PackedBags) -> Tensor:
    """``(N,)`` row numbers: bag after bag, and in each from the top row down, from left to right.

    Tiles at one place (regions with grids of their own, places rounded to a grid) follow one another by what
    their features are, so that the order in which they were stored decides nothing.
    """
    order = _content(bags.features).argsort(stable=True)  # (N,)
    for key in (bags.places[:, 0], bags.places[:, 1], bags.bag_of_row):
        order = order[key[order].argsort(stable=True)]
    return order


@torch.no_grad()
def _content(features: Tensor) -> Tensor:
    """``(N,)`` int64: a number that depends on the bits of a row alone, whatever is computed beside it."""
    columns = torch.arange(features.shape[1], device=features.device)
    factors = columns * 40503 % 131071 * 2 + 1  # below 2^18: sums over 2^13 columns do not overflow
    return torch.cat(
        [
            ((part.float() + 0.0).view(torch.int32).long() * factors).sum(dim=1)  # -0 becomes 0
            for part in torch.split(features, _ROWS_AT_A_TIME)
        ]
    )
