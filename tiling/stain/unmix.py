"""Two stains as vectors of optical density: taking pixels apart into them, and mixing them anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from tiling.stain.contract import StainError, Tiles, Vector
from tiling.stain.density import Floats, density_table

Stains = tuple[Vector, Vector]
Scalar = TypeVar("Scalar", bound=np.generic)

REFERENCE_STAINS: Stains = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
"""Optical density (R, G, B) of unit haematoxylin and eosin: the target that Macenko's authors publish."""
REFERENCE_MAXIMA = (1.9705, 1.0308)
"""Their concentrations (99th percentile) on the same target."""

_STRIP_PIXELS = 1 << 14
"""196 kB of float32 colours: three such are less than a core's cache."""

MIN_ANGLE_DEGREES = 5.0
"""Stains closer than this are one stain and noise; the reference pair is 22 degrees apart."""


@dataclass(frozen=True, slots=True)
class StainTarget:
    """The two stains that a slide's own become: those of a reference slide."""

    stains: Stains = REFERENCE_STAINS
    """Unit optical-density vectors (R, G, B) of haematoxylin and eosin."""
    maxima: tuple[float, float] = REFERENCE_MAXIMA
    """99th percentile of each stain's concentration."""

    def as_json(self) -> dict[str, Any]:
        """The numbers, for a recipe or record."""
        return {"stains": [list(v) for v in self.stains], "maxima": list(self.maxima)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The value that `as_json` was made from."""
        haematoxylin, eosin = content["stains"]
        return cls(stains=(vector(haematoxylin), vector(eosin)), maxima=pair(content["maxima"]))


def target_from_json(content: Mapping[str, Any] | None) -> StainTarget | None:
    """The target of a stored recipe or record; None stays the published one."""
    return None if content is None else StainTarget.from_json(content)


def require_two_stains(stains: Floats) -> None:
    """Refuse what cannot be haematoxylin and eosin: unit vectors ``(2, 3)``.

    Raises
    ------
    StainError
        The two are one, or light is not absorbed so.
    """
    angle = np.degrees(np.arccos(np.clip(stains[0] @ stains[1], -1, 1)))
    if angle < MIN_ANGLE_DEGREES:
        raise StainError(f"one stain only: the two found are {angle:.1f} degrees apart")
    if (stains < -0.05).any():
        raise StainError("the colours found are not those of light absorbed by two stains")


def maxima_of(concentration: Floats) -> tuple[float, float]:
    """The 99th percentile of each row of ``(2, n)`` concentrations.

    Raises
    ------
    StainError
        One of the stains is hardly there.
    """
    maxima = np.percentile(concentration, 99, axis=1)
    if maxima.min() <= 0.01:
        raise StainError("one of the two stains has no measurable concentration")
    return pair(maxima)


@lru_cache(maxsize=8)  # asked for with every strip of a slide's tiles, and slow
def unmixing(stains: Stains) -> Floats:
    """The matrix ``(2, 3)`` that takes densities to concentrations by least squares; not to be written to."""
    matrix = np.asarray(np.linalg.pinv(np.array(stains).T))
    matrix.setflags(write=False)
    return matrix


def mixing(target: StainTarget | None, maxima: tuple[float, float]) -> Floats:
    """The matrix ``(3, 2)`` that takes a slide's concentrations to the target's densities."""
    target = target or StainTarget()
    return np.asarray(np.array(target.stains).T * (np.array(target.maxima) / np.array(maxima)))


def concentrations(tiles: Tiles, stains: Stains, *, light: float) -> NDArray[np.float32]:
    """``(..., rows, columns, 2)`` float32: haematoxylin and eosin of each pixel, see `amounts`."""
    table = density_table(light).astype(np.float32)
    result = np.empty((*tiles.shape[:-1], 2), np.float32)
    for source, target in strips(tiles, result):
        target[...] = amounts(cv2.LUT(source, table), stains)[..., :2]
    return result


def amounts(density: Any, stains: Stains) -> NDArray[np.float32]:
    """Non-negative least squares of densities ``(rows, columns, 3)`` float32.

    With two stains it has a closed form. Where one stain's share of the free optimum is negative it is 0, and
    the other's is what it would be alone; alone is less than together exactly there.

    Returns
    -------
    ``(rows, columns, 3)`` float32: haematoxylin, eosin, and 0; OpenCV is several times as quick from three
    channels to three as to two.
    """
    square = np.zeros((2, 3, 3), np.float32)
    square[0, :2], square[1, :2] = unmixing(stains), stains
    together, alone = cv2.transform(density, square[0]), cv2.transform(density, square[1])
    np.minimum(together, alone, out=together)
    return np.asarray(np.maximum(together, 0, out=together), np.float32)


def images(tiles: NDArray[Scalar]) -> NDArray[Scalar]:
    """View ``(..., rows, columns, channels)`` as ``(n, rows, columns, channels)``."""
    return tiles.reshape(-1, *tiles.shape[-3:])


def strips(tiles: Tiles, result: NDArray[Scalar]) -> Iterator[tuple[Tiles, NDArray[Scalar]]]:
    """Some rows of each tile and of its result at a time: what is computed from them stays in the cache."""
    rows = max(1, _STRIP_PIXELS // max(1, tiles.shape[-2]))
    for source, target in zip(images(tiles), images(result), strict=True):
        for top in range(0, len(source), rows):
            yield source[top : top + rows], target[top : top + rows]


def vector(values: Any) -> Vector:
    """Three plain floats."""
    red, green, blue = values
    return float(red), float(green), float(blue)


def pair(values: Any) -> tuple[float, float]:
    """Two plain floats."""
    first, second = values
    return float(first), float(second)
