"""GeoJSON's features and geometries, as far as they have an area: what JSON's objects are made into.

Of each the polygons are kept as arrays, and of QuPath's properties what `wsi.annotations.Annotation` holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

from wsi.classes import tidy
from wsi.polygons import Polygon, Ring

LARGEST_COORDINATE = 1e9
"""Level-0 pixels; no slide is a thousandth of it."""

_ELLIPSE_POINTS = 400
"""QuPath writes 100, which lack 0.066 % of the area; of these 0.004 % are lacking."""
_LEFT_OUT = frozenset({"Point", "MultiPoint", "LineString", "MultiLineString"})
_OLD_TYPES = {
    "PathAnnotationObject": "annotation",
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tmaCore",
    "PathRootObject": "root",
}
"""Until 0.3 QuPath wrote the object's type so, where later versions write its UUID."""


@dataclass(slots=True, repr=False)
class Geometry:
    """A geometry as far as it has an area. A fault is kept: only that of a feature's own area matters."""

    polygons: list[Polygon] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    depth: int = 0
    fault: str = ""

    def __repr__(self) -> str:
        return "a geometry"


@dataclass(slots=True, repr=False)
class Feature:
    """An object and those within it; see `wsi.annotations.Annotation`."""

    polygons: list[Polygon]
    left_out: Counter[str]
    name: str | None = None
    object_type: str = "annotation"
    label: str | None = None
    identity: str | None = None
    locked: bool = False
    measurements: dict[str, float] = field(default_factory=dict)
    children: list[Feature] = field(default_factory=list)
    fault: str = ""

    def __repr__(self) -> str:
        return "a feature"

    def family(self) -> Iterator[Feature]:
        """The object itself, and then all within it."""
        yield self
        for child in self.children:
            yield from child.family()


def ours(member: dict[str, Any]) -> Any:
    """What JSON's objects become, innermost first."""
    kind = member.get("type")
    if kind == "Feature" and ("geometry" in member or "properties" in member):
        return feature_of(member)
    if isinstance(kind, str) and ("coordinates" in member or "geometries" in member):
        return _geometry(kind, member)
    return member


def feature_of(member: dict[str, Any]) -> Feature:
    """A feature, of the members of a JSON object; its geometry and its children are ours already."""
    properties = member.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    geometry, left_out, fault = member.get("geometry"), Counter[str](), ""
    if isinstance(geometry, Geometry):
        left_out, fault = geometry.left_out, geometry.fault
    elif geometry is None:
        left_out["without geometry"] += 1
    else:
        fault = "its geometry has no type and coordinates"
    try:
        name = class_name(properties.get("classification"))
    except ValueError as error:
        name, fault = None, fault or str(error)
    identity = member.get("id")
    kinds = (properties.get(key) for key in ("objectType", "object_type", "type"))
    written = next((kind for kind in kinds if _is_name(kind)), None) or str(identity)
    children = properties.get("childObjects", properties.get("children"))
    return Feature(
        polygons=geometry.polygons if isinstance(geometry, Geometry) else [],
        left_out=left_out,
        name=name,
        object_type=_OLD_TYPES.get(written, "annotation" if written == str(identity) else written),
        label=properties["name"] if _is_name(properties.get("name")) else None,
        identity=str(identity) if isinstance(identity, str | int) and identity not in _OLD_TYPES else None,
        locked=properties.get("isLocked") is True,
        measurements=_measurements(properties.get("measurements")),
        children=[c for c in children if isinstance(c, Feature)] if isinstance(children, list) else [],
        fault=fault,
    )


def class_name(classification: object) -> str | None:
    """The full name of a classification in any form that QuPath reads; `ValueError` for others.

    >>> class_name({"names": ["Tumor", "Positive"], "color": [200, 0, 0]})
    'Tumor: Positive'
    """
    names: list[object] = []
    while isinstance(classification, dict) and "parentClass" in classification:
        # Until 0.3: the last part of a derived class, and within it the class that it derives from.
        names.insert(0, classification.get("name"))
        classification = classification["parentClass"]
    if isinstance(classification, dict):
        classification = classification.get("names") or classification.get("name")
    names[:0] = classification if isinstance(classification, list) else [classification]
    if not all(name is None or isinstance(name, str) for name in names):
        raise ValueError(f"its classification is no name: {classification!r:.60}")
    return tidy(": ".join(str(name) for name in names if name is not None)) or None


