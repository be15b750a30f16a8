"""Stain augmentation for training: tiles as they might look had they been stained a little otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from tiling.stain.contract import Tiles
from tiling.stain.density import density_table
from tiling.stain.unmix import images

LIGHT = 256.0
"""With the 1 that is added to intensities, white has density 0 and no change is the identity."""

HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density (R, G, B) of haematoxylin, eosin and DAB (Ruifrok and Johnston 2001)."""


@dataclass(frozen=True, slots=True)
class HedJitter:
    """Jitter of haematoxylin, eosin and DAB (Tellez et al. 2018, IEEE Transactions on Medical Imaging 37).

    Each tile is unmixed into the three; each concentration ``c`` becomes ``(1 + alpha) * c + beta``, with
    alpha and beta drawn uniformly, and they are mixed again. Concentrations are natural optical densities,
    and ``bias`` counts in those.
    """

    sigma: float = 0.05
    """Largest relative change of a concentration; the paper's light form has 0.05, its strong one 0.2."""
    bias: float = 0.02
    """Largest shift of a concentration. White changes by it, at most to about ``255 * (1 - 2.3 * bias)``."""

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < 1:
            raise ValueError(f"sigma is {self.sigma:g}; it must be at least 0 and below 1")
        if not 0 <= self.bias < 1:
            raise ValueError(f"bias is {self.bias:g}; it must be at least 0 and below 1")

    def __call__(self, tile: Tiles, rng: np.random.Generator) -> Tiles:
        """Change ``(..., rows, columns, 3)`` uint8 RGB, each tile by a draw of its own; same shape and dtype.

        Parameters
        ----------
        tile
            A tile, or tiles.
        rng
            The only source of chance: six numbers are drawn per tile.
        """
        unmix = np.linalg.inv(np.array(HED).T)
        table = density_table(LIGHT).astype(np.float32)
        result = np.empty(tile.shape, np.uint8)
        for source, target in zip(images(tile), images(result), strict=True):
            factor = 1 + rng.uniform(-self.sigma, self.sigma, 3)
            shift = rng.uniform(-self.bias, self.bias, 3)
            mix = np.array(HED).T
            matrix = -np.column_stack([mix * factor @ unmix, mix @ shift])
            intensity = cv2.exp(cv2.transform(cv2.LUT(source, table), matrix.astype(np.float32)))
            # Where it is below 1 / LIGHT, taking 1 off is below 0, and mirrored: by one grey level at most.
            target[...] = cv2.convertScaleAbs(intensity, alpha=LIGHT, beta=-1.0)
        return result
