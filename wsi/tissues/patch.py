"""A patch to be painted, what is painted on it, and what several tissues are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from wsi.texture import Floats, Nucleus, Points, fractal, noise, scatter
from wsi.tissues.weave import Cells, Weave, divide, weave

SPINDLE = Nucleus(length=13, width=3.2, spacing=21, turned=0.3, varied=0.2, lobed=0.03, dark=0.6)
LYMPHOCYTE = Nucleus(length=6.2, width=5.8, spacing=7.6, turned=3, varied=0.08, lobed=0.03, dark=0.85)
_NUCLEOLUS = Nucleus(length=2.4, width=2.2, spacing=0, turned=3, varied=0.2, lobed=0, dark=1.1)


@dataclass(frozen=True)
class Patch:
    """A rectangle to be painted."""

    size: tuple[int, int]
    """(width, height) in level-0 pixels, both even."""
    mpp: float
    """Microns per level-0 pixel."""

    @property
    def px(self) -> float:
        """Half-resolution pixels per micron."""
        return 0.5 / self.mpp

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) at half resolution."""
        return self.size[1] // 2, self.size[0] // 2

    def at(self, layer: npt.NDArray[Any], spots: Points) -> npt.NDArray[Any]:
        """(n,): the values of a half-resolution layer under level-0 points."""
        x, y = (spots / 2).astype(np.int64).T
        return np.asarray(layer[np.clip(y, 0, layer.shape[0] - 1), np.clip(x, 0, layer.shape[1] - 1)])

    def noise(self, rng: np.random.Generator, cell: float) -> Floats:
        """Half-resolution noise with a grain of `cell` microns."""
        return noise(rng, self.shape, (cell * self.px, cell * self.px))

    def fractal(self, rng: np.random.Generator, cell: float, octaves: int = 3) -> Floats:
        """The same of several octaves, the coarsest of `cell` microns."""
        return fractal(rng, self.shape, cell * self.px, octaves)


@dataclass(frozen=True)
class Crowd:
    """Nuclei of one kind."""

    kind: Nucleus
    spots: Points
    """(n, 2) level-0 (x, y), counted from the corner of the patch."""
    turns: Points
    """(n,) radians from the x axis to the long axis."""


@dataclass(frozen=True)
class Painting:
    """What a patch of one tissue holds; layers are (rows, columns) at half resolution, in grey levels."""

    eosin: Floats
    haematoxylin: Floats
    """Of all but the nuclei."""
    crowds: tuple[Crowd, ...]
    """The later lie upon the earlier."""


Painter = Callable[[np.random.Generator, Patch], Painting]


def everywhere(
    rng: np.random.Generator,
    patch: Patch,
    kind: Nucleus,
    *,
    spots: Points | None = None,
    turns: Points | float = 0.0,
) -> Crowd:
    """Nuclei at `spots`, or all over at the kind's own spacing."""
    if spots is None:
        spots = scatter(rng, patch.size, kind.spacing / patch.mpp)
    return Crowd(kind, spots, turns + rng.normal(0, kind.turned, len(spots)))


def among(rng: np.random.Generator, patch: Patch, kind: Nucleus, where: Floats, least: float) -> Crowd:
    """Nuclei where the layer `where` exceeds `least`."""
    spots = scatter(rng, patch.size, kind.spacing / patch.mpp)
    return everywhere(rng, patch, kind, spots=spots[patch.at(where, spots) > least])


def along(rng: np.random.Generator, patch: Patch, kind: Nucleus, fibres: Weave) -> Crowd:
    """Nuclei whose long axes follow the fibres."""
    spots = scatter(rng, patch.size, kind.spacing / patch.mpp)
    return everywhere(rng, patch, kind, spots=spots, turns=fibres.directions(spots / 2))


def kept_of(crowd: Crowd, kept: np.ndarray) -> Crowd:
    """The crowd of the nuclei that are `kept`, (n,) bool."""
    return Crowd(crowd.kind, crowd.spots[kept], crowd.turns[kept])


def nucleoli(rng: np.random.Generator, patch: Patch, crowd: Crowd, share: float) -> Crowd:
    """One or no nucleolus in each nucleus of a crowd."""
    spots = crowd.spots[rng.random(len(crowd.spots)) < share]
    spots = spots + rng.normal(0, 1.0 / patch.mpp, spots.shape)
    return everywhere(rng, patch, _NUCLEOLUS, spots=spots)


def soft(layer: npt.NDArray[Any], steepness: float) -> Floats:
    """0 to 1, one half where the layer is 0."""
    return np.asarray(np.clip(layer * np.float32(steepness) + np.float32(0.5), 0, 1), np.float32)


def blurred(layer: npt.NDArray[Any], deviation: float) -> Floats:
    """The layer smoothed by a Gaussian, in pixels."""
    return np.asarray(cv2.GaussianBlur(layer, (0, 0), deviation), np.float32)


def collagen(rng: np.random.Generator, patch: Patch, *, wave: float = 42.0) -> tuple[Weave, Floats]:
    """Wavy fibres, and how dense their strands are."""
    fibres = weave(rng, patch.shape, bend=wave * patch.px, over=110 * patch.px)
    strands = fibres.strands(rng, width=4 * patch.px, length=60 * patch.px)
    return fibres, strands + 0.4 * fibres.strands(rng, width=1.4 * patch.px, length=35 * patch.px)


def cells_of(rng: np.random.Generator, patch: Patch, spacing: float) -> Cells:
    """Divide the patch, at half resolution, into cells about `spacing` microns wide."""
    return divide(scatter(rng, patch.size, spacing / patch.mpp) / 2, patch.shape)


def circles(rng: np.random.Generator, spots: Points, patch: Patch, radius: float) -> list[list[int]]:
    """Columns, rows and radii at half resolution, about `radius` microns."""
    radii = radius * patch.px * np.exp(rng.normal(0, 0.15, len(spots)))
    rounded: list[list[int]] = np.rint(np.column_stack([spots / 2, radii])).astype(int).tolist()
    return rounded


def with_twins(
    rng: np.random.Generator, patch: Patch, spots: Points, *, share: float, apart: float
) -> Points:
    """The spots, and beside that share of them a second one, `apart` microns away."""
    first = spots[rng.random(len(spots)) < share]
    way = rng.uniform(0, 2 * math.pi, len(first))
    twins = first + apart / patch.mpp * np.column_stack([np.cos(way), np.sin(way)])
    return np.concatenate([spots, twins])
