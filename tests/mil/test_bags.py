"""Laws of bags and of the arithmetic over them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.bags import Bag, pack, pack_in_parts
from mil.segments import (
    segment_argmax,
    segment_log_softmax,
    segment_max,
    segment_mean,
    segment_rank,
    segment_sizes,
    segment_softmax,
    segment_sum,
)
from wsi.errors import UsageError


def bag(features: np.ndarray, slide_id: str = "slide-7") -> Bag:
    origins = np.arange(2 * len(features), dtype=np.int32).reshape(-1, 2)
    return Bag(slide_id=slide_id, features=features, origins=origins)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_number_that_is_none_is_refused_with_slide_and_tile(value: float, dtype: type) -> None:
    features = np.ones((5, 3), dtype)
    features[2, 1] = value
    with pytest.raises(UsageError, match=r"'slide-7'.*1 of 5 tiles, first at \(4, 5\)"):
        bag(features)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,), (3, 4, 5)])
def test_an_empty_or_shapeless_bag_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="'slide-7' has features of shape"):
        bag(np.ones(shape, np.float32))


def test_other_types_and_other_counts_are_refused() -> None:
    with pytest.raises(UsageError, match="float64"):
        bag(np.ones((2, 2)))
    with pytest.raises(UsageError, match="3 feature rows"):
        Bag(slide_id="s", features=np.ones((3, 2), np.float32), origins=np.zeros((2, 2), np.int32))


def test_bags_of_different_lengths_are_not_packed() -> None:
    with pytest.raises(UsageError, match="'a' and 'b' have features of length 3 and 4"):
        pack([bag(np.ones((2, 3), np.float32), "a"), bag(np.ones((2, 4), np.float32), "b")])
    with pytest.raises(UsageError, match="no bags"):
        pack([])


def test_packing_keeps_every_row_in_order() -> None:
    rng = np.random.default_rng(0)
    bags = [bag(rng.random((n, 3)).astype(np.float16)) for n in (4, 1, 7)]
    packed = pack(bags)
    assert packed.sizes == (4, 1, 7)
    assert packed.features.dtype == torch.float32
    for index, part in enumerate(bags):
        rows = packed.features[packed.bag_of_row == index].numpy()
        np.testing.assert_array_equal(rows, part.features.astype(np.float32))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**31), st.floats(0.1, 300))
def test_segment_functions_equal_a_loop_over_bags(sizes: list[int], seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((sum(sizes), 3), generator=generator) * scale
    bag_of_row = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    softmax = segment_softmax(values, bag_of_row, len(sizes))
    log_softmax = segment_log_softmax(values, bag_of_row, len(sizes))
    total = segment_sum(values, bag_of_row, len(sizes))
    mean = segment_mean(values, bag_of_row, len(sizes))
    largest = segment_max(values, bag_of_row, len(sizes))
    where = segment_argmax(values, bag_of_row, len(sizes))
    rank = segment_rank(values, bag_of_row, len(sizes))
    assert segment_sizes(bag_of_row, len(sizes)).tolist() == sizes
    for index, part in enumerate(values.split(sizes)):
        inside = bag_of_row == index
        torch.testing.assert_close(softmax[inside], part.double().softmax(0).float())
        torch.testing.assert_close(
            log_softmax[inside], part.double().log_softmax(0).float(), rtol=1e-5, atol=1e-4
        )
        torch.testing.assert_close(total[index], part.double().sum(0).float(), rtol=1e-5, atol=1e-5 * scale)
        torch.testing.assert_close(mean[index], part.double().mean(0).float(), rtol=1e-5, atol=1e-5 * scale)
        assert torch.equal(largest[index], part.amax(0))
        assert torch.equal(values.gather(0, where)[index], part.amax(0))
        assert torch.equal(part.gather(0, rank[inside].argsort(0)), part.sort(0, descending=True).values)


def test_of_equal_values_the_first_row_leads() -> None:
    values, bag_of_row = torch.tensor([[1.0], [2.0], [2.0], [5.0], [5.0]]), torch.tensor([0, 0, 0, 1, 1])
    assert segment_argmax(values, bag_of_row, 2).squeeze().tolist() == [1, 3]
    assert segment_rank(values, bag_of_row, 2).squeeze().tolist() == [2, 0, 1, 0, 1]


def test_bags_need_not_be_stored_one_after_the_other() -> None:
    values = torch.randn((9, 2), generator=torch.Generator().manual_seed(0))
    bag_of_row = torch.tensor([2, 0, 1, 2, 0, 1, 1, 2, 2])
    rank = segment_rank(values, bag_of_row, 3)
    for index in range(3):
        part, inside = values[bag_of_row == index], rank[bag_of_row == index]
        assert torch.equal(part.gather(0, inside.argsort(0)), part.sort(0, descending=True).values)


def test_rows_at_minus_infinity_have_no_share_and_no_gradient() -> None:
    logits = torch.tensor([[0.0], [-torch.inf], [1.0], [3.0]], requires_grad=True)
    softmax = segment_softmax(logits, torch.tensor([0, 0, 0, 1]), 2)
    assert softmax[1].item() == 0
    assert softmax[[0, 2]].sum().item() == 1
    softmax[0].sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[1].item() == 0


def test_huge_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1e30], [0.0], [-1e30], [3e38]])
    softmax = segment_softmax(logits, torch.tensor([0, 0, 0, 1]), 2)
    assert softmax.squeeze().tolist() == [1.0, 0.0, 0.0, 1.0]


def test_half_precision_is_summed_in_float32() -> None:
    values = torch.ones((70_000, 1), dtype=torch.bfloat16)
    total = segment_sum(values, torch.zeros(70_000, dtype=torch.long), 1)
    assert total.dtype == torch.float32
    assert total.item() == 70_000


def test_the_softmax_has_the_gradient_of_the_softmax() -> None:
    logits = torch.randn((6, 2), generator=torch.Generator().manual_seed(3))
    weight = torch.randn((6, 2), generator=torch.Generator().manual_seed(4))
    bag_of_row = torch.tensor([0, 0, 0, 0, 1, 1])
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    (segment_softmax(ours, bag_of_row, 2) * weight).sum().backward()
    (torch.cat([part.softmax(0) for part in theirs.split([4, 2])]) * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 30))
def test_parts_are_the_same_bags_in_order_and_no_larger_than_they_must_be(
    sizes: list[int], rows: int
) -> None:
    rng = np.random.default_rng(0)
    bags = [bag(rng.random((n, 3)).astype(np.float32)) for n in sizes]
    whole, parts = pack(bags), pack_in_parts(bags, rows=rows)
    assert sum((part.sizes for part in parts), ()) == whole.sizes
    assert torch.equal(torch.cat([part.features for part in parts]), whole.features)
    assert torch.equal(torch.cat([part.places for part in parts]), whole.places)
    for part in parts:
        assert len(part.features) <= rows or len(part) == 1
        expected = torch.repeat_interleave(torch.arange(len(part)), torch.tensor(part.sizes))
        assert torch.equal(part.bag_of_row, expected)
    for one, two in pairwise(parts):
        assert len(one.features) + two.sizes[0] > rows
