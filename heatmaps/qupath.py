"""Tiles as GeoJSON that QuPath 0.5 and later imports as it is.

QuPath refuses a whole file for one fault in it. What its reader (QuPathTypeAdapters, PathClassTypeAdapter and
PathClass of 0.5.1 to 0.7) demands, and this module keeps: ``objectType`` inside ``properties``; UUIDs as ids,
or they are replaced; rings closed, and valid on a grid of 0.01 px; a classification with name *and* colour;
class names of one line, not blank, with colons only between the names of a derived class; measurements that
are numbers; no null. Metadata on tiles logs a stack trace each in 0.5, so there is none.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi.durable import replacing
from wsi.errors import UsageError

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "microtome:tile")
_THINNEST = 0.02
"""Pixels; a thinner tile could vanish on the 0.01 px grid that QuPath snaps coordinates to."""
_CHUNK = 4096
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))

_BUILT_IN = {
    "tumor": (200, 0, 0),
    "tumour": (200, 0, 0),
    "stroma": (150, 200, 150),
    "immune cells": (160, 90, 160),
    "necrosis": (50, 50, 50),
    "other": (255, 200, 0),
    "positive": (200, 50, 50),
    "negative": (90, 90, 180),
    "ignore*": (180, 180, 180),
}
"""QuPath's own colours: it keeps to them for its own classes, whatever a file says."""
_PALETTE = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
)
"""For all other classes, told apart by colour-blind eyes too: Okabe and Ito (2008), without black."""


@dataclass(frozen=True, eq=False)
class TileClasses:
    """The class of each tile. The order of `names` is the model's, so a class looks alike on every slide."""

    names: tuple[str, ...]
    """All classes, also those that no tile of this slide has."""
    index: NDArray[np.integer[Any]]
    """(n,) position in `names`; -1 for a tile without a class."""

    def __post_init__(self) -> None:
        written = [_class_name(name) for name in self.names]
        if len(set(written)) != len(written):
            raise UsageError(f"class names must differ, also as QuPath reads them: {written}")
        if self.index.ndim != 1 or not np.issubdtype(self.index.dtype, np.integer):
            raise ValueError(f"a class index is (n,) integers, got {self.index.shape} {self.index.dtype}")
        if len(self.index) and not (self.index.min() >= -1 and self.index.max() < len(self.names)):
            raise ValueError(f"a class index lies outside -1 to {len(self.names) - 1}")

    def classifications(self) -> list[dict[str, Any]]:
        """Return the name and colour of each class, as QuPath reads them."""
        return [
            {
                "name": _class_name(name),
                "color": _BUILT_IN.get(_class_name(name).casefold(), _PALETTE[place % len(_PALETTE)]),
            }
            for place, name in enumerate(self.names)
        ]


def write_tiles(
    path: Path,
    *,
    origins: ArrayLike,
    tile: tuple[float, float],
    slide_size: tuple[int, int],
    measurements: Mapping[str, ArrayLike],
    slide_id: str,
    classes: TileClasses | None = None,
    bounds_origin: tuple[float, float] = (0, 0),
) -> None:
    """Write every tile as a QuPath tile object; features are written one by one, one a line.

    The file also holds `slide_id` and `bounds_origin` in members of its own, which QuPath passes over.

    Parameters
    ----------
    origins
        (n, 2) level-0 (x, y) of each tile's top-left corner; no two alike.
    tile
        Level-0 (width, height) of a tile's footprint.
    slide_size
        Level-0 (width, height) of the slide; footprints are clipped to it.
    measurements
        (n,) numbers by name. QuPath holds float32, so that is written; what is not finite is left out.
    slide_id
        Enters the ids: the same tile of the same slide has the same id in every export.
    bounds_origin
        Level-0 (x, y) of OpenSlide's bounds (``openslide.bounds-x`` and ``-y``). QuPath crops a slide to its
        bounds, so this is subtracted; a tile that reaches out of the bounds gets negative coordinates.

    Raises
    ------
    ValueError
        Lengths that differ, a tile that is given twice or lies outside the slide, a name that is blank.
    OutputError
        The file cannot be written.
    """
    boxes = _boxes(origins, tile, slide_size)
    numbers = {name: _finite_float32(name, column, len(boxes)) for name, column in measurements.items()}
    if classes is not None and len(classes.index) != len(boxes):
        raise ValueError(f"{len(boxes)} tiles and {len(classes.index)} classes")
    head = {
        "type": "FeatureCollection",
        "slide": slide_id,
        "bounds_origin": [_plain(v) for v in bounds_origin],
    }
    features = _features(boxes, numbers, classes, slide_id=slide_id, shift=bounds_origin)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(_json(head)[:-1] + b',"features":[')
        for number, feature in enumerate(features):
            stream.write((b",\n" if number else b"\n") + _json(feature))
        stream.write(b"\n]}\n")


