"""Laws of losses, against the formula written out, and of class weights."""

from __future__ import annotations

import math

import pytest
import torch

from mil.training.losses import CrossEntropy, Focal, balanced_weights
from wsi.errors import UsageError

LOGITS = torch.randn((50, 3), generator=torch.Generator().manual_seed(0)) * 3
LABELS = torch.arange(50) % 3
EVEN = torch.ones(3)


def test_focal_loss_is_the_papers_formula() -> None:
    weights = torch.tensor([0.5, 1.0, 4.0])
    losses = Focal(gamma=1.5).criterion(weights)(LOGITS, LABELS)
    p = LOGITS.double().softmax(dim=1)[torch.arange(50), LABELS]
    expected = -weights.double()[LABELS] * (1 - p) ** 1.5 * p.log()
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=1e-6)


def test_focal_loss_without_gamma_is_cross_entropy() -> None:
    plain = CrossEntropy().criterion(EVEN)(LOGITS, LABELS)
    torch.testing.assert_close(Focal(gamma=0.0).criterion(EVEN)(LOGITS, LABELS), plain)
    torch.testing.assert_close(plain.mean(), torch.nn.functional.cross_entropy(LOGITS, LABELS))


def test_focal_loss_fades_what_is_judged_rightly_and_has_a_gradient_there() -> None:
    sure = torch.tensor([[30.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    losses = Focal().criterion(EVEN)(sure, torch.tensor([0, 0]))
    assert losses[0] < 1e-20 < losses[1]
    losses.sum().backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0])
def test_a_bag_that_is_certain_has_a_gradient_of_zero_and_not_nan(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [20.0, 0.0]], requires_grad=True)
    losses = Focal(gamma).criterion(torch.ones(2))(logits, torch.tensor([0, 0]))
    losses.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(2, 2), atol=1e-6, rtol=0)


def test_a_rare_class_weighs_as_much_as_a_common_one_in_all() -> None:
    labels = torch.tensor([0] * 90 + [1] * 9 + [3])
    weights = balanced_weights(labels, 4)
    each = [float(weights[c]) * n for c, n in ((0, 90), (1, 9), (3, 1))]
    assert each == pytest.approx([100 / 3] * 3)
    assert weights[2] == 0
    assert float(weights[labels].mean()) == pytest.approx(1)


def test_weights_do_not_cancel_in_a_batch_of_one_class() -> None:
    losses = CrossEntropy().criterion(torch.tensor([1.0, 5.0]))(torch.zeros((2, 2)), torch.tensor([1, 1]))
    assert losses.tolist() == pytest.approx([5 * math.log(2)] * 2)


@pytest.mark.parametrize("gamma", [-1.0, math.nan, math.inf])
def test_an_absurd_gamma_is_refused(gamma: float) -> None:
    with pytest.raises(UsageError, match="gamma"):
        Focal(gamma)
