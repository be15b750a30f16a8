"""Laws of colour: order survives every eye, and a score has one colour."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from heatmaps.colour import colour, colour_table

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
EYES = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
}


def lightness(eye):
    """CIE L* of the table as this eye sees it."""
    rgb = colour_table() / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = np.clip(linear @ EYES[eye].T, 0, 1) @ [0.2126, 0.7152, 0.0722]
    return 116 * np.cbrt(luminance) - 16


@pytest.mark.parametrize("eye", sorted(EYES))
def test_lightness_rises_evenly_for_every_eye(eye):
    seen = lightness(eye)
    assert seen[-1] - seen[0] > 70
    assert (seen[8:] > seen[:-8]).all()  # in steps of 8, since single steps round to 8 bits
    assert np.corrcoef(seen, np.arange(256))[0, 1] > 0.995


def test_the_table_is_viridis_as_published():
    # From the paper's table of 256 RGB values: entries 0, 64, 128, 192 and 255, to within rounding.
    published = {0: "440154", 64: "3b528b", 128: "21918c", 192: "5ec962", 255: "fde725"}
    for index, code in published.items():
        assert np.abs(colour_table()[index].astype(int) - list(bytes.fromhex(code))).max() <= 2


def test_the_table_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        colour_table()[0] = 0


@given(hnp.arrays(np.float32, (7,), elements=st.floats(-2, 2, width=32)))
def test_a_score_has_one_colour_whatever_else_is_there(scores):
    together = colour(scores, vmin=-1, vmax=1)
    for score, pixel in zip(scores, together, strict=True):
        np.testing.assert_array_equal(colour(np.array([score]), vmin=-1, vmax=1)[0], pixel)


@given(hnp.arrays(np.float32, (2,), elements=st.floats(0, 1, width=32)))
def test_order_of_scores_is_order_in_the_table(scores):
    table = [tuple(entry) for entry in colour_table().tolist()]
    low, high = (table.index(tuple(pixel)) for pixel in colour(np.sort(scores), vmin=0, vmax=1).tolist())
    assert low <= high


def test_scores_beyond_the_range_take_the_colour_of_its_end():
    pixels = colour(np.array([-np.inf, -1, 9, np.inf], np.float32), vmin=0, vmax=5)
    np.testing.assert_array_equal(pixels, colour_table()[[0, 0, 255, 255]])


def test_nan_takes_the_gap_colour_and_no_score_does():
    scores = np.full((4, 5), np.nan, np.float32)
    scores[1, 2] = 0.5
    pixels = colour(scores, vmin=0, vmax=1, gap=(1, 2, 3))
    assert pixels.shape == (4, 5, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == (1, 2, 3)).all(axis=2).sum() == 19
    assert not (colour_table() == 255).all(axis=1).any()


@pytest.mark.parametrize("ends", [(1, 1), (1, 0), (0, np.inf), (np.nan, 1)])
def test_a_range_that_is_none_is_refused(ends):
    with pytest.raises(ValueError, match="vmin < vmax"):
        colour(np.zeros(3, np.float32), vmin=ends[0], vmax=ends[1])
