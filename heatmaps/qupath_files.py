"""A heatmap's files for QuPath: tiles, regions, and the script that opens them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatmaps.groovy import Opening, write_script
from heatmaps.outlines import Painted, RegionRules, as_annotations, outline
from heatmaps.qupath import TileClasses, tiles_name, write_tiles
from tiling.store import TileStore
from wsi.annotations import Annotation, Origin
from wsi.geojson import write_annotations

REGIONS, SCRIPT = "regions.geojson", "open-in-qupath.groovy"


@dataclass(frozen=True, slots=True)
class QupathOptions:
    """What a user may choose of these files."""

    regions: RegionRules = field(default_factory=RegionRules)
    """Which areas are regions."""
    origin: Origin = Origin.BOUNDS
    """From where coordinates count."""

    def as_json(self) -> dict[str, Any]:
        """All that decides the files, for a recipe."""
        return {"regions": self.regions.as_json(), "origin": self.origin.value}


def write_for_qupath(
    folder: Path,
    store: TileStore,
    regions: Sequence[Annotation],
    *,
    classes: tuple[str, ...],
    scores: NDArray[np.float32],
    measurements: Mapping[str, NDArray[np.float32]],
    options: QupathOptions,
) -> None:
    """Write ``tiles.geojson`` (packed if they are many), ``regions.geojson`` and the script.

    Parameters
    ----------
    folder
        Of the heatmap that is being made.
    store
        The slide and its tiles, whose tissue share and quality become measurements too.
    regions
        Those of all classes; see `find_regions`.
    classes
        The model's, in its order.
    scores
        ``(n, C)``; a tile's class is the one with the highest. Those of the last class are shown first.
    measurements
        ``(n,)`` numbers by name: what the model says of each tile; a ``Tile score: <class>`` for each class.
    options
        What the user chose.
    """
    record = store.record
    slide_bounds = float(record["bounds_origin"][0]), float(record["bounds_origin"][1])
    slide_size = int(record["slide_size"][0]), int(record["slide_size"][1])
    frame: dict[str, Any] = {"slide_id": store.slide_id, "bounds_origin": options.origin.of(slide_bounds)}
    of_tiles = TileClasses(classes, scores.argmax(axis=1))
    colours = {one["name"]: one["color"] for one in of_tiles.classifications()}
    every = dict(measurements) | tile_quality(store)
    name = tiles_name(len(scores))
    write_tiles(
        folder / name,
        origins=store.origins,
        tile=(float(record["tile_level0"][0]), float(record["tile_level0"][1])),
        slide_size=slide_size,
        measurements=every,
        classes=of_tiles,
        **frame,
    )
    write_annotations(folder / REGIONS, regions, colours=colours, **frame)
    opening = Opening(
        slide_size=slide_size,
        slide_bounds=slide_bounds,
        tiles=name,
        regions=REGIONS,
        measurements=tuple(measurements),
        shown=list(measurements).index(f"Tile score: {classes[-1]}"),
        classes=colours,
        **frame,
    )
    write_script(folder / SCRIPT, opening)


def find_regions(heatmap: Painted, name: str, store: TileStore, *, rules: RegionRules) -> list[Annotation]:
    """The regions of a class, out of a heatmap of its scores."""
    width, height = store.record["slide_size"]
    return as_annotations(outline(heatmap, name, slide_size=(width, height), rules=rules), name, rules=rules)


def tile_quality(store: TileStore) -> dict[str, NDArray[np.float32]]:
    """``(n,)`` tissue share and quality measures of a slide's tiles, by the names that QuPath shows.

    Tiles that came from another tool's files have no quality.
    """
    named = {"Tissue share": store.tissue}
    quality = store.quality
    if quality is not None:
        named |= {f"Quality: {name}": quality[:, i] for i, name in enumerate(store.record["measures"])}
    return named
