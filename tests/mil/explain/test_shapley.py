"""Laws of Shapley values: the axioms, and both ways to them against one another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mil.bags import Bag, pack
from mil.explain import Effort, explain
from mil.explain.judge import Voice
from mil.explain.shapley import Coalitions, exact_values, shapley_values, tile_groups, values_in_orders
from mil.heads import Head

MakeBag = Callable[..., Bag]
Worth = Callable[[Coalitions], NDArray[np.float64]]


def table_game(players: int, seed: int = 0) -> Worth:
    """A game with a random worth for each coalition."""
    table = np.random.default_rng(seed).normal(size=2**players)
    return lambda coalitions: table[coalitions @ (1 << np.arange(players))]


def pair_game(players: int) -> Worth:
    """A game in which players are worth something alone and in pairs, and nothing more in larger groups."""
    rng = np.random.default_rng(1)
    alone, together = rng.normal(size=players), rng.normal(size=(players, players))
    return lambda c: c @ alone + np.einsum("si,ij,sj->s", c * 1.0, together, c * 1.0)


@pytest.mark.parametrize("players", [1, 2, 5])
def test_all_orders_give_what_all_coalitions_give(players: int) -> None:
    worth = table_game(players)
    orders = np.array(list(permutations(range(players))))
    np.testing.assert_allclose(values_in_orders(worth, orders), exact_values(worth, players), atol=1e-12)


def test_few_coalitions_are_all_tried_and_many_are_not() -> None:
    asked: list[int] = []

    def worth(coalitions: Coalitions) -> NDArray[np.float64]:
        asked.append(len(coalitions))
        return coalitions.sum(axis=1).astype(np.float64) ** 2

    shapley_values(worth, 5, pairs=4, seed=[0])
    shapley_values(worth, 12, pairs=4, seed=[0])
    assert asked[0] == 2**5
    assert 12 < asked[1] <= 2 * 4 * 11 + 2


@pytest.mark.parametrize(("players", "pairs"), [(4, 50), (12, 1), (12, 4), (40, 3)])
def test_values_sum_to_what_there_is_to_share(players: int, pairs: int) -> None:
    worth = pair_game(players)
    values = shapley_values(worth, players, pairs=pairs, seed=[3])
    ends = worth(np.array([[False] * players, [True] * players]))
    assert values.sum() == pytest.approx(ends[1] - ends[0], abs=1e-11)


@pytest.mark.parametrize("pairs", [2, 200])
def test_who_adds_nothing_gets_nothing(pairs: int) -> None:
    inner = table_game(7)
    values = shapley_values(lambda c: inner(np.delete(c, 3, axis=1)), 8, pairs=pairs, seed=[0])
    assert values[3] == 0
    assert (np.delete(values, 3) != 0).all()


def test_who_can_be_exchanged_gets_the_same() -> None:
    inner = table_game(4)

    def worth(c: Coalitions) -> NDArray[np.float64]:
        either, both = c[:, 0] | c[:, 1], c[:, 0] & c[:, 1]
        return inner(np.column_stack([either, both, c[:, 2:]]))

    values = exact_values(worth, 4)
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    assert values[0] != pytest.approx(values[2], abs=1e-3)


def test_the_value_of_a_sum_of_games_is_the_sum_of_values() -> None:
    first, second = table_game(6), table_game(6, seed=1)
    for value in (
        lambda worth: exact_values(worth, 6),
        lambda worth: shapley_values(worth, 6, pairs=1, seed=[2]),
    ):
        both = value(lambda c: first(c) + 2 * second(c))
        np.testing.assert_allclose(both, value(first) + 2 * value(second), atol=1e-12)


def test_an_order_and_its_reverse_are_exact_for_pairs() -> None:
    """What two players are worth together goes to one of them in one order, to the other in the reverse."""
    worth = pair_game(9)
    sampled = shapley_values(worth, 9, pairs=1, seed=[5])
    np.testing.assert_allclose(sampled, exact_values(worth, 9), atol=1e-11)
    one_way = values_in_orders(worth, np.random.default_rng(0).permutation(9)[None])
    assert np.abs(one_way - exact_values(worth, 9)).max() > 0.1


def test_more_orders_come_closer() -> None:
    worth = table_game(10)
    exact = exact_values(worth, 10)
    off = [
        np.mean([np.abs(shapley_values(worth, 10, pairs=p, seed=[s]) - exact).mean() for s in range(5)])
        for p in (1, 4, 16)
    ]
    assert off[0] > 1.5 * off[1] > 2.25 * off[2]


@torch.inference_mode()
def spoken(head: Head, bag: Bag) -> float:
    return float(Voice(head, 1).log_odds(head(pack([bag])).logits))


@pytest.mark.parametrize("count", [1, 4, 30])
def test_tiles_share_what_the_bag_says_more_than_nothing(head: Head, make_bag: MakeBag, count: int) -> None:
    bag = make_bag(count)
    scores = explain(head, bag, 1, method="shapley", effort=Effort(clusters=7))
    nothing = replace(bag.read(np.array([0])), features=0 * bag.features[:1])
    assert scores.sum() == pytest.approx(spoken(head, bag) - spoken(head, nothing), abs=1e-3)
    assert len(np.unique(scores)) <= 7


def test_a_tile_for_itself_is_valued_by_the_formula(head: Head, make_bag: MakeBag) -> None:
    """Four tiles: all coalitions, each judged as a bag of its own."""
    bag = make_bag(4)
    nothing = spoken(head, replace(bag.read(np.array([0])), features=0 * bag.features[:1]))
    worth = {(): nothing}
    for size in range(1, 5):
        worth |= {some: spoken(head, bag.read(np.array(some))) for some in combinations(range(4), size)}
    expected = np.zeros(4)
    for order in permutations(range(4)):
        for place, tile in enumerate(order):
            before, after = (tuple(sorted(order[:end])) for end in (place, place + 1))
            expected[tile] += (worth[after] - worth[before]) / math.factorial(4)
    found = explain(head, bag, 1, method="shapley", effort=Effort(permutation_pairs=4))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_like_tiles_are_a_group_and_no_group_is_empty(make_bag: MakeBag) -> None:
    bag = make_bag(3)
    many = bag.read(np.repeat([0, 1, 2], 20))
    group = tile_groups(many, count=12, seed=[0])  # three different tiles, and twelve groups asked for
    assert len(np.unique(group)) == group.max() + 1 == 3
    assert (group.reshape(3, 20) == group[::20, None]).all()
    spread = tile_groups(make_bag(200), count=12, seed=[0])
    assert (np.bincount(spread) > 0).all()
    assert len(np.bincount(spread)) == 12
    np.testing.assert_array_equal(spread, tile_groups(make_bag(200), count=12, seed=[0]))
    np.testing.assert_array_equal(tile_groups(make_bag(5), count=5, seed=[0]), np.arange(5))
