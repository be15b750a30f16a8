"""Laws of the alignment loss: the formula, item by item; and that sites of a class move together."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mil.fewshot.alignment import alignment_loss
from wsi.errors import UsageError


def items(
    seed: int = 0, count: int = 14, classes: int = 3, sites: int = 3, length: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, length, dtype=torch.float64, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return z, labels, torch.randint(sites, (count,), generator=generator)


def naive(z: Tensor, labels: Tensor, sites: Tensor, temperature: float) -> float:
    """Equation 2 with the sets of this module, in loops over numbers."""
    units = [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in z.tolist()]

    def similarity(i: int, j: int) -> float:
        return sum(a * b for a, b in zip(units[i], units[j], strict=True)) / temperature

    found = []
    for i in range(len(units)):
        others = [j for j in range(len(units)) if j != i]
        positives = [j for j in others if labels[j] == labels[i] and sites[j] != sites[i]]
        negatives = [j for j in others if labels[j] != labels[i]]
        if positives:
            total = sum(math.exp(similarity(i, j)) for j in positives + negatives)
            terms = [math.log(math.exp(similarity(i, j)) / total) for j in positives]
            found.append(-sum(terms) / len(positives))
    return sum(found) / len(found) if found else 0.0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_it_is_the_formula(seed: int, temperature: float) -> None:
    z, labels, sites = items(seed, classes=1 + seed)
    ours = alignment_loss(z, labels, sites, temperature=temperature)
    assert ours.item() == pytest.approx(naive(z, labels, sites, temperature), rel=1e-12, abs=1e-12)


def test_neither_order_nor_scale_matters() -> None:
    z, labels, sites = items()
    loss = alignment_loss(z, labels, sites)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(alignment_loss(z[order], labels[order], sites[order]), loss)
    scales = torch.logspace(-200, 200, len(z), dtype=torch.float64)[:, None]  # squares of these are no floats
    torch.testing.assert_close(alignment_loss(z * scales, labels, sites), loss)
    torch.testing.assert_close(alignment_loss(z, 7 - labels, sites * 5), loss)


def test_gradients_and_their_gradients_are_those_of_differences() -> None:
    z, labels, sites = items(count=7, length=3)
    z.requires_grad_()
    torch.autograd.gradcheck(lambda z: alignment_loss(z, labels, sites), z)
    torch.autograd.gradgradcheck(lambda z: alignment_loss(z, labels, sites, temperature=0.5), z)


def test_it_works_under_the_transforms_of_torch_func() -> None:
    z, labels, sites = items(count=6, length=3)

    def loss(z: Tensor) -> Tensor:
        return alignment_loss(z, labels, sites)

    plain = z.clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(loss)(z), torch.autograd.grad(loss(plain), plain)[0])
    expected = torch.autograd.functional.hessian(loss, z)
    torch.testing.assert_close(torch.func.hessian(loss)(z), expected)
    torch.testing.assert_close(torch.func.jacrev(torch.func.grad(loss))(z), expected)
    many = torch.stack([z, z + 1, z.flip(0)])
    torch.testing.assert_close(torch.func.vmap(loss)(many), torch.stack([loss(one) for one in many]))
    tasks = torch.stack([labels, labels.flip(0), labels * 0])
    torch.testing.assert_close(
        torch.func.vmap(alignment_loss, (None, 0, None))(z, tasks, sites),
        torch.stack([alignment_loss(z, one, sites) for one in tasks]),
    )


def two_classes() -> tuple[Tensor, Tensor, float]:
    """Two classes of four items at two sites, and what the loss is if classes are points and opposite."""
    labels, sites = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    return labels, sites, math.log(2 + 4 * math.exp(-2 / 0.1))


def test_it_is_least_where_sites_coincide_and_classes_are_far_apart() -> None:
    labels, sites, least = two_classes()
    point = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    best = torch.where(labels[:, None] == 0, point, -point)
    assert alignment_loss(best, labels, sites).item() == pytest.approx(least, rel=1e-12)
    for seed in range(50):
        z = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert alignment_loss(z, labels, sites) > least
        assert alignment_loss(best + 0.05 * z, labels, sites) > least


def test_following_its_gradient_leads_there() -> None:
    labels, sites, least = two_classes()
    z = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimiser = torch.optim.Adam([z], lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        loss = alignment_loss(z, labels, sites)
        loss.backward()
        optimiser.step()
    assert loss.item() == pytest.approx(least, abs=1e-2)


def test_one_site_gives_nothing_to_align() -> None:
    z, labels, _ = items()
    for same in (torch.zeros_like(labels), labels):  # one site; and a site for each class
        leaf = z.clone().requires_grad_()
        loss = alignment_loss(leaf, labels, same)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        (second,) = torch.autograd.grad(gradient.sum(), leaf, allow_unused=True)
        assert loss.item() == 0
        assert not gradient.any()
        assert second is None or not second.any()
    assert alignment_loss(z[:0], labels[:0], labels[:0]).item() == 0
    assert alignment_loss(z[:1], labels[:1], labels[:1]).item() == 0


def test_moving_the_two_sites_of_a_class_together_lowers_it() -> None:
    labels, sites, _ = two_classes()
    generator = torch.Generator().manual_seed(3)
    classes, shift = torch.eye(6, dtype=torch.float64)[:2], torch.eye(6, dtype=torch.float64)[2]
    noise = 0.1 * torch.randn(8, 6, dtype=torch.float64, generator=generator) * (1 - shift)
    moved = (labels == 0).double()  # of one class only
    losses = [
        alignment_loss(
            classes[labels] + noise + apart * ((2 * sites - 1) * moved)[:, None] * shift, labels, sites
        ).item()
        for apart in (2.0, 1.0, 0.5, 0.25, 0.0)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1] + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nothing_is_infinite_at_the_ends_of_numbers(dtype: torch.dtype) -> None:
    z, labels, sites = items()
    largest = torch.finfo(dtype).max
    z = z.to(dtype) * (largest / z.abs().max().to(dtype))
    z[0], z[1] = 0, torch.finfo(dtype).tiny
    z[2] = z[3]
    for temperature in (1e-3, 0.1, 100.0):
        leaf = z.clone().requires_grad_()
        loss = alignment_loss(leaf, labels, sites, temperature=temperature)
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert leaf.grad is not None
        assert leaf.grad[3:].isfinite().all()


def test_what_is_no_such_loss_is_refused() -> None:
    z, labels, sites = items()
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="temperature"):
            alignment_loss(z, labels, sites, temperature=temperature)
    with pytest.raises(ValueError, match="do not fit"):
        alignment_loss(z, labels[1:], sites)
