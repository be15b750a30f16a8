"""Vahadane's method: the two stains are the sparse, non-negative dictionary of the densities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from tiling.stain.contract import Tiles
from tiling.stain.density import Floats, density_table, take_sample
from tiling.stain.macenko import extremes
from tiling.stain.unmix import (
    Stains,
    StainTarget,
    amounts,
    concentrations,
    maxima_of,
    mixing,
    pair,
    require_two_stains,
    strips,
    target_from_json,
    vector,
)

MOST_PIXELS = 30_000
"""Stained pixels that the dictionary is learned on: every so-many-th in the order of colours."""
MOST_ROUNDS = 300
SETTLED = 1e-7
"""Change of a stain's components below which the search ends."""


@dataclass(frozen=True, slots=True)
class VahadaneNormalizer:
    """A slide's two stains, and the colours they become. Call it on tiles."""

    name: ClassVar[str] = "Vahadane"
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

        Concentrations are non-negative, as in the paper, but without the penalty: it is there to find the
        stains, and would make every pixel paler.
        """
        mix = np.zeros((3, 3), np.float32)
        mix[:, :2] = -mixing(self.target, self.maxima)
        densities = density_table(self.light).astype(np.float32)
        result = np.empty(tiles.shape, np.uint8)
        for source, target in strips(tiles, result):
            mixed = cv2.transform(amounts(cv2.LUT(source, densities), self.stains), mix)
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


@dataclass(frozen=True, slots=True)
class Vahadane:
    """Vahadane et al. 2016, "Structure-preserving color normalization" (IEEE Trans. Medical Imaging 35).

    Densities ``V`` are explained as ``W @ H`` by two stains ``W`` of at most unit length and their
    concentrations ``H``, all non-negative, so that ``|V - W H|^2 / 2 + sparsity * sum(H)`` is least. The
    search starts from Macenko's stains and nothing in it is random. As there, ink is left out; the target,
    unless it is a reference slide, is Macenko's.
    """

    name: ClassVar[str] = "Vahadane"
    light: float = 240.0
    """Intensity that counts as clear glass."""
    min_density: float = 0.15
    """Optical density below which a pixel counts as unstained."""
    sparsity: float = 0.1
    """Weight of the penalty on concentrations; the paper's is 0.1."""
    target: StainTarget | None = None
    """The stains that a slide's become; None: the published reference."""

    def fit(self, pixels: NDArray[np.uint8]) -> VahadaneNormalizer:
        """Find the two stains in ``(n, 3)`` uint8 RGB pixels of tissue.

        Raises
        ------
        StainError
            Too few stained pixels, or no two stains among them.
        """
        sample = take_sample(pixels, light=self.light, min_density=self.min_density)
        density = sample.density[:, sample.stained]
        start = extremes(density, light=self.light, percentile=1.0)
        every = -(-density.shape[1] // MOST_PIXELS)
        learned = learn_stains(np.maximum(density[:, ::every], 0), start.T, sparsity=self.sparsity).T
        stains = learned / np.linalg.norm(learned, axis=1, keepdims=True)
        require_two_stains(stains)
        if stains[0, 0] < stains[1, 0]:  # haematoxylin absorbs more red than eosin does
            stains = stains[::-1]
        found = (vector(stains[0]), vector(stains[1]))
        maxima = maxima_of(sparse_codes(sample.density, stains.T, sparsity=0))
        return VahadaneNormalizer(found, maxima, light=self.light, target=self.target)

    def aimed_at(self, reference: NDArray[np.uint8]) -> Self:
        """The same method with another slide as its target: ``(n, 3)`` uint8 RGB pixels of its tissue."""
        return replace(self, target=self.fit(reference).as_target())

    def as_json(self) -> dict[str, Any]:
        """The recipe, as it is stored and compared."""
        return {
            "method": self.name,
            "light": self.light,
            "min_density": self.min_density,
            "sparsity": self.sparsity,
            "target": self.target.as_json() if self.target else None,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The value that `as_json` was made from."""
        settings = {key: value for key, value in content.items() if key != "method"}
        return cls(**{**settings, "target": target_from_json(settings.get("target"))})


def learn_stains(density: Floats, start: Floats, *, sparsity: float) -> Floats:
    """The dictionary ``(3, 2)`` of densities ``(3, n)``, by turns with the codes, from ``start`` (3, 2)."""
    stains = np.maximum(start, 0)
    for _ in range(MOST_ROUNDS):
        codes = sparse_codes(density, stains, sparsity=sparsity)
        settled = stains
        stains = _best_stains(density @ codes.T, codes @ codes.T, stains)
        if np.abs(stains - settled).max() < SETTLED:
            break
    return stains


def sparse_codes(density: Floats, stains: Floats, *, sparsity: float) -> Floats:
    """The non-negative ``(2, n)`` codes that are best for two non-negative stains ``(3, 2)``, exactly.

    With two codes the problem has a closed form. Where one code of the free optimum is negative it is 0, and
    the other is what it would be alone; alone is less than together exactly there.
    """
    gram, gains = stains.T @ stains, stains.T @ density - sparsity
    together, alone = np.linalg.inv(gram) @ gains, gains / np.diag(gram)[:, None]
    return np.asarray(np.maximum(np.minimum(together, alone), 0))


def _best_stains(target: Floats, weight: Floats, stains: Floats) -> Floats:
    """The best stains ``(3, 2)`` for given codes H: ``target`` is V Hᵀ (3, 2), ``weight`` is H Hᵀ (2, 2)."""
    stains = stains.copy()
    for _ in range(20):  # block by block; each step is exact, and the two soon agree
        before = stains.copy()
        for j in range(2):
            if weight[j, j] > 0:
                column = np.maximum(stains[:, j] + (target[:, j] - stains @ weight[:, j]) / weight[j, j], 0)
                stains[:, j] = column / max(1.0, float(np.linalg.norm(column)))
        if np.abs(stains - before).max() < SETTLED / 10:
            break
    return stains
