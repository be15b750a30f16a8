"""Laws of the decision gate, and what it is worth without calibration."""

from __future__ import annotations

import numpy as np
import pytest

from mil.calibration import fit_temperature, probabilities
from mil.evaluation.selective import report_gate
from mil.gate import CONFIRMED, REVIEW, Gate
from wsi.errors import MicrotomeError, UsageError


def kept(logits: np.ndarray, labels: np.ndarray, temperature: float) -> tuple[float, float]:
    """Share that the gate confirms by confidence alone, and the share of these that is right."""
    values = probabilities(logits, temperature)
    gate, alone = Gate(0.8), np.eye(2, dtype=bool)
    review = [gate.decide(row, alone[row.argmax()]).review for row in values]
    found = report_gate(review, values.argmax(axis=1) == labels, np.arange(len(labels)))
    assert found.kept.value is not None
    assert found.accuracy_kept.value is not None
    return found.kept.value, found.accuracy_kept.value


def test_calibration_comes_before_the_gate() -> None:
    """With p drawn from Beta(0.6, 0.6): known shares, and what a wrong temperature does to them."""
    rng, slides = np.random.default_rng(0), 40_000
    p = rng.beta(0.6, 0.6, slides).clip(1e-12, 1 - 1e-12)
    labels = (rng.random(slides) < p).astype(int)
    logits = np.stack([np.zeros(slides), np.log(p / (1 - p))], axis=1)
    assert kept(logits, labels, 1.0) == pytest.approx((0.543, 0.923), abs=0.01)
    assert kept(logits * 2.5, labels, 1.0) == pytest.approx((0.803, 0.857), abs=0.01)
    assert kept(logits * 0.4, labels, 1.0) == pytest.approx((0.170, 0.989), abs=0.01)
    repaired = fit_temperature(logits[:20_000] * 2.5, labels[:20_000])
    assert kept(logits * 2.5, labels, repaired) == pytest.approx((0.543, 0.923), abs=0.015)


@pytest.mark.parametrize(
    ("values", "held", "review", "reasons"),
    [
        ([0.1, 0.9], [False, True], False, ("at least 0.8", "that class alone")),
        ([0.2, 0.8], [False, True], False, ("0.8000 is at least 0.8", "alone")),
        ([0.20001, 0.79999], [False, True], True, ("0.7999 is below 0.8",)),
        ([0.1, 0.9], [True, True], True, ("2 classes",)),
        ([0.1, 0.9], [False, False], True, ("no class",)),
        ([0.1, 0.9], [True, False], True, ("not the likeliest",)),
        ([0.4, 0.6], [True, True], True, ("below 0.8", "2 classes")),
    ],
)
def test_a_slide_is_confirmed_only_if_sure_and_unambiguous(
    values: list[float], held: list[bool], review: bool, reasons: tuple[str, ...]
) -> None:
    decision = Gate().decide(values, held)
    assert decision.review is review
    assert decision.status == (REVIEW if review else CONFIRMED)
    assert decision.confidence == max(values)
    assert len(decision.reasons) == len(reasons)
    for reason, part in zip(decision.reasons, reasons, strict=True):
        assert part in reason


def test_a_higher_threshold_confirms_no_slide_that_a_lower_one_sends_to_review() -> None:
    values = probabilities(np.random.default_rng(1).normal(size=(50, 3)) * 3, 1.0)
    for row in values:
        alone = row == row.max()
        decided = [Gate(threshold).decide(row, alone).review for threshold in np.linspace(0, 1, 21)]
        assert decided == sorted(decided)


def test_unsound_input_is_refused() -> None:
    with pytest.raises(UsageError, match="threshold is 80"):
        Gate(80)
    with pytest.raises(UsageError, match="threshold is nan"):
        Gate(float("nan"))
    with pytest.raises(MicrotomeError, match="NaN"):
        Gate().decide([np.nan, 0.5], [True, False])
    with pytest.raises(UsageError, match="not one slide's"):
        Gate().decide([0.5, 0.5], [True])
    with pytest.raises(UsageError, match="not one slide's"):
        Gate().decide([[0.5, 0.5]], [[True, True]])
