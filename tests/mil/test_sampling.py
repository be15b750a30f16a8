"""Laws of drawing tiles: by seed, epoch and slide alone; never none; noise in the scale of the features."""

from __future__ import annotations

import numpy as np
import pytest

from mil.bags import Bag
from mil.training.sampling import Sampling


def make_bag(count: int, slide_id: str = "s", dim: int = 3) -> Bag:
    features = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32) * [1, 10, 100]
    origins = np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.int32)
    return Bag(slide_id=slide_id, features=features.astype(np.float32), origins=origins)


def drawn(sampling: Sampling, bag: Bag, *, seed: int = 0, epoch: int = 0) -> list[int]:
    return sampling.draw(bag, seed=seed, epoch=epoch).origins[:, 0].tolist()


def test_without_settings_the_bag_is_itself() -> None:
    bag = make_bag(9)
    assert Sampling().draw(bag, seed=0, epoch=0) is bag
    assert Sampling(tiles_per_bag=9).draw(bag, seed=0, epoch=0) is bag


@pytest.mark.parametrize("sampling", [Sampling(40), Sampling(0, 0.5), Sampling(40, 0.5)], ids=str)
def test_tiles_are_drawn_in_order_none_twice_by_seed_epoch_and_slide(sampling: Sampling) -> None:
    bag = make_bag(100)
    first = drawn(sampling, bag)
    assert first == sorted(set(first)) == drawn(sampling, bag)
    assert first != drawn(sampling, bag, epoch=1)
    assert first != drawn(sampling, bag, seed=2**63 - 1)
    assert first != drawn(sampling, make_bag(100, "another"))


def test_as_many_are_drawn_as_was_asked_for_and_each_as_often() -> None:
    bag, times = make_bag(10), np.zeros(10)
    for epoch in range(600):
        rows = drawn(Sampling(4), bag, epoch=epoch)
        assert len(rows) == 4
        times[rows] += 1
    assert abs(times - 240).max() < 5 * np.sqrt(600 * 0.4 * 0.6)


def test_instance_dropout_leaves_its_share_and_never_none() -> None:
    left = [len(drawn(Sampling(0, 0.25), make_bag(400), epoch=epoch)) for epoch in range(20)]
    assert np.mean(left) == pytest.approx(300, abs=10)
    assert {len(drawn(Sampling(0, 0.99), make_bag(2), epoch=epoch)) for epoch in range(50)} == {1}


def test_noise_has_the_scale_of_each_feature_and_leaves_the_bag_alone() -> None:
    bag = make_bag(4000)
    before = bag.features.copy()
    noisy = Sampling(feature_noise=0.5).draw(bag, seed=0, epoch=0)
    assert (bag.features == before).all()
    noise = noisy.features - bag.features
    np.testing.assert_allclose(noise.std(axis=0), 0.5 * bag.features.std(axis=0), rtol=0.05)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.1
    one = make_bag(1)  # a single tile has no spread, and gets no noise
    assert (Sampling(feature_noise=0.5).draw(one, seed=0, epoch=0).features == one.features).all()
