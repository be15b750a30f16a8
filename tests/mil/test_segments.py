"""Arithmetic over bags' rows, against the same of each bag by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mil.segments import (
    at_least_float32,
    segment_log_softmax,
    segment_max,
    segment_mean,
    segment_softmax,
    segment_sum,
)

SIZES = (4, 1, 9)
BAG_OF_ROW = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
Segment = Callable[[Tensor, Tensor, int], Tensor]

OF_ROWS: dict[Segment, Callable[[Tensor], Tensor]] = {
    segment_softmax: lambda bag: bag.softmax(dim=0),
    segment_log_softmax: lambda bag: bag.log_softmax(dim=0),
}
OF_BAGS: dict[Segment, Callable[[Tensor], Tensor]] = {
    segment_sum: lambda bag: bag.sum(dim=0, keepdim=True),
    segment_mean: lambda bag: bag.mean(dim=0, keepdim=True),
    segment_max: lambda bag: bag.amax(dim=0, keepdim=True),
}


def draw(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((sum(SIZES), 2), dtype=torch.float64, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("segment", [*OF_ROWS, *OF_BAGS], ids=lambda of: of.__name__)
def test_bags_are_as_each_by_itself(segment: Segment, dtype: torch.dtype) -> None:
    values = draw(dtype)
    found = segment(values, BAG_OF_ROW, len(SIZES))
    wide = values if segment is segment_max else at_least_float32(values)
    expected = torch.cat([(OF_ROWS | OF_BAGS)[segment](bag) for bag in wide.split(SIZES)])
    assert found.dtype == wide.dtype
    assert_close(found, expected)


@pytest.mark.parametrize("segment", [*OF_ROWS, *OF_BAGS], ids=lambda of: of.__name__)
def test_float64_is_computed_in_float64(segment: Segment) -> None:
    """float32 would be off in the eighth digit."""
    values = draw(torch.float64)
    expected = torch.cat([(OF_ROWS | OF_BAGS)[segment](bag) for bag in values.split(SIZES)])
    assert_close(segment(values, BAG_OF_ROW, len(SIZES)), expected, atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.int64, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_less_than_float32_is_made_float32(dtype: torch.dtype, wide: torch.dtype) -> None:
    values = torch.arange(5).to(dtype)
    assert_close(at_least_float32(values), torch.arange(5).to(wide), atol=0, rtol=0)
