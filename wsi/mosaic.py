"""Specimens parted into ragged territories of several kinds of tissue; `wsi.canvas` paints them.

As in `wsi.specimen`, masks have one pixel per `MASK_SCALE` level-0 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wsi.annotations import Annotation
from wsi.errors import UsageError
from wsi.outline import rings
from wsi.polygons import Polygon, Ring
from wsi.specimen import MASK_SCALE, draw_specimen, largest_parts
from wsi.texture import Bools, fractal
from wsi.tissues import TISSUES

_COVER = (0.46, 0.6)  # of the glass
_MOST_TERRITORIES = 3  # of one class
_LEAST_SHARE = 0.008  # of the tissue: smaller territories go to their neighbours

Index = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Mosaic:
    """Which tissue lies where on a slide."""

    size: tuple[int, int]
    """(width, height) of level 0."""
    mpp: float
    """Microns per level-0 pixel."""
    classes: tuple[str, ...]
    """Names from `TISSUES`."""
    index: Index
    """(rows, columns): the position in `classes` plus one; 0 on glass."""

    def shares(self) -> dict[str, float]:
        """How much of the tissue each class is."""
        tissue = np.count_nonzero(self.index)
        return {
            name: float(np.count_nonzero(self.index == number) / tissue)
            for number, name in enumerate(self.classes, 1)
        }

    def territories(self) -> list[tuple[str, Bools]]:
        """The name and the mask of each connected part, class after class."""
        found = []
        for number, name in enumerate(self.classes, 1):
            count, parts = cv2.connectedComponents((self.index == number).astype(np.uint8), connectivity=4)
            found += [(name, np.asarray(parts == part)) for part in range(1, count)]
        return found


def draw_mosaic(
    rng: np.random.Generator, *, size: tuple[int, int], mpp: float, shares: Mapping[str, float]
) -> Mosaic:
    """Draw pieces of tissue, and in them one to three territories of each class.

    Parameters
    ----------
    shares
        How much of the tissue each class is to take, about; they are brought to a sum of one.

    Raises
    ------
    UsageError
        A class that is not in `TISSUES`, or tissue that has no room for all of them.
    """
    unknown = sorted(set(shares) - set(TISSUES))
    if unknown or not shares or min(shares.values()) <= 0:
        raise UsageError(
            f"no tissue is named {', '.join(unknown)}" if unknown else f"shares of tissue are {dict(shares)}",
            action=f"Give positive shares to some of: {', '.join(TISSUES)}",
        )
    tissue = draw_specimen(rng, size=size, mpp=mpp, cover=_COVER).tissue
    wanted = np.array(list(shares.values())) / sum(shares.values())
    index = np.where(tissue, _parted(rng, tissue, wanted), 0).astype(np.uint8)
    mosaic = Mosaic(size, mpp, tuple(shares), _tidied(index, len(wanted)))
    missing = [name for name, share in mosaic.shares().items() if share == 0]
    if missing:
        found = f"a slide of {size[0]} x {size[1]} pixels has no room for {', '.join(missing)}"
        raise UsageError(found, action="Ask for a larger slide, or for fewer classes or larger shares")
    return mosaic


def _parted(rng: np.random.Generator, tissue: Bools, wanted: npt.NDArray[np.float64]) -> Index:
    """Part the plane so that class i, numbered from one, takes about `wanted[i]` of the tissue.

    Each class has one to three centres; a place goes to the class with the nearest one. A handicap added to
    the distances brings the areas to what is wanted; noise makes the borders ragged.
    """
    shape, extent = tissue.shape, math.sqrt(np.count_nonzero(tissue))
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    spots, taken = np.argwhere(tissue), np.zeros((0, 2))
    distances = []
    for share in wanted:
        nearest = np.full(shape, np.inf, np.float32)
        for _ in range(int(rng.integers(1, 1 + max(1, min(_MOST_TERRITORIES, round(share * 12)))))):
            tried = spots[rng.integers(0, len(spots), 16)]
            apart = np.hypot(*(tried[:, None] - taken[None]).transpose(2, 0, 1)).min(axis=1, initial=np.inf)
            centre = tried[int(apart.argmax())]
            taken = np.concatenate([taken, centre[None]])
            nearest = np.minimum(nearest, np.hypot(y - centre[0], x - centre[1]))
        distances.append(nearest / extent + 0.05 * fractal(rng, shape, extent / 5, 4))
    field = np.stack(distances)
    handicap = np.zeros(len(wanted))
    for step in range(150):
        index = (field + handicap[:, None, None]).argmin(axis=0)
        share = np.bincount(index[tissue], minlength=len(wanted)) / np.count_nonzero(tissue)
        handicap += (share - wanted) * 40 / (80 + step)
    return np.asarray(index + 1, np.uint8)


def _tidied(index: Index, classes: int) -> Index:
    """Give crumbs to their neighbours, until each class has at most three parts; what stays alone is cut."""
    least = max(_LEAST_SHARE * np.count_nonzero(index), 4)
    kept = index
    for _ in range(4):
        kept = np.zeros_like(index)
        for number in range(1, classes + 1):
            parts = largest_parts(index == number, _MOST_TERRITORIES)
            count, labels, stats, _ = cv2.connectedComponentsWithStats(parts.astype(np.uint8), connectivity=4)
            sound = [part for part in range(1, count) if stats[part, cv2.CC_STAT_AREA] >= least]
            kept[np.isin(labels, sound)] = number
        index = np.where(index > 0, spread(kept), 0).astype(np.uint8)
    return np.where(index == kept, index, 0).astype(np.uint8)


def spread(index: Index) -> Index:
    """Each place with the nearest number that is not 0."""
    _, label = cv2.distanceTransformWithLabels(
        (index == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    number = np.zeros(int(label.max()) + 1, np.uint8)
    number[label[index > 0]] = index[index > 0]
    return np.asarray(number[label], np.uint8)


def interiors(mosaic: Mosaic, *, margin_um: float = 24.0) -> list[Annotation]:
    """Each territory without a margin along its border, where the texture of the neighbour reaches over.

    A territory narrower than twice the margin has none. Ids are drawn from the outlines.
    """
    reach = margin_um / mosaic.mpp / MASK_SCALE
    found = []
    for name, mask in mosaic.territories():
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        inner = _without_corners(np.asarray(depth[1:-1, 1:-1] > reach))
        count, labels = cv2.connectedComponents(inner.astype(np.uint8), connectivity=4)
        polygons = tuple(_polygon(labels == part, mosaic.size) for part in range(1, count))
        if polygons:
            found.append(Annotation(polygons, name))
    return found


def _without_corners(mask: Bools) -> Bools:
    """The mask without pixels that touch others by a corner only: QuPath refuses rings that meet so."""
    mask = mask.copy()
    while True:
        a, b, c, d = mask[:-1, :-1], mask[:-1, 1:], mask[1:, :-1], mask[1:, 1:]
        falling, rising = a & d & ~b & ~c, b & c & ~a & ~d
        if not (falling | rising).any():
            return mask
        a &= ~falling
        d &= ~falling
        b &= ~rising
        c &= ~rising


def _polygon(part: Bools, size: tuple[int, int]) -> Polygon:
    """The outline of one connected part in level-0 pixels, and its holes."""
    shell, *holes = sorted(rings(part), key=_area, reverse=True)
    on_slide = [np.minimum(ring * MASK_SCALE, np.array(size, np.float64)) for ring in (shell, *holes)]
    return Polygon(on_slide[0], tuple(on_slide[1:]))


def _area(ring: Ring) -> float:
    """Positive for outer rings of `wsi.outline`, negative for holes."""
    (x, y), (nx, ny) = ring[:-1].T, ring[1:].T
    return float((x * ny - nx * y).sum() / 2)
