"""Nyström attention against exact attention, and its inverse against LAPACK's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mil.heads.nystrom import Landmarks, attend, attention_of_first, block_means, pseudo_inverse


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)


def test_as_many_landmarks_as_tokens_are_exact_attention() -> None:
    q, k, v = (draw(2, 3, 9, 4, seed=s) for s in range(3))
    landmarks = Landmarks.of(q, k, count=9, iterations=6)
    assert_close(attend(q, k, v, landmarks), exact(q, k) @ v)
    assert_close(attention_of_first(q, k, landmarks), exact(q, k)[:, :, 0].mean(1))


def test_tokens_that_are_their_landmarks_are_attended_exactly() -> None:
    """Five blocks of four equal queries and keys: nothing is lost by taking their means."""
    q, k = (3 * draw(2, 3, 5, 4, seed=s).repeat_interleave(4, dim=2) for s in range(2))
    v = draw(2, 3, 20, 4, seed=2)
    landmarks = Landmarks.of(q, k, count=5, iterations=40)
    assert landmarks is not None
    assert_close(attend(q, k, v, landmarks), exact(q, k) @ v, atol=1e-3, rtol=1e-3)
    assert_close(attention_of_first(q, k, landmarks), exact(q, k)[:, :, 0].mean(1), atol=1e-3, rtol=1e-3)


def test_the_attention_shown_is_the_attention_used() -> None:
    q, k = (draw(2, 3, 23, 4, seed=s) for s in range(2))
    landmarks = Landmarks.of(q, k, count=5, iterations=6)
    one_hot = torch.eye(23).expand(2, 3, 23, 23)
    used = attend(q, k, one_hot, landmarks)[:, :, 0].mean(1)
    assert_close(attention_of_first(q, k, landmarks), used)


@pytest.mark.parametrize("tokens", [6, 7, 8, 11, 12, 13])
def test_landmarks_are_means_of_tokens_and_of_nothing_else(tokens: int) -> None:
    x = draw(1, 2, tokens, 4)
    block = -(-tokens // 4)
    means = block_means(x, block)
    assert means.shape[2] <= 4
    ends = range(tokens, 0, -block)
    expected = [x[:, :, max(0, end - block) : end].mean(2) for end in ends]
    assert_close(means, torch.stack(expected[::-1], dim=2))


def test_the_iteration_converges_to_the_pseudo_inverse() -> None:
    x = exact(3 * draw(4, 6, 5), 3 * draw(4, 6, 5, seed=1)).double()
    assert_close(pseudo_inverse(x, 40), torch.linalg.pinv(x), atol=1e-6, rtol=1e-6)


def test_the_inverse_of_one_matrix_does_not_depend_on_another() -> None:
    mild, harsh = exact(draw(1, 6, 5), draw(1, 6, 5)), exact(40 * draw(1, 6, 5), 40 * draw(1, 6, 5, seed=1))
    together = pseudo_inverse(torch.cat([mild, harsh]), 6)
    assert_close(together[:1], pseudo_inverse(mild, 6), atol=1e-6, rtol=1e-6)


def test_more_landmarks_are_closer_to_exact_attention() -> None:
    q, k, v = (draw(1, 2, 96, 8, seed=s) for s in range(3))
    truth = exact(q, k) @ v
    errors = [
        (attend(q, k, v, Landmarks.of(q, k, count=count, iterations=30)) - truth).norm() for count in (4, 96)
    ]
    assert errors[1] < 1e-3 * errors[0]
