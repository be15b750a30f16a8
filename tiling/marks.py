"""A user's annotations of a slide, as QuPath exports them, as labels of its tiles.

A tile is marked where its *centre* lies in an annotation, by the rule of `wsi.polygons`; a border is then
right to half a tile. An annotation that holds no tile's centre, such as a scribble smaller than a tile, marks
the one tile that holds its middle, so that it counts: `wsi.polygons.interior_point` of its largest polygon;
where tiles overlap, the tile whose centre is nearest.

Only annotations with a class count. QuPath's classes that end in ``*`` (``Ignore*``, ``Region*``) are for
its own use, and other objects (tiles, cells, detections) are what a program found: a heatmap's tiles,
exported with the annotations that correct it, would otherwise be taken for a user's word. So would a
heatmap's regions: those count once their class, name or outline has been changed (`wsi.found`).
A file that holds words on a model's results alone (`VERDICTS`) says nothing of tiles and marks none.
"""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from tiling.class_names import fault_of, look_alikes
from tiling.store import TileStore
from wsi.annotations import Annotation, Origin, parse_annotations, read_bounded
from wsi.errors import UsageError
from wsi.found import is_as_found
from wsi.polygons import Polygon, contains, interior_point

_log = logging.getLogger(__name__)
_NO_NAMES: Mapping[str, str] = MappingProxyType({})
VERDICTS = ("Agree*", "Disagree*")
"""Classes that the viewer gives to words on a result, of which nothing follows for the class of a tile."""
_NAMED = 5
"""Of what is wrong so many are named in a message; the others are counted."""


@dataclass(frozen=True, eq=False, slots=True)
class Marks:
    """The tiles of one slide that a user has given a class."""

    slide_id: str
    """Whose tiles they are."""
    path: Path
    """The file; for messages."""
    sha256: str
    """SHA-256 of the file as it lies on disk."""
    classes: tuple[str, ...]
    """Names found, each with a tile at least; sorted. None in a file of `VERDICTS` alone."""
    rows: NDArray[np.int64]
    """``(k,)``: numbers of the marked tiles, ascending."""
    labels: NDArray[np.int64]
    """``(k,)``: index in `classes`."""
    regions: NDArray[np.int64]
    """``(k,)``: the annotation that each tile lies in, the first of several: its index in what
    `wsi.annotations.read_annotations` gives. Messages count from 1."""
    tile_um: float | None = None
    """Side of a tile in microns, for messages; None where it is not known."""


