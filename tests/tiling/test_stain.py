"""Macenko against an independent implementation, a float64 reference, and the laws of the method."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tiling.stain import REFERENCE_MAXIMA, REFERENCE_STAINS, Macenko, MacenkoNormalizer, StainError


def stained_tile(
    seed: int, *, stains: NDArray[np.float64] | None = None, light: float = 240, size: int = 128
) -> NDArray[np.uint8]:
    """Tissue of two stains by Beer-Lambert: light * exp(-stains @ concentrations) - 1."""
    rng = np.random.default_rng(seed)
    matrix = np.array(REFERENCE_STAINS).T if stains is None else stains
    blobs = rng.random((2, size // 8, size // 8)).repeat(8, 1).repeat(8, 2)
    concentration = np.stack([blobs[0] ** 3 * 2.0, 0.2 + blobs[1] * 0.9]) + rng.random((2, size, size)) * 0.05
    density = np.tensordot(matrix, concentration, 1)
    return np.moveaxis(np.clip(light * np.exp(-density) - 1, 0, 255), 0, -1).round().astype(np.uint8)


def reference_normalize(tile: NDArray[np.uint8], fitted: MacenkoNormalizer) -> NDArray[np.float64]:
    """The published steps one by one in float64: unmix by least squares, rescale, mix again."""
    density = -np.log((tile.reshape(-1, 3).astype(float) + 1) / fitted.light)
    concentration = np.linalg.lstsq(np.array(fitted.stains).T, density.T, rcond=None)[0]
    concentration *= (np.array(REFERENCE_MAXIMA) / np.array(fitted.maxima))[:, None]
    out = fitted.light * np.exp(-np.array(REFERENCE_STAINS).T @ concentration)
    return np.clip(out, 0, 255).T.reshape(tile.shape)


def test_the_fast_path_is_the_float64_method_to_one_grey_level() -> None:
    tile = stained_tile(1, stains=np.array([[0.65, 0.07], [0.70, 0.99], [0.29, 0.11]]))
    fitted = Macenko().fit(tile.reshape(-1, 3))
    difference = fitted(tile).astype(float) - reference_normalize(tile, fitted)
    assert np.abs(difference).max() <= 1.0
    assert abs(difference.mean()) < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_equals_torchstain_fitted_on_the_same_pixels(seed: int) -> None:
    """Torchstain is somebody else's Macenko; it refits every tile, so both see this one tile."""
    numpy_macenko = pytest.importorskip("torchstain.numpy.normalizers").NumpyMacenkoNormalizer
    tile = stained_tile(seed, stains=np.array([[0.60, 0.15], [0.72, 0.95], [0.35, 0.28]]))
    theirs, _, _ = numpy_macenko().normalize(tile, Io=240, alpha=1, beta=0.15, stains=False)
    ours = Macenko().fit(tile.reshape(-1, 3))(tile)
    # They round down, we round to nearest.
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_the_stains_that_were_mixed_are_found() -> None:
    truth = np.array([[0.65, 0.07], [0.70, 0.99], [0.29, 0.11]])
    truth /= np.linalg.norm(truth, axis=0)
    # Pure pixels of each stain, so that the extremes of the angle are the stains themselves.
    rng = np.random.default_rng(3)
    concentration = np.where(rng.random(40_000) < 0.5, [[1.0], [0.0]], [[0.0], [1.0]]) * rng.uniform(
        0.4, 1.5, 40_000
    )
    pixels = np.clip(240 * np.exp(-(truth @ concentration)) - 1, 0, 255).T.round().astype(np.uint8)
    fitted = Macenko(min_density=0.0).fit(pixels)
    for found, wanted in zip(fitted.stains, truth.T, strict=True):
        assert np.degrees(np.arccos(min(1.0, np.dot(found, wanted)))) < 2.0


def test_a_slide_that_has_the_reference_stains_already_is_left_alone() -> None:
    fitted = MacenkoNormalizer(stains=REFERENCE_STAINS, maxima=REFERENCE_MAXIMA, light=240.0)
    tile = stained_tile(5)
    # The published method takes log(I + 1) and does not take the 1 off again.
    assert np.abs(fitted(tile).astype(int) - (tile.astype(int) + 1)).max() <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_a_tile_comes_out_the_same_alone_and_in_a_batch(seed: int) -> None:
    tiles = np.stack([stained_tile(seed + i, size=32) for i in range(3)])
    fitted = Macenko().fit(stained_tile(0).reshape(-1, 3))
    assert (fitted(tiles) == np.stack([fitted(tile) for tile in tiles])).all()


def test_fitting_does_not_depend_on_the_order_of_pixels() -> None:
    pixels = stained_tile(7).reshape(-1, 3)
    shuffled = np.random.default_rng(0).permutation(pixels)
    one, two = Macenko().fit(pixels), Macenko().fit(shuffled)
    assert np.allclose(one.stains, two.stains, atol=1e-9)
    assert np.allclose(one.maxima, two.maxima)


def test_glass_stays_glass() -> None:
    glass = np.full((16, 16, 3), 245, np.uint8)
    fitted = Macenko().fit(stained_tile(2).reshape(-1, 3))
    assert fitted(glass).min() >= 235


def one_stain() -> NDArray[np.uint8]:
    density = np.outer(np.linspace(0.3, 1.5, 20_000), [0.3, 0.9, 0.3])
    return np.clip(240 * np.exp(-density) - 1, 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((50_000, 3), 240, np.uint8), "stained pixels"),
        (stained_tile(0).reshape(-1, 3)[:500], "stained pixels"),
        (one_stain(), "one stain|no measurable|not those of light"),
    ],
)
def test_what_shows_no_two_stains_is_refused(pixels: NDArray[np.uint8], reason: str) -> None:
    with pytest.raises(StainError, match=reason):
        Macenko().fit(pixels)
