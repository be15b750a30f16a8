"""Meta-gradients against finite differences, closed forms, and the curve of MAML's paper."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.testing import assert_close

from benchmarks import sinusoid
from mil.bags import PackedBags
from mil.heads import build_head
from mil.metalearning import (
    Data,
    Inner,
    Parameters,
    Slopes,
    Stack,
    Task,
    Tasks,
    adapt_tasks,
    fomaml,
    maml,
    rates_of,
    reptile,
)

Outer = Callable[[Inner, Parameters, Parameters, Tasks], Slopes]

STEPS, RATE, H = 3, 0.4, 1e-5
TASKS, SIZES, DIM, CLASSES = 4, (3, 1, 5, 2), 6, 2
LABELS = torch.tensor([0, 0, 1, 1])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """What is this small is slower with several."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# A gated attention head, and tasks of four bags ------------------------------------------------------------

with torch.random.fork_rng(devices=[]):
    torch.manual_seed(1)
    HEAD = build_head("gated_abmil", dim=DIM, classes=CLASSES, settings={"hidden": 5, "attention": 4})
    HEAD = HEAD.double().eval()
THETA = {name: parameter.detach() for name, parameter in HEAD.named_parameters()}
LAST = {name for name in THETA if name.startswith(f"{HEAD.last_layer}.")}


def packed(features: Tensor) -> PackedBags:
    bag_of_row = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    return PackedBags(features, bag_of_row, torch.zeros((sum(SIZES), 2), dtype=torch.int64), SIZES)


def of_bags(parameters: Parameters, features: Tensor) -> Tensor:
    """Cross-entropy of the four bags."""
    logits = functional_call(HEAD, dict(parameters), (packed(features),)).logits
    return functional.cross_entropy(logits, LABELS)


def from_prototypes(parameters: Parameters, support: Data) -> Parameters:
    """The last layer made of the support's embeddings, as proto-MAML does."""
    width = THETA["W.weight"].shape[1]
    identity = {
        "W.weight": torch.eye(width, dtype=torch.float64),
        "W.bias": torch.zeros(width, dtype=torch.float64),
    }
    z = functional_call(HEAD, {**parameters, **identity}, (packed(support),)).logits  # (4, L)
    means = z.view(CLASSES, 2, width).mean(dim=1)  # (C, L)
    return {**parameters, "W.weight": 2 * means, "W.bias": -means.square().sum(dim=1)}


SUPPORTS, QUERIES = (draw(TASKS, sum(SIZES), DIM, seed=seed) for seed in (1, 2))
BAGS = Stack(SUPPORTS, QUERIES)
WHOLE = Inner(of_bags, steps=STEPS)
INNERS = {
    "all layers": WHOLE,
    "the last layer": replace(WHOLE, moving=LAST),
    "from prototypes": replace(WHOLE, start=from_prototypes),
}
RATES = {name: log + 0.3 * draw(1, seed=i)[0] for i, (name, log) in enumerate(rates_of(THETA, RATE).items())}
"""Another for every layer."""


def one_by_one(stack: Stack) -> list[Task]:
    """The same tasks, not stacked."""

    def of(data: Data, i: int) -> Data:
        return tuple(part[i] for part in data) if isinstance(data, tuple) else data[i]

    count = len(stack.support[0]) if isinstance(stack.support, tuple) else len(stack.support)
    return [Task(of(stack.support, i), of(stack.query, i)) for i in range(count)]


def judged(inner: Inner, theta: Parameters, log_rates: Parameters) -> Tensor:
    """What MAML lowers: the mean loss of the queries after adapting. By values alone."""
    return vmap(of_bags)(adapt_tasks(inner, theta, log_rates, SUPPORTS), QUERIES).mean()


def differences(function: Callable[[dict[str, Tensor]], Tensor], at: Parameters) -> dict[str, Tensor]:
    """Central differences along every coordinate of every tensor."""
    found = {}
    for name, value in at.items():
        steps = H * torch.eye(value.numel(), dtype=value.dtype).view(-1, *value.shape)
        ahead, behind = (
            vmap(lambda moved, name=name: function({**at, name: moved}))(value + way * steps)
            for way in (1, -1)
        )
        found[name] = ((ahead - behind) / (2 * H)).view(value.shape)
    return found


def off(found: Parameters, expected: Parameters) -> float:
    """The largest error, in shares of the largest slope of its layer, or of a thousandth of the largest."""
    assert set(found) == set(expected)
    least = 1e-3 * max(float(value.abs().max()) for value in expected.values())
    return max(
        float((found[name] - value).abs().max()) / max(least, float(value.abs().max()))
        for name, value in expected.items()
    )


