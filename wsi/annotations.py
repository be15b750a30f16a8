"""Annotations in GeoJSON, as QuPath exports them and as `heatmaps.qupath` writes tiles.

Read are a FeatureCollection, one Feature, or a bare array of features (QuPath 0.2 and scripts), plain or
gzip'ed. Of a feature its polygons are taken: Polygon, MultiPolygon, and those in a GeometryCollection;
QuPath's rectangles, brushed areas and ellipses are polygons in its files (``isEllipse`` marks a ring of
points). Points and lines have no area: they are left out, and a warning counts them. Of a cell the outline
counts, not the nucleus. Members that we do not know are passed over, keys given twice too (QuPath writes
``metadata`` twice): the last one holds.

References
----------
RFC 7946, "The GeoJSON Format" (2016). What QuPath adds to it: its documentation, "Exporting annotations".
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from wsi.errors import UsageError
from wsi.polygons import Polygon, Ring

LARGEST_FILE = 128 << 20
"""Bytes, also of what a gzip'ed file holds. Reading takes three times the file, and ten times where it all is
one feature. Files of cells are larger, and do not say where tissue is."""
LARGEST_COORDINATE = 1e9
"""Level-0 pixels; no slide is a thousandth of it."""

_log = logging.getLogger(__name__)
_LEFT_OUT = frozenset({"Point", "MultiPoint", "LineString", "MultiLineString"})
_OLD_IDS = {
    "PathAnnotationObject": "annotation",
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tmaCore",
    "PathRootObject": "root",
}
"""Until 0.3 QuPath wrote the object's type where later versions write its UUID."""
_AGAIN = "Export it again from QuPath (File, Export objects as GeoJSON), or give another file"


@dataclass(frozen=True, eq=False, slots=True)
class Annotation:
    """One object of the file, with its area in level-0 pixels of the slide."""

    polygons: tuple[Polygon, ...]
    """At least one; the area is their union."""
    name: str | None
    """The full name of its classification, such as ``"Tumor"`` or ``"Tumor: Positive"``; None for none."""
    object_type: str = "annotation"
    """QuPath's: ``annotation`` (also where the file does not say), ``detection``, ``cell``, ``tile``, ..."""
    label: str | None = None
    """What the user called this very object, where he did."""
    identity: str | None = None
    """The feature's id: in QuPath's files a UUID."""


def read_annotations(path: Path, *, bounds_origin: tuple[float, float] = (0, 0)) -> list[Annotation]:
    """Read every object with an area, in the file's order; a parent before its children.

    Parameters
    ----------
    bounds_origin
        Level-0 (x, y) that is added to every coordinate. QuPath opens a slide cropped to its bounds
        (``openslide.bounds-x`` and ``-y``, that is `Slide.bounds_origin`; MIRAX and Leica files have them),
        and what it exports counts from their corner, not the slide's. (0, 0) for slides without bounds, for
        QuPath opened with ``--no-crop``, and for other programs' files. A file of `heatmaps.qupath` states
        its own origin; that is then used instead.

    Raises
    ------
    UsageError
        The file cannot be read, is larger than `LARGEST_FILE`, is no GeoJSON, is damaged, or holds nothing
        that has an area.
    """
    return parse_annotations(read_bounded(path), path=path, bounds_origin=bounds_origin)


def read_bounded(path: Path) -> bytes:
    """All bytes of a regular file of at most `LARGEST_FILE`, or `UsageError`."""
    try:
        if not path.is_file():
            kind = "it is no regular file" if path.exists() else "there is no such file"
            raise UsageError(f"cannot be read ({kind})", path=path, action="Check the path")
        with path.open("rb") as stream:
            data = stream.read(LARGEST_FILE + 1)
    except OSError as error:
        if isinstance(error, UsageError):
            raise
        reason = f"cannot be read ({error.strerror or error})"
        raise UsageError(reason, path=path, action="Check its permissions") from error
    return _check_size(data, path, "the file")