def _features(
    boxes: NDArray[np.float64],
    numbers: Mapping[str, NDArray[np.float32]],
    classes: TileClasses | None,
    *,
    slide_id: str,
    shift: tuple[float, float],
) -> Iterator[dict[str, Any]]:
    """Features in the order of the tiles, made a chunk at a time."""
    classifications = classes.classifications() if classes is not None else []
    for first in range(0, len(boxes), _CHUNK):
        part = slice(first, first + _CHUNK)
        corners = np.round(boxes[part] - (*shift, *shift), 2)
        columns = [(name, column[part]) for name, column in numbers.items()]
        for row, (box, corner) in enumerate(zip(boxes[part], corners, strict=True)):
            properties: dict[str, Any] = {"objectType": "tile"}
            if classes is not None and classes.index[first + row] >= 0:
                properties["classification"] = classifications[classes.index[first + row]]
            # str of a float32 is its shortest form: 0.9 and not 0.8999999761581421.
            measured = {name: float(str(column[row])) for name, column in columns if np.isfinite(column[row])}
            properties["measurements"] = measured
            yield {
                "type": "Feature",
                "id": _tile_id(slide_id, box),
                "geometry": {"type": "Polygon", "coordinates": [_ring(*corner.tolist())]},
                "properties": properties,
            }


def _boxes(origins: ArrayLike, tile: tuple[float, float], slide_size: tuple[int, int]) -> NDArray[np.float64]:
    """(n, 4) left, top, right, bottom in level-0 pixels, clipped to the slide; all different."""
    corners = np.asarray(origins, np.float64)
    if corners.ndim != 2 or corners.shape[1] != 2:
        raise ValueError(f"origins must be (n, 2), got {corners.shape}")
    order = np.lexsort(corners.T)
    twice = order[1:][(np.diff(corners[order], axis=0) == 0).all(axis=1)]
    if len(twice):
        raise ValueError(f"the tile at {corners[twice[0]].tolist()} is given twice")
    boxes = np.concatenate([np.maximum(corners, 0), np.minimum(corners + tile, slide_size)], axis=1)
    outside = (boxes[:, 2:] - boxes[:, :2] < _THINNEST).any(axis=1)
    if outside.any():
        raise ValueError(
            f"the tile at {corners[outside][0].tolist()} lies outside the slide of {slide_size} px"
        )
    return boxes


def _finite_float32(name: str, column: ArrayLike, count: int) -> NDArray[np.float32]:
    """The measurement as (count,) float32; numbers too large for it become infinite, and are left out."""
    if not name.strip():
        raise ValueError("a measurement needs a name that is not blank")
    with np.errstate(over="ignore"):
        values = np.asarray(column, np.float64).astype(np.float32)
    if values.shape != (count,):
        raise ValueError(f"measurement {name!r} must be ({count},), got {values.shape}")
    return values


def _ring(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    """The closed outline, in the order that RFC 7946 asks of an outer ring."""
    x, X, y, Y = (_plain(v) for v in (left, right, top, bottom))  # noqa: N806
    return [[x, y], [X, y], [X, Y], [x, Y], [x, y]]


def _plain(number: float) -> float:
    """Whole numbers as int, so that the file says 256 and not 256.0; never -0."""
    return int(number) if number == int(number) else float(number)


def _tile_id(slide_id: str, box: NDArray[np.float64]) -> str:
    """The same slide and footprint give the same UUID; JSON keeps any slide name apart from the numbers."""
    return str(uuid.uuid5(_NAMESPACE, json.dumps([slide_id, *box.tolist()])))


def _class_name(name: str) -> str:
    """The name as QuPath can hold it: one line, and no blank part between colons.

    >>> _class_name("Tumour: poorly  differentiated:")
    'Tumour: poorly differentiated'
    """
    parts: Sequence[str] = [" ".join(part.split()) for part in name.split(":")]
    kept = [part for part in parts if part]
    if not kept:
        raise UsageError(f"{name!r} cannot name a class in QuPath", action="Give it a name that is not blank")
    return ": ".join(kept)


def _json(value: Any) -> bytes:
    """Strict JSON in ASCII: any name survives, whatever charset the reader's machine prefers."""
    return _ENCODER.encode(value).encode("ascii")
