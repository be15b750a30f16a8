"""Laws of choosing: folds that judge fairly, a pick never below prototypes, and words that are true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.bags import Bag, PackedBags, each_alone, pack
from mil.fewshot.choosing import (
    LARGEST,
    LEAST,
    Choice,
    choose,
    facts,
    fit_temperature_of_few,
    make_folds,
    some_of,
)
from mil.fewshot.methods import Method, Prototypes, Support
from mil.heads import Head
from wsi.errors import UsageError

Numbers = NDArray[np.int64]


# Folds ---------------------------------------------------------------------------------------------------


def draw_marks(seed: int) -> tuple[Numbers, Numbers]:
    """Labels and regions of some tiles: each class has two regions at least, of any size."""
    rng = np.random.default_rng(seed)
    labels, groups = list[int](), list[int]()
    for label in range(rng.integers(2, 5)):
        for _ in range(rng.integers(2, 9)):
            count = int(rng.integers(1, 12))
            labels += [label] * count
            groups += [len(groups) * 7 + label] * count
    order = rng.permutation(len(labels))
    return np.array(labels, np.int64)[order], np.array(groups, np.int64)[order]


@pytest.mark.parametrize("seed", range(20))
def test_regions_are_whole_and_every_class_is_learnt_from_in_every_fold(seed: int) -> None:
    labels, groups = draw_marks(seed)
    folds = make_folds(labels, groups)
    assert folds.keep_groups
    assert len(folds) == min(10, len(set(groups.tolist())))
    assert all(len(set(folds.of_bag[groups == group].tolist())) == 1 for group in set(groups.tolist()))
    judged = np.concatenate([part for _, part in folds])
    assert sorted(judged.tolist()) == list(range(len(labels)))
    for learnt, part in folds:
        assert set(labels[learnt].tolist()) == set(labels.tolist())
        assert set(learnt.tolist()).isdisjoint(part.tolist())
        assert len(part)


@pytest.mark.parametrize("count", [2, 3, 5, 40])
def test_with_one_region_of_a_class_single_bags_are_left_out(count: int) -> None:
    labels = np.array([0] * count + [1] * 9)
    groups = np.array([0] * count + [1] * 4 + [2] * 5)
    folds = make_folds(labels, groups)
    assert not folds.keep_groups
    assert len(folds) == 10
    for learnt, _ in folds:
        assert set(labels[learnt].tolist()) == {0, 1}


def test_patients_with_slides_of_two_classes_are_kept_whole_only_if_every_fold_can_learn() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1])
    folds = make_folds(labels, np.array([0, 0, 1, 1, 2, 2]))
    assert (folds.keep_groups, len(folds)) == (True, 3)
    shared = make_folds(np.array([0, 1, 0, 1, 1, 1]), np.array([0, 0, 1, 2, 3, 3]))
    for learnt, _ in shared:
        assert set(np.array([0, 1, 0, 1, 1, 1])[learnt].tolist()) == {0, 1}


@pytest.mark.parametrize("labels", [[0, 0, 1], [0, 0, 0], [0, 1]])
def test_what_cannot_be_held_out_is_refused(labels: list[int]) -> None:
    with pytest.raises(UsageError, match="nothing can be held out") as refused:
        make_folds(np.array(labels), np.arange(len(labels)))
    assert "Label two of each" in str(refused.value)


# Candidates ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Oracle:
    """Says what it is told to say: the features are the numbers of the bags."""

    name: str
    says: Tensor
    """``(n, C)``."""
    refuses: bool = False

    def fit(self, support: Support) -> Head:
        """Not called."""
        raise NotImplementedError

    def judge(self, supports: Sequence[Support], queries: Sequence[PackedBags]) -> list[Tensor]:
        """What it was told to."""
        if self.refuses:
            raise UsageError("it was learnt for 7 classes")
        for support, query in zip(supports, queries, strict=True):
            assert not set(support.bags.features[:, 0].tolist()) & set(query.features[:, 0].tolist())
        return [self.says[query.features[:, 0].long()] for query in queries]


LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
SUPPORT = Support(each_alone(torch.arange(8.0)[:, None]), LABELS, 2)
GROUPS = np.array([0, 0, 1, 1, 2, 2, 3, 3])
RIGHT = torch.nn.functional.one_hot(LABELS).float() * 4


def wrong_in(*bags: int, sharpness: float = 1.0) -> Tensor:
    says = sharpness * RIGHT
    says[list(bags)] = says[list(bags)].flip(1)
    return says


def chosen(*methods: Method, wanted: str | None = None) -> Choice:
    return choose(methods, SUPPORT, GROUPS, wanted=wanted)


def test_the_best_is_taken_and_never_what_is_below_prototypes() -> None:
    plain = Oracle("prototypes", wrong_in(0, 5))
    choice = chosen(plain, Oracle("worse", wrong_in(0, 1, 5)), Oracle("better", wrong_in(5)))
    assert choice.picked.method.name == "better"
    assert choice.picked.balanced_accuracy == 0.875
    assert "highest balanced accuracy, 0.875 against 0.750 of prototypes" in choice.why
    assert "4-fold cross-validation on 8 marked (regions or patients kept whole)" in choice.why
    choice = chosen(plain, Oracle("worse", wrong_in(0, 1, 5)))
    assert choice.picked.method.name == "prototypes"
    assert "nothing did better" in choice.why


def test_of_equals_the_surer_one_is_taken_and_of_these_the_simplest() -> None:
    plain = Oracle("prototypes", wrong_in(0, 5))
    unsure = wrong_in(0, 5)
    unsure[[0, 5]] /= 4  # as often wrong, but not so sure of it
    choice = chosen(plain, Oracle("humble", unsure))
    assert choice.picked.method.name == "humble"
    assert "of equal balanced accuracy with prototypes, 0.750, and a lower log loss" in choice.why
    same = Oracle("same", wrong_in(0, 5))
    assert chosen(plain, same).picked.method.name == "prototypes"
    assert chosen(plain, Oracle("first", unsure), Oracle("second", unsure)).picked.method.name == "first"


def test_a_learner_that_is_asked_for_is_taken_and_called_below_where_it_is() -> None:
    plain, worse = Oracle("prototypes", wrong_in(5)), Oracle("worse", wrong_in(0, 5))
    choice = chosen(plain, worse, wanted="worse")
    assert choice.picked.method.name == "worse"
    assert "worse was asked for" in choice.why
    assert "0.750, BELOW the 0.875 of prototypes" in choice.why
    choice = chosen(plain, Oracle("better", RIGHT), wanted="better")
    assert "BELOW" not in choice.why
    assert "1.000, and that of prototypes 0.875" in choice.why


def test_what_cannot_be_tried_is_left_out_and_named() -> None:
    plain, refusing = Oracle("prototypes", RIGHT), Oracle("other", RIGHT, refuses=True)
    diverged = wrong_in()
    diverged[3, 1] = torch.nan
    choice = chosen(plain, refusing, Oracle("wild", diverged))
    assert [name for name, _ in choice.left_out] == ["other", "wild"]
    told = facts(choice)
    assert told["picked"] == "prototypes"
    assert told["left out: other"] == "it was learnt for 7 classes"
    assert "diverged" in told["left out: wild"]
    assert told["tried: prototypes"].startswith("balanced accuracy 1.000, log loss 0.")
    with pytest.raises(UsageError, match="other cannot be used: it was learnt for 7 classes"):
        chosen(plain, refusing, wanted="other")
    with pytest.raises(UsageError, match="no learner 'nope' in this META") as refused:
        chosen(plain, wanted="nope")
    assert "Use one of prototypes" in str(refused.value)


def test_marks_of_one_region_are_said_to_flatter() -> None:
    choice = choose([Oracle("prototypes", RIGHT)], SUPPORT, np.array([0, 0, 0, 0, 1, 1, 2, 2]))
    assert "flatters all of them: mark two regions of each class" in choice.why
    assert len(choice.folds) == 8


@pytest.mark.parametrize("seed", range(4))
def test_each_bag_is_judged_by_a_head_that_did_not_learn_from_its_region(seed: int) -> None:
    labels, groups = draw_marks(seed)
    classes = int(labels.max()) + 1
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.normal(size=(len(labels), 5)).astype(np.float32))
    method = Prototypes(torch.zeros(5))
    support = Support(each_alone(features), torch.from_numpy(labels), classes)
    choice = choose([method], support, groups)
    for learnt, judged in choice.folds:
        head = method.fit(Support(each_alone(features[learnt]), torch.from_numpy(labels[learnt]), classes))
        with torch.no_grad():
            expected = head(each_alone(features[judged])).logits
        np.testing.assert_allclose(choice.picked.logits[judged], expected, rtol=1e-4, atol=1e-4)


# Parts ---------------------------------------------------------------------------------------------------


def test_some_of_a_support_is_what_packing_these_bags_gives() -> None:
    rng = np.random.default_rng(0)
    bags = [
        Bag(
            f"s{number}",
            rng.normal(size=(rows, 3)).astype(np.float32),
            rng.integers(0, 9, (rows, 2)).astype(np.int32),
        )
        for number, rows in enumerate((3, 1, 4, 2))
    ]
    support = Support(pack(bags), torch.tensor([0, 1, 1, 0]), 2)
    some = some_of(support, np.array([2, 0]))
    expected = pack([bags[2], bags[0]])
    for name in ("features", "bag_of_row", "places"):
        assert torch.equal(getattr(some.bags, name), getattr(expected, name))
    assert some.bags.sizes == expected.sizes
    assert some.labels.tolist() == [1, 0]
    assert some.classes == 2


@pytest.mark.parametrize("seed", range(6))
def test_the_temperature_is_that_of_a_search_over_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, count = int(rng.integers(2, 5)), int(rng.integers(8, 40))
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, count - classes)])
    logits = rng.normal(size=(count, classes)) * 3
    logits[np.arange(count), labels] += rng.uniform(0, 8)
    sizes = np.bincount(labels)

    def loss(temperature: float) -> float:
        scaled = logits / temperature
        log_p = scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True)
        total = 0.0
        for row, label in zip(log_p, labels, strict=True):
            for k in range(classes):
                target = (sizes[label] + 1 if k == label else 1) / (sizes[label] + classes)
                total -= target * row[k]
        return total / count

    grid = np.geomspace(LEAST, LARGEST, 2000)
    best = min(loss(one) for one in grid)
    found = fit_temperature_of_few(logits, labels)
    assert LEAST <= found <= LARGEST
    assert loss(found) <= best + 1e-6


def test_bags_that_are_all_judged_rightly_do_not_ask_for_endless_certainty() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    for size in (1e-3, 1.0, 50.0, 5000.0):
        temperature = fit_temperature_of_few(np.eye(2)[labels] * size, labels)
        chance = 1 / (1 + np.exp(-size / temperature))
        assert abs(chance - 4 / 5) < 1e-3  # (n + 1) / (n + C)
