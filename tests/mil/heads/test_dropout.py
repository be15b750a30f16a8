"""Our dropout against what dropout is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mil.heads.dropout import Dropout


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_is_left_out_and_the_mean_stays(share: float, dtype: torch.dtype) -> None:
    x = torch.ones((1000, 501), dtype=dtype)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        y = Dropout(share)(x)
    assert y.dtype == dtype
    left_out = (y == 0).float()
    error = 4 * (share * (1 - share) / y.numel()) ** 0.5 + 2**-16
    assert abs(left_out.mean().item() - share) < error
    assert y[y != 0].unique().item() == pytest.approx(1 / (1 - share), rel=5e-3)
    # Neighbours share a draw, and still know nothing of one another.
    together = (left_out[:, 1:] * left_out[:, :-1]).mean().item()
    assert together == pytest.approx(share**2, abs=4 * share / y.numel() ** 0.5)


def test_gradients_go_where_values_went() -> None:
    x = torch.randn((7, 9), generator=torch.Generator().manual_seed(0)).T.requires_grad_()
    y = Dropout(0.5)(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, 2.0))
    assert torch.equal(y, x * x.grad)


def test_it_repeats_with_the_generator_and_is_torchs_kind() -> None:
    x, dropout = torch.ones(1003), Dropout(0.3)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = dropout(x)
        torch.manual_seed(1)
        assert torch.equal(first, dropout(x))
        assert not torch.equal(first, dropout(x))
    assert isinstance(dropout, nn.Dropout)  # what looks for dropout layers, to leave them on, finds it
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.parametrize(("share", "left"), [(0.0, 1.0), (1.0, 0.0)])
def test_none_and_all_are_possible(share: float, left: float) -> None:
    assert torch.equal(Dropout(share)(torch.ones(5)), torch.full((5,), left))


def test_one_dropout_of_a_product_is_that_of_two_branches() -> None:
    """What the gated heads rely on: both branches kept, with probability and scale squared."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        ones = torch.ones(400_000)
        two = nn.Dropout(0.25)(ones) * nn.Dropout(0.25)(ones)
        one = Dropout(1 - 0.75**2)(ones)
    assert (two == 0).float().mean().item() == pytest.approx((one == 0).float().mean().item(), abs=5e-3)
    assert one.max().item() == pytest.approx(two.max().item(), rel=1e-4)