def parse_annotations(
    data: bytes, *, path: Path, bounds_origin: tuple[float, float] = (0, 0)
) -> list[Annotation]:
    """As `read_annotations`, for the bytes of a file that was read already; `path` is for messages."""
    top = _load(data, path)
    features = _features(top, path)
    if isinstance(top, dict):
        bounds_origin = _stated_origin(top, path) or bounds_origin
    found, left_out = [], Counter[str]()
    for number, feature in enumerate(features, 1):
        for one in feature.family():
            if one.fault:
                raise UsageError(f"feature {number}: {one.fault}", path=path, action=_AGAIN)
            left_out += one.left_out
            if one.polygons:
                area = tuple(polygon.shifted(*bounds_origin) for polygon in one.polygons)
                found.append(Annotation(area, one.name, one.object_type, one.label, one.identity))
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
    if not found:
        raise UsageError(
            f"holds no polygon, only {counts}" if counts else "holds no feature",
            path=path,
            action="Draw areas (not points or lines), and export them again",
        )
    if left_out:
        _log.warning("%s: left out, having no area: %s", path, counts)
    return found


# The file ------------------------------------------------------------------------------------------------


def _load(data: bytes, path: Path) -> Any:
    """The JSON of the file, its geometries and features made ours on the way: text is not kept as lists."""
    if data[:2] == b"PK":
        raise UsageError("is a zip archive", path=path, action="Unpack it, and give the file inside")
    if data[:2] == b"\x1f\x8b":
        data = _unpack(data, path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 text (byte {error.start}), so no GeoJSON"
        raise UsageError(reason, path=path, action=_AGAIN) from error
    del data
    try:
        return json.loads(text, object_hook=_ours)
    except RecursionError as error:
        reason = "is nested too deep to be GeoJSON"
        raise UsageError(reason, path=path, action=_AGAIN) from error
    except ValueError as error:
        reason = "is empty" if not text.strip() else f"is not JSON, or cut off ({error})"
        raise UsageError(reason, path=path, action=_AGAIN) from error


def _unpack(data: bytes, path: Path) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            unpacked = stream.read(LARGEST_FILE + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise UsageError(
            f"is a damaged or cut gzip file ({error})", path=path, action="Copy or export it again"
        ) from error
    return _check_size(unpacked, path, "what it holds")


def _check_size(data: bytes, path: Path, what: str) -> bytes:
    if len(data) > LARGEST_FILE:
        raise UsageError(
            f"{what} is larger than {LARGEST_FILE >> 20} MiB, and regions never are",
            path=path,
            action="Export the annotations alone: no detections, no measurements",
        )
    return data


def _features(top: Any, path: Path) -> list[_Feature]:
    """The features at the top of the file."""
    if isinstance(top, _Geometry):  # RFC 7946 allows a bare one
        return [_feature({"geometry": top})]
    if isinstance(top, _Feature):
        return [top]
    listed = top.get("features") if isinstance(top, dict) and top.get("type") == "FeatureCollection" else top
    if not isinstance(listed, list):
        kind = f"keys {sorted(top)[:5]}" if isinstance(top, dict) else f"the type {type(top).__name__}"
        raise UsageError(
            f"is JSON but no GeoJSON: a FeatureCollection or features are needed, got {kind}",
            path=path,
            action=_AGAIN,
        )
    for number, one in enumerate(listed, 1):
        if not isinstance(one, _Feature):
            what = repr(one.get("type")) if isinstance(one, dict) else f"of type {type(one).__name__}"
            raise UsageError(f"entry {number} is no feature but {what}", path=path, action=_AGAIN)
    return listed


def _stated_origin(top: dict[str, Any], path: Path) -> tuple[float, float] | None:
    """What a file of `heatmaps.qupath` says was subtracted from its coordinates."""
    stated = top.get("bounds_origin")
    if stated is None:
        return None
    try:
        ((x, y),) = _ring([stated], close=False).tolist()
    except ValueError as error:
        raise UsageError(f"its bounds_origin is {stated!r}", path=path, action=_AGAIN) from error
    return x, y


# Features and geometries ---------------------------------------------------------------------------------


@dataclass(slots=True, repr=False)
class _Geometry:
    """A geometry as far as it has an area. A fault is kept: only that of a feature's own area matters."""

    polygons: list[Polygon] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    depth: int = 0
    fault: str = ""

    def __repr__(self) -> str:
        return "a geometry"


@dataclass(slots=True, repr=False)
class _Feature:
    polygons: list[Polygon]
    left_out: Counter[str]
    name: str | None = None
    object_type: str = "annotation"
    label: str | None = None
    identity: str | None = None
    children: list[_Feature] = field(default_factory=list)
    fault: str = ""

    def __repr__(self) -> str:
        return "a feature"

    def family(self) -> Iterator[_Feature]:
        yield self
        for child in self.children:
            yield from child.family()


def _ours(member: dict[str, Any]) -> Any:
    """What JSON's objects become, innermost first."""
    kind = member.get("type")
    if kind == "Feature" and ("geometry" in member or "properties" in member):
        return _feature(member)
    if isinstance(kind, str) and ("coordinates" in member or "geometries" in member):
        return _geometry(kind, member)
    return member


def _feature(member: dict[str, Any]) -> _Feature:
    properties = member.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    geometry, left_out, fault = member.get("geometry"), Counter[str](), ""
    if isinstance(geometry, _Geometry):
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
    written = next((kind for kind in kinds if _is_name(kind)), None)
    children = properties.get("childObjects")
    return _Feature(
        polygons=geometry.polygons if isinstance(geometry, _Geometry) else [],
        left_out=left_out,
        name=name,
        object_type=written or _OLD_IDS.get(str(identity), "annotation"),
        label=properties["name"] if _is_name(properties.get("name")) else None,
        identity=str(identity) if isinstance(identity, str | int) and identity not in _OLD_IDS else None,
        children=[c for c in children if isinstance(c, _Feature)] if isinstance(children, list) else [],
        fault=fault,
    )


def class_name(classification: object) -> str | None:
    """The full name of a classification in any form that QuPath reads; `ValueError` for others.

    >>> class_name({"names": ["Tumor", "Positive"], "color": [200, 0, 0]})
    'Tumor: Positive'
    """
    if isinstance(classification, dict):
        classification = classification.get("names") or classification.get("name")
    if isinstance(classification, list) and all(isinstance(part, str) for part in classification):
        classification = ": ".join(classification)
    if classification is None or isinstance(classification, str):
        return (classification or "").strip() or None
    raise ValueError(f"its classification is no name: {classification!r:.60}")


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def _geometry(kind: str, member: dict[str, Any]) -> _Geometry:
    if kind == "GeometryCollection":
        return _collection(member.get("geometries"))
    if kind in _LEFT_OUT:
        return _Geometry(left_out=Counter([kind]))
    if kind not in {"Polygon", "MultiPolygon"}:
        return _Geometry(fault=f"a geometry of type {kind!r} is not known")
    found = _Geometry()
    try:
        parts = _list(member.get("coordinates")) if kind == "MultiPolygon" else [member.get("coordinates")]
        for part in parts:
            shell, *holes = [_ring(ring) for ring in _list(part)] or [np.empty((0, 2))]
            if len(shell) < 4 or not _encloses(shell):
                found.left_out[f"{kind} without area"] += 1
            else:
                found.polygons.append(Polygon(shell, tuple(hole for hole in holes if len(hole) >= 4)))
    except ValueError as error:
        return _Geometry(fault=f"{kind}: {error}")
    if not found.polygons and not found.left_out:
        found.left_out[f"{kind} without area"] += 1
    return found


def _collection(geometries: object) -> _Geometry:
    """A GeometryCollection; one inside another is read, and no deeper, which RFC 7946 advises against too."""
    if not isinstance(geometries, list) or not all(isinstance(one, _Geometry) for one in geometries):
        return _Geometry(fault="a GeometryCollection needs a list of geometries")
    found = _Geometry(depth=1 + max((one.depth for one in geometries), default=0))
    for one in geometries:
        found.polygons += one.polygons
        found.left_out += one.left_out
        found.fault = found.fault or one.fault
    if found.depth > 2:
        found.fault = found.fault or f"GeometryCollections nested {found.depth} levels deep; 2 are read"
    if not geometries:
        found.left_out["GeometryCollection without area"] += 1
    return found


def _ring(points: object, *, close: bool = True) -> Ring:
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
