"""The two figures of training equal scikit-learn's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from mil.training.figures import balanced_accuracy, macro_auroc


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_they_equal_an_independent_implementation(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, 40)])
    judged = rng.dirichlet(np.ones(classes), len(labels)).round(1)  # ties
    judged[:, 0] += 1 - judged.sum(axis=1)
    expected = np.mean([roc_auc_score(labels == c, judged[:, c]) for c in range(classes)])
    assert macro_auroc(labels, judged) == pytest.approx(
        expected if classes > 2 else roc_auc_score(labels, judged[:, 1])
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert balanced_accuracy(labels, judged) == pytest.approx(
            balanced_accuracy_score(labels, judged.argmax(axis=1))
        )


def test_without_a_class_there_is_no_area_and_accuracy_is_of_those_that_are_there() -> None:
    judged = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert macro_auroc(np.array([1, 1]), judged) is None
    assert balanced_accuracy(np.array([1, 1]), judged) == 0.5
    assert macro_auroc(np.array([0, 1]), np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])) is None
