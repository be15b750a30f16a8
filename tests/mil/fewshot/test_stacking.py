"""Tasks of slides side by side are what each is alone, for every head that says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mil.adaptors import ADAPTORS
from mil.bags import PackedBags, each_alone
from mil.fewshot import stacking
from mil.fewshot.learners import LastLayer
from mil.fewshot.methods import Stepping, Support
from mil.fewshot.stacking import Filled, packed, plain, stack
from mil.heads import HEADS, build_head
from mil.heads.gated_abmil import GatedABMIL
from mil.metalearning import Stack, Task, fomaml, maml, rates_of, reptile

DIM, CLASSES = 5, 3
STACKING = sorted(name for name, head in HEADS.items() if head.stacks)
SMALL = {"linear": {}, "mean": {"hidden": 4}, "max_embedding": {"hidden": 4}}


def draw_bags(count: int, *, seed: int, most: int = 6) -> PackedBags:
    rng = np.random.default_rng(seed)
    sizes = tuple(rng.integers(1, most + 1, count).tolist())
    features = torch.from_numpy(rng.normal(size=(sum(sizes), DIM)).astype(np.float32))
    places = torch.from_numpy(rng.integers(0, 9, (sum(sizes), 2)))
    return PackedBags(features, torch.from_numpy(np.arange(count).repeat(sizes)), places, sizes)


def draw_supports(tasks: int = 4) -> list[Support]:
    labels = torch.arange(CLASSES).repeat(2)
    return [Support(draw_bags(2 * CLASSES, seed=seed), labels, CLASSES) for seed in range(tasks)]


def make_stepping(name: str, start: LastLayer = LastLayer.ZERO) -> Stepping:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = SMALL.get(name, {"hidden": 4, "attention": 3})
        head = build_head(name, dim=DIM, classes=CLASSES, settings=settings).eval()
    return Stepping(name, head, rates_of(dict(head.named_parameters()), 0.3), 4, start)


def test_the_heads_that_stack_are_among_those_that_embed() -> None:
    assert {"mean", "gated_abmil"} <= set(STACKING)  # the defaults
    assert all(HEADS[name].embeds for name in STACKING)
    for adaptor in ADAPTORS:
        settings = {"adaptor.scales": 5} if adaptor in ("feature_pyramid", "cross_scale") else {}
        head = build_head("mean", dim=DIM, classes=CLASSES, adaptor=adaptor, settings=settings)
        assert head.stacks == (not ADAPTORS[adaptor].uses_places)


@pytest.mark.parametrize("start", [LastLayer.ZERO, LastLayer.PROTOTYPES])
@pytest.mark.parametrize("name", STACKING)
def test_judged_side_by_side_is_judged_alone(name: str, start: LastLayer) -> None:
    method, supports = make_stepping(name, start), draw_supports()
    queries = [draw_bags(5, seed=100 + number) for number in range(len(supports))]
    together = method.judge(supports, queries)
    for support, query, logits in zip(supports, queries, together, strict=True):
        with torch.no_grad():
            alone = method.fit(support)(query).logits
        assert logits.shape == (5, CLASSES)
        assert_close(logits, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("outer", [maml, fomaml, reptile])
@pytest.mark.parametrize("name", STACKING)
def test_slopes_of_a_stack_are_those_of_its_tasks(name: str, outer) -> None:  # type: ignore[no-untyped-def]
    method, supports = make_stepping(name, LastLayer.PROTOTYPES), draw_supports()
    queries = [
        Support(draw_bags(CLASSES, seed=50 + number), torch.arange(CLASSES), CLASSES)
        for number in range(len(supports))
    ]
    inner = method.inner(method.learner(CLASSES))
    alone = outer(
        inner,
        method.parameters,
        method.log_rates,
        [Task(support.data, query.data) for support, query in zip(supports, queries, strict=True)],
    )
    side_by_side = [
        (stack([one.bags for one in side]), torch.stack([one.labels for one in side]))
        for side in (supports, queries)
    ]
    together = outer(inner, method.parameters, method.log_rates, Stack(*side_by_side))
    assert_close(together.loss, alone.loss, rtol=1e-4, atol=1e-5)
    for found, expected in ((together.parameters, alone.parameters), (together.log_rates, alone.log_rates)):
        assert found.keys() == expected.keys()
        for key in found:
            assert_close(found[key], expected[key], rtol=1e-3, atol=1e-5)


def test_what_fills_up_changes_nothing_of_the_bags() -> None:
    bags = [draw_bags(3, seed=seed) for seed in range(3)]
    filled = stack(bags)
    assert isinstance(filled, Filled)
    most = max(len(one.features) for one in bags)
    assert filled.features.shape == (3, most + 1, DIM)
    for number, one in enumerate(bags):
        rows = len(one.features)
        of_task: tuple[Tensor, ...] = tuple(values[number] for values in filled)
        seen, count = packed(Filled(*of_task))
        assert (count, len(seen)) == (3, 4)
        assert torch.equal(seen.features[:rows], one.features)
        assert torch.equal(seen.bag_of_row[:rows], one.bag_of_row)
        assert torch.equal(seen.places[:rows], one.places)
        assert (seen.bag_of_row[rows:] == 3).all()
        assert of_task[3].tolist() == list(one.sizes)


def test_bags_of_one_tile_are_stacked_as_they_are() -> None:
    tasks = [each_alone(draw_bags(4, seed=seed, most=1).features) for seed in range(3)]
    stacked = stack(tasks)
    assert isinstance(stacked, Tensor)
    assert torch.equal(stacked, torch.stack([plain(one) for one in tasks]))  # type: ignore[arg-type]
    features = tasks[0].features
    seen, count = packed(features)
    assert (count, seen.sizes) == (4, (1, 1, 1, 1))


def test_what_cannot_be_side_by_side_is_judged_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of other numbers of bags, more rows than are allowed, and a head that does not stack."""
    assert stack([draw_bags(3, seed=0), draw_bags(4, seed=1)]) is None
    method, supports = make_stepping("gated_abmil"), draw_supports()
    queries = [draw_bags(5, seed=100 + number) for number in range(len(supports))]
    together = method.judge(supports, queries)
    monkeypatch.setattr(stacking, "MOST_ROWS", 10)
    assert stack(queries) is None
    for found, expected in zip(method.judge(supports, queries), together, strict=True):
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.undo()
    monkeypatch.setattr(GatedABMIL, "stacks", False)
    for found, expected in zip(method.judge(supports, queries), together, strict=True):
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
