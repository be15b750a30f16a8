"""Arithmetic over the rows of each bag, for bags that are packed one after the other.

::

    N  rows (tiles) of all bags together        B  bags        K  columns
"""

from __future__ import annotations

import torch
from torch import Tensor


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
