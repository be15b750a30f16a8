"""Arithmetic over the rows of each bag, for bags that are packed one after the other.

Sums and softmaxes are computed in float32 at least: in float64 where they are given that, so that a gradient
can be held against finite differences, and else in float32.

::

    N  rows (tiles) of all bags together        B  bags        K  columns
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """The same values in float32, or as they are where that is float64."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def segment_softmax(logits: Tensor, bag_of_row: Tensor, bag_count: int) -> Tensor:
    """Softmax over the rows of each bag.

    Parameters
    ----------
    logits
        ``(N, K)`` of any float type. Rows at minus infinity get 0, as long as the bag has another.
    bag_of_row
        ``(N,)`` int64.
    bag_count
        B.

    Returns
    -------
    ``(N, K)``, float32 or float64; over the rows of a bag each of the K columns sums to 1.
    """
    exponentials, totals, _ = _exponentials(logits, bag_of_row, bag_count)
    return exponentials / totals[bag_of_row]


def segment_log_softmax(logits: Tensor, bag_of_row: Tensor, bag_count: int) -> Tensor:
    """Logarithm of `segment_softmax`, ``(N, K)``, finite also where that is too small for a float."""
    _, totals, shifted = _exponentials(logits, bag_of_row, bag_count)
    return shifted - totals.log()[bag_of_row]


def _exponentials(logits: Tensor, bag_of_row: Tensor, bag_count: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(N, K)`` exponentials, their sums ``(B, K)``, and the ``(N, K)`` logits that they are of."""
    logits = at_least_float32(logits)
    # The peak only keeps exp from overflowing; it cancels, so no gradient goes through it.
    peak = segment_max(logits.detach(), bag_of_row, bag_count)  # (B, K)
    shifted = logits - peak[bag_of_row]  # (N, K)
    exponentials = shifted.exp()  # (N, K)
    return exponentials, segment_sum(exponentials, bag_of_row, bag_count), shifted


def segment_sum(values: Tensor, bag_of_row: Tensor, bag_count: int) -> Tensor:
    """Sum the rows of each bag: ``(N, K)`` to ``(B, K)``, in float32 at least.

    On a CPU rows are added one after the other, so the result has the same bits every time.
    """
    values = at_least_float32(values)
    return values.new_zeros((bag_count, values.shape[1])).index_add(0, bag_of_row, values)


def segment_sizes(bag_of_row: Tensor, bag_count: int) -> Tensor:
    """``(B,)`` int64: rows of each bag."""
    return torch.zeros(bag_count, dtype=torch.int64, device=bag_of_row.device).index_add(
        0, bag_of_row, torch.ones_like(bag_of_row)
    )


def segment_mean(values: Tensor, bag_of_row: Tensor, bag_count: int) -> Tensor:
    """Mean of the rows of each bag: ``(N, K)`` to ``(B, K)``, in float32 at least."""
    return segment_sum(values, bag_of_row, bag_count) / segment_sizes(bag_of_row, bag_count)[:, None]


def segment_max(values: Tensor, bag_of_row: Tensor, bag_count: int) -> Tensor:
    """Largest value of each bag and column: ``(N, K)`` to ``(B, K)``.

    The gradient goes to the row that holds it; rows that share it share the gradient.
    """
    lowest = values.new_full((bag_count, values.shape[1]), -torch.inf)
    return lowest.scatter_reduce(0, bag_of_row[:, None].expand_as(values), values, "amax")


def segment_argmax(values: Tensor, bag_of_row: Tensor, bag_count: int) -> Tensor:
    """``(B, K)`` int64: the row, of all N, that holds each bag's largest value; of equals the first."""
    values = values.detach()
    held = values == segment_max(values, bag_of_row, bag_count)[bag_of_row]  # (N, K)
    rows = torch.arange(len(values), device=values.device)[:, None].where(held, len(values))  # (N, K)
    none = rows.new_full((bag_count, values.shape[1]), len(values))
    return none.scatter_reduce(0, bag_of_row[:, None].expand_as(rows), rows, "amin")


def segment_rank(values: Tensor, bag_of_row: Tensor, bag_count: int) -> Tensor:
    """``(N, K)`` int64: place of each row within its bag, 0 for the largest value of the column.

    So ``segment_rank(values, ...) < k`` marks the k largest of every bag, or all rows of a smaller one. Of
    equal values the earlier row comes first.
    """
    order = values.detach().argsort(dim=0, descending=True, stable=True)  # (N, K)
    order = order.gather(0, bag_of_row[order].argsort(dim=0, stable=True))  # bag after bag
    count = torch.arange(len(values), device=values.device)[:, None].expand_as(order)  # (N, K)
    sizes = segment_sizes(bag_of_row, bag_count)  # (B,)
    starts = sizes.cumsum(0) - sizes  # (B,)
    return torch.empty_like(order).scatter(0, order, count) - starts[bag_of_row][:, None]
