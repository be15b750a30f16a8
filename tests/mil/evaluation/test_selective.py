"""Laws of risk and coverage, and of exact intervals of shares."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from mil.evaluation.selective import report_gate, risk_coverage, share, share_of


def test_the_last_risk_is_the_overall_error_and_useless_confidence_has_it_everywhere() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(50), rng.random(50) < 0.7
    curve = risk_coverage(confidence, correct)
    assert curve.risk[-1] == pytest.approx(1 - correct.mean())
    assert curve.coverage[[0, -1]] == pytest.approx([1 / 50, 1])
    flat = risk_coverage(np.full(50, 0.5), correct)
    assert flat.risk == pytest.approx(np.full(50, 1 - correct.mean()))
    assert flat.area == pytest.approx(1 - correct.mean())


def test_risks_are_those_of_the_surest_slides_and_order_matters_only_by_confidence() -> None:
    rng = np.random.default_rng(1)
    confidence, correct = rng.permutation(40) / 40, rng.random(40) < 0.6
    curve = risk_coverage(confidence, correct)
    for k in range(1, 41):
        surest = np.argsort(-confidence)[:k]
        assert curve.risk[k - 1] == pytest.approx(1 - correct[surest].mean())
    best = risk_coverage(correct + 0.1 * confidence, correct)
    assert best.area < curve.area < risk_coverage(0.1 * confidence - correct, correct).area


def test_ties_are_the_mean_over_their_orders() -> None:
    correct = np.array([True, False, False, True, True])
    confidence = np.array([0.9, 0.7, 0.7, 0.7, 0.5])
    rng = np.random.default_rng(2)
    risks = [risk_coverage(confidence + rng.random(5) * 1e-6, correct).risk for _ in range(4000)]
    assert risk_coverage(confidence, correct).risk == pytest.approx(np.mean(risks, axis=0), abs=0.02)


@pytest.mark.parametrize(("count", "of"), [(0, 7), (3, 7), (7, 7), (41, 50)])
def test_exact_intervals_are_those_of_scipy(count: int, of: int) -> None:
    found, known = share(count, of), binomtest(count, of).proportion_ci(0.95, method="exact")
    assert (found.value, found.low, found.high) == pytest.approx((count / of, known.low, known.high))


def test_a_share_of_nothing_is_unknown() -> None:
    assert (share(0, 0).value, share(0, 0).low) == (None, None)


def test_the_gate_report_counts_both_sides() -> None:
    found = report_gate([True, False, False, True, False], [True, True, False, False, True], list("abcde"))
    assert (found.kept.count, found.kept.of) == (3, 5)
    assert (found.accuracy_kept.count, found.accuracy_kept.of) == (2, 3)
    assert (found.accuracy_review.count, found.accuracy_review.of) == (1, 2)


def test_with_one_slide_a_patient_a_share_is_exact_and_copies_of_slides_add_nothing() -> None:
    hits = np.array([True] * 13 + [False] * 7)
    names = np.array([f"patient-{row}" for row in range(20)])
    assert share_of(hits, names) == share(13, 20)
    twice = share_of(np.repeat(hits, 5), np.repeat(names, 5))
    assert (twice.count, twice.of) == (65, 100)
    once = share(13, 20)
    assert once.low is not None
    assert once.high is not None
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), abs=0.03)
    all_right, of_patients = share_of(np.ones(60, np.bool_), np.repeat(names, 3)), share(20, 20)
    assert (all_right.low, all_right.high) == (of_patients.low, of_patients.high)
    alone = share_of([True, False, True], ["a"] * 3)
    assert alone.low is not None
    assert alone.low < 0.05


def test_intervals_of_shares_hold_the_truth_where_slides_of_a_patient_are_alike() -> None:
    """Exact intervals of slides, taken for independent, hold it in three of four cohorts."""
    rng = np.random.default_rng(0)
    held, exact, cohorts = 0, 0, 400
    for _ in range(cohorts):
        owner = np.repeat(np.arange(30), rng.integers(1, 7, 30))
        own, other = rng.normal(size=30)[owner], rng.normal(size=len(owner))
        hits = np.sqrt(0.9) * own + np.sqrt(0.1) * other < norm.ppf(0.7)
        for found in (by_patient := share_of(hits, owner), share(int(hits.sum()), len(hits))):
            assert found.low is not None
            assert found.high is not None
            inside = found.low <= 0.7 <= found.high
            held += inside and found is by_patient
            exact += inside and found is not by_patient
    assert held / cohorts > 0.93
    assert exact / cohorts < 0.85
