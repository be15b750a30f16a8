"""Laws of risk and coverage, and of exact intervals of shares."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from mil.evaluation.selective import report_gate, risk_coverage, share


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
    found = report_gate([True, False, False, True, False], [True, True, False, False, True])
    assert (found.kept.count, found.kept.of) == (3, 5)
    assert (found.accuracy_kept.count, found.accuracy_kept.of) == (2, 3)
    assert (found.accuracy_review.count, found.accuracy_review.of) == (1, 2)
