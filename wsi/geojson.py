"""Annotations as GeoJSON that QuPath 0.5 and later imports, and that `wsi.annotations` reads back unchanged.

QuPath refuses a whole file for one fault in it. `heatmaps.qupath` lists what its reader demands; for areas
that is: ``objectType`` inside ``properties``, UUIDs as ids, a classification with name *and* colour, names of
one line without blank parts, no null, and rings that are closed and have an area on a grid of 0.01 px, to
which coordinates are rounded here as QuPath rounds them. Rings that cross themselves or each other are not
sought.
"""

from __future__ import annotations

import json
import math
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi.annotations import Annotation
from wsi.classes import Colour, colour_of, held
from wsi.durable import write_file
from wsi.errors import UsageError
from wsi.polygons import Polygon, Ring

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "microtome:annotation")
_DECIMALS = 2
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def write_annotations(
    path: Path,
    annotations: Sequence[Annotation],
    *,
    colours: Mapping[str, Colour] | None = None,
    slide_id: str | None = None,
    bounds_origin: tuple[float, float] | None = None,
) -> None:
    """Write areas as a FeatureCollection, one feature a line, in the order given.

    Where they are given, the file also holds `slide_id` and `bounds_origin` in members of its own, which
    QuPath passes over and `wsi.annotations` heeds.

    Parameters
    ----------
    annotations
        Areas in level-0 pixels of the slide. An object whose identity is no UUID gets one that follows from
        all that it holds: the same object has the same id in every file.
    colours
        RGB by name of the classification; any other class has a colour that follows from its name alone.
    slide_id
        Whose areas they are.
    bounds_origin
        Level-0 (x, y) that is subtracted from every coordinate: where QuPath counts from, see
        `wsi.annotations.read_annotations`. Ids do not depend on it.

    Raises
    ------
    UsageError
        A name that QuPath cannot hold, two objects with one identity, or a ring that has no area on the grid.
    OutputError
        The file cannot be written.
    """
    origin = on_grid(bounds_origin or (0, 0))
    features = [_feature(one, n, path, colours or {}, origin) for n, one in enumerate(annotations, 1)]
    twice = [identity for identity, count in Counter(f["id"] for f in features).items() if count > 1]
    if twice:
        raise UsageError(
            f"two annotations would have the id {twice[0]}", path=path, action="Give each object once"
        )
    write_file(path, as_collection(members_of(slide_id, None if bounds_origin is None else origin), features))


def as_collection(members: Mapping[str, Any], features: Iterable[Mapping[str, Any]]) -> bytes:
    """A FeatureCollection, one feature a line; `members` are what it holds beside them."""
    return _opened(members) + b"\n" + b",\n".join(map(as_json, features)) + b"\n]}\n"


def head_of(slide_id: str | None, bounds_origin: tuple[float, float] | None) -> bytes:
    """The beginning of a FeatureCollection, up to its first feature."""
    return _opened(members_of(slide_id, bounds_origin))


def members_of(slide_id: str | None, bounds_origin: tuple[float, float] | None) -> dict[str, Any]:
    """What a file of ours holds beside its features."""
    members: dict[str, Any] = {"type": "FeatureCollection"}
    if slide_id is not None:
        members["slide"] = slide_id
    if bounds_origin is not None:
        members["bounds_origin"] = [plain(number) for number in bounds_origin]
    return members


def _opened(members: Mapping[str, Any]) -> bytes:
    return as_json({name: it for name, it in members.items() if name != "features"})[:-1] + b',"features":['


def as_json(value: Any) -> bytes:
    """Strict JSON in ASCII: any name survives, whatever charset the reader's machine prefers."""
    return _ENCODER.encode(value).encode("ascii")


def plain(number: float) -> float:
    """Whole numbers as int, so that the file says 256 and not 256.0; never -0."""
    return int(number) if number == int(number) else float(number)


def on_grid(origin: tuple[float, float]) -> tuple[float, float]:
    """An origin on the grid: what is on it before the origin is subtracted then is on it after, too."""
    return round(float(origin[0]), _DECIMALS), round(float(origin[1]), _DECIMALS)


def _feature(
    one: Annotation, number: int, path: Path, colours: Mapping[str, Colour], origin: tuple[float, float]
) -> dict[str, Any]:
    try:
        here = [_rings(polygon) for polygon in one.polygons]
        there = [_rings(polygon.shifted(-origin[0], -origin[1])) for polygon in one.polygons]
        properties: dict[str, Any] = {"objectType": one.object_type}
        if one.label is not None:
            properties["name"] = one.label
        if one.name is not None:
            colour = colours.get(one.name) or colour_of(one.name)
            properties["classification"] = {"name": held(one.name), "color": list(colour)}
        identity = _uuid(one.identity, [_geometry(here), properties])
        if one.locked:
            properties["isLocked"] = True
        measured = {name: plain(value) for name, value in one.measurements.items() if math.isfinite(value)}
        if measured:
            properties["measurements"] = measured
    except ValueError as error:
        raise UsageError(f"annotation {number}: {error}", path=path, action="Mend or leave it out") from error
    return {
        "type": "Feature",
        "id": identity,
        "geometry": _geometry(there),
        "properties": properties,
    }


def _geometry(shapes: list[Any]) -> dict[str, Any]:
    single = len(shapes) == 1
    return {
        "type": "Polygon" if single else "MultiPolygon",
        "coordinates": shapes[0] if single else shapes,
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
    return [[plain(number) for number in point] for point in points.tolist()]


def _uuid(identity: str | None, content: Any) -> str:
    try:
        return str(uuid.UUID(identity or ""))
    except ValueError:
        return str(uuid.uuid5(_NAMESPACE, json.dumps([identity, content])))
