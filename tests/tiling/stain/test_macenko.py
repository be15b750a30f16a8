"""Macenko's method against an independent implementation and a float64 reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tiling.stain import REFERENCE_MAXIMA, REFERENCE_STAINS, Macenko, MacenkoNormalizer

MakeTile = Callable[..., NDArray[np.uint8]]


def reference_normalize(tile: NDArray[np.uint8], fitted: MacenkoNormalizer) -> NDArray[np.float64]:
    """The published steps one by one in float64: unmix by least squares, rescale, mix again."""
    density = -np.log((tile.reshape(-1, 3).astype(float) + 1) / fitted.light)
    concentration = np.linalg.lstsq(np.array(fitted.stains).T, density.T, rcond=None)[0]
    concentration *= (np.array(REFERENCE_MAXIMA) / np.array(fitted.maxima))[:, None]
    out = fitted.light * np.exp(-np.array(REFERENCE_STAINS).T @ concentration)
    return np.clip(out, 0, 255).T.reshape(tile.shape)


def test_the_fast_path_is_the_float64_method_to_one_grey_level(stained_tile: MakeTile) -> None:
    tile = stained_tile(1, stains=np.array([[0.65, 0.07], [0.70, 0.99], [0.29, 0.11]]))
    fitted = Macenko().fit(tile.reshape(-1, 3))
    difference = fitted(tile).astype(float) - reference_normalize(tile, fitted)
    assert np.abs(difference).max() <= 1.0
    assert abs(difference.mean()) < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_equals_torchstain_fitted_on_the_same_pixels(seed: int, stained_tile: MakeTile) -> None:
    """Torchstain is somebody else's Macenko; it refits every tile, so both see this one tile."""
    torchstain = pytest.importorskip("torchstain.numpy.normalizers").NumpyMacenkoNormalizer()
    tile = stained_tile(seed)
    theirs, _, _ = torchstain.normalize(tile, Io=240, alpha=1, beta=0.15, stains=False)
    ours = Macenko().fit(tile.reshape(-1, 3))(tile)
    # They round down, we round to nearest.
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_equals_torchstain_aimed_at_the_same_slide(stained_tile: MakeTile) -> None:
    torchstain = pytest.importorskip("torchstain.numpy.normalizers").NumpyMacenkoNormalizer()
    tile, reference = stained_tile(1), stained_tile(2, stains=np.array([[0.5, 0.2], [0.7, 0.8], [0.5, 0.4]]))
    torchstain.fit(reference)
    aimed = Macenko().aimed_at(reference.reshape(-1, 3))
    assert aimed.target is not None
    assert np.allclose(np.array(aimed.target.stains).T, torchstain.HERef, atol=1e-6)
    assert np.allclose(aimed.target.maxima, torchstain.maxCRef, atol=1e-6)
    theirs, _, _ = torchstain.normalize(tile, Io=240, alpha=1, beta=0.15, stains=False)
    assert np.abs(aimed.fit(tile.reshape(-1, 3))(tile).astype(int) - theirs.astype(int)).max() <= 1


def test_the_stains_that_were_mixed_are_found() -> None:
    truth = np.array([[0.65, 0.07], [0.70, 0.99], [0.29, 0.11]])
    truth /= np.linalg.norm(truth, axis=0)
    # Pure pixels of each stain, so that the extremes of the angle are the stains themselves.
    rng = np.random.default_rng(3)
    pure = np.where(rng.random(40_000) < 0.5, [[1.0], [0.0]], [[0.0], [1.0]])
    density = truth @ (pure * rng.uniform(0.4, 1.5, 40_000))
    pixels = np.clip(240 * np.exp(-density) - 1, 0, 255).T.round().astype(np.uint8)
    fitted = Macenko(min_density=0.0).fit(pixels)
    for found, wanted in zip(fitted.stains, truth.T, strict=True):
        assert np.degrees(np.arccos(min(1.0, np.dot(found, wanted)))) < 2.0


def test_a_slide_that_has_the_reference_stains_already_is_left_alone(stained_tile: MakeTile) -> None:
    fitted = MacenkoNormalizer(stains=REFERENCE_STAINS, maxima=REFERENCE_MAXIMA, light=240.0)
    tile = stained_tile(5, stains=np.array(REFERENCE_STAINS).T)
    # The published method takes log(I + 1) and does not take the 1 off again.
    assert np.abs(fitted(tile).astype(int) - (tile.astype(int) + 1)).max() <= 1


def test_glass_stays_glass(stained_tile: MakeTile) -> None:
    glass = np.full((16, 16, 3), 245, np.uint8)
    assert Macenko().fit(stained_tile(2).reshape(-1, 3))(glass).min() >= 235
