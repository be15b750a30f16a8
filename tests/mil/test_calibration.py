"""Laws of temperature scaling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from mil.calibration import LARGEST, LEAST, fit_temperature, probabilities, why_not_fitted
from mil.evaluation import slide_auc
from wsi.errors import MicrotomeError, UsageError


def simulated(
    slides: int, *, temperature: float, classes: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `temperature` times those that the labels were drawn by."""
    rng = np.random.default_rng(seed)
    true = rng.normal(scale=1.5, size=(slides, classes))
    values = softmax(true, axis=1)
    labels = (rng.random((slides, 1)) > values.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    return true * temperature, labels


def test_probabilities_are_the_softmax_of_logits_over_the_temperature() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 4)) * 30
    assert probabilities(logits, 2.5) == pytest.approx(softmax(logits / 2.5, axis=1))
    assert probabilities([[1e5, -1e5]], 1.0).tolist() == [[1, 0]]
    assert probabilities(logits.astype(np.float32), 1.0).dtype == np.float64


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_known_temperature_is_found_again(temperature: float, classes: int) -> None:
    logits, labels = simulated(20_000, temperature=temperature, classes=classes)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.2, 5), st.integers(2, 4))
def test_no_temperature_nearby_makes_the_labels_likelier(seed: int, temperature: float, classes: int) -> None:
    logits, labels = simulated(60, temperature=temperature, classes=classes, seed=seed)
    if why_not_fitted(logits, labels):
        assert fit_temperature(logits, labels) == 1
        return

    def loss(value: float) -> float:
        return float(-np.log(probabilities(logits, value)[np.arange(60), labels]).mean())

    found = fit_temperature(logits, labels)
    assert LEAST <= found <= LARGEST
    for other in np.geomspace(LEAST, LARGEST, 40):
        assert loss(found) <= loss(other) + 1e-9


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.5, LARGEST))  # below, probabilities round to 1, and tie there
def test_neither_the_likeliest_class_nor_the_auc_of_two_classes_changes(
    seed: int, temperature: float
) -> None:
    logits, labels = simulated(30, temperature=1, seed=seed)
    before, after = probabilities(logits, 1.0), probabilities(logits, temperature)
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    assert slide_auc(labels, before[:, 1]) == slide_auc(labels, after[:, 1])
    many, _ = simulated(30, temperature=1, classes=5, seed=seed)
    order = probabilities(many, 1.0).argsort(axis=1)
    assert (order == probabilities(many, temperature).argsort(axis=1)).all()


def test_slides_that_determine_no_temperature_leave_it_at_one_and_say_why() -> None:
    right = np.array([[2.0, 0.0], [0.0, 0.1], [3.0, 1.0]])
    assert fit_temperature(right, [0, 1, 0]) == 1
    assert "no validation slide is misjudged" in str(why_not_fitted(right, [0, 1, 0]))
    assert fit_temperature(right, [1, 1, 1]) == 1
    assert "one class" in str(why_not_fitted(right, [1, 1, 1]))
    assert fit_temperature(np.empty((0, 2)), []) == 1
    assert "no validation slides" in str(why_not_fitted(np.empty((0, 2)), []))
    assert fit_temperature(np.zeros((4, 2)), [0, 1, 0, 1]) == 1
    assert why_not_fitted(right, [0, 0, 0]) is not None
    assert why_not_fitted(right, [0, 0, 1]) is None


def test_logits_worse_than_none_make_the_model_as_unsure_as_allowed() -> None:
    assert fit_temperature([[5.0, 0.0]] * 10, [1] * 9 + [0]) == pytest.approx(LARGEST, rel=1e-3)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[0.0, np.nan]], [0], "slide number 0 are not finite"),
        ([[0.0, np.inf]], [0], "not finite"),
        ([[0.0, 1.0]], [2], "label 2 is none of the 2 classes"),
        ([[0.0, 1.0]], [-1], "label -1"),
        ([[0.0, 1.0]], [0, 1], "do not fit"),
        ([[0.0, 1.0]], [0.5], "not whole numbers"),
        ([0.0, 1.0], [0, 1], "shape"),
        ([[0.0]], [0], "shape"),
    ],
)
def test_unsound_input_is_refused(logits: object, labels: list[int], message: str) -> None:
    with pytest.raises((UsageError, MicrotomeError), match=message):
        fit_temperature(logits, labels)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(UsageError, match="is none"):
        probabilities([[0.0, 1.0]], temperature)
