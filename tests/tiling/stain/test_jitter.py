"""The laws of stain augmentation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tiling.stain import HedJitter
from tiling.stain.jitter import HED

MakeTile = Callable[..., NDArray[np.uint8]]
COLOURS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def test_no_jitter_is_the_identity() -> None:
    result = HedJitter(sigma=0, bias=0)(COLOURS, np.random.default_rng(0))
    assert np.abs(result.astype(int) - COLOURS).max() <= 1


@pytest.mark.parametrize("shape", [(16, 24, 3), (5, 16, 16, 3), (2, 3, 8, 8, 3)])
def test_shape_and_dtype_stay_and_the_input_is_not_touched(shape: tuple[int, ...]) -> None:
    tiles = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    before = tiles.copy()
    result = HedJitter()(tiles, np.random.default_rng(0))
    assert result.shape == shape
    assert result.dtype == np.uint8
    assert (tiles == before).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_the_same_generator_gives_the_same_bytes(seed: int) -> None:
    jitter = HedJitter(sigma=0.2, bias=0.05)
    one, two = (jitter(COLOURS, np.random.default_rng(seed)) for _ in range(2))
    assert (one == two).all()
    assert (one != jitter(COLOURS, np.random.default_rng(seed + 1))).any()


def test_tiles_of_a_batch_are_drawn_one_after_the_other(stained_tile: MakeTile) -> None:
    tiles = np.stack([stained_tile(0, size=32)] * 3)
    together = HedJitter()(tiles, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    assert (together == np.stack([HedJitter()(tile, rng) for tile in tiles])).all()
    assert (together[0] != together[1]).any()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_white_stays_near_white(seed: int) -> None:
    white = np.full((4, 4, 3), 255, np.uint8)
    assert HedJitter(sigma=0.2)(white, np.random.default_rng(seed)).min() >= 240
    assert (HedJitter(sigma=0.2, bias=0)(white, np.random.default_rng(seed)) == 255).all()


def test_each_stain_is_scaled_and_shifted_within_its_bounds_and_all_over_them() -> None:
    """Unmixed again in float64, each concentration is a straight line of what it was."""
    amounts = np.random.default_rng(2).uniform(0.05, 0.5, (3, 32, 32))
    tile = np.moveaxis(256 * np.exp(-np.tensordot(np.array(HED).T, amounts, 1)) - 1, 0, -1)
    tile = tile.round().astype(np.uint8)
    jitter, rng = HedJitter(sigma=0.1, bias=0.03), np.random.default_rng(3)

    def unmixed(image: NDArray[np.uint8]) -> NDArray[np.float64]:
        return -np.log((image.reshape(-1, 3) + 1.0) / 256) @ np.linalg.inv(np.array(HED))

    before = unmixed(tile)
    lines = []
    for _ in range(60):
        after = unmixed(jitter(tile, rng))
        lines.append([np.polyfit(before[:, i], after[:, i], 1) for i in range(3)])
    slopes, offsets = np.moveaxis(np.array(lines), -1, 0)
    for found, middle, reach in ((slopes, 1, 0.1), (offsets, 0, 0.03)):
        assert np.abs(found - middle).max() < reach * 1.2
        assert (found.max(axis=0) > middle + 0.7 * reach).all()
        assert (found.min(axis=0) < middle - 0.7 * reach).all()
        # The three stains go their own ways.
        assert np.abs(np.corrcoef(found.T)[np.triu_indices(3, 1)]).max() < 0.6


@pytest.mark.parametrize("settings", [{"sigma": -0.1}, {"sigma": 1.0}, {"bias": -0.1}, {"bias": 1.0}])
def test_senseless_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        HedJitter(**settings)
