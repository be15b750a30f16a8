"""DeLong's variance is that of the definition, written out pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from mil.evaluation.delong import auc_interval, bound_of_a_perfect_area, compare, delong, midranks
from wsi.errors import MicrotomeError, UsageError


def by_pairs(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The U-statistics and the covariance of their placements, in O(m^2)."""
    places10, places01 = [], []
    for row in scores:
        x, y = row[labels == 1][:, None], row[labels == 0][None]
        psi = (x > y) + 0.5 * (x == y)  # (p, n)
        places10.append(psi.mean(axis=1))
        places01.append(psi.mean(axis=0))
    v10, v01 = np.array(places10), np.array(places01)
    k = len(scores)
    covariance = np.zeros((k, k))
    for r in range(k):
        for s in range(k):
            for v in (v10, v01):
                n = v.shape[1]
                deviations = (v[r] - v[r].mean()) * (v[s] - v[s].mean())
                covariance[r, s] += deviations.sum() / (n - 1) / n
    return v10.mean(axis=1), covariance


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(4, 40), st.integers(1, 3), st.sampled_from([1, 12]))
def test_areas_and_covariance_are_those_of_the_definition(seed: int, m: int, k: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.r_[0, 0, 1, 1, rng.integers(0, 2, m - 4)])
    scores = (rng.normal(size=(k, m)) + labels).round(decimals)
    found = delong(labels, scores)
    assert found is not None
    aucs, covariance = by_pairs(labels, scores)
    assert found.aucs == pytest.approx(aucs)
    assert found.covariance == pytest.approx(covariance, abs=1e-12)


def test_midranks_are_those_of_scipy() -> None:
    values = np.random.default_rng(0).integers(0, 9, 50).astype(float)
    assert (midranks(values) == rankdata(values)).all()


def test_the_variance_is_that_of_many_cohorts_and_the_test_keeps_its_level() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], [40, 30])
    areas, variances, small = [], [], 0
    for _ in range(600):
        common = rng.normal(size=70) + labels
        first, second = (common + rng.normal(scale=0.7, size=70) for _ in range(2))
        found = delong(labels, first[None])
        assert found is not None
        areas.append(found.aucs[0])
        variances.append(found.covariance[0, 0])
        comparison = compare(labels, first, second)
        assert comparison is not None
        assert comparison.p is not None
        small += comparison.p < 0.05
    assert np.mean(variances) == pytest.approx(np.var(areas), rel=0.15)
    assert 0.025 < small / 600 < 0.085


def test_a_patient_a_slide_is_delong_and_a_slide_many_times_is_one() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 40)
    scores = rng.normal(size=(2, 40)) + labels
    plain, own = delong(labels, scores), delong(labels, scores, [f"p{i}" for i in range(40)])
    assert plain is not None
    assert own is not None
    assert own.covariance == pytest.approx(plain.covariance, abs=1e-15)
    often = delong(np.repeat(labels, 3), np.repeat(scores, 3, axis=1), np.repeat(np.arange(40), 3).tolist())
    assert often is not None
    assert often.aucs == pytest.approx(plain.aucs)
    assert often.covariance == pytest.approx(plain.covariance)


def test_with_several_slides_a_patient_the_interval_still_holds_the_truth() -> None:
    """Slides of a patient share most of their score, and may be of either class."""
    rng = np.random.default_rng(3)
    patients = np.repeat(np.arange(40), 5)
    truth = 0.736  # of other patients' slides: the normal distribution at 1 / sqrt(2.5)
    naive, areas, errors = 0, [], []
    for _ in range(400):
        labels = rng.integers(0, 2, 200)
        labels[:150] = np.repeat(rng.integers(0, 2, 30), 5)
        scores = rng.normal(size=40)[patients] + 0.5 * rng.normal(size=200) + labels
        found, alone = (delong(labels, scores[None], names) for names in (patients.tolist(), None))
        assert found is not None
        assert alone is not None
        areas.append(found.aucs[0])
        errors.append(np.sqrt(found.covariance[0, 0]))
        naive += abs(alone.aucs[0] - truth) < 1.96 * np.sqrt(alone.covariance[0, 0])
    held = (np.abs(np.array(areas) - truth) < 1.96 * np.array(errors)).mean()
    assert np.mean(errors) == pytest.approx(np.std(areas), rel=0.12)
    assert 0.9 < held < 0.98
    assert naive / 400 < 0.85


def test_a_paired_difference_is_surer_than_two_single_areas() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 50)
    first = rng.normal(size=100) + labels
    second = first + rng.normal(scale=0.3, size=100)
    areas, comparison = delong(labels, np.stack([first, second])), compare(labels, first, second)
    assert areas is not None
    assert comparison is not None
    assert comparison.error is not None
    assert comparison.error**2 < 0.5 * np.trace(areas.covariance)
    assert comparison.difference == pytest.approx(areas.aucs[1] - areas.aucs[0])
    back = compare(labels, second, first)
    assert back is not None
    assert (back.difference, back.p) == pytest.approx((-comparison.difference, comparison.p))


def test_what_has_no_variance_has_no_interval_and_says_so() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    perfect = delong(labels, scores[None])
    assert perfect is not None
    assert (perfect.aucs[0], perfect.covariance[0, 0]) == (1, 0)
    assert auc_interval(1.0, 0.0) is None
    same = compare(labels, scores, scores**3)
    assert same is not None
    assert (same.difference, same.p) == (0, 1)
    assert "alike" in str(same.note)
    opposite = compare(labels, scores, -scores)
    assert opposite is not None
    assert (opposite.difference, opposite.p, opposite.low) == (-1, None, None)
    assert "variance is 0" in str(opposite.note)
    assert delong([0, 0, 0, 1], scores[None]) is None
    assert compare([1, 1, 1, 1], scores, scores) is None


def test_an_interval_does_not_leave_the_possible() -> None:
    assert auc_interval(0.98, 0.01) == pytest.approx((0.784, 1.0), abs=1e-3)


def test_the_bound_of_a_perfect_area_holds() -> None:
    """Cohorts from an AUROC that just equals the bound come out as perfect in at most 2.5 of 100 cases."""
    bound = bound_of_a_perfect_area(12, 9)
    assert bound == pytest.approx(0.025 ** (1 / 9))
    rng = np.random.default_rng(3)
    from statistics import NormalDist

    shift = NormalDist().inv_cdf(bound) * np.sqrt(2)
    positive, negative = rng.normal(size=(4000, 12)) + shift, rng.normal(size=(4000, 9))
    assert (positive.min(axis=1) > negative.max(axis=1)).mean() < 0.025 + 0.008
    assert bound_of_a_perfect_area(100, 100) > bound_of_a_perfect_area(100, 10) > bound


@pytest.mark.parametrize(
    ("labels", "scores", "error"),
    [
        ([0, 1, 2], [[0.1, 0.2, 0.3]], UsageError),
        ([0, 1], [[0.1, 0.2, 0.3]], UsageError),
        ([0, 1, 1], [[0.1, np.nan, 0.3]], MicrotomeError),
    ],
)
def test_unsound_input_is_refused(labels: list[int], scores: list[list[float]], error: type) -> None:
    with pytest.raises(error):
        delong(labels, scores)
