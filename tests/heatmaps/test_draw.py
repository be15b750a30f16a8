"""Laws of what drawn files call their numbers: neither a score nor attention passes for a probability."""

from __future__ import annotations

import numpy as np

from heatmaps.draw import RANK, _measurements, legend_title, ranks


def test_a_legend_says_what_a_class_is_scored_by_and_that_attention_is_no_evidence():
    assert legend_title("tumour") == "tumour: score of each tile alone"
    assert legend_title(RANK) == "attention rank: no evidence"


def test_measurements_are_named_for_what_they_are():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], np.float32)
    attention = np.array([0.2, 0.7, 0.1], np.float32)
    named = _measurements(("normal", "tumour"), scores, attention)
    assert not any("prob" in name.casefold() for name in named)
    np.testing.assert_array_equal(named["Tile score: tumour"], scores[:, 1])
    np.testing.assert_array_equal(named["Attention"], attention)
    np.testing.assert_array_equal(named["Attention rank"], ranks(attention))


def test_attention_is_ranked_and_equal_weights_share_a_rank():
    np.testing.assert_allclose(ranks(np.array([0.1, 0.4, 0.2, 0.3], np.float32)), [0, 1, 1 / 3, 2 / 3])
    np.testing.assert_allclose(ranks(np.array([0.5, 0.25, 0.25], np.float32)), [1, 0.25, 0.25])
    np.testing.assert_array_equal(ranks(np.ones(1, np.float32)), [1])
