"""Laws of learners: where a last layer begins, and that a head of the adapted parameters says the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from mil.bags import PackedBags
from mil.fewshot.learners import LastLayer, Learner, class_means
from mil.fewshot.methods import Stepping, Support
from mil.heads import HEADS, Head, build_head
from mil.metalearning import Inner, rates_of
from wsi.errors import UsageError

DIM, SMALL = 6, {"hidden": 8}
EMBEDS = sorted(name for name, head in HEADS.items() if head.embeds)
OTHERS = sorted(HEADS.keys() - set(EMBEDS))
SETTINGS: dict[str, dict[str, int]] = {"linear": {}, "dsmil": {}, "transmil": {"hidden": 8, "heads": 2}}
NOT_LEARNT = (LastLayer.ZERO, LastLayer.PROTOTYPES)


def make_head(name: str, *, classes: int = 3, seed: int = 0) -> Head:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = build_head(
            name, dim=DIM, classes=classes, settings=SETTINGS.get(name, SMALL), adaptor="unit_length"
        )
    centre = torch.from_numpy(np.random.default_rng(seed).normal(size=DIM))
    head.load_state_dict({**head.state_dict(), "front.centre": centre})
    return head.eval()


def draw_tiles(classes: int, each: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of tiles, class after class."""
    rng = np.random.default_rng([seed, classes])
    labels = np.arange(classes).repeat(each)
    features = 2 * rng.normal(size=(classes, DIM))[labels] + rng.normal(size=(len(labels), DIM))
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels)


def as_bags(features: Tensor, sizes: tuple[int, ...]) -> PackedBags:
    numbers = np.arange(len(sizes)).repeat(sizes)
    places = np.stack([np.arange(len(numbers)), np.zeros(len(numbers), np.int64)], axis=1)
    return PackedBags(features, torch.from_numpy(numbers), torch.from_numpy(places), sizes)


def stepping(head: Head, start: LastLayer, *, steps: int = 3, rate: float = 0.1) -> Stepping:
    return Stepping("learner", head, rates_of(dict(head.named_parameters()), rate), steps, start)


@pytest.mark.parametrize("name", EMBEDS)
def test_an_embedding_is_what_the_last_layer_sees(name: str) -> None:
    head = make_head(name)
    bags = as_bags(draw_tiles(3, 4)[0], (3, 1, 8))
    learner, parameters = Learner(head, 3, LastLayer.LEARNT), dict(head.named_parameters())
    weight, bias = (parameters[part] for part in learner.of_last_layer)
    assert_close(learner.embed(parameters, bags) @ weight.T + bias, head(bags).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EMBEDS)
def test_a_zero_start_leads_where_any_start_of_equal_rows_leads(name: str) -> None:
    head = make_head(name)
    features, labels = draw_tiles(4, 3)
    learner = Learner(head, 4, LastLayer.ZERO)
    parameters = dict(head.named_parameters())
    inner = Inner(learner.loss, steps=3, start=learner.start)
    rates = rates_of(parameters, 0.1)
    zero = inner.adapt(parameters, rates, (features, labels))
    row = torch.from_numpy(
        np.random.default_rng(1).normal(size=parameters[learner.of_last_layer[0]].shape[1])
    )
    begun = learner.start(parameters, (features, labels))
    equal = begun | {
        learner.of_last_layer[0]: row.float().expand(4, -1).clone(),
        learner.of_last_layer[1]: torch.full((4,), 0.7),
    }
    other = Inner(learner.loss, steps=3).adapt(equal, rates, (features, labels))
    query, _ = draw_tiles(4, 5, seed=1)
    said, again = (learner.logits(one, query).log_softmax(dim=1) for one in (zero, other))
    assert_close(said, again, rtol=1e-4, atol=1e-5)
    assert (said.softmax(dim=1) - 0.25).abs().max() > 0.001  # it has moved


@pytest.mark.parametrize("name", EMBEDS)
def test_logits_of_a_prototype_start_rank_classes_by_the_squared_distance(name: str) -> None:
    head = make_head(name)
    (features, labels), (query, _) = draw_tiles(4, 3), draw_tiles(4, 5, seed=1)
    learner, parameters = Learner(head, 4, LastLayer.PROTOTYPES), dict(head.named_parameters())
    logits = learner.logits(learner.start(parameters, (features, labels)), query)
    z, asked = (learner.embed(parameters, one).detach().double().numpy() for one in (features, query))
    centres = np.stack([z[labels.numpy() == label].mean(axis=0) for label in range(4)])
    distances = ((asked[:, None] - centres) ** 2).sum(axis=2)  # (q, C)
    expected = (asked**2).sum(axis=1, keepdims=True) - distances
    assert_close(logits.detach().double().numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", NOT_LEARNT)
@pytest.mark.parametrize("name", OTHERS)
def test_a_head_without_embeddings_has_no_other_start_than_the_learnt_one(
    name: str, start: LastLayer
) -> None:
    with pytest.raises(UsageError, match=f"head '{name}' sees no embedding") as refused:
        Learner(make_head(name), 3, start)
    assert refused.value.action is not None
    assert "gated_abmil" in refused.value.action


@pytest.mark.parametrize("name", sorted(HEADS))
def test_a_learnt_start_is_for_as_many_classes_as_it_was_learnt_with(name: str) -> None:
    head = make_head(name)
    with pytest.raises(UsageError, match="learnt for 3 classes, and there are 4"):
        Learner(head, 4, LastLayer.LEARNT)
    parameters = dict(head.named_parameters())
    learner = Learner(head, 3, LastLayer.LEARNT)
    assert all(learner.start(parameters, draw_tiles(3, 1))[key] is parameters[key] for key in parameters)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("start", NOT_LEARNT)
@pytest.mark.parametrize("name", EMBEDS)
def test_one_learner_adapts_to_any_number_of_classes_and_its_head_stands_by_itself(
    name: str, start: LastLayer, classes: int
) -> None:
    method = stepping(make_head(name), start)
    features, labels = draw_tiles(classes, 4)
    support = Support(as_bags(features, (2,) * (2 * classes)), labels[::2].contiguous(), classes)
    query = as_bags(draw_tiles(classes, 3, seed=1)[0], (1, 3 * classes - 1))
    head = method.fit(support)
    assert (head.classes, head.adaptor, head.training) == (classes, "unit_length", False)
    (judged,) = method.judge([support], [query])
    with torch.no_grad():
        assert_close(head(query).logits, judged, rtol=1e-4, atol=1e-5)


def test_adapting_leaves_the_head_its_mode_and_the_generators_alone() -> None:
    head = make_head("gated_abmil")
    method = stepping(head, LastLayer.ZERO)
    features, labels = draw_tiles(2, 3)
    support = Support(as_bags(features, (1,) * 6), labels, 2)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    state = torch.get_rng_state()
    method.fit(support)
    method.judge([support, support], [support.bags, support.bags])
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in head.state_dict().items())
    assert not head.training
    assert all(parameter.grad is None for parameter in head.parameters())


def test_class_means_are_those_of_numpy() -> None:
    features, labels = draw_tiles(3, 4)
    order = torch.from_numpy(np.random.default_rng(0).permutation(12))
    expected = [features.numpy()[labels.numpy() == label].mean(axis=0) for label in range(3)]
    found = class_means(features[order], labels[order], 3)
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=1e-5)