@pytest.mark.parametrize("name", INNERS)
def test_second_order_gradients_are_finite_differences_and_first_order_ones_are_not(name: str) -> None:
    """Three steps of a gated attention head, four tasks, every coordinate of every parameter."""
    inner = INNERS[name]
    expected = differences(lambda theta: judged(inner, theta, RATES), THETA)
    exact, first = (outer(inner, THETA, RATES, BAGS) for outer in (maml, fomaml))
    assert_close(exact.loss, judged(inner, THETA, RATES))
    assert_close(first.loss, exact.loss)
    assert off(exact.parameters, expected) < 1e-4
    assert off(first.parameters, expected) > 1e-2


@pytest.mark.parametrize("name", INNERS)
def test_gradients_of_learnt_rates_are_finite_differences(name: str) -> None:
    inner = INNERS[name]
    expected = differences(lambda rates: judged(inner, THETA, rates), RATES)
    found = maml(inner, THETA, RATES, BAGS).log_rates
    assert off(found, expected) < 1e-4
    for layer in THETA:
        assert bool(found[layer] == 0) == (inner.moving is not None and layer not in inner.moving)


def test_the_inner_loop_is_gradient_descent_of_a_copy() -> None:
    """By torch's own optimiser and autograd, with nothing functional."""
    adapted = WHOLE.adapt(THETA, RATES, SUPPORTS[0])
    other = copy.deepcopy(HEAD)
    groups = [
        {"params": [parameter], "lr": RATES[name].exp().item()}
        for name, parameter in other.named_parameters()
    ]
    optimizer = torch.optim.SGD(groups)
    for _ in range(STEPS):
        optimizer.zero_grad()
        functional.cross_entropy(other(packed(SUPPORTS[0])).logits, LABELS).backward()
        optimizer.step()
    assert_close(adapted, {name: parameter.detach() for name, parameter in other.named_parameters()})


def test_what_is_differentiated_or_not_has_the_same_values() -> None:
    first, second = (WHOLE.adapt(THETA, RATES, SUPPORTS[0], second_order=order) for order in (False, True))
    assert_close(first, second, atol=0, rtol=0)


@pytest.mark.parametrize("outer", [maml, fomaml, reptile], ids=lambda outer: outer.__name__)
def test_nothing_is_changed_on_the_way(outer: Outer) -> None:
    theta, rates = copy.deepcopy(THETA), copy.deepcopy(RATES)
    outer(WHOLE, theta, rates, BAGS)
    assert_close(theta, THETA, atol=0, rtol=0)
    assert_close(rates, RATES, atol=0, rtol=0)
    assert all(parameter.grad is None for parameter in HEAD.parameters())


@pytest.mark.parametrize("name", INNERS)
@pytest.mark.parametrize("outer", [maml, fomaml, reptile], ids=lambda outer: outer.__name__)
def test_tasks_side_by_side_are_tasks_one_after_the_other(outer: Outer, name: str) -> None:
    stacked, each = (outer(INNERS[name], THETA, RATES, tasks) for tasks in (BAGS, one_by_one(BAGS)))
    assert_close(stacked.loss, each.loss)
    assert_close(stacked.parameters, each.parameters)
    assert_close(stacked.log_rates, each.log_rates)


def test_adapting_side_by_side_is_adapting_one_after_the_other() -> None:
    together = adapt_tasks(WHOLE, THETA, RATES, SUPPORTS)
    for i in range(TASKS):
        alone = WHOLE.adapt(THETA, RATES, SUPPORTS[i])
        assert_close({name: values[i] for name, values in together.items()}, alone)


def test_only_the_last_layer_moves_where_that_is_asked() -> None:
    adapted = INNERS["the last layer"].adapt(THETA, RATES, SUPPORTS[0])
    assert {name for name, value in adapted.items() if not torch.equal(value, THETA[name])} == LAST
    everywhere = WHOLE.adapt(THETA, RATES, SUPPORTS[0])  # the bias of the attention cancels
    assert {name for name in THETA if torch.allclose(everywhere[name], THETA[name])} == {"w.bias"}


@pytest.mark.parametrize("name", INNERS)
def test_no_steps_lead_nowhere(name: str) -> None:
    """The start, and for Reptile no way to go; MAML is the gradient of the query's loss, as FOMAML is."""
    inner = replace(INNERS[name], steps=0)
    assert_close(
        inner.adapt(THETA, RATES, SUPPORTS[0]), dict(inner.start(THETA, SUPPORTS[0])), atol=0, rtol=0
    )
    assert_close(maml(inner, THETA, RATES, BAGS).parameters, fomaml(inner, THETA, RATES, BAGS).parameters)
    nowhere = reptile(inner, THETA, RATES, BAGS)
    assert all((value == 0).all() for value in (nowhere.parameters | nowhere.log_rates).values())


def test_fewer_than_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="-1 steps cannot be taken"):
        Inner(of_bags, steps=-1)


# A quadratic, where all is known ---------------------------------------------------------------------------

