"""Laws of ways to learn: against plain references, alone or side by side, in whatever order marks come."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import ortho_group
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.testing import assert_close

from mil.adaptors.principal import Principal
from mil.bags import PackedBags, each_alone
from mil.fewshot.learners import LastLayer
from mil.fewshot.methods import Logistic, Method, Prototypes, Stepping, Support, fit_logistic
from mil.fewshot.stacking import plain
from mil.heads import build_head
from mil.heads.adapted import AdaptedHead
from mil.metalearning import rates_of
from mil.networks.weights import digest_state
from wsi.errors import UsageError

DIM = 7
RNG = np.random.default_rng(5)
MEAN = torch.from_numpy(RNG.normal(size=DIM)).float()
FRONT = Principal(DIM, components=5)
FRONT.set_statistics(MEAN, torch.from_numpy(ortho_group.rvs(DIM, random_state=5)[:5]), torch.tensor(1.5))
SIZES = (3, 1, 5, 2)
"""Tiles of the bags, over and over."""


def make_bags(classes: int, each: int, *, of_tiles: bool, seed: int = 0) -> tuple[PackedBags, Tensor]:
    """Bags of each class, mixed up, and their labels."""
    rng = np.random.default_rng([seed, classes])
    labels = rng.permutation(np.arange(classes).repeat(each))
    sizes = (1,) * len(labels) if of_tiles else tuple(np.resize(SIZES, len(labels)).tolist())
    of_row = np.arange(len(labels)).repeat(sizes)
    centres = np.random.default_rng(classes).normal(size=(classes, DIM))
    rows = (centres[labels[of_row]] + rng.normal(size=(len(of_row), DIM))).astype(np.float32)
    if of_tiles:
        return each_alone(torch.from_numpy(rows)), torch.from_numpy(labels)
    places = torch.zeros((len(of_row), 2), dtype=torch.int64)
    return PackedBags(torch.from_numpy(rows), torch.from_numpy(of_row), places, sizes), torch.from_numpy(
        labels
    )


def make_support(classes: int, each: int, *, of_tiles: bool, seed: int = 0) -> Support:
    return Support(*make_bags(classes, each, of_tiles=of_tiles, seed=seed), classes)


def reordered(support: Support, order: NDArray[np.int64], names: NDArray[np.int64]) -> Support:
    """The same bags in another order, class k called names[k]."""
    bags = support.bags
    rows = np.concatenate([np.flatnonzero(bags.bag_of_row.numpy() == bag) for bag in order])
    sizes = tuple(bags.sizes[bag] for bag in order)
    packed = PackedBags(
        bags.features[rows], torch.from_numpy(np.arange(len(order)).repeat(sizes)), bags.places[rows], sizes
    )
    return Support(packed, torch.from_numpy(names)[support.labels[order]], support.classes)


def make_stepping(
    start: LastLayer, *, head: str = "mean", classes: int = 3, last_only: bool = False
) -> Stepping:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = build_head(head, dim=FRONT.width, classes=classes, settings={"hidden": 9})
    rates = rates_of(dict(made.named_parameters()), 0.2)
    return Stepping("steps", made.eval(), rates, 4, start, last_only, FRONT)


METHODS: dict[str, Method] = {
    "prototypes": Prototypes(MEAN),
    "logistic": Logistic(MEAN),
    "zero": make_stepping(LastLayer.ZERO),
    "anil": make_stepping(LastLayer.ZERO, last_only=True),
    "proto": make_stepping(LastLayer.PROTOTYPES),
    "attention": make_stepping(LastLayer.ZERO, head="gated_abmil"),
}


def bag_means(bags: PackedBags, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    of_row = bags.bag_of_row.numpy()
    return np.stack([rows[of_row == bag].mean(axis=0) for bag in range(len(bags))])


def unit(bags: PackedBags) -> NDArray[np.float64]:
    """``(n, D)``: of each bag the mean of its rows, centred and scaled to unit length."""
    shifted = bags.features.double().numpy() - MEAN.double().numpy()
    return bag_means(bags, shifted / np.linalg.norm(shifted, axis=1, keepdims=True))


# Against references --------------------------------------------------------------------------------------


@pytest.mark.parametrize("of_tiles", [True, False])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_prototypes_are_the_nearest_class_mean_of_centred_unit_vectors(classes: int, of_tiles: bool) -> None:
    support = make_support(classes, 4, of_tiles=of_tiles)
    query, _ = make_bags(classes, 9, of_tiles=of_tiles, seed=1)
    seen, asked, labels = unit(support.bags), unit(query), support.labels.numpy()
    means = np.stack([seen[labels == label].mean(axis=0) for label in range(classes)])
    distances = ((asked[:, None] - means) ** 2).sum(axis=2)  # (q, C)
    (logits,) = METHODS["prototypes"].judge([support], [query])
    scores = -10 * (distances - (asked**2).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(logits.numpy(), scores, rtol=1e-4, atol=1e-4)
    assert (logits.argmax(dim=1).numpy() == distances.argmin(axis=1)).all()


def reference(classes: int, *, strength: float) -> LogisticRegression:
    """scikit-learn's; of two classes it has one row of weights, the difference, whose norm counts twice."""
    return LogisticRegression(C=strength * (2 if classes == 2 else 1), max_iter=5000, tol=1e-8)


