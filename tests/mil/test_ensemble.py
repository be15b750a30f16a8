"""Laws of the ensemble: the mean of its members' calibrated probabilities, whatever mode they are in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mil.bags import Bag
from mil.ensemble import Ensemble, as_ensemble, bag_logits, in_eval_mode
from mil.heads import Head, build_head
from mil.predict import predict_bag
from wsi.errors import UsageError

DIM, CLASSES = 12, 3


def make_head(name: str = "gated_abmil", *, seed: int = 0, dim: int = DIM) -> Head:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_head(name, dim=dim, classes=CLASSES)


def make_bag(count: int = 20, *, seed: int = 0) -> Bag:
    features = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float16)
    origins = np.stack([np.arange(count) % 5, np.arange(count) // 5], axis=1).astype(np.int32) * 256
    return Bag(slide_id=f"s{seed}", features=features, origins=origins)


@pytest.fixture
def ensemble() -> Ensemble:
    return Ensemble(tuple(make_head(seed=seed).train() for seed in range(3)), (0.5, 1.0, 3.0))


def test_a_prediction_is_the_mean_of_the_members_calibrated_softmax(ensemble: Ensemble) -> None:
    bag = make_bag()
    prediction = predict_bag(ensemble, bag)
    each = [
        torch.softmax(torch.from_numpy(bag_logits(member, [bag])[0]) / temperature, dim=0)
        for member, temperature in zip(ensemble.members, ensemble.temperatures, strict=True)
    ]
    np.testing.assert_allclose(prediction.member_probabilities, torch.stack(each), rtol=1e-9)
    np.testing.assert_allclose(prediction.probabilities, torch.stack(each).mean(dim=0), rtol=1e-9)
    np.testing.assert_allclose(prediction.spread, torch.stack(each).std(dim=0), rtol=1e-9)
    assert prediction.probabilities.sum() == pytest.approx(1)


def test_tile_scores_and_attention_are_means_over_members(ensemble: Ensemble) -> None:
    bag = make_bag()
    prediction = predict_bag(ensemble, bag)
    each = [
        predict_bag(Ensemble((member,), (temperature,)), bag)
        for member, temperature in zip(ensemble.members, ensemble.temperatures, strict=True)
    ]
    scores = np.mean([one.tile_scores for one in each], axis=0)
    np.testing.assert_allclose(prediction.tile_scores, scores, atol=1e-6)
    attention = np.mean([one.attention for one in each], axis=0)
    np.testing.assert_allclose(prediction.attention, attention, atol=1e-7)
    assert prediction.attention.sum() == pytest.approx(1, abs=1e-5)


def test_who_agrees_has_no_spread_and_who_is_alone_neither() -> None:
    bag, head = make_bag(), make_head()
    for model in (head, as_ensemble(head), Ensemble((head, head), (1.0, 1.0))):
        prediction = predict_bag(model, bag)
        assert prediction.spread.tolist() == [0.0] * CLASSES
        assert prediction.information == pytest.approx(0, abs=1e-12)
        np.testing.assert_array_equal(prediction.probabilities, predict_bag(head, bag).probabilities)


def test_information_is_how_far_members_disagree(ensemble: Ensemble) -> None:
    prediction = predict_bag(ensemble, make_bag())
    p = prediction.member_probabilities
    mean = p.mean(axis=0)
    expected = -(mean * np.log(mean)).sum() + (p * np.log(p)).sum(axis=1).mean()
    assert prediction.information == pytest.approx(expected)
    assert expected > 0


@pytest.mark.parametrize("name", ["transmil", "clam_mb", "dtfd", "acmil", "dsmil", "mean"])
def test_every_kind_of_head_makes_an_ensemble(name: str) -> None:
    ensemble = Ensemble((make_head(name), make_head(name, seed=1)), (1.0, 2.0))
    one, two = predict_bag(ensemble, make_bag()), predict_bag(ensemble, make_bag())
    np.testing.assert_array_equal(one.probabilities, two.probabilities)
    np.testing.assert_array_equal(one.tile_scores, two.tile_scores)
    assert one.tile_scores.shape == (20, CLASSES)
    np.testing.assert_allclose(one.tile_scores.sum(axis=1), 1, rtol=1e-5)


def test_logits_are_those_of_eval_mode_and_of_each_slide_alone() -> None:
    head, bags = make_head().train(), [make_bag(n, seed=n) for n in (1, 7, 30)]
    together = bag_logits(head, bags)
    assert together.dtype == np.float64
    assert (together == np.concatenate([bag_logits(head, [bag]) for bag in bags])).all()
    assert (together == bag_logits(head.eval(), bags)).all()


def test_every_part_is_left_in_the_mode_that_it_was_in() -> None:
    head = make_head().train()
    head.dropout.eval()
    with in_eval_mode(head):
        assert not any(part.training for part in head.modules())
    assert head.training
    assert not head.dropout.training


def test_what_is_no_ensemble_is_refused() -> None:
    with pytest.raises(UsageError, match="0 heads"):
        Ensemble((), ())
    with pytest.raises(UsageError, match="2 heads of 1 shapes and 1 temperatures"):
        Ensemble((make_head(), make_head()), (1.0,))
    with pytest.raises(UsageError, match="of 2 shapes"):
        Ensemble((make_head(), make_head(dim=9)), (1.0, 1.0))
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="temperatures"):
            Ensemble((make_head(),), (temperature,))
