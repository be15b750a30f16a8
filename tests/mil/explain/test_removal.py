"""Laws of removal curves, against a loop that takes tiles away."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mil.bags import Bag, PackedBags, pack
from mil.ensemble import Ensemble
from mil.explain import explain, judge
from mil.explain.removal import SHARES, removal_curves
from mil.heads import Head, HeadOutput, build_head

MakeBag = Callable[..., Bag]
DIM, CLASSES = 6, 3


@torch.inference_mode()
def probability(head: Head, bag: Bag, class_index: int, temperature: float = 1.0) -> float:
    return float((head(pack([bag])).logits[0].double() / temperature).softmax(dim=0)[class_index])


def test_curves_are_those_of_a_loop_that_takes_tiles_away(head: Head, make_bag: MakeBag) -> None:
    bag = make_bag(9)
    scores = np.random.default_rng(1).permutation(9).astype(np.float64)
    curves = removal_curves(head, bag, scores, 1)
    left, seen = sorted(range(9), key=lambda row: scores[row]), {}
    while left:  # the most relevant goes first
        seen[len(left)] = probability(head, bag.read(np.array(left)), 1)
        left.pop()
    kept = np.rint(curves.kept * 9).astype(int).tolist()
    np.testing.assert_allclose(curves.deletion, [seen[k] for k in kept], atol=1e-5)
    left, seen = sorted(range(9), key=lambda row: scores[row]), {}
    while left:  # the least relevant goes first
        seen[len(left)] = probability(head, bag.read(np.array(left)), 1)
        left.pop(0)
    np.testing.assert_allclose(curves.insertion, [seen[k] for k in kept], atol=1e-5)
    assert curves.insertion[-1] == curves.deletion[-1]


@pytest.mark.parametrize("count", [2, 3, 10, 457])
def test_no_bag_is_ever_empty_and_the_whole_one_is_there(make_bag: MakeBag, count: int) -> None:
    sizes: list[int] = []

    class Counts(HasNeedle):
        def forward(self, bags: PackedBags) -> HeadOutput:
            sizes.extend(bags.sizes)
            return super().forward(bags)

    curves = removal_curves(Counts(), make_bag(count), np.arange(count, dtype=np.float64), 1)
    assert min(sizes) >= 1
    assert sizes.count(count) == 1
    assert (np.diff(curves.kept) > 0).all()
    assert curves.kept[-1] == 1
    assert len(curves.kept) <= len(SHARES)


class HasNeedle(Head):
    """Says yes with 0.99 where a tile has a positive first feature, else no."""

    name = "has_needle"

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.classes, self.settings = DIM, 2, {}
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, bags: PackedBags) -> HeadOutput:
        found = torch.stack([(rows[:, 0] > 0).any() for rows in bags.features.split(bags.sizes)])
        log_odds = np.log(99) * (2 * found.float() - 1)
        return HeadOutput(torch.stack([-log_odds, log_odds], dim=1) / 2, bags.features[:, :1])


def test_the_gain_of_who_knows_is_almost_one_and_that_of_who_lies_is_its_negative() -> None:
    features = -np.ones((200, DIM), np.float32)
    features[[5, 40], 0] = 1
    bag = Bag("s", features, np.zeros((200, 2), np.int32))
    truth = (features[:, 0] > 0).astype(np.float64)
    curves = removal_curves(HasNeedle(), bag, truth, 1)
    np.testing.assert_allclose(curves.insertion, 0.99, atol=1e-6)
    np.testing.assert_allclose(curves.deletion[:-1], 0.01, atol=1e-6)
    assert curves.gain == pytest.approx(0.98 * (1 - 0.01 / 0.99 / 2), abs=1e-6)
    assert removal_curves(HasNeedle(), bag, -truth, 1).gain == pytest.approx(-curves.gain, abs=0.02)
    high, low = curves.at(np.array(SHARES))
    assert (high[:-1] > low[:-1]).all()


def test_scores_reversed_turn_the_gain_round(head: Head, make_bag: MakeBag) -> None:
    bag = make_bag()
    scores = explain(head, bag, 2, method="single")
    straight, reversed_ = (removal_curves(head, bag, s, 2).gain for s in (scores, -scores))
    assert straight == pytest.approx(-reversed_, abs=1e-5)


def test_only_the_order_of_scores_counts(head: Head, make_bag: MakeBag) -> None:
    bag = make_bag()
    scores = explain(head, bag, 2, method="single")
    straight = removal_curves(head, bag, scores, 2)
    bent = removal_curves(head, bag, np.exp(scores / 10), 2)
    np.testing.assert_array_equal(straight.insertion, bent.insertion)


def test_equal_scores_are_in_an_order_that_the_slide_does_not_decide() -> None:
    """Needles at the front of each bag: an order that fell back on the tiles' would look like knowledge."""
    gains = []
    for index in range(300):
        features = -np.ones((10, DIM), np.float32)
        features[:2, 0] = 1
        bag = Bag(f"s{index}", features, np.zeros((10, 2), np.int32))
        gains.append(removal_curves(HasNeedle(), bag, np.zeros(10), 1).gain)
    assert abs(np.mean(gains)) < 0.1
    assert np.std(gains) > 0.3
    first, second = (removal_curves(HasNeedle(), bag, np.zeros(10), 1).gain for _ in range(2))
    assert first == second


def test_an_ensemble_is_judged_by_its_mean_calibrated_probability(make_bag: MakeBag) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = tuple(build_head("gated_abmil", dim=DIM, classes=CLASSES).eval() for _ in range(2))
    bag, temperatures = make_bag(), (0.5, 3.0)
    curves = removal_curves(Ensemble(heads, temperatures), bag, np.arange(9.0), 1)
    top = bag.read(np.array([8]))
    expected = np.mean([probability(h, top, 1, t) for h, t in zip(heads, temperatures, strict=True)])
    assert curves.insertion[0] == pytest.approx(expected, abs=1e-6)


def test_the_size_of_slices_changes_nothing(
    head: Head, make_bag: MakeBag, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag = make_bag()
    straight = removal_curves(head, bag, np.arange(9.0), 0)
    monkeypatch.setattr(judge, "ROWS_PER_SLICE", 7)
    sliced = removal_curves(head, bag, np.arange(9.0), 0)
    np.testing.assert_allclose(straight.insertion, sliced.insertion, atol=1e-5)
    np.testing.assert_allclose(straight.deletion, sliced.deletion, atol=1e-5)


def test_one_tile_has_no_curves(make_bag: MakeBag) -> None:
    with pytest.raises(ValueError, match="two tiles"):
        removal_curves(HasNeedle(), make_bag(1), np.zeros(1), 0)
    with pytest.raises(ValueError, match="a score for each"):
        removal_curves(HasNeedle(), make_bag(4), np.zeros(3), 0)
