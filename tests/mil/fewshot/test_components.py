"""Principal axes against a singular value decomposition of all features at once."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mil.fewshot.components import mean_of_rows, principal_components


def make_features(rows: int, dim: int, *, dtype: type = np.float32) -> NDArray[np.float32]:
    """Some vary much more than others; feature 3 never does, and 4 has a large mean."""
    rng = np.random.default_rng([rows, dim])
    features = rng.normal(size=(rows, dim)) @ (
        rng.normal(size=(dim, dim)) * np.geomspace(1, 1e-2, dim)[:, None]
    )
    features[:, 3] = 0.1
    features[:, 4] += 500
    made: NDArray[np.float32] = features.astype(dtype)
    return made


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("at_once", [8192, 7])
def test_axes_are_those_of_the_singular_value_decomposition(
    dtype: type, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mil.fewshot.components._ROWS_AT_ONCE", at_once)
    features = make_features(60, 9, dtype=dtype)
    exact = features.astype(np.float64)
    _, sizes, axes = np.linalg.svd(exact - exact.mean(axis=0), full_matrices=False)
    found = principal_components(features, 4)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(mean_of_rows(features), exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(found.axes * axes[:4], axis=1)), 1, rtol=1e-5)  # up to the sign
    assert found.deviation == pytest.approx(np.sqrt((sizes[:4] ** 2).mean() / 60), rel=1e-5)
    assert found.mean.dtype == found.axes.dtype == np.float32


def test_along_the_axes_features_are_uncorrelated_and_vary_less_and_less() -> None:
    features = make_features(200, 9)
    found = principal_components(features, 6)
    along = (features - found.mean).astype(np.float64) @ found.axes.T / found.deviation
    covariance = along.T @ along / len(along)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-5)
    assert (np.diff(np.diag(covariance)) < 0).all()
    assert np.diag(covariance).mean() == pytest.approx(1, rel=1e-5)


def test_the_sign_of_an_axis_does_not_hang_on_that_of_the_features() -> None:
    features = make_features(50, 9)
    np.testing.assert_allclose(
        principal_components(-features, 5).axes, principal_components(features, 5).axes, atol=1e-6
    )


@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_rows_than_axes_still_give_axes(rows: int) -> None:
    found = principal_components(make_features(rows, 9), 6)
    np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(6), atol=1e-5)
    assert np.isfinite(found.deviation)
    assert found.deviation > 0


def test_features_that_never_vary_have_a_deviation_of_1() -> None:
    assert principal_components(np.full((5, 4), 0.1, np.float32), 2).deviation == 1


@pytest.mark.parametrize(("rows", "count"), [(0, 2), (5, 0), (5, 10)])
def test_axes_that_cannot_be_had_are_refused(rows: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} axes of {rows} rows"):
        principal_components(make_features(5, 9)[:rows], count)
