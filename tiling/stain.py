"""Stain normalisation: fitted once per slide, returned as a frozen value, applied tile by tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.errors import MicrotomeError

Vector = tuple[float, float, float]

REFERENCE_STAINS: tuple[Vector, Vector] = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
"""Optical density (R, G, B) of unit haematoxylin and eosin: the target that Macenko's authors publish."""
REFERENCE_MAXIMA = (1.9705, 1.0308)
"""Their concentrations (99th percentile) on the same target."""

MIN_PIXELS = 2_000
"""Stained pixels below which percentiles of an angle mean nothing."""
MIN_ANGLE_DEGREES = 5.0
"""Stains closer than this are one stain and noise; the reference pair is 22 degrees apart."""


class StainError(MicrotomeError, ValueError):
    """The pixels do not show two stains."""


@dataclass(frozen=True, slots=True)
class MacenkoNormalizer:
    """A slide's two stains, and the colours they become. Call it on tiles."""

    stains: tuple[Vector, Vector]
    """Unit optical-density vectors (R, G, B) of haematoxylin and eosin on this slide."""
    maxima: tuple[float, float]
    """99th percentile of each stain's concentration on this slide."""
    light: float
    """Intensity that counts as clear glass."""

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Normalise ``(..., rows, columns, 3)`` uint8 RGB to the reference stains; same shape and dtype.

        Unmixing, scaling and mixing again are one 3 x 3 matrix on optical densities, so a tile costs a
        table look-up, a matrix product and an exponential.
        """
        matrix = self._transform()
        densities = _log_table(self.light)
        result = np.empty_like(tiles)
        # Tile by tile, so that the float32 copies stay in the cache: twice as fast as the whole batch.
        for source, target in zip(_images(tiles), _images(result), strict=True):
            density = cv2.LUT(source, densities)
            intensity = cv2.exp(cv2.transform(density, matrix))
            target[...] = cv2.convertScaleAbs(intensity, alpha=self.light)  # rounds and saturates
        return result

    def _transform(self) -> NDArray[np.float32]:
        own = np.array(self.stains).T  # (3, 2)
        target = np.array(REFERENCE_STAINS).T
        scale = np.diag(np.array(REFERENCE_MAXIMA) / np.array(self.maxima))
        return (-target @ scale @ np.linalg.pinv(own)).astype(np.float32)

    def as_json(self) -> dict[str, Any]:
        """The fitted numbers, for the record."""
        return {"stains": [list(v) for v in self.stains], "maxima": list(self.maxima), "light": self.light}


@dataclass(frozen=True, slots=True)
class Macenko:
    """Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis" (ISBI).

    The plane of the two strongest principal directions of optical density holds both stains; their vectors
    are the robust extremes of the angle within it.
    """

    light: float = 240.0
    """Intensity that counts as clear glass."""
    min_density: float = 0.15
    """Optical density below which a pixel counts as unstained."""
    percentile: float = 1.0
    """Share of the angles, in per cent, taken as outliers at each end."""

    def fit(self, pixels: NDArray[np.uint8]) -> MacenkoNormalizer:
        """Find the two stains in ``(n, 3)`` uint8 RGB pixels of tissue.

        Raises
        ------
        StainError
            Too few stained pixels, or no two stains among them.
        """
        density = -np.log((pixels.reshape(-1, 3).astype(np.float64) + 1) / self.light)
        stained = density[(density >= self.min_density).all(axis=1)]
        if len(stained) < MIN_PIXELS:
            raise StainError(f"only {len(stained)} stained pixels were found, {MIN_PIXELS} are needed")
        stains = self._extremes(stained)
        angle = np.degrees(np.arccos(np.clip(stains[0] @ stains[1], -1, 1)))
        if angle < MIN_ANGLE_DEGREES:
            raise StainError(f"one stain only: the two found are {angle:.1f} degrees apart")
        if (stains < -0.05).any():
            raise StainError("the colours found are not those of light absorbed by two stains")
        # Over all pixels, the unstained too, as published.
        concentration = np.linalg.lstsq(stains.T, density.T, rcond=None)[0]  # (2, n)
        maxima = np.percentile(concentration, 99, axis=1)
        if maxima.min() <= 0.01:
            raise StainError("one of the two stains has no measurable concentration")
        return MacenkoNormalizer(
            stains=(_vector(stains[0]), _vector(stains[1])),
            maxima=(float(maxima[0]), float(maxima[1])),
            light=self.light,
        )

    def _extremes(self, stained: NDArray[np.float64]) -> NDArray[np.float64]:
        """(2, 3): haematoxylin and eosin, unit length."""
        _, directions = np.linalg.eigh(np.cov(stained.T))  # ascending
        plane = directions[:, 1:]  # (3, 2)
        # An eigenvector's sign is arbitrary: point both along positive density, so that angles do not wrap.
        plane = plane * np.where(plane.sum(axis=0) < 0, -1.0, 1.0)
        projected = stained @ plane
        angles = np.arctan2(projected[:, 1], projected[:, 0])
        low, high = np.percentile(angles, [self.percentile, 100 - self.percentile])
        ends = np.array([plane @ (np.cos(a), np.sin(a)) for a in (low, high)])
        ends = ends / np.linalg.norm(ends, axis=1, keepdims=True)
        # Haematoxylin absorbs more red than eosin does.
        return np.asarray(ends[::-1] if ends[0, 0] < ends[1, 0] else ends)


def _vector(values: NDArray[np.float64]) -> Vector:
    return float(values[0]), float(values[1]), float(values[2])


def _log_table(light: float) -> NDArray[np.float32]:
    """Optical density of each of the 256 intensities."""
    return (-np.log((np.arange(256) + 1) / light)).astype(np.float32)


def _images(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """View ``(..., rows, columns, 3)`` as ``(n, rows, columns, 3)``."""
    return tiles.reshape(-1, *tiles.shape[-3:])
