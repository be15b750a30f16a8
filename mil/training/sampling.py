"""What a training step sees of a slide: some of its tiles, drawn anew in every epoch, and noise on them.

Drawing is seeded by the recipe's seed, the epoch and the slide's name, and by nothing else: neither the order
of slides nor what the generators of NumPy and torch gave before matters.

::

    n  tiles of a slide        k  tiles drawn        D  length of a feature vector
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np

from mil.bags import Bag, BagSource, Rows
from wsi.errors import UsageError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tiles are drawn from a slide.

    Raises
    ------
    UsageError
        A number that is none of this kind.
    """

    tiles_per_bag: int = 0
    """At most so many tiles of a slide; 0 for all."""
    instance_dropout: float = 0.0
    """Share of these tiles that is left out; at least one stays."""
    feature_noise: float = 0.0
    """Gaussian noise, in standard deviations that each of the D features has over the drawn tiles."""

    def __post_init__(self) -> None:
        if self.tiles_per_bag < 0:
            raise _refused(f"{self.tiles_per_bag} tiles a bag are impossible; 0 is all of them")
        if not 0 <= self.instance_dropout < 1:
            raise _refused(
                f"instance dropout is {self.instance_dropout:g}; it must be 0 or more, and below 1"
            )
        if not 0 <= self.feature_noise < float("inf"):
            raise _refused(f"feature noise is {self.feature_noise:g}; it must be 0 or more")

    def draw(self, source: BagSource, *, seed: int, epoch: int) -> Bag:
        """The tiles that one epoch sees of a slide. Only these are read."""
        generator = np.random.default_rng([seed, epoch, zlib.crc32(source.slide_id.encode())])
        bag = source.read(self._rows(len(source), generator))
        if not self.feature_noise:
            return bag
        features = bag.features.astype(np.float32)  # (k, D)
        noise = generator.standard_normal(features.shape, np.float32)
        return replace(bag, features=features + self.feature_noise * features.std(axis=0) * noise)

    def _rows(self, count: int, generator: np.random.Generator) -> Rows | None:
        """``(k,)`` ascending, as the slide's raster has them; None for all."""
        fewer = 0 < self.tiles_per_bag < count
        if not (fewer or self.instance_dropout):
            return None
        rows = np.arange(count)
        if fewer:
            rows = np.sort(generator.choice(count, self.tiles_per_bag, replace=False, shuffle=False))
        if self.instance_dropout:
            kept = generator.random(len(rows)) >= self.instance_dropout
            rows = rows[kept] if kept.any() else rows[generator.integers(len(rows), size=1)]
        return rows


def _refused(reason: str) -> UsageError:
    return UsageError(reason, action="Correct the recipe")
