"""The digits-bags experiment in a short form: a head finds the digit that matters, and so do explanations.

The long form is `benchmarks/digits.py`; its figures are in docs/explanations.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks.digit_bags import NEEDLE, digit_bags
from benchmarks.digits import auc, explained, train
from mil.explain import ExplanationReport
from mil.heads import Head

BAGS = 200
TEST = digit_bags(400, seed=0, test=True)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The same bits whatever the machine's threads; and for bags this small more of them only cost time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def gated() -> Head:
    return train("gated_abmil", BAGS, seed=0)[0]


@pytest.fixture(scope="module")
def report(gated: Head) -> ExplanationReport:
    """Of the first 80 positive bags."""
    methods = ["single", "integrated_gradients", "gradient_times_input", "contribution"]
    return explained(gated, TEST[:160], methods=methods)


def test_no_image_is_in_a_training_bag_and_in_a_test_bag() -> None:
    train_images, test_images = (
        {row.tobytes() for drawn in bags for row in drawn.bag.features}
        for bags in (digit_bags(400, seed=1), TEST)
    )
    assert not train_images & test_images
    assert len(train_images) > 900
    assert len(test_images) > 600


def test_a_bag_is_positive_if_a_nine_is_in_it() -> None:
    assert all(bool(drawn.bag.label) == drawn.needle.any() for drawn in TEST)
    assert np.mean([drawn.bag.label for drawn in TEST]) == 0.5
    lengths = [len(drawn.bag) for drawn in TEST]
    assert abs(np.mean(lengths) - 10) < 0.3
    assert abs(np.std(lengths) - 2) < 0.3
    assert NEEDLE == 9


def test_gated_attention_learns_from_200_bags_and_the_mean_does_not_reach_it(gated: Head) -> None:
    attended = auc(gated, TEST)
    assert attended >= 0.95
    assert auc(train("mean", BAGS, seed=0)[0], TEST) < attended


def test_a_random_order_has_no_gain(report: ExplanationReport) -> None:
    assert abs(report.result("random").gain.mean) < 0.1
    localisation = report.result("random").localisation
    assert localisation is not None
    assert abs(localisation.auc.mean - 0.5) < 0.1


def test_single_or_integrated_gradients_are_at_least_as_true_as_attention(
    report: ExplanationReport,
) -> None:
    found = [report.result(name).gain.mean for name in ("single", "integrated_gradients")]
    assert max(found) >= report.result("attention").gain.mean > 0.5


def test_every_explanation_finds_the_nine(report: ExplanationReport) -> None:
    for result in report.methods:
        assert result.localisation is not None
        assert result.name == "random" or result.localisation.auc.mean > 0.85, result.name


def test_a_head_that_learned_nothing_is_told_by_its_curves(gated: Head) -> None:
    """Explanations are of the model: with other weights the same methods have nothing to tell."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank = type(gated)(gated.dim, gated.classes, **gated.settings).eval()
    told = explained(blank, TEST[:60], methods=["single"]).result("single")
    assert told.gain.mean < 0.3
    assert told.localisation is not None
    assert told.localisation.auc.mean < 0.8
