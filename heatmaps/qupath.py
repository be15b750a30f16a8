"""Tiles as GeoJSON that QuPath 0.5 and later imports as it is.

QuPath refuses a whole file for one fault in it. What its reader (QuPathTypeAdapters, PathClassTypeAdapter and
PathClass of 0.5.1 to 0.7) demands, and this module keeps: ``objectType`` inside ``properties``; UUIDs as ids,
or they are replaced; rings closed, and valid on a grid of 0.01 px; a classification with name *and* colour;
class names of one line, not blank, with colons only between the names of a derived class; measurements that
are numbers; no null. Metadata on tiles logs a stack trace each in 0.5, so there is none.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi.classes import colours_of, tidy
from wsi.durable import replacing
from wsi.errors import UsageError
from wsi.geojson import as_json, head_of, on_grid, plain

PACKED_FROM = 10_000
"""Tiles from which on a file is better gzip'ed: QuPath opens both, and 10,000 tiles are some 5 MB of text."""

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "microtome:tile")
_THINNEST = 0.02
"""Pixels; a thinner tile could vanish on the 0.01 px grid that QuPath snaps coordinates to."""
_CHUNK = 4096
_GZIP_LEVEL = 6


@dataclass(frozen=True, eq=False)
class TileClasses:
    """The class of each tile. The order of `names` is the model's, so a class looks alike on every slide."""

    names: tuple[str, ...]
    """All classes, also those that no tile of this slide has."""
    index: NDArray[np.integer[Any]]
    """(n,) position in `names`; -1 for a tile without a class."""

    def __post_init__(self) -> None:
        written = [tidy(name) for name in self.names]
        if not all(written):
            blank = self.names[written.index("")]
            action = "Give it a name that is not blank"
            raise UsageError(f"{blank!r} cannot name a class in QuPath", action=action)
        if len(set(written)) != len(written):
            raise UsageError(f"class names must differ, also as QuPath reads them: {written}")
        if self.index.ndim != 1 or not np.issubdtype(self.index.dtype, np.integer):
            raise ValueError(f"a class index is (n,) integers, got {self.index.shape} {self.index.dtype}")
        if len(self.index) and not (self.index.min() >= -1 and self.index.max() < len(self.names)):
            raise ValueError(f"a class index lies outside -1 to {len(self.names) - 1}")

    def classifications(self) -> list[dict[str, Any]]:
        """Return the name and colour of each class, as QuPath reads them."""
        colours = colours_of(self.names)
        return [
            {"name": tidy(name), "color": colour} for name, colour in zip(self.names, colours, strict=True)
        ]


