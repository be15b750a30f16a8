"""Vahadane's method against known mixtures, brute force and scikit-learn's dictionary learning."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tiling.stain import REFERENCE_MAXIMA, REFERENCE_STAINS, Vahadane
from tiling.stain.vahadane import learn_stains, sparse_codes

MakeTile = Callable[..., NDArray[np.uint8]]
Floats = NDArray[np.float64]
TRUTH = np.array([[0.65, 0.20], [0.70, 0.95], [0.29, 0.24]]) / np.linalg.norm(
    [[0.65, 0.20], [0.70, 0.95], [0.29, 0.24]], axis=0
)


def sparse_amounts(rng: np.random.Generator, count: int) -> Floats:
    """Every third pixel holds one stain only: the sparseness that the method lives on."""
    amounts = rng.uniform(0.3, 2.0, (2, count))
    amounts[0, ::3] = 0
    amounts[1, 1::3] = 0
    return amounts


def objective(density: Floats, stains: Floats, codes: Floats, *, sparsity: float) -> float:
    return float(((density - stains @ codes) ** 2).sum() / 2 + sparsity * codes.sum())


def test_the_stains_that_were_mixed_are_found() -> None:
    density = TRUTH @ sparse_amounts(np.random.default_rng(0), 60_000)
    pixels = np.clip(240 * np.exp(-density) - 1, 0, 255).T.round().astype(np.uint8)
    fitted = Vahadane(min_density=0.0).fit(pixels)
    for found, wanted in zip(fitted.stains, TRUTH.T, strict=True):
        assert np.degrees(np.arccos(min(1.0, np.dot(found, wanted)))) < 4.0


def test_the_codes_are_the_best_there_are() -> None:
    """No non-negative code of a fine grid is better than the closed form."""
    rng = np.random.default_rng(1)
    density = TRUTH @ rng.uniform(-0.2, 1.0, (2, 50)) + rng.normal(0, 0.1, (3, 50))
    codes = sparse_codes(density, TRUTH, sparsity=0.1)
    assert codes.min() >= 0
    grid = np.array(list(itertools.product(np.linspace(0, 1.5, 151), repeat=2))).T
    for pixel, code in zip(density.T, codes.T, strict=True):
        costs = ((pixel[:, None] - TRUTH @ grid) ** 2).sum(axis=0) / 2 + 0.1 * grid.sum(axis=0)
        assert objective(pixel, TRUTH, code, sparsity=0.1) <= costs.min() + 1e-12


def test_explains_the_densities_as_well_as_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    rng = np.random.default_rng(2)
    density = np.maximum(TRUTH @ sparse_amounts(rng, 600) + rng.normal(0, 0.03, (3, 600)), 0)
    start = np.array(REFERENCE_STAINS).T
    stains = learn_stains(density, start, sparsity=0.1)
    assert stains.min() >= 0
    assert np.linalg.norm(stains, axis=0).max() <= 1 + 1e-9
    learner = decomposition.DictionaryLearning(
        n_components=2,
        alpha=0.1,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        transform_alpha=0.1,
        positive_code=True,
        positive_dict=True,
        dict_init=start.T,
        code_init=np.ones((600, 2)),
        max_iter=100,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes = learner.fit_transform(density.T)
    theirs = objective(density, learner.components_.T, codes.T, sparsity=0.1)
    ours = objective(density, stains, sparse_codes(density, stains, sparsity=0.1), sparsity=0.1)
    assert ours <= theirs * (1 + 1e-6)


def test_the_search_never_makes_it_worse(stained_tile: MakeTile) -> None:
    density = -np.log((stained_tile(3).reshape(-1, 3)[::8].T + 1.0) / 240).clip(max=0)
    start = np.array(REFERENCE_STAINS).T
    learned = learn_stains(density, start, sparsity=0.1)
    before = objective(density, start, sparse_codes(density, start, sparsity=0.1), sparsity=0.1)
    after = objective(density, learned, sparse_codes(density, learned, sparsity=0.1), sparsity=0.1)
    assert after <= before
    again = learn_stains(density, learned, sparsity=0.1)
    assert np.abs(again - learned).max() < 1e-4


def test_the_fast_path_is_non_negative_least_squares_in_float64(stained_tile: MakeTile) -> None:
    nnls = pytest.importorskip("scipy.optimize").nnls
    tile = stained_tile(1, size=40)
    fitted = Vahadane().fit(stained_tile(1).reshape(-1, 3))
    density = -np.log((tile.reshape(-1, 3).astype(float) + 1) / fitted.light)
    amounts = np.array([nnls(np.array(fitted.stains).T, pixel)[0] for pixel in density]).T
    assert 0 < (amounts == 0).mean() < 0.5
    assert np.allclose(fitted.concentrations(tile).reshape(-1, 2).T, amounts, atol=1e-5)
    amounts *= (np.array(REFERENCE_MAXIMA) / np.array(fitted.maxima))[:, None]
    wanted = np.clip(fitted.light * np.exp(-np.array(REFERENCE_STAINS).T @ amounts), 0, 255).T
    assert np.abs(fitted(tile).astype(float) - wanted.reshape(tile.shape)).max() <= 1.0


def test_glass_is_as_bright_as_the_light_and_no_brighter(stained_tile: MakeTile) -> None:
    glass = np.full((16, 16, 3), 250, np.uint8)
    assert (Vahadane().fit(stained_tile(2).reshape(-1, 3))(glass) == 240).all()
