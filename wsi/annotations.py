"""Annotations in GeoJSON, as QuPath exports them and as `heatmaps.qupath` writes tiles.

Read are a FeatureCollection, one Feature, or a bare array of features (QuPath 0.2 and scripts), plain,
gzip'ed, or the one file of a zip archive. Of a feature its polygons are taken: Polygon, MultiPolygon, and
those in a GeometryCollection; QuPath's rectangles and brushed areas are polygons in its files, and so are
ellipses: where ``isEllipse`` says so, the ellipse in the polygon's box is meant. Points and lines have no
area: they are left out, and a warning counts them. Of a cell the outline counts, not the nucleus. Members
that we do not know are passed over, keys given twice too (QuPath writes ``metadata`` twice): the last one
holds.

References
----------
RFC 7946, "The GeoJSON Format" (2016). What QuPath adds to it: its documentation, "Exporting annotations".
"""

from __future__ import annotations

import enum
import gzip
import io
import json
import logging
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsi.errors import UsageError
from wsi.feature import Feature, Geometry, feature_of, ours, ring_of
from wsi.polygons import Polygon

LARGEST_FILE = 128 << 20
"""Bytes, also of what a gzip'ed file holds. Reading takes three times the file, and ten times where it all is
one feature. Files of cells are larger, and do not say where tissue is."""

_WORDS = 80  # characters of what a library says of a fault

_log = logging.getLogger(__name__)
_AGAIN = "Export it again from QuPath (File, Export objects as GeoJSON), or give another file"


class Origin(enum.Enum):
    """From where coordinates count. A file of our own says so itself."""

    BOUNDS = "bounds"
    """The corner of the slide's bounds: QuPath crops a slide to them, and so counts from there."""
    SLIDE = "slide"
    """The slide's own corner: QuPath opened with ``--no-crop``, and most other programs."""

    def of(self, bounds_origin: tuple[float, float]) -> tuple[float, float]:
        """Level-0 (x, y) of where to count from, for a slide whose bounds begin there."""
        return bounds_origin if self is Origin.BOUNDS else (0.0, 0.0)


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
    locked: bool = False
    """Whether QuPath keeps it from being moved by mistake."""
    measurements: Mapping[str, float] = field(default_factory=dict)
    """Numbers by name; some may be NaN."""


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
                found.append(_annotation(area, one))
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


def _annotation(area: tuple[Polygon, ...], one: Feature) -> Annotation:
    return Annotation(area, one.name, one.object_type, one.label, one.identity, one.locked, one.measurements)


# The file ------------------------------------------------------------------------------------------------


def _load(data: bytes, path: Path) -> Any:
    """The JSON of the file, its geometries and features made ours on the way: text is not kept as lists."""
    if data[:2] == b"PK":
        data = _unzip(data, path)
    if data[:2] == b"\x1f\x8b":
        data = _unpack(data, path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 text (byte {error.start}), so no GeoJSON"
        raise UsageError(reason, path=path, action=_AGAIN) from error
    del data
    try:
        return json.loads(text, object_hook=ours)
    except RecursionError as error:
        reason = "is nested too deep to be GeoJSON"
        raise UsageError(reason, path=path, action=_AGAIN) from error
    except ValueError as error:
        reason = "is empty" if not text.strip() else f"is not JSON, or cut off ({str(error)[:_WORDS]})"
        raise UsageError(reason, path=path, action=_AGAIN) from error


def _unzip(data: bytes, path: Path) -> bytes:
    """The one file of GeoJSON in an archive; QuPath writes one, named after the archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name for name in archive.namelist() if _is_geojson(name)]
            if len(names) == 1:
                with archive.open(names[0]) as stream:
                    unpacked = stream.read(LARGEST_FILE + 1)
    except (zipfile.BadZipFile, EOFError, OSError, zlib.error, RuntimeError, NotImplementedError) as error:
        raise UsageError(
            f"is a damaged, cut or locked zip archive ({error})", path=path, action="Copy or export it again"
        ) from error
    if len(names) != 1:
        found = f"{len(names)} files" if names else "no file"
        raise UsageError(
            f"is a zip archive with {found} of GeoJSON", path=path, action="Unpack it, and give the one file"
        )
    return _check_size(unpacked, path, "what it holds")


def _is_geojson(name: str) -> bool:
    """Not the twins that macOS adds."""
    own = not name.startswith("__MACOSX/") and not name.rpartition("/")[2].startswith(".")
    return own and name.lower().removesuffix(".gz").endswith((".geojson", ".json"))


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


def _features(top: Any, path: Path) -> list[Feature]:
    """The features at the top of the file."""
    if isinstance(top, Geometry):  # RFC 7946 allows a bare one
        return [feature_of({"geometry": top})]
    if isinstance(top, Feature):
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
        if not isinstance(one, Feature):
            what = repr(one.get("type")) if isinstance(one, dict) else f"of type {type(one).__name__}"
            raise UsageError(f"entry {number} is no feature but {what}", path=path, action=_AGAIN)
    return listed


def _stated_origin(top: dict[str, Any], path: Path) -> tuple[float, float] | None:
    """What a file of `heatmaps.qupath` says was subtracted from its coordinates."""
    stated = top.get("bounds_origin")
    if stated is None:
        return None
    try:
        ((x, y),) = ring_of([stated], close=False).tolist()
    except ValueError as error:
        raise UsageError(f"its bounds_origin is {stated!r}", path=path, action=_AGAIN) from error
    return x, y