def tiles_name(count: int) -> str:
    """What a file of so many tiles is called: packed from `PACKED_FROM` on.

    >>> tiles_name(9_999), tiles_name(10_000)
    ('tiles.geojson', 'tiles.geojson.gz')
    """
    return "tiles.geojson.gz" if count >= PACKED_FROM else "tiles.geojson"


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
    """Write every tile as a QuPath tile object; features are written some at a time, one a line.

    The file also holds `slide_id` and `bounds_origin` in members of its own, which QuPath passes over.

    Parameters
    ----------
    path
        Whose name ends in ``.gz`` is gzip'ed. Nothing in it tells the time.
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
    numbers = {name: _float32(name, column, len(boxes)) for name, column in measurements.items()}
    if classes is not None and len(classes.index) != len(boxes):
        raise ValueError(f"{len(boxes)} tiles and {len(classes.index)} classes")
    origin = on_grid(bounds_origin)
    features = _features(boxes, numbers, classes, slide_id=slide_id, shift=origin)
    with replacing(path) as temporary, temporary.open("wb") as file, _packed(file, path) as stream:
        stream.write(head_of(slide_id, origin))
        for number, part in enumerate(features):
            stream.write(b",\n" if number else b"\n")
            stream.write(",\n".join(part).encode("ascii"))
        stream.write(b"\n]}\n")


@contextlib.contextmanager
def _packed(file: IO[bytes], path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """The file itself, or one that gzips into it; without a name or a time, which gzip would add."""
    if path.suffix != ".gz":
        yield file
        return
    with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as stream:
        yield stream


def _features(
    boxes: NDArray[np.float64],
    numbers: Mapping[str, NDArray[np.float32]],
    classes: TileClasses | None,
    *,
    slide_id: str,
    shift: tuple[float, float],
) -> Iterator[list[str]]:
    """Features in the order of the tiles, a chunk at a time, each as JSON.

    They are put together from text: of a million tiles the encoder would make objects for minutes.
    """
    heads = ['"objectType":"tile"'] * (1 if classes is None else len(classes.names) + 1)
    for place, one in enumerate(classes.classifications() if classes is not None else []):
        heads[place] += f',"classification":{_text(one)}'  # the last head, at -1, is that of no class
    for first in range(0, len(boxes), _CHUNK):
        part = slice(first, first + _CHUNK)
        index = [0] * len(boxes[part]) if classes is None else classes.index[part].tolist()
        ids = _tile_ids(slide_id, boxes[part])
        rings = _rings(np.round(boxes[part] - (*shift, *shift), 2))
        columns = [_members(name, column[part]) for name, column in numbers.items()]
        measured = [",".join(filter(None, row)) for row in zip(*columns, strict=True)]
        yield [
            f'{{"type":"Feature","id":"{identity}","geometry":{{"type":"Polygon","coordinates":[{ring}]}},'
            f'"properties":{{{heads[place]},"measurements":{{{values}}}}}}}'
            for identity, ring, place, values in zip(
                ids, rings, index, measured or [""] * len(ids), strict=True
            )
        ]


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


def _float32(name: str, column: ArrayLike, count: int) -> NDArray[np.float32]:
    """The measurement as (count,) float32; numbers too large for it become infinite, and are left out."""
    if not name.strip():
        raise ValueError("a measurement needs a name that is not blank")
    with np.errstate(over="ignore"):
        values = np.asarray(column).astype(np.float32)
    if values.shape != (count,):
        raise ValueError(f"measurement {name!r} must be ({count},), got {values.shape}")
    return values


def _members(name: str, values: NDArray[np.float32]) -> list[str]:
    """``"name":number`` of each; nothing where it is not finite."""
    head = _text(name) + ":"
    # Of a float32 the text is its shortest form: 0.9 and not 0.8999999761581421.
    numbers = values.astype("U").tolist()
    finite = np.isfinite(values)
    if finite.all():
        return [head + number for number in numbers]
    return [head + number if known else "" for number, known in zip(numbers, finite.tolist(), strict=True)]


def _rings(corners: NDArray[np.float64]) -> list[str]:
    """The closed outline of each box, in the order that RFC 7946 asks of an outer ring."""
    sides = (list(map(str, map(plain, column))) for column in corners.T.tolist())
    return [f"[[{x},{y}],[{X},{y}],[{X},{Y}],[{x},{Y}],[{x},{y}]]" for x, y, X, Y in zip(*sides, strict=True)]


def _tile_ids(slide_id: str, boxes: NDArray[np.float64]) -> list[str]:
    """UUIDs (version 5, RFC 9562) that follow from the slide and the footprint.

    What is hashed is JSON, which keeps any slide name apart from the numbers.
    """
    start = hashlib.sha1(_NAMESPACE.bytes + json.dumps([slide_id])[:-1].encode(), usedforsecurity=False)
    ids = []
    for left, top, right, bottom in boxes.tolist():
        digest = start.copy()
        digest.update(f", {left!r}, {top!r}, {right!r}, {bottom!r}]".encode())
        text = digest.hexdigest()
        variant = "89ab"[int(text[16], 16) & 3]
        ids.append(f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{variant}{text[17:20]}-{text[20:32]}")
    return ids


def _text(value: Any) -> str:
    return as_json(value).decode()