def _measurements(written: object) -> dict[str, float]:
    """Numbers by name: of an object, or of a list of names and values (until 0.3). What is none is left out.

    QuPath writes what JSON has no number for as text: ``"NaN"``, ``"Infinity"``.
    """
    if isinstance(written, list):
        pairs = [one for one in written if isinstance(one, dict) and isinstance(one.get("name"), str)]
        written = {one["name"]: one.get("value") for one in pairs}
    if not isinstance(written, dict):
        return {}
    if all(type(value) is float for value in written.values()):
        return written  # as it is: of files of cells there are millions
    numbers = ((name, _number(value)) for name, value in written.items())
    return {name: number for name, number in numbers if number is not None}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def _geometry(kind: str, member: dict[str, Any]) -> Geometry:
    if kind == "GeometryCollection":
        return _collection(member.get("geometries"))
    if kind in _LEFT_OUT:
        return Geometry(left_out=Counter([kind]))
    if kind not in {"Polygon", "MultiPolygon"}:
        return Geometry(fault=f"a geometry of type {kind!r} is not known")
    found = Geometry()
    ellipse = member.get("isEllipse") is True
    try:
        parts = _list(member.get("coordinates")) if kind == "MultiPolygon" else [member.get("coordinates")]
        for part in parts:
            shell, *holes = [ring_of(ring) for ring in _list(part)] or [np.empty((0, 2))]
            if ellipse and len(shell):
                shell, holes = _ellipse(shell), []
            if len(shell) < 4 or not _encloses(shell):
                found.left_out[f"{kind} without area"] += 1
            else:
                found.polygons.append(Polygon(shell, tuple(hole for hole in holes if len(hole) >= 4)))
    except ValueError as error:
        return Geometry(fault=f"{kind}: {error}")
    if not found.polygons and not found.left_out:
        found.left_out[f"{kind} without area"] += 1
    return found


def _collection(geometries: object) -> Geometry:
    """A GeometryCollection; one inside another is read, and no deeper, which RFC 7946 advises against too."""
    if not isinstance(geometries, list) or not all(isinstance(one, Geometry) for one in geometries):
        return Geometry(fault="a GeometryCollection needs a list of geometries")
    found = Geometry(depth=1 + max((one.depth for one in geometries), default=0))
    for one in geometries:
        found.polygons += one.polygons
        found.left_out += one.left_out
        found.fault = found.fault or one.fault
    if found.depth > 2:
        found.fault = found.fault or f"GeometryCollections nested {found.depth} levels deep; 2 are read"
    if not geometries:
        found.left_out["GeometryCollection without area"] += 1
    return found


def _ellipse(ring: Ring) -> Ring:
    """The ellipse in the ring's box, which is all that QuPath takes of it; `_ELLIPSE_POINTS`, and closed."""
    (left, top), (right, bottom) = ring.min(axis=0), ring.max(axis=0)
    angle = np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
    x, y = (left + right) / 2, (top + bottom) / 2
    points = np.stack(
        [x + (right - left) / 2 * np.cos(angle), y + (bottom - top) / 2 * np.sin(angle)], axis=1
    )
    return np.concatenate([points, points[:1]])


def ring_of(points: object, *, close: bool = True) -> Ring:
    """``(k, 2)`` float64, closed; heights are dropped. `ValueError` for what are no pixel coordinates."""
    points = _list(points)
    if not all(isinstance(point, list) and len(point) >= 2 for point in points):
        raise ValueError("a point needs two numbers, x and y")
    flat = [number for point in points for number in point[:2]]
    for kind in set(map(type, flat)) - {int, float}:
        raise ValueError(f"a coordinate is {'nested too deep' if kind is list else f'a {kind.__name__}'}")
    try:
        ring = np.array(flat, np.float64).reshape(-1, 2)
    except OverflowError as error:
        raise ValueError("a coordinate is too large for any slide") from error
    if not np.isfinite(ring).all():
        raise ValueError("a coordinate is NaN or infinite")
    if (np.abs(ring) > LARGEST_COORDINATE).any():
        raise ValueError("a coordinate is too large for any slide")
    if close and len(ring) and (ring[0] != ring[-1]).any():
        ring = np.concatenate([ring, ring[:1]])
    return ring


def _encloses(ring: Ring) -> bool:
    """Whether its points do not all lie on one line. What crosses itself encloses something all the same."""
    ways = ring - ring[0]
    first = ways[np.abs(ways).sum(axis=1).argmax()]
    return bool((np.abs(ways[:, 0] * first[1] - ways[:, 1] * first[0]) > 0).any())


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"its coordinates are nested too little (a list is needed, got {value!r:.40})")
    return value
