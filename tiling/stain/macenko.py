"""Macenko's method: the robust extremes of the angle in the plane of the two strongest directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from tiling.stain.contract import Tiles
from tiling.stain.density import Floats, density_table, stain_plane, take_sample
from tiling.stain.unmix import (
    Stains,
    StainTarget,
    concentrations,
    maxima_of,
    mixing,
    pair,
    require_two_stains,
    strips,
    target_from_json,
    unmixing,
    vector,
)


@dataclass(frozen=True, slots=True)
class MacenkoNormalizer:
    """A slide's two stains, and the colours they become. Call it on tiles."""

    name: ClassVar[str] = "Macenko"
    stains: Stains
    """Unit optical-density vectors (R, G, B) of haematoxylin and eosin on this slide."""
    maxima: tuple[float, float]
    """99th percentile of each stain's concentration on this slide."""
    light: float
    """Intensity that counts as clear glass."""
    target: StainTarget | None = None
    """The stains that these become; None: the published reference."""

    def __call__(self, tiles: Tiles) -> Tiles:
        """Normalise ``(..., rows, columns, 3)`` uint8 RGB to the target's stains; same shape and dtype.

        Unmixing, scaling and mixing again are one 3 x 3 matrix on optical densities, so a tile costs a
        table look-up, a matrix product and an exponential.
        """
        densities, matrix = _plan(self)
        result = np.empty(tiles.shape, np.uint8)
        for source, target in strips(tiles, result):
            mixed = cv2.transform(cv2.LUT(source, densities), matrix)
            cv2.exp(mixed, dst=mixed)
            cv2.convertScaleAbs(mixed, dst=target, alpha=self.light)  # rounds and saturates
        return result

    def concentrations(self, tiles: Tiles) -> NDArray[np.float32]:
        """Haematoxylin and eosin of each pixel, see `Unmixer`: ``(..., rows, columns, 2)`` float32."""
        return concentrations(tiles, self.stains, light=self.light)

    def as_target(self) -> StainTarget:
        """The slide as the reference of others."""
        return StainTarget(self.stains, self.maxima)

    def as_json(self) -> dict[str, Any]:
        """The fitted numbers, for the record."""
        return {
            "method": self.name,
            "stains": [list(v) for v in self.stains],
            "maxima": list(self.maxima),
            "light": self.light,
            "target": self.target.as_json() if self.target else None,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The value that `as_json` was made from."""
        haematoxylin, eosin = content["stains"]
        return cls(
            stains=(vector(haematoxylin), vector(eosin)),
            maxima=pair(content["maxima"]),
            light=content["light"],
            target=target_from_json(content.get("target")),
        )


@lru_cache(maxsize=8)  # once a slide, not once a tile
def _plan(normalizer: MacenkoNormalizer) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The density of each intensity ``(256,)``, and the matrix ``(3, 3)`` from densities to the target's."""
    matrix = -mixing(normalizer.target, normalizer.maxima) @ unmixing(normalizer.stains)
    return density_table(normalizer.light).astype(np.float32), matrix.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Macenko:
    """Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis" (ISBI).

    The plane of the two strongest principal directions of optical density holds both stains; their vectors
    are the robust extremes of the angle within it. Ink is left out (`tiling.stain.density`); otherwise as
    published.
    """

    name: ClassVar[str] = "Macenko"
    light: float = 240.0
    """Intensity that counts as clear glass."""
    min_density: float = 0.15
    """Optical density below which a pixel counts as unstained."""
    percentile: float = 1.0
    """Share of the angles, in per cent, taken as outliers at each end."""
    target: StainTarget | None = None
    """The stains that a slide's become; None: the published reference."""

    def fit(self, pixels: NDArray[np.uint8]) -> MacenkoNormalizer:
        """Find the two stains in ``(n, 3)`` uint8 RGB pixels of tissue.

        Raises
        ------
        StainError
            Too few stained pixels, or no two stains among them.
        """
        sample = take_sample(pixels, light=self.light, min_density=self.min_density)
        stains = extremes(sample.density[:, sample.stained], light=self.light, percentile=self.percentile)
        require_two_stains(stains)
        found = (vector(stains[0]), vector(stains[1]))
        # Over all pixels, the unstained too, as published.
        maxima = maxima_of(unmixing(found) @ sample.density)
        return MacenkoNormalizer(found, maxima, light=self.light, target=self.target)

    def aimed_at(self, reference: NDArray[np.uint8]) -> Self:
        """The same method with another slide as its target: ``(n, 3)`` uint8 RGB pixels of its tissue."""
        return replace(self, target=self.fit(reference).as_target())

    def as_json(self) -> dict[str, Any]:
        """The recipe, as it is stored and compared."""
        return {
            "method": self.name,
            "light": self.light,
            "min_density": self.min_density,
            "percentile": self.percentile,
            "target": self.target.as_json() if self.target else None,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The value that `as_json` was made from."""
        settings = {key: value for key, value in content.items() if key != "method"}
        return cls(**{**settings, "target": target_from_json(settings.get("target"))})


def extremes(density: Floats, *, light: float, percentile: float) -> Floats:
    """``(2, 3)``: haematoxylin and eosin, of unit length, in stained pixels ``(3, n)``.

    Raises
    ------
    StainError
        One stain only.
    """
    plane = stain_plane(density, light=light)
    # An eigenvector's sign is arbitrary: point both along positive density, so that angles do not wrap.
    plane = plane * np.where(plane.sum(axis=0) < 0, -1.0, 1.0)
    across, along = plane.T @ density
    low, high = np.percentile(np.arctan2(along, across), [percentile, 100 - percentile])
    ends = np.array([plane @ (np.cos(a), np.sin(a)) for a in (low, high)])
    ends = ends / np.linalg.norm(ends, axis=1, keepdims=True)
    # Haematoxylin absorbs more red than eosin does.
    return np.asarray(ends[::-1] if ends[0, 0] < ends[1, 0] else ends)
