"""Annotations as GeoJSON that QuPath 0.5 and later imports, and that `wsi.annotations` reads back unchanged.

QuPath refuses a whole file for one fault in it. `heatmaps.qupath` lists what its reader demands; for areas
that is: ``objectType`` inside ``properties``, UUIDs as ids, a classification with name *and* colour, names of
one line without blank parts, no null, and rings that are closed and have an area on a grid of 0.01 px, to
which coordinates are rounded here as QuPath rounds them. Rings that cross themselves or each other are not
sought.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi.annotations import Annotation
from wsi.durable import write_file
from wsi.errors import UsageError
from wsi.polygons import Polygon, Ring

Colour = tuple[int, int, int]

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "microtome:annotation")
_DECIMALS = 2


def write_annotations(
    path: Path, annotations: Sequence[Annotation], *, colours: Mapping[str, Colour] | None = None
) -> None:
    """Write areas as a FeatureCollection, one feature a line, in the order given.

    Parameters
    ----------
    annotations
        Areas in level-0 pixels of the slide. An object whose identity is no UUID gets one that follows from
        all that it holds: the same object has the same id in every file.
    colours
        RGB by name of the classification; any other class has a colour that follows from its name alone.

    Raises
    ------
    UsageError
        A name that QuPath cannot hold, two objects with one identity, or a ring that has no area on the grid.
    OutputError
        The file cannot be written.
    """
    features = [_feature(one, number, path, colours or {}) for number, one in enumerate(annotations, 1)]
    twice = [identity for identity, count in Counter(f["id"] for f in features).items() if count > 1]
    if twice:
        raise UsageError(
            f"two annotations would have the id {twice[0]}", path=path, action="Give each object once"
        )
    lines = ",\n".join(json.dumps(one, allow_nan=False, separators=(",", ":")) for one in features)
    write_file(path, f'{{"type":"FeatureCollection","features":[\n{lines}\n]}}\n'.encode("ascii"))


def _feature(one: Annotation, number: int, path: Path, colours: Mapping[str, Colour]) -> dict[str, Any]:
    try:
        shapes = [_rings(polygon) for polygon in one.polygons]
        properties: dict[str, Any] = {"objectType": one.object_type}
        if one.label is not None:
            properties["name"] = one.label
        if one.name is not None:
            colour = colours.get(one.name) or _colour(one.name)
            properties["classification"] = {"name": _held(one.name), "color": list(colour)}
    except ValueError as error:
        raise UsageError(f"annotation {number}: {error}", path=path, action="Mend or leave it out") from error
    single = len(shapes) == 1
    geometry = {
        "type": "Polygon" if single else "MultiPolygon",
        "coordinates": shapes[0] if single else shapes,
    }
    return {
        "type": "Feature",
        "id": _uuid(one.identity, [geometry, properties]),
        "geometry": geometry,
        "properties": properties,
    }


def _rings(polygon: Polygon) -> list[list[list[float]]]:
    return [_points(ring) for ring in (polygon.shell, *polygon.holes)]


def _points(ring: Ring) -> list[list[float]]:
    """The ring on the grid. Whole numbers are written as such; never -0."""
    points = np.round(ring, _DECIMALS)
    (x, y), (next_x, next_y) = (points[:-1] - points[0]).T, (points[1:] - points[0]).T
    # Not the signed area: a ring in the form of an eight may have none, and encloses something.
    if not (np.abs(x * next_y - next_x * y) > 0).any():
        raise ValueError("a ring has no area on QuPath's grid of 0.01 px")
    return [[int(v) if v == int(v) else v for v in point] for point in points.tolist()]


def _held(name: str) -> str:
    """The name, if QuPath holds it as it is."""
    parts = [" ".join(part.split()) for part in name.split(":")]
    if not all(parts) or ": ".join(parts) != name:
        raise ValueError(f"QuPath cannot hold a class {name!r}: names are one line, not blank, as 'A: B'")
    return name


def _colour(name: str) -> Colour:
    """A bright colour whose hue follows from the name."""
    hue = int.from_bytes(hashlib.sha256(name.encode()).digest()[:2], "big") / 65536
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 0.85))
    return red, green, blue


def _uuid(identity: str | None, content: Any) -> str:
    try:
        return str(uuid.UUID(identity or ""))
    except ValueError:
        return str(uuid.uuid5(_NAMESPACE, json.dumps([identity, content])))
