"""Regions where a class's score is above a threshold: areas with holes, for QuPath to open and correct.

They follow the heatmap's pixels, and so the borders of tiles: finer than a tile they say nothing. A region is
one part of that area, edge by edge; parts that touch by a corner are two. Of each the outline is simplified
by less than `RegionRules.simplify_um`, and made valid on the grid of 0.01 px to which QuPath 0.6 snaps it:
there one polygon that is not makes it refuse the whole file.

References
----------
D. Douglas and T. Peucker, "Algorithms for the reduction of the number of points required to represent a
digitized line or its caricature", 1973; as GEOS does it, without making a polygon cross itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi.annotations import Annotation
from wsi.classes import tidy
from wsi.errors import UsageError
from wsi.found import as_found
from wsi.outline import rings
from wsi.polygons import Polygon, Ring

Shape = Any
"""A shapely geometry; shapely has no types of its own."""

_GRID = 0.01
"""Level-0 pixels."""
_STRIP = 256
"""Rows that are looked at together."""


class Painted(Protocol):
    """What is needed of a `heatmaps.raster.Heatmap`."""

    @property
    def scale(self) -> float:
        """Level-0 pixels per heatmap pixel along x."""

    @property
    def scale_y(self) -> float:
        """The same along y."""

    @property
    def mpp(self) -> float:
        """Microns per heatmap pixel along both axes."""

    def channel(self, name: str) -> NDArray[np.float32]:
        """Scores of one channel, (rows, columns) float32, NaN where no tile lies."""


@dataclass(frozen=True, slots=True)
class RegionRules:
    """Which areas are regions."""

    threshold: float = 0.5
    """Scores above it. At a half, of a mean over overlapping tiles, the class is likelier than all others
    together: regions of different classes overlap by no more than the simplification. Of a maximum that does
    not hold: where tiles disagree, several classes are above a half. It is no operating point, which is for a
    study to choose."""
    simplify_um: float = 10.0
    """Microns that an outline may be moved."""
    least_area_um2: float = 10_000.0
    """Smaller regions are left out: less than a square of 100 µm."""
    least_hole_um2: float = 10_000.0
    """Smaller holes are filled."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise UsageError(
                f"regions are where a score is above a threshold from 0 to 1, got {self.threshold:g}",
                action="Give a share, such as 0.5",
            )
        for name in ("simplify_um", "least_area_um2", "least_hole_um2"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} of regions is a number of at least 0, got {value:g}")

    def as_json(self) -> dict[str, Any]:
        """All that decides what becomes a region, for a recipe."""
        return asdict(self)


@dataclass(frozen=True, eq=False, slots=True)
class Region:
    """An area of one class."""

    polygons: tuple[Polygon, ...]
    """In level-0 pixels, on a grid of 0.01, each valid; one, but where the grid parted a thin bridge."""
    area_um2: float
    """Of what the polygons enclose."""
    score: float
    """Mean over its heatmap pixels above the threshold; holes that were filled do not count."""


