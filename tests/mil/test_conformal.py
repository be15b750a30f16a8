"""Conformal sets cover as often as the exact law says."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest

from mil.calibration import probabilities
from mil.conformal import ConformalRule, fit_conformal, rank, worst_of_each_patient
from wsi.errors import MicrotomeError, UsageError


def drawn(rng: np.random.Generator, slides: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A model that is wrong about its probabilities: coverage does not need it to be right."""
    logits = rng.normal(scale=1.5, size=(slides, classes))
    true = probabilities(logits, 1.0)
    labels = (rng.random((slides, 1)) > true.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    return probabilities(logits, 0.4), labels


def coverage_given(quantile: float, pool: np.ndarray) -> float:
    """Share of a large sorted pool of true-class scores that lies within a quantile."""
    return float(np.searchsorted(pool, quantile, side="right") / len(pool))


@pytest.mark.parametrize(
    ("n", "mean", "deviation"), [(50, 0.9020, 0.0411), (100, 0.9010, 0.0295), (200, 0.9005, 0.0211)]
)
def test_coverage_given_the_calibration_follows_the_beta_law(n: int, mean: float, deviation: float) -> None:
    rng, alpha = np.random.default_rng(n), 0.1
    values, labels = drawn(rng, 200_000)
    pool = np.sort(1 - values[np.arange(len(labels)), labels])
    covered = []
    for _ in range(1500):
        calibration, truth = drawn(rng, n)
        covered.append(coverage_given(fit_conformal(calibration, truth, alpha=alpha).quantiles[0], pool))
    wanted = rank(n, alpha)
    law = beta(wanted, n + 1 - wanted)
    assert law.mean() == pytest.approx(mean, abs=1e-4)
    assert law.std() == pytest.approx(deviation, abs=1e-3)
    assert np.mean(covered) == pytest.approx(mean, abs=4 * deviation / math.sqrt(1500))
    assert np.std(covered) == pytest.approx(deviation, rel=0.08)
    assert kstest(covered, law.cdf).pvalue > 1e-3


def test_class_conditional_sets_cover_each_class_and_marginal_ones_do_not() -> None:
    rng = np.random.default_rng(1)
    each: dict[bool, list[list[float]]] = {True: [], False: []}
    for _ in range(300):
        values, labels = [], []
        for part in (150, 400):
            truth = (rng.random(part) < 0.15).astype(int)  # a rare class that is hard to tell
            score = rng.normal(size=part) + 1.2 * truth - 1.5
            values.append(probabilities(np.stack([np.zeros(part), score], axis=1), 1.0))
            labels.append(truth)
        for per_class, found in each.items():
            sets = fit_conformal(values[0], labels[0], alpha=0.1, per_class=per_class).sets(values[1])
            held = sets[np.arange(400), labels[1]]
            found.append([held[labels[1] == c].mean() for c in (0, 1)])
    conditional, marginal = np.mean(each[True], axis=0), np.mean(each[False], axis=0)
    assert (conditional > 0.885).all()
    assert marginal[1] < 0.8


def test_too_few_slides_rule_out_nothing() -> None:
    rng = np.random.default_rng(2)
    for alpha in (0.05, 0.1, 0.2):
        least = math.ceil(1 / alpha) - 1
        for n, finite in ((least - 1, False), (least, True)):
            values, labels = drawn(rng, n)
            rule = fit_conformal(values, labels, alpha=alpha)
            assert math.isfinite(rule.quantiles[0]) is finite
            assert rule.sets(values).all() or finite
    assert fit_conformal(np.empty((0, 3)), np.empty(0, int), alpha=0.1).sets([[1.0, 0.0, 0.0]]).all()
    missing = fit_conformal([[0.9, 0.1]] * 20, [0] * 20, alpha=0.1, per_class=True)
    assert missing.sets([[1.0, 0.0]]).tolist() == [[True, True]]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([0.05, 0.1, 0.3, 0.5]))
def test_at_least_the_wanted_share_of_the_calibration_is_covered_ties_or_not(
    seed: int, n: int, alpha: float
) -> None:
    values, labels = drawn(np.random.default_rng(seed), n)
    values = values.round(1) + 0.0
    rule = fit_conformal(values, labels, alpha=alpha)
    held = rule.sets(values)[np.arange(n), labels]
    assert held.sum() >= min(rank(n, alpha), n)
    looser = fit_conformal(values, labels, alpha=alpha / 2)
    assert (looser.sets(values) | ~rule.sets(values)).all()


def test_the_rank_is_exact_where_floating_point_is_not() -> None:
    assert [rank(9, 0.1), rank(19, 0.05), rank(29, 0.9), rank(99, 0.3)] == [9, 19, 3, 70]


def test_a_rule_survives_json_with_its_infinities() -> None:
    rule = ConformalRule(0.1, (0.25, math.inf))
    assert ConformalRule.from_json(json.loads(json.dumps(rule.as_json(), allow_nan=False))) == rule
    assert rule.per_class


def test_a_patient_stands_for_itself_once_by_its_worst_slide() -> None:
    values = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.5, 0.5]])
    labels, patients = np.array([0, 0, 1, 1, 0]), ("a", "a", "b", "c", "c")
    assert worst_of_each_patient(values, labels, patients).tolist() == [1, 2, 4]
    assert worst_of_each_patient(values, labels, patients, per_class=True).tolist() == [1, 2, 3, 4]
    alone = worst_of_each_patient(values, labels, tuple("vwxyz"))
    assert alone.tolist() == [0, 1, 2, 3, 4]


def test_all_slides_of_a_new_patient_are_covered_at_once() -> None:
    """Slides of a patient are alike: calibrating on all of them would take 20 patients for 100."""
    rng, wanted = np.random.default_rng(3), []
    for _ in range(400):
        patient = np.repeat(np.arange(60), 5)
        truth = rng.integers(0, 2, 60)[patient]
        score = (2 * truth - 1) + rng.normal(scale=1.5, size=60)[patient] + rng.normal(scale=0.3, size=300)
        values = probabilities(np.stack([np.zeros(300), score], axis=1), 1.0)
        first = patient < 20
        rows = worst_of_each_patient(values[first], truth[first], tuple(map(str, patient[first])))
        rule = fit_conformal(values[first][rows], truth[first][rows], alpha=0.1)
        held = rule.sets(values[~first])[np.arange((~first).sum()), truth[~first]]
        wanted.append(held.reshape(40, 5).all(axis=1).mean())
    assert np.mean(wanted) == pytest.approx(rank(20, 0.1) / 21, abs=0.015)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, np.nan])
def test_an_alpha_that_is_none_is_refused(alpha: float) -> None:
    with pytest.raises(UsageError, match="alpha is"):
        fit_conformal([[0.5, 0.5]], [0], alpha=alpha)
    with pytest.raises(UsageError, match="alpha is"):
        ConformalRule(alpha, (0.5,))


def test_unsound_input_is_refused() -> None:
    with pytest.raises(MicrotomeError, match="NaN"):
        fit_conformal([[np.nan, 0.5]], [0], alpha=0.1)
    with pytest.raises(UsageError, match="label 3"):
        fit_conformal([[0.5, 0.5]], [3], alpha=0.1)
    with pytest.raises(UsageError, match="2 classes, the probabilities 3"):
        ConformalRule(0.1, (0.5, 0.5)).sets([[0.2, 0.3, 0.5]])
    with pytest.raises(UsageError, match="no quantiles"):
        ConformalRule(0.1, ())
    with pytest.raises(UsageError, match="do not fit"):
        worst_of_each_patient([[0.5, 0.5]], [0], ("a", "b"))
