"""Laws of what drawn files call their numbers: neither a score nor attention passes for a probability."""

from __future__ import annotations

import numpy as np
import pytest

from heatmaps.draw import legend_title
from heatmaps.numbers import RANK, UNCERTAINTY, TileNumbers, ranks
from wsi.errors import UsageError

CLASSES = ("normal", "tumour")
SCORES = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]], np.float32)
ATTENTION = np.array([0.2, 0.7, 0.1], np.float32)
UNSURE = np.array([0.4, 0.7, 1.0], np.float32)
APART = np.array([0.1, 0.0, 0.2], np.float32)


def test_a_legend_says_what_a_class_is_scored_by_and_that_attention_is_no_evidence():
    assert legend_title("tumour") == "tumour: score of each tile alone"
    assert legend_title("tumour", of_tiles=True) == "tumour: probability of each tile"
    assert legend_title(RANK) == "attention rank: no evidence"
    for of_tiles in (False, True):
        assert legend_title(UNCERTAINTY, of_tiles=of_tiles) == "uncertainty: 0 sure, 1 no idea"


def test_a_legend_of_ranks_says_so_whatever_the_channel():
    for channel in ("tumour", UNCERTAINTY):
        for of_tiles in (False, True):
            assert (
                legend_title(channel, of_tiles=of_tiles, ranked=True) == f"{channel}: rank within this slide"
            )
    assert legend_title(RANK, ranked=True) == legend_title(RANK)


def test_measurements_are_named_for_what_they_are():
    named = TileNumbers(CLASSES, SCORES, ATTENTION, UNSURE, APART).measurements()
    assert not any("prob" in name.casefold() for name in named)
    np.testing.assert_array_equal(named["Tile score: tumour"], SCORES[:, 1])
    np.testing.assert_array_equal(named["Attention"], ATTENTION)
    np.testing.assert_array_equal(named["Attention rank"], ranks(ATTENTION))
    np.testing.assert_array_equal(named["Uncertainty"], UNSURE)
    np.testing.assert_array_equal(named["Disagreement"], APART)


def test_channels_are_the_classes_attention_and_uncertainty_as_far_as_there_are_any():
    every = TileNumbers(CLASSES, SCORES, ATTENTION, UNSURE, APART).channels()
    assert list(every) == ["normal", "tumour", RANK, UNCERTAINTY]
    np.testing.assert_array_equal(every[UNCERTAINTY], UNSURE)
    assert list(TileNumbers(CLASSES, SCORES, ATTENTION).channels()) == ["normal", "tumour", RANK]
    of_tiles = TileNumbers(CLASSES, SCORES, None, UNSURE, APART)
    assert list(of_tiles.channels()) == ["normal", "tumour", UNCERTAINTY]
    assert not any("attention" in name.casefold() for name in of_tiles.measurements())


@pytest.mark.parametrize("name", [RANK, UNCERTAINTY])
def test_a_class_with_the_name_of_a_channel_is_refused(name):
    with pytest.raises(UsageError, match="a class has the name of another channel"):
        TileNumbers(("normal", name), SCORES, ATTENTION, UNSURE, APART).channels()


def test_attention_is_ranked_and_equal_weights_share_a_rank():
    np.testing.assert_allclose(ranks(np.array([0.1, 0.4, 0.2, 0.3], np.float32)), [0, 1, 1 / 3, 2 / 3])
    np.testing.assert_allclose(ranks(np.array([0.5, 0.25, 0.25], np.float32)), [1, 0.25, 0.25])
    np.testing.assert_array_equal(ranks(np.ones(1, np.float32)), [1])


def test_what_has_no_number_has_no_rank():
    numbers = np.array([np.nan, 0.3, np.nan, 0.1, 0.3], np.float32)
    np.testing.assert_array_equal(ranks(numbers), np.array([np.nan, 0.75, np.nan, 0, 0.75], np.float32))
    np.testing.assert_array_equal(ranks(numbers[:2]), np.array([np.nan, 1], np.float32))
    np.testing.assert_array_equal(ranks(numbers[:1]), numbers[:1])
    assert ranks(ranks(numbers)).tobytes() == ranks(numbers).tobytes()