def outline(
    heatmap: Painted, channel: str, *, slide_size: tuple[int, int], rules: RegionRules | None = None
) -> list[Region]:
    """The regions of one channel, the largest first.

    Parameters
    ----------
    heatmap
        The slide's scores.
    channel
        Whose scores: a class.
    slide_size
        Level-0 (width, height); outlines stay within.
    rules
        Which areas are regions; the default ones where none are given.
    """
    rules = rules or RegionRules()
    scores = heatmap.channel(channel)
    above = scores > rules.threshold  # of NaN it is false
    count, labels = cv2.connectedComponents(above.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    parts = np.asarray(labels, np.int32)
    known = parts[above]
    pixels = np.bincount(known, minlength=count)
    totals = np.bincount(known, weights=scores[above].astype(np.float64), minlength=count)
    del known
    pixel_um2 = heatmap.mpp**2
    large = pixels * pixel_um2 >= rules.least_area_um2
    large[0] = False  # what is not above
    for first in range(0, len(parts), _STRIP):
        above[first : first + _STRIP] = large.take(parts[first : first + _STRIP])
    found = []
    for part, (shell, holes) in _by_part(rings(above), parts).items():
        kept = [hole for hole in holes if _enclosed(hole) * pixel_um2 >= rules.least_hole_um2]
        polygons = _simple(shell, kept, heatmap, slide_size, tolerance=rules.simplify_um / heatmap.mpp)
        if polygons:
            area = sum(polygon.area for polygon in polygons) / (heatmap.scale * heatmap.scale_y) * pixel_um2
            held = tuple(_polygon(polygon) for polygon in polygons)
            found.append(Region(held, float(area), float(totals[part] / pixels[part])))
    # The place breaks ties: the order must not follow from the way of tracing.
    return sorted(found, key=lambda one: (-one.area_um2, one.polygons[0].extent))


def as_annotations(regions: Sequence[Region], name: str, *, rules: RegionRules) -> list[Annotation]:
    """Regions as QuPath's annotations of the class `name`: numbered, measured, locked, with ids of their own.

    They are locked, as those are that QuPath's own pixel classifier makes: an annotation that is not can be
    moved by mistake. Their ids tell them from a user's marks; see `wsi.found`.
    """
    name = tidy(name)
    return [
        as_found(
            Annotation(
                region.polygons,
                name,
                label=f"{name} {number}",
                locked=True,
                measurements={
                    "Region area µm^2": round(region.area_um2, 1),
                    f"Mean tile score: {name}": round(region.score, 4),
                    "Above threshold": rules.threshold,
                },
            )
        )
        for number, region in enumerate(regions, 1)
    ]


def _by_part(found: Sequence[Ring], parts: NDArray[np.int32]) -> dict[int, tuple[Ring, list[Ring]]]:
    """The outer ring of each part, and its holes."""
    shells: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {}
    for ring in found:
        part = int(parts[_beside(ring)])
        if _enclosed(ring) > 0:
            shells[part] = ring
        else:
            holes.setdefault(part, []).append(ring[::-1])
    return {part: (shell, holes.get(part, [])) for part, shell in shells.items()}


def _beside(ring: Ring) -> tuple[int, int]:
    """(row, column) of the pixel to the right of the first piece: one that the ring is the border of."""
    (x, y), (next_x, next_y) = ring[0].astype(int).tolist(), ring[1].astype(int).tolist()
    forth = next_x > x or next_y < y  # to the right, or up
    return (y if next_x > x or next_y > y else y - 1), (x if forth else x - 1)


def _enclosed(ring: Ring) -> float:
    """Pixels; below 0 for a ring that runs the other way."""
    x, y = ring.T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2


def _simple(
    shell: Ring, holes: Sequence[Ring], heatmap: Painted, slide_size: tuple[int, int], *, tolerance: float
) -> list[Shape]:
    """The polygon simplified, in level-0 pixels, valid on the grid; `tolerance` is in heatmap pixels."""
    import shapely

    scale = np.array([heatmap.scale, heatmap.scale_y])
    # The last pixels may reach over the slide's edge. That moves corners, and keeps their order.
    edge = np.array(slide_size) / scale
    polygon = shapely.Polygon(np.minimum(shell, edge), [np.minimum(hole, edge) for hole in holes])
    polygon = shapely.simplify(polygon, tolerance, preserve_topology=True)
    polygon = shapely.transform(polygon, lambda points: points * scale)
    return valid_on_grid(polygon)


def valid_on_grid(shape: Shape) -> list[Shape]:
    """The polygons of a shapely geometry as QuPath takes them: valid, with corners at hundredths of a pixel.

    Lines and points that are left of what is thinner than the grid are dropped.
    """
    import shapely

    snapped = shapely.set_precision(shapely.make_valid(shape), _GRID)
    parts = shapely.get_parts(shapely.get_parts(snapped))  # a collection may hold a MultiPolygon
    return [part for part in parts if part.geom_type == "Polygon" and part.area > 0]


def _polygon(shape: Shape) -> Polygon:
    """Ours, with its rings turned as RFC 7946 asks."""
    shell, *holes = (np.round(np.array(ring.coords), 2) for ring in (shape.exterior, *shape.interiors))
    turned = [hole if _enclosed(hole) < 0 else hole[::-1] for hole in holes]
    return Polygon(shell if _enclosed(shell) > 0 else shell[::-1], tuple(turned))
