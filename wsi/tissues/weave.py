"""The two structures of tissue: fibres that run side by side, and cells that fill a plane.

All is in pixels of one grid; a layer is (rows, columns) float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wsi.texture import Floats, Points, noise


@dataclass(frozen=True, eq=False)
class Weave:
    """A bent system of coordinates, along and across the fibres."""

    along: Floats
    across: Floats

    def strands(self, rng: np.random.Generator, *, width: float, length: float) -> Floats:
        """Noise of mean 0 and deviation about 0.7 whose grains lie along the fibres."""
        left, top = float(self.along.min()), float(self.across.min())
        shape = (
            math.ceil((float(self.across.max()) - top) / width) + 4,
            math.ceil((float(self.along.max()) - left) / length) + 4,
        )
        grain = rng.standard_normal(shape, dtype=np.float32)
        x, y = (self.along - left) / length + 1.5, (self.across - top) / width + 1.5
        return np.asarray(cv2.remap(grain, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT), np.float32)

    def directions(self, spots: Points) -> Points:
        """(n,): radians from the x axis to the fibre through each (x, y)."""
        x, y = spots.astype(np.int64).T
        x, y = np.clip(x, 1, self.across.shape[1] - 2), np.clip(y, 1, self.across.shape[0] - 2)
        down = self.across[y + 1, x] - self.across[y - 1, x]
        right = self.across[y, x + 1] - self.across[y, x - 1]
        return np.asarray(np.arctan2(-right, down), np.float64)  # at right angles to the steepest way across


def weave(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    bend: float,
    over: float,
    ripple: tuple[float, float] = (0.0, 1.0),
) -> Weave:
    """Fibres of a random direction, bent by about `bend` pixels over `over` of them.

    Parameters
    ----------
    ripple
        Amplitude and length of a regular wave along the fibres.
    """
    turn = rng.uniform(0, math.pi)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    x += bend * noise(rng, shape, (over, over))
    y += bend * noise(rng, shape, (over, over))
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    along, across = x * cos + y * sin, y * cos - x * sin
    height, length = ripple
    if height:
        phase = noise(rng, shape, (over, over))  # neighbouring fibres wave together, distant ones do not
        across = across + np.float32(height) * np.sin(along * np.float32(2 * math.pi / length) + phase)
    return Weave(along, np.asarray(across, np.float32))


@dataclass(frozen=True, eq=False)
class Cells:
    """The plane divided among centres, each pixel to the nearest."""

    centres: Points
    """(n, 2) (x, y)."""
    owner: npt.NDArray[np.int64]
    """(rows, columns): which centre is nearest."""
    outward: Floats
    """Distance to that centre."""
    inward: Floats
    """Distance to the border of its cell."""


def divide(centres: Points, shape: tuple[int, int]) -> Cells:
    """Divide (rows, columns) pixels among the centres, of which at least one must lie within them."""
    x, y = centres.astype(np.int64).T
    inside = (x >= 0) & (y >= 0) & (x < shape[1]) & (y < shape[0])
    centres, x, y = centres[inside], x[inside], y[inside]
    ground = np.ones(shape, np.uint8)
    ground[y, x] = 0
    outward, label = cv2.distanceTransformWithLabels(
        ground, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    number = np.zeros(int(label.max()) + 1, np.int64)
    number[label[y, x]] = np.arange(len(centres))
    owner = number[label]
    names = owner.astype(np.float32)
    border = cv2.morphologyEx(names, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    inward = cv2.distanceTransform((~border).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    return Cells(centres, owner, np.asarray(outward, np.float32), np.asarray(inward, np.float32))
