"""Heads as pure functions of their weights: what a meta-learner asks of them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional
from torch.testing import assert_close

from mil.bags import PackedBags, each_alone
from mil.heads import Head, HeadOutput

Weights = dict[str, Tensor]
Rows = Callable[..., Tensor]
Packed = Callable[..., PackedBags]
Make = Callable[..., Head]

NO_VMAP = {"dtfd of picked tiles": "which tiles are handed on depends on the weights, and so do shapes"}
EMBEDS = {"linear", "mean", "max_embedding", "abmil", "gated_abmil", "clam_sb", "transmil", "acmil"}
STEPS, RATE = 2, 0.4


def weights_of(head: Head) -> Weights:
    return {name: parameter.detach() for name, parameter in head.named_parameters()}


def logits_of(head: Head, weights: Weights, bags: PackedBags) -> Tensor:
    output: HeadOutput = functional_call(head, weights, (bags,))
    return output.logits


def with_last_layer(head: Head, weight: Tensor, bias: Tensor) -> Weights:
    """The head's weights with others in its last layer."""
    weights = weights_of(head)
    last = {f"{head.last_layer}.weight": weight, f"{head.last_layer}.bias": bias}
    return weights | {name: value for name, value in last.items() if name in weights}


def some_bags(rows: Rows, packed: Packed) -> PackedBags:
    return packed([rows(20), rows(1, 1), rows(9, 2)])


def test_a_head_is_the_function_of_its_own_weights(head: Head, rows: Rows, packed: Packed) -> None:
    bags = some_bags(rows, packed)
    with torch.inference_mode():
        called: HeadOutput = functional_call(head, weights_of(head), (bags,))
        direct: HeadOutput = head(bags)
    assert torch.equal(called.logits, direct.logits)
    assert torch.equal(called.attention_logits, direct.attention_logits)


def test_the_last_layer_ends_in_the_logits(head: Head, rows: Rows, packed: Packed) -> None:
    """It is linear, with a row for each class, and what is added to its bias is added to the logits."""
    layer = head.get_submodule(head.last_layer)
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == head.classes
    bags = some_bags(rows, packed)
    other = copy.deepcopy(head)
    changed = other.get_submodule(head.last_layer)
    assert isinstance(changed, nn.Linear)
    with torch.no_grad():
        if changed.bias is None:
            changed.weight.mul_(2)
            assert_close(other(bags).logits, 2 * head(bags).logits)
        else:
            moved = torch.arange(3.0)
            changed.bias.add_(moved)
            share = 0.5 if head.name == "dsmil" else 1.0  # the other half is its other stream's
            assert_close(other(bags).logits - head(bags).logits, share * moved.expand(3, -1))


def is_linear_of_an_embedding(head: Head, bags: PackedBags) -> bool:
    """Whether logits are the last layer of what they are with an identity in it, for any number of rows."""
    layer = head.get_submodule(head.last_layer)
    assert isinstance(layer, nn.Linear)
    width = layer.in_features
    other = torch.randn((5, width + 1), generator=torch.Generator().manual_seed(7))
    weight, bias = other[:, :-1], other[:, -1]
    with torch.inference_mode():
        try:
            z = logits_of(head, with_last_layer(head, torch.eye(width), torch.zeros(width)), bags)
            many = logits_of(head, with_last_layer(head, weight, bias), bags)
        except RuntimeError:  # shapes that are those of its classes
            return False
        own = functional.linear(z, layer.weight, layer.bias)
        assert z.shape == (len(bags), width)
        return torch.allclose(many, functional.linear(z, weight, bias), atol=1e-5) and torch.allclose(
            logits_of(head, weights_of(head), bags), own, atol=1e-5
        )


def test_a_head_that_embeds_is_linear_in_its_embedding(head: Head, rows: Rows, packed: Packed) -> None:
    """One that does not is not, but for dtfd, whose first tier has classes of its own to pick tiles by."""
    assert head.embeds is (head.name in EMBEDS)
    obeys = head.embeds or head.name == "dtfd"
    assert is_linear_of_an_embedding(head, some_bags(rows, packed)) is obeys
    assert is_linear_of_an_embedding(head, each_alone(rows(6))) or not head.embeds


@pytest.mark.parametrize("alone", [False, True], ids=["bags", "tiles"])
def test_many_sets_of_weights_at_once_are_one_after_the_other(
    alone: bool, variant: str, make: Make, rows: Rows, packed: Packed
) -> None:
    """Tiles one by one, and larger bags too."""
    if variant in NO_VMAP:
        pytest.skip(NO_VMAP[variant])
    heads = [make(variant, seed=seed).eval() for seed in range(3)]
    weights, _ = stack_module_state(heads)
    bags = each_alone(rows(6)) if alone else some_bags(rows, packed)
    with torch.no_grad():
        stacked = vmap(lambda one: logits_of(heads[0], one, bags))(weights)
        assert_close(stacked, torch.stack([head(bags).logits for head in heads]))


