"""Tissue of two known stains."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

MakeTile = Callable[..., NDArray[np.uint8]]

STAINS = np.array([[0.60, 0.15], [0.72, 0.95], [0.35, 0.28]])
"""Haematoxylin and eosin of a slide that is not the reference, as columns."""


@pytest.fixture
def stained_tile() -> MakeTile:
    """Mix two stains by Beer-Lambert: light * exp(-stains @ concentrations) - 1."""

    def make(
        seed: int, *, stains: NDArray[np.float64] = STAINS, light: float = 240, size: int = 128
    ) -> NDArray[np.uint8]:
        rng = np.random.default_rng(seed)
        blobs = rng.random((2, size // 8, size // 8)).repeat(8, 1).repeat(8, 2)
        concentration = np.stack([blobs[0] ** 3 * 2.0, 0.2 + blobs[1] * 0.9])
        density = np.tensordot(stains, concentration + rng.random((2, size, size)) * 0.05, 1)
        return np.moveaxis(np.clip(light * np.exp(-density) - 1, 0, 255), 0, -1).round().astype(np.uint8)

    return make
