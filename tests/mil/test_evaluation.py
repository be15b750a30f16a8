"""Laws of the area under the ROC curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.evaluation import localisation_auc, slide_auc


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=20))
def test_the_auc_is_the_share_of_pairs_in_order(cases: list[tuple[bool, int]]) -> None:
    positive = [score for label, score in cases if label]
    negative = [score for label, score in cases if not label]
    auc = slide_auc([int(label) for label, _ in cases], [score for _, score in cases])
    if not positive or not negative:
        assert auc is None
        return
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auc == pytest.approx(np.mean(pairs))


def test_one_class_has_no_auc() -> None:
    assert slide_auc([1, 1], [0.2, 0.9]) is None
    assert slide_auc([], []) is None
    assert localisation_auc([0.1, 0.2], [0.0, 0.0]) is None


def test_tiles_on_the_edge_of_a_lesion_do_not_count() -> None:
    share = np.array([0.0, 0.0, 0.3, 0.49, 0.5, 1.0])
    scores = np.array([0.1, 0.2, 0.9, 0.0, 0.7, 0.8])
    assert localisation_auc(scores, share) == 1.0
    assert localisation_auc(-scores, share) == 0.0
    assert localisation_auc([0.5] * 6, share) == 0.5
    scores[2:4] = [0.0, 0.9]
    assert localisation_auc(scores, share) == 1.0


def test_half_precision_scores_are_compared_exactly() -> None:
    scores = np.array([0.5, 0.5004883], np.float16)
    assert slide_auc([0, 1], scores) == 1.0
