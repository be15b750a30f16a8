"""Reinhard's method against an independent implementation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tiling.stain import ColourTarget, Reinhard

MakeTile = Callable[..., NDArray[np.uint8]]


def test_equals_torchstain_fitted_on_the_same_pixels(stained_tile: MakeTile) -> None:
    """Torchstain refits every tile and knows no glass: both see one tile, all of it tissue."""
    torchstain = pytest.importorskip("torchstain.numpy.normalizers").NumpyReinhardNormalizer()
    tile, reference = stained_tile(1), stained_tile(2, stains=np.array([[0.5, 0.2], [0.7, 0.8], [0.5, 0.4]]))
    torchstain.fit(reference)
    aimed = Reinhard().aimed_at(reference.reshape(-1, 3))
    assert aimed.target is not None
    assert np.allclose(aimed.target.mean, torchstain.target_means, atol=0.02)
    assert np.allclose(aimed.target.deviation, torchstain.target_stds, atol=0.02)
    difference = aimed.fit(tile.reshape(-1, 3))(tile).astype(float) - torchstain.normalize(tile)
    # They round down, we round to nearest.
    assert np.abs(difference).max() <= 2
    assert abs(difference.mean() - 0.5) < 0.1


def test_the_moments_become_those_of_the_target(stained_tile: MakeTile) -> None:
    target = ColourTarget(mean=(60.0, 25.0, -15.0), deviation=(9.0, 6.0, 5.0))
    tile = stained_tile(3)
    made = Reinhard(target=target).fit(tile.reshape(-1, 3))(tile)
    found = Reinhard().fit(made.reshape(-1, 3))
    assert np.allclose(found.mean, target.mean, atol=0.3)
    assert np.allclose(found.deviation, target.deviation, atol=0.3)


def test_the_published_reference_is_the_default(stained_tile: MakeTile) -> None:
    tile = stained_tile(4)
    named = Reinhard(target=ColourTarget()).fit(tile.reshape(-1, 3))
    assert (named(tile) == Reinhard().fit(tile.reshape(-1, 3))(tile)).all()