@dataclass(frozen=True, eq=False, slots=True)
class _Claim:
    """An annotation that counts."""

    index: int
    name: str
    annotation: Annotation

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom, level-0."""
        extents = np.array([polygon.extent for polygon in self.annotation.polygons])
        (left, top), (right, bottom) = (
            extents[:, :2].min(axis=0).tolist(),
            extents[:, 2:].max(axis=0).tolist(),
        )
        return left, top, right, bottom

    def __str__(self) -> str:
        left, top, right, bottom = self.extent
        called = f"{self.annotation.label!r}, " if self.annotation.label else ""
        where = f"x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}"
        return f"annotation {self.index + 1} ({called}class {self.name!r}, {where})"


@dataclass(frozen=True, eq=False, slots=True)
class _Places:
    """Footprints of tiles."""

    origins: NDArray[np.float64]
    """``(n, 2)`` level-0 (x, y)."""
    tile: tuple[float, float]
    """Level-0 (width, height)."""

    def under(self, claim: _Claim) -> NDArray[np.intp]:
        """Which tiles an annotation marks, ascending; none where it lies off all of them."""
        centres = self.origins + np.array(self.tile) / 2
        left, top, right, bottom = claim.extent
        near = np.flatnonzero(((centres >= (left, top)) & (centres <= (right, bottom))).all(axis=1))
        found = near[contains(claim.annotation.polygons, centres[near])]
        if len(found):
            return found
        way = np.array(interior_point(max(claim.annotation.polygons, key=_area))) - self.origins
        holding = np.flatnonzero(((way >= 0) & (way < self.tile)).all(axis=1))
        nearest = np.abs(way[holding] - np.array(self.tile) / 2).sum(axis=1)
        return holding[np.argsort(nearest, kind="stable")[:1]]


def read_marks(
    path: Path,
    store: TileStore,
    *,
    rename: Mapping[str, str] = _NO_NAMES,
    origin: Origin = Origin.BOUNDS,
) -> Marks:
    """Read a slide's annotations, and find the tiles that each of them marks.

    Parameters
    ----------
    path
        GeoJSON; see `wsi.annotations`. A file of our own says where its coordinates count from.
    store
        The slide's tiles.
    rename
        New names of classes by the names in the file. They are given first of all: a class ``Region*`` with
        another name counts.
    origin
        Where those of other files count from: by default OpenSlide's bounds, as the slide's record has them.

    Raises
    ------
    UsageError
        The file cannot be read; nothing in it has a class, or one cannot be called so; two classes look
        like one; an annotation lies off the slide, or where there is no tile; a tile lies in annotations of
        two classes. What is wrong, where, and what to do about it, is in the message.
    """
    data = read_bounded(path)
    if data[:4] == b"\x89PNG":
        raise UsageError("is a PNG, which names no classes", path=path, action="Export GeoJSON from QuPath")
    record = store.record
    bounds = origin.of((float(record["bounds_origin"][0]), float(record["bounds_origin"][1])))
    claims = _claims(parse_annotations(data, path=path, bounds_origin=bounds), path, rename)
    _refuse_look_alikes([(claim.name, path) for claim in claims])
    frame = "" if bounds == (0, 0) else f" (level-0 px; QuPath shows {bounds[0]:g} and {bounds[1]:g} less)"
    width, height = record["slide_size"]
    _refuse_off_slide(claims, (int(width), int(height)), path, frame)
    tile = (float(record["tile_level0"][0]), float(record["tile_level0"][1]))
    places = _Places(store.origins.astype(np.float64), tile)
    rows = [places.under(claim) for claim in claims]
    bare = [claim for claim, marked in zip(claims, rows, strict=True) if not len(marked)]
    if bare:
        _refuse_off_tiles(bare, store, tile, path, frame)
    region = _first_of_each(claims, rows, places, path, frame)
    classes = tuple(sorted({claim.name for claim in claims}))
    marked = np.flatnonzero(region >= 0)
    owners = [claims[number] for number in region[marked].tolist()]
    return Marks(
        slide_id=store.slide_id,
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        classes=classes,
        rows=marked.astype(np.int64),
        labels=np.array([classes.index(owner.name) for owner in owners], np.int64),
        regions=np.array([owner.index for owner in owners], np.int64),
        tile_um=store.spec.size_px * store.spec.mpp,
    )


def check_names(marks: Sequence[Marks]) -> None:
    """Refuse classes that look like one, named differently in two files or in one.

    Raises
    ------
    UsageError
        Such names, the files, and how to make one of them; see `tiling.class_names.look_alikes`.
    """
    _refuse_look_alikes([(one.classes[label], one.path) for one in marks for label in one.labels.tolist()])


def require_classes(marks: Sequence[Marks], *, least_tiles: int = 2) -> tuple[str, ...]:
    """All classes of the files, sorted.

    Raises
    ------
    UsageError
        There is one class only, or none; or one of them has fewer than `least_tiles` tiles.
    """
    counts: Counter[str] = Counter()
    for one in marks:
        counts.update(one.classes[label] for label in one.labels.tolist())
    only = marks[0].path if len(marks) == 1 else None
    where = (
        "" if only else f" in {_some([str(one.path) for one in marks])}" if marks else " (no file was given)"
    )
    if marks and not counts:
        raise UsageError(
            f"no class is marked, results are only agreed or disagreed with{where}",
            path=only,
            action="Mark regions or tiles of two classes; what was said of slides as a whole is in "
            "labels.csv in the folder of such files, for --labels",
        )
    if len(counts) < 2:
        found = f"one class is marked, {next(iter(counts))!r}" if counts else "no class is marked"
        raise UsageError(
            f"{found}{where}; a model tells two or more apart",
            path=only,
            action="Mark another class in QuPath too, such as what is healthy, and export again",
        )
    few = [f"{name!r} has {count}" for name, count in sorted(counts.items()) if count < least_tiles]
    if few:
        side = next((one.tile_um for one in marks if one.tile_um), None)
        size = f" (one is {side:g} x {side:g} µm, {side * side / 1e6:.2g} mm²)" if side else ""
        raise UsageError(
            f"classes are marked on too few tiles{where}: {_some(few)}, {least_tiles} are needed{size}",
            path=only,
            action="Mark more or larger areas of it in QuPath, and export again; or cut smaller tiles",
        )
    return tuple(sorted(counts))


# What counts ---------------------------------------------------------------------------------------------


def _claims(every: Sequence[Annotation], path: Path, rename: Mapping[str, str]) -> list[_Claim]:
    """The annotations with a class, under their new names; what is passed over is counted."""
    names = {_one_spelling(old): _one_spelling(new) for old, new in rename.items()}
    found, left_out = [], Counter[str]()
    for index, annotation in enumerate(every):
        written = _one_spelling(annotation.name or "")
        name = names.get(written, written)
        if annotation.object_type != "annotation":
            left_out[f"of type {annotation.object_type}"] += 1
        elif is_as_found(annotation):
            left_out["of a heatmap, as it was drawn"] += 1
        elif not written:
            left_out["without a class"] += 1
        elif name.endswith("*"):
            left_out[f"of class {name}"] += 1
        else:
            found.append(_Claim(index, name, annotation))
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
    if not found and left_out.keys() <= {f"of class {name}" for name in VERDICTS}:
        _log.warning("%s: says nothing of tiles, and is passed over: %s", path, counts)
        return []
    if not found:
        raise UsageError(
            f"holds no annotation with a class, only objects that say nothing: {counts}",
            path=path,
            action="Give annotations classes in QuPath (Annotations, Set selected), and export them again",
        )
    if left_out:
        _log.warning("%s: objects passed over: %s", path, counts)
    for claim in found:
        if fault := fault_of(claim.name):
            raise UsageError(
                f"{claim}: the class {fault}",
                path=path,
                action="Give the class another name in QuPath, or here: --rename 'OLD=NEW'",
            )
    return found


def _one_spelling(name: str) -> str:
    """Without blanks around it, and with letters with accents in one form, as labels of slides are."""
    return unicodedata.normalize("NFC", name.strip())


def _first_of_each(
    claims: Sequence[_Claim],
    rows: Sequence[NDArray[np.intp]],
    places: _Places,
    path: Path,
    frame: str,
) -> NDArray[np.intp]:
    """``(n,)``: which claim each tile goes to, the first in the file; -1 for none. Refuses contradictions."""
    owner = np.full(len(places.origins), -1, np.intp)
    disputed: dict[tuple[int, int], list[int]] = {}
    for number, claim in enumerate(claims):
        for row in rows[number].tolist():
            if owner[row] < 0:
                owner[row] = number
            elif claims[owner[row]].name != claim.name:
                disputed.setdefault((int(owner[row]), number), []).append(row)
    if not disputed:
        return owner
    said = []
    for (first, second), both in disputed.items():
        left, top = places.origins[both].min(axis=0)
        right, bottom = places.origins[both].max(axis=0) + places.tile
        said.append(
            f"{len(both)} in {claims[first]} and {claims[second]}, at x {left:.0f} to {right:.0f}, "
            f"y {top:.0f} to {bottom:.0f}"
        )
    count = len({row for both in disputed.values() for row in both})
    raise UsageError(
        f"{count} tile{'s' if count > 1 else ''} marked as two classes: {_some(said)}{frame}",
        path=path,
        action="A tile has one class: erase the overlap in QuPath (or one of two areas smaller than a tile), "
        "and export again",
    )


def _area(polygon: Polygon) -> float:
    """What the shell encloses, level-0 pixels; of one that crosses itself, roughly."""
    x, y = (polygon.shell - polygon.shell[0]).T
    return abs(float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())) / 2


# What is refused -----------------------------------------------------------------------------------------


def _refuse_look_alikes(named: Iterable[tuple[str, Path]]) -> None:
    """Names of classes with their files, as often as they occur: the rarer of two names is to be changed."""
    files: dict[str, dict[str, None]] = {}
    counts: Counter[str] = Counter()
    for name, path in named:
        files.setdefault(name, {})[str(path)] = None
        counts[name] += 1
    pairs = look_alikes(files)
    if not pairs:
        return
    said = [
        f"{one!r} (in {_some(files[one])}) and {other!r} (in {_some(files[other])})" for one, other in pairs
    ]
    kept, changed = sorted(pairs[0], key=lambda name: (-counts[name], name))
    raise UsageError(
        f"classes are likely to be one, named in two ways: {_some(said)}",
        action=f"Rename one in QuPath, or here: --rename '{changed}={kept}'. If they are two, give them "
        "names that differ by more",
    )


def _refuse_off_slide(claims: Sequence[_Claim], size: tuple[int, int], path: Path, frame: str) -> None:
    off = [claim for claim in claims if not _on(claim, size)]
    if off:
        raise UsageError(
            f"{len(off)} of {len(claims)} annotations lie off the slide, which spans x 0 to {size[0]}, "
            f"y 0 to {size[1]}: {_some(off)}{frame}",
            path=path,
            action="Check that the file is this slide's, that it was exported at full resolution (level-0 "
            "pixels), and from where it counts: the corner of the slide's bounds, as in QuPath, is expected",
        )


def _on(claim: _Claim, size: tuple[int, int]) -> bool:
    left, top, right, bottom = claim.extent
    return left < size[0] and top < size[1] and right > 0 and bottom > 0


def _refuse_off_tiles(
    bare: Sequence[_Claim], store: TileStore, tile: tuple[float, float], path: Path, frame: str
) -> None:
    """Name the annotations without a tile, and why there is none where they lie."""
    origins, reasons = store.dropped()
    dropped = _Places(origins.astype(np.float64).reshape(-1, 2), tile)
    said, any_dropped = [], False
    for claim in bare[:_NAMED]:
        counts = Counter(reasons[place] for place in dropped.under(claim).tolist())
        why = ", ".join(f"{count} for {reason}" for reason, count in sorted(counts.items()))
        any_dropped |= bool(counts)
        said.append(f"{claim}: {f'tiles there were dropped ({why})' if why else 'no tissue was found there'}")
    more = f"; and {len(bare) - _NAMED} more" if len(bare) > _NAMED else ""
    again = ", or tile again with another --min-sharpness or without --drop-pen" if any_dropped else ""
    raise UsageError(
        f"{len(bare)} of its annotations lie where slide {store.slide_id!r} has no tile: "
        f"{'; '.join(said)}{more}{frame}",
        path=path,
        action="Move them onto tissue (tissue/outline.jpg shows what was found) or delete them in QuPath, "
        f"and export again{again}",
    )


def _some(things: Iterable[object]) -> str:
    """The first few, and how many more there are."""
    every = list(map(str, things))
    more = f"; and {len(every) - _NAMED} more" if len(every) > _NAMED else ""
    return "; ".join(every[:_NAMED]) + more
