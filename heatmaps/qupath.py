"""Tiles as GeoJSON that QuPath 0.5 and later imports as it is.

QuPath refuses a whole file for one fault in it. What its reader (QuPathTypeAdapters, PathClassTypeAdapter and
PathClass of 0.5.1 to 0.7) demands, and this module keeps: ``objectType`` inside ``properties``; UUIDs as ids,
or they are replaced; rings closed, and valid on a grid of 0.01 px; a classification with name *and* colour;
class names of one line, not blank, with colons only between the names of a derived class; measurements that
are numbers; no null. Metadata on tiles logs a stack trace each in 0.5, so there is none.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatmaps.typesetting import Column, hexadecimal, set_lines, shortest, words
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
"""Tiles that are put together at once."""
_SPELLED = 16 * _CHUNK
"""Tiles whose coordinates are spelled at once."""
_GZIP_LEVEL = 1
"""Level 6 would make the file a fifth smaller, in twice the time."""


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
    head = head_of(slide_id, origin) + b"\n"
    parts = _in_parts(boxes, numbers, classes, slide_id=slide_id, shift=origin, head=head)
    pack = _gzipped if path.suffix == ".gz" else bytes
    with replacing(path) as temporary, temporary.open("wb") as file, ThreadPoolExecutor(1) as pool:
        before = pool.submit(bytes)
        for part in parts:  # one is packed while the next is put together
            packed = pool.submit(pack, part)
            file.write(before.result())
            before = packed
        file.write(before.result())


def _gzipped(text: bytes) -> bytes:
    """A member of a gzip file, without a name or a time; one after the other they are a file (RFC 1952)."""
    return bytes(imagecodecs.gzip_encode(text, level=_GZIP_LEVEL))


def _in_parts(
    boxes: NDArray[np.float64],
    numbers: Mapping[str, NDArray[np.float32]],
    classes: TileClasses | None,
    *,
    slide_id: str,
    shift: tuple[float, float],
    head: bytes,
) -> Iterator[bytes]:
    """The file in parts: features in the order of the tiles, each a line."""
    sides: list[_Side] = []
    for first in range(0, len(boxes), _CHUNK):
        part = slice(first, first + _CHUNK)
        if first % _SPELLED == 0:
            some_boxes = boxes[first : first + _SPELLED]
            sides = [_spell(some_boxes[:, axis], shift=shift[axis % 2]) for axis in range(4)]
        here = slice(first % _SPELLED, first % _SPELLED + _CHUNK)
        some = {name: column[part] for name, column in numbers.items()}
        index = None if classes is None else classes.index[part]
        lines = _features([side.part(here) for side in sides], some, classes, index, slide_id=slide_id)
        last = first + _CHUNK >= len(boxes)
        yield head + (lines[:-2] + b"\n]}\n" if last else lines)
        head = b""
    if len(boxes) == 0:
        yield head + b"\n]}\n"


def _features(
    sides: Sequence[_Side],
    numbers: Mapping[str, NDArray[np.float32]],
    classes: TileClasses | None,
    index: NDArray[np.integer[Any]] | None,
    *,
    slide_id: str,
) -> bytes:
    """Features as JSON, each a line with a comma behind it.

    They are put together from text: of a million tiles the encoder would make objects for minutes.
    """
    kinds = [b'"objectType":"tile"'] * (1 if classes is None else len(classes.names) + 1)
    for place, one in enumerate(classes.classifications() if classes is not None else []):
        kinds[place] += b',"classification":' + as_json(one)  # the last, at -1, is that of no class
    count = len(sides[0].index)
    index = np.zeros(count, np.intp) if index is None else index % len(kinds)
    left, top, right, bottom = (words(side.shown, side.index) for side in sides)
    # The closed outline of each box, in the order that RFC 7946 asks of an outer ring.
    columns: list[Column | bytes] = [b'{"type":"Feature","id":"', *_tile_ids(slide_id, sides)]
    columns.append(b'","geometry":{"type":"Polygon","coordinates":[[[')
    for x, y in ((left, top), (right, top), (right, bottom), (left, bottom)):
        columns += [x, b",", y, b"],["]
    columns += [left, b",", top, b']]]},"properties":{', words(kinds, index), b',"measurements":{']
    return set_lines([*columns, *_members(numbers), b"}}},\n"], count)


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


def _members(numbers: Mapping[str, NDArray[np.float32]]) -> Iterator[Column | bytes]:
    """``"name":number`` of each, with commas between; nothing where it is not finite."""
    before = np.zeros(max(map(len, numbers.values()), default=0), bool)  # which lines have a member already
    for name, values in numbers.items():
        finite, told = np.isfinite(values), as_json(name) + b":"
        yield b"," if before.all() and finite.all() else ((before & finite) * np.uint8(ord(",")))[:, None]
        if finite.all():
            yield from (told, shortest(values))
        else:
            yield np.frombuffer(told, np.uint8) * finite[:, None]
            yield shortest(np.where(finite, values, np.float32(0))) * finite[:, None]
        before = before | finite


@dataclass(frozen=True, eq=False, slots=True)
class _Side:
    """Where a side of each box is; of a grid of tiles many are alike, and each is spelled once."""

    exact: list[bytes]
    """As `repr` spells the coordinate."""
    shown: list[bytes]
    """As QuPath is told it."""
    index: NDArray[np.intp]
    """(n,) which of them."""

    def part(self, rows: slice) -> _Side:
        """Of some boxes."""
        return _Side(self.exact, self.shown, self.index[rows])


def _spell(side: NDArray[np.float64], *, shift: float) -> _Side:
    different, index = np.unique(side, return_inverse=True)
    shown = np.round(different - shift, 2).tolist()
    exact = [b"%r" % number for number in different.tolist()]
    return _Side(exact, [b"%r" % plain(number) for number in shown], index)


def _tile_ids(slide_id: str, sides: Sequence[_Side]) -> Iterator[Column | bytes]:
    """UUIDs (version 5, RFC 9562) that follow from the slide and the footprint.

    What is hashed is JSON, which keeps any slide name apart from the numbers.
    """
    start = hashlib.sha1(_NAMESPACE.bytes + json.dumps([slide_id])[:-1].encode(), usedforsecurity=False)
    digests = []
    spelled = ([side.exact[place] for place in side.index.tolist()] for side in sides)
    for box in zip(*spelled, strict=True):
        digest = start.copy()
        digest.update(b", %b, %b, %b, %b]" % box)
        digests.append(digest.digest())
    data = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), -1)[:, :16].copy()
    data[:, 6] = data[:, 6] & 0x0F | 0x50
    data[:, 8] = data[:, 8] & 0x3F | 0x80
    digits = hexadecimal(data)
    for first, last in ((0, 8), (8, 12), (12, 16), (16, 20)):
        yield from (digits[:, first:last], b"-")
    yield digits[:, 20:]
