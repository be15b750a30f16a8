"""Laws of calibration figures: what a perfectly calibrated model shows is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mil.calibration import probabilities
from mil.evaluation.judged import Judged
from mil.evaluation.reliability import reliability

MakeCohort = Callable[..., Judged]


@pytest.mark.parametrize(("slides", "known"), [(50, 0.116), (100, 0.083), (300, 0.047), (1000, 0.026)])
def test_a_perfectly_calibrated_model_has_the_error_that_its_size_brings(slides: int, known: float) -> None:
    """The known values are of p ~ Beta(0.6, 0.6), as `test_gate.py`'s figures."""
    rng = np.random.default_rng(slides)
    positive = rng.beta(0.6, 0.6, slides)
    judged = Judged(
        ("no", "yes"),
        tuple(map(str, range(slides))),
        tuple(map(str, range(slides))),
        (rng.random(slides) < positive).astype(np.int64),
        np.stack([1 - positive, positive], axis=1),
    )
    found = reliability(judged, seed=1)
    assert found.null_mean == pytest.approx(known, rel=0.3)
    assert found.null_low < found.null_mean < found.null_high


def test_calibrated_models_lie_inside_the_range_and_overconfident_ones_above(make_cohort: MakeCohort) -> None:
    inside = above = 0
    for seed in range(40):
        judged = make_cohort(200, classes=3, seed=seed)
        found = reliability(judged, seed=seed, simulations=400)
        inside += found.null_low <= found.error <= found.null_high
        sharp = probabilities(np.log(judged.probabilities), 0.3)
        worse = reliability(replace(judged, probabilities=sharp), seed=seed, simulations=400)
        above += worse.error > worse.null_high
    assert inside >= 34
    assert above == 40


def test_bins_hold_each_slide_once_and_their_bars_cover(make_cohort: MakeCohort) -> None:
    judged = make_cohort(500, seed=9)
    bins = reliability(judged).bins
    assert sum(one.count for one in bins) == 500
    assert all(one.low <= one.confidence <= one.high for one in bins)
    assert sum(one.count * one.accuracy for one in bins) == pytest.approx(judged.correct.sum())
    covered = [one.expected_low <= one.accuracy <= one.expected_high for one in bins]
    assert np.mean(covered) > 0.7
    gaps = [one.count * abs(one.accuracy - one.confidence) for one in bins]
    assert reliability(judged).error == pytest.approx(sum(gaps) / 500)


def test_a_seed_gives_the_same_numbers(make_cohort: MakeCohort) -> None:
    judged = make_cohort(30)
    assert reliability(judged, seed=3) == reliability(judged, seed=3)