def test_what_cannot_be_done_at_once_is_said_by_torch(make: Make, rows: Rows, packed: Packed) -> None:
    """So that the list of exceptions has none that are none."""
    for variant in NO_VMAP:
        weights, _ = stack_module_state([make(variant, seed=seed).eval() for seed in range(2)])
        head, bags = make(variant).eval(), some_bags(rows, packed)
        with pytest.raises(RuntimeError, match="vmap"):
            vmap(lambda one, head=head, bags=bags: logits_of(head, one, bags))(weights)


def in_float64(head: Head, bags: PackedBags) -> tuple[Head, PackedBags]:
    return head.double(), PackedBags(bags.features.double(), bags.bag_of_row, bags.places, bags.sizes)


def test_float64_goes_through_every_head(head: Head, rows: Rows, packed: Packed) -> None:
    """Weights are changed by less than a float32 can tell, and logits follow in proportion.

    With a cast to float32 on the way they would stay, or jump.
    """
    head, bags = in_float64(head, some_bags(rows, packed))
    weights = weights_of(head)
    with torch.no_grad():
        still = logits_of(head, weights, bags)
        one, two = (
            logits_of(head, {name: weight * (1 + by) for name, weight in weights.items()}, bags) - still
            for by in (1e-10, 2e-10)
        )
    assert still.dtype == torch.float64
    assert_close(2 * one, two, atol=1e-14, rtol=1e-4)
    assert (one != 0).all()


def test_constants_of_float64_are_float64(head: Head, rows: Rows, packed: Packed) -> None:
    """What a head makes on the way (one over the number of tiles) does not depend on torch's default type."""
    head, bags = in_float64(head, some_bags(rows, packed))
    with torch.inference_mode():
        usual: HeadOutput = head(bags)
        torch.set_default_dtype(torch.float64)
        try:
            wide: HeadOutput = head(bags)
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(usual.logits, wide.logits)
    assert torch.equal(usual.attention_logits, wide.attention_logits)
    if usual.contributions is not None and wide.contributions is not None:
        assert torch.equal(usual.contributions, wide.contributions)


def test_the_derivative_through_steps_of_gradient_descent_is_exact(
    head: Head, rows: Rows, packed: Packed
) -> None:
    """Two steps on some bags, then the loss of others: by autograd, and by central differences.

    The largest tile of a maximum may change within a difference, where there is no derivative; the seeds are
    of points where none does.
    """
    head, support = in_float64(head, packed([rows(6), rows(1, 1), rows(10, 2)]))
    _, query = in_float64(head, packed([rows(5, 3), rows(8, 4)]))
    labels, wanted = torch.tensor([0, 1, 2]), torch.tensor([2, 0])

    def loss(weights: Weights, bags: PackedBags, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits_of(head, weights, bags), labels)

    def after_steps(weights: Weights) -> Tensor:
        for _ in range(STEPS):
            slopes = grad(loss)(weights, support, labels)
            weights = {name: weight - RATE * slopes[name] for name, weight in weights.items()}
        return loss(weights, query, wanted)

    weights = weights_of(head)
    slopes = grad(after_steps)(weights)
    generator = torch.Generator().manual_seed(11)
    h = 1e-6
    for _ in range(3):
        direction = {
            name: torch.randn(weight.shape, dtype=torch.float64, generator=generator)
            for name, weight in weights.items()
        }
        ahead, behind = (
            after_steps({name: weight + step * direction[name] for name, weight in weights.items()})
            for step in (h, -h)
        )
        found = sum(((slopes[name] * direction[name]).sum() for name in weights), torch.zeros(()))
        assert_close(found, (ahead - behind) / (2 * h), atol=1e-7, rtol=1e-4)


def test_the_second_derivative_is_no_part_that_could_be_missed(make: Make, rows: Rows) -> None:
    """Without it, the derivative through the same steps is another one: the law above can fail."""
    head, bags = in_float64(make("gated_abmil").eval(), each_alone(rows(6)))
    labels = torch.arange(6) % 3

    def loss(weights: Weights) -> Tensor:
        return functional.cross_entropy(logits_of(head, weights, bags), labels)

    def after_a_step(weights: Weights, *, second: bool) -> Tensor:
        slopes = grad(loss)(weights)
        parts = {name: slope if second else slope.detach() for name, slope in slopes.items()}
        return loss({name: weight - RATE * parts[name] for name, weight in weights.items()})

    exact, first = (
        grad(lambda weights, second=second: after_a_step(weights, second=second))(weights_of(head))
        for second in (True, False)
    )
    assert max(float((exact[name] - first[name]).abs().max()) for name in exact) > 1e-3