Quadratic = tuple[Tensor, Tensor]
"""Curvatures and the minimum, ``(2, 3)`` each: of the layers "a" and "b", three numbers each."""

MANY = 70
"""More than are adapted at a time."""
BEGIN = {"a": draw(3, seed=5), "b": draw(3, seed=6)}
OWN_RATES = {"a": torch.tensor(0.2).double().log(), "b": torch.tensor(0.05).double().log()}


def of_quadratic(parameters: Parameters, data: Quadratic) -> Tensor:
    curvature, minimum = data
    theta = torch.stack([parameters["a"], parameters["b"]])  # (2, 3)
    return (curvature * (theta - minimum).square()).sum() / 2


def quadratics(seed: int) -> Quadratic:
    """Of `MANY` tasks."""
    return draw(MANY, 2, 3, seed=seed).abs() + 0.5, draw(MANY, 2, 3, seed=seed + 1)


def layers(values: Tensor) -> dict[str, Tensor]:
    """``(MANY, 2, 3)`` or ``(MANY, 2)``: the mean over tasks, by layer."""
    return dict(zip(("a", "b"), values.mean(dim=0), strict=True))


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "one by one"])
@pytest.mark.parametrize("steps", [1, 4])
def test_outer_gradients_on_a_quadratic_are_their_closed_forms(steps: int, stacked: bool) -> None:
    """k steps shrink the distance to the support's minimum c, of curvature a, by (1 - rate a)^k."""
    (a, c), (b, d) = quadratics(10), quadratics(20)
    inner = Inner(of_quadratic, steps=steps)
    tasks: Tasks = Stack((a, c), (b, d))
    if not stacked:
        tasks = one_by_one(tasks)
    theta = torch.stack([BEGIN["a"], BEGIN["b"]])
    alpha = torch.stack([OWN_RATES["a"], OWN_RATES["b"]]).exp()[:, None]
    shrunk = (1 - alpha * a) ** steps  # (MANY, 2, 3)
    phi = c + shrunk * (theta - c)
    slope = b * (phi - d)  # of the query's loss

    first = fomaml(inner, BEGIN, OWN_RATES, tasks)
    assert_close(first.loss, (b * (phi - d) ** 2).sum(dim=(1, 2)).mean() / 2)
    assert_close(first.parameters, layers(slope))
    # With the inner gradients constant, what was walked is in proportion to the rate.
    assert_close(first.log_rates, layers((slope * (phi - theta)).sum(dim=2)))

    exact = maml(inner, BEGIN, OWN_RATES, tasks)
    assert_close(exact.parameters, layers(shrunk * slope))
    rise = (
        -steps * alpha * a * (1 - alpha * a) ** (steps - 1) * (theta - c)
    )  # of phi, by the rate's logarithm
    assert_close(exact.log_rates, layers((slope * rise).sum(dim=2)))

    way = reptile(inner, BEGIN, OWN_RATES, tasks)
    assert_close(way.loss, (a * (phi - c) ** 2).sum(dim=(1, 2)).mean() / 2)
    assert_close(way.parameters, layers((1 - shrunk) * (theta - c)))
    assert_close(way.log_rates, layers((a * (phi - c) * (phi - theta)).sum(dim=2)))


def test_reptile_comes_to_the_point_that_is_near_all_minima() -> None:
    """With one curvature for all tasks that is their mean, and steps of the whole way lead there at once."""
    a, c = torch.ones(MANY, 2, 3).double(), quadratics(10)[1]
    inner, tasks = Inner(of_quadratic, steps=2), Stack((a, c), (a, c))
    rates = rates_of(BEGIN, 1.0)
    way = reptile(inner, BEGIN, rates, tasks)
    assert_close({name: BEGIN[name] - way.parameters[name] for name in BEGIN}, layers(c))


def test_a_step_by_default_is_a_hundredth_of_the_gradient_and_there_are_five() -> None:
    a, c = (part[0] for part in quadratics(10))
    theta = torch.stack([BEGIN["a"], BEGIN["b"]])
    expected = c + (1 - 0.01 * a) ** 5 * (theta - c)
    adapted = Inner(of_quadratic).adapt(BEGIN, rates_of(BEGIN), (a, c))
    assert_close(torch.stack([adapted["a"], adapted["b"]]), expected)


# MAML's sinusoids ------------------------------------------------------------------------------------------


def test_maml_learns_sinusoids_as_its_paper_says() -> None:
    """The short form; `python -m benchmarks.sinusoid` is the whole."""
    begun = sinusoid.judge(sinusoid.learn(maml, iterations=0)).means
    means = sinusoid.judge(sinusoid.learn(maml, iterations=sinusoid.QUICK_ITERATIONS)).means
    assert means[1] < 1.4
    assert means[1] <= 0.45 * means[0]
    assert all(later < sooner for sooner, later in pairwise(means[1:]))
    assert begun[1] > 2 * means[1]