@pytest.mark.parametrize("of_tiles", [True, False])
@pytest.mark.parametrize(("classes", "each"), [(2, 3), (2, 40), (3, 1), (4, 30)])
def test_logistic_is_plain_scikit_learn_on_what_prototypes_see(
    classes: int, each: int, of_tiles: bool
) -> None:
    support = make_support(classes, each, of_tiles=of_tiles)
    query, _ = make_bags(classes, 9, of_tiles=of_tiles, seed=1)
    found = reference(classes, strength=100).fit(unit(support.bags), support.labels.numpy())
    (logits,) = METHODS["logistic"].judge([support], [query])
    expected = found.predict_proba(unit(query))
    np.testing.assert_allclose(logits.softmax(dim=1).numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_turning_vectors_into_their_span_changes_no_weight(classes: int) -> None:
    """There are far more features than vectors, as with any encoder."""
    rng = np.random.default_rng(classes)
    labels = np.arange(classes).repeat(4)
    vectors = rng.normal(size=(len(labels), 300)) + 0.5 * labels[:, None]
    weight, bias = fit_logistic(vectors, labels, strength=0.3)
    plainly = reference(classes, strength=0.3).fit(vectors, labels)
    if classes == 2:
        np.testing.assert_allclose((weight[1] - weight[0])[None], plainly.coef_, atol=1e-4)
        np.testing.assert_allclose(bias[1] - bias[0], plainly.intercept_[0], atol=1e-4)
    else:
        np.testing.assert_allclose(weight, plainly.coef_, atol=1e-4)
        differences = bias - bias.mean() - (plainly.intercept_ - plainly.intercept_.mean())
        np.testing.assert_allclose(differences, 0, atol=1e-4)


def test_what_has_no_features_of_its_own_is_still_judged() -> None:
    """A tile at the centre has no direction, and marks that are all alike span nothing."""
    features = MEAN.expand(4, DIM).clone()
    support = Support(each_alone(features), torch.tensor([0, 0, 1, 1]), 2)
    for name in ("prototypes", "logistic"):
        (logits,) = METHODS[name].judge([support], [each_alone(features)])
        assert_close(logits.softmax(dim=1), torch.full((4, 2), 0.5), atol=1e-5, rtol=0)


# What all have in common ---------------------------------------------------------------------------------


@pytest.mark.parametrize("of_tiles", [True, False])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", METHODS)
def test_a_fitted_head_says_what_was_judged_alone_or_side_by_side(
    name: str, classes: int, of_tiles: bool
) -> None:
    method = METHODS[name]
    supports = [make_support(classes, 3, of_tiles=of_tiles, seed=seed) for seed in range(3)]
    queries = [make_bags(classes, 4, of_tiles=of_tiles, seed=10 + seed)[0] for seed in range(3)]
    together = method.judge(supports, queries)
    for support, query, logits in zip(supports, queries, together, strict=True):
        head = method.fit(support)
        assert not head.training
        assert head.classes == classes
        with torch.no_grad():
            assert_close(head(query).logits, logits, rtol=1e-3, atol=1e-4)
        (alone,) = method.judge([support], [query])
        assert_close(alone, logits, rtol=1e-3, atol=1e-4)
        assert not logits.requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_tasks_of_different_shapes_are_judged_too(name: str) -> None:
    supports = [make_support(2, 3, of_tiles=True), make_support(3, 2, of_tiles=False)]
    queries = [make_bags(2, 1, of_tiles=True)[0], make_bags(3, 4, of_tiles=False)[0]]
    found = METHODS[name].judge(supports, queries)
    assert [tuple(logits.shape) for logits in found] == [(2, 2), (12, 3)]


@pytest.mark.parametrize("of_tiles", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_neither_the_order_of_marks_nor_of_classes_changes_what_is_said(name: str, of_tiles: bool) -> None:
    support = make_support(4, 3, of_tiles=of_tiles)
    query, _ = make_bags(4, 5, of_tiles=of_tiles, seed=1)
    rng = np.random.default_rng(0)
    order, names = rng.permutation(12), np.array([2, 0, 3, 1])
    (said,) = METHODS[name].judge([support], [query])
    (again,) = METHODS[name].judge([reordered(support, order, names)], [query])
    assert_close(again[:, names].softmax(dim=1), said.softmax(dim=1), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_said_of_a_query_depends_on_no_other_query(name: str) -> None:
    support = make_support(3, 3, of_tiles=True)
    query, _ = make_bags(3, 5, of_tiles=True, seed=1)
    (said,) = METHODS[name].judge([support], [query])
    (alone,) = METHODS[name].judge([support], [each_alone(query.features[4:5])])
    assert_close(alone[0], said[4], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_torch_s_generators_are_left_alone(name: str) -> None:
    support = make_support(3, 3, of_tiles=True)
    state = torch.get_rng_state()
    METHODS[name].fit(support)
    METHODS[name].judge([support], [support.bags])
    assert torch.equal(state, torch.get_rng_state())


def test_a_learner_of_three_classes_without_embeddings_refuses_two() -> None:
    method = make_stepping(LastLayer.LEARNT, head="max_instance")
    assert method.fit(make_support(3, 2, of_tiles=True)).classes == 3
    with pytest.raises(UsageError, match="learnt for 3 classes, and there are 2"):
        method.judge([make_support(2, 2, of_tiles=True)], [make_bags(2, 1, of_tiles=True)[0]])


def test_no_steps_leave_a_zero_start_undecided_and_steps_decide_it() -> None:
    support = make_support(3, 6, of_tiles=True)
    idle = replace(make_stepping(LastLayer.ZERO), steps=0)
    (logits,) = idle.judge([support], [support.bags])
    assert not logits.any()
    (logits,) = METHODS["zero"].judge([support], [support.bags])
    assert (logits.argmax(dim=1) == support.labels).float().mean() > 0.6


def test_anil_moves_the_last_layer_alone() -> None:
    head = METHODS["anil"].fit(make_support(3, 3, of_tiles=True))
    assert isinstance(head, AdaptedHead)
    kept = make_stepping(LastLayer.ZERO).head.state_dict()
    moved = {name for name, value in head.head.state_dict().items() if not torch.equal(value, kept[name])}
    assert moved == {"W.weight", "W.bias"}
    assert digest_state(head.front.state_dict()) == digest_state(FRONT.state_dict())


def test_bags_of_one_tile_are_features_and_others_stay_bags() -> None:
    assert isinstance(plain(make_bags(2, 2, of_tiles=True)[0]), Tensor)
    assert isinstance(plain(make_bags(2, 2, of_tiles=False)[0]), PackedBags)
