"""`Feedback`: what a person marks on slides, as GeoJSON that QuPath and ``microtome adapt`` read.

::

    OUT/feedback/<slide id>.geojson    all marks of a slide, a feature each
    OUT/feedback/labels.csv            what was said of slides, see `heatmaps.viewer.labels`
    OUT/feedback/.work/                locks, and files being written

A file is read before each change and written anew, whole, under a lock: what is in it stays, also what QuPath
or another viewer put there. Features that we do not know are kept as they are.

- A *region* has the class that it was given.
- *Agree* on a tile gives the tile the class that was shown, *disagree* the class that the person names. Where
  he names none it is of class ``Disagree*``: QuPath and `tiling.marks` pass over classes that end in ``*``.
- Of a *slide* nothing follows for its tiles: what is said of it is of class ``Agree*`` or ``Disagree*``, and
  goes into a table of labels.

What was shown, by which model, is in the feature's ``metadata``. A file holds no clock and no path.
Coordinates count from the slide's bounds, as in QuPath, and the file says from where.
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from heatmaps.qupath import TileClasses
from heatmaps.viewer.collection import (
    alone_patiently,
    features_of,
    read_collection,
    said_of,
)
from heatmaps.viewer.labels import check_labels, label_of, write_labels
from heatmaps.viewer.rings import Box, Ring, checked_ring, ring_of_box
from tiling.class_names import fault_of
from tiling.commit import remove
from tiling.marks import VERDICTS
from tiling.output import check_slide_id
from wsi.annotations import Annotation, parse_annotations
from wsi.durable import make_folder, write_file
from wsi.errors import UsageError
from wsi.geojson import as_collection, members_of, plain

AGREE, DISAGREE = VERDICTS
SUFFIX = ".geojson"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "microtome:mark")
_OWN = frozenset({"type", "slide", "bounds_origin", "features"})
"""Members of a file of ours; what else is in one is another program's, and stays."""
_COLOURS = {AGREE: [90, 170, 90], DISAGREE: [200, 90, 60]}


@dataclass(frozen=True, slots=True)
class Shown:
    """The result that a person agrees or disagrees with."""

    model: str
    """Its name."""
    result: str
    """The class."""
    score: float
    """Its score, probability or share."""
    of_tiles: bool = False
    """Whether the model judges tiles; of a slide the class is then that of most of them."""


@dataclass(frozen=True, slots=True)
class Place:
    """The slide that marks are made on."""

    slide_id: str
    size: tuple[int, int]
    """``(width, height)``, level-0."""
    bounds_origin: tuple[float, float] | None = (0.0, 0.0)
    """Where QuPath has its (0, 0); None where that is not known, so that nothing can be placed."""
    classes: tuple[str, ...] = ()
    """Of the models, in their order: decides colours."""


@dataclass(frozen=True, slots=True)
class _Change:
    added: tuple[dict[str, Any], ...] = ()
    removed: tuple[dict[str, Any], ...] = ()

    def reversed(self) -> _Change:
        return _Change(self.removed, self.added)


class Feedback:
    """The marks of all slides, in one folder. Safe for threads and for several processes.

    Parameters
    ----------
    folder
        Where they are kept; made with the first mark.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._changes: dict[str, list[_Change]] = {}
        self._lock = Lock()

    def path(self, slide_id: str) -> Path:
        """The file of a slide's marks."""
        return self.folder / f"{check_slide_id(slide_id)}{SUFFIX}"

    def read(self, place: Place) -> list[dict[str, Any]]:
        """All marks of a slide for the page, with outlines in level-0 pixels.

        Raises
        ------
        UsageError
            The file cannot be read, or nothing tells from where it counts.
        """
        path = self.path(place.slide_id)
        top = read_collection(path)
        if not features_of(top, path):
            return []
        origin = place.bounds_origin if "bounds_origin" not in top else (0.0, 0.0)  # it states its own
        data = json.dumps(top).encode()
        found = parse_annotations(data, path=path, bounds_origin=_known(origin))
        known = {str(feature.get("id")): feature for feature in features_of(top, path)}
        return [_for_page(one, known.get(one.identity or "", {})) for one in found]

    def label(self, place: Place) -> str | None:
        """The slide's own class as ``labels.csv`` has it; None where nothing that was said tells it."""
        path = self.path(place.slide_id)
        return label_of(features_of(read_collection(path), path))

    # Making ----------------------------------------------------------------------------------------------

    def mark_region(self, place: Place, points: Sequence[Sequence[float]], name: str) -> str:
        """An area of a class; returns its id.

        Raises
        ------
        UsageError
            No outline that QuPath reads, or no name for a class.
        """
        ring = checked_ring(points, size=place.size)
        return self._add(place, _feature(ring, class_fault_free(name), {"about": "region"}, place))

    def mark_tile(self, place: Place, cell: Box, shown: Shown, *, right: bool, name: str | None) -> str:
        """Agree or disagree with what is shown of a tile; `name` is the right class, where it is known.

        Raises
        ------
        UsageError
            The tile is marked already; or see `mark_region`.
        """
        word = shown.result if right else class_fault_free(name) if name else DISAGREE
        if not right and word == shown.result:
            raise UsageError(f"{word!r} is what is shown", action="Agree, or name another class")
        said = _said("tile", shown, right=right, name=name)
        return self._add(place, _feature(ring_of_box(cell), word, said, place), once=True)

    def mark_slide(self, place: Place, shown: Shown, *, right: bool, name: str | None) -> str:
        """The same of the slide as a whole; a class that is no label of a slide is refused."""
        if name is not None:
            name = class_fault_free(name)
            if ":" in name:
                raise UsageError(f"{name!r} is no label: it holds a colon", action="Give it another name")
            if not right and name == shown.result:
                raise UsageError(f"{name!r} is what is shown", action="Agree, or name another class")
        said = _said("slide", shown, right=right, name=name)
        width, height = place.size
        ring = ring_of_box((*_known(place.bounds_origin), float(width), float(height)))
        feature = _feature(ring, AGREE if right else DISAGREE, said, place)
        better = f", it is {name}" if name and not right else ""
        verdict = "agree" if right else "disagree"
        feature["properties"]["name"] = _one_line(f"Slide: {shown.result} shown, {verdict}{better}")
        return self._add(place, feature, once=True)

    def _add(self, place: Place, feature: dict[str, Any], *, once: bool = False) -> str:
        """Add a feature; `once` refuses a second word on the same thing by the same model."""

        def change(features: list[dict[str, Any]], origin: Sequence[float]) -> _Change:
            key = _about(_counted_from(feature, origin))
            if any(other.get("id") == feature["id"] for other in features):
                return _Change()
            if once and any(_about(other) == key for other in features):
                raise UsageError(
                    "this is marked already, in another way",
                    action="Remove that mark first: no mark takes the place of another unasked",
                )
            return _Change(added=(feature,))

        self._change(place, change)
        return str(feature["id"])

    # Taking back -----------------------------------------------------------------------------------------

    def remove(self, place: Place, identity: str) -> None:
        """Take a mark away; `undo` brings it back. `UsageError` where there is none of this id."""

        def change(features: list[dict[str, Any]], origin: Sequence[float]) -> _Change:
            found = tuple(feature for feature in features if feature.get("id") == identity)
            if not found:
                raise UsageError("there is no such mark", action="Load the page again")
            return _Change(removed=found)

        self._change(place, change)

    def undo(self, place: Place) -> bool:
        """Take back the last change that was made here to this slide's marks; False where there is none."""

        def change(features: list[dict[str, Any]], origin: Sequence[float]) -> _Change:
            made = self._changes.get(place.slide_id)
            return made[-1].reversed() if made else _Change()

        return self.can_undo(place) and self._change(place, change, undoing=True)

    def can_undo(self, place: Place) -> bool:
        """Whether there is something to take back."""
        with self._lock:
            return bool(self._changes.get(place.slide_id))

    # The file --------------------------------------------------------------------------------------------

    def _change(
        self,
        place: Place,
        decide: Callable[[list[dict[str, Any]], Sequence[float]], _Change],
        *,
        undoing: bool = False,
    ) -> bool:
        """Read, change and write a slide's file, while nobody else does; whether there was a change."""
        path, work, known = self.path(place.slide_id), self.folder / ".work", _known(place.bounds_origin)
        make_folder(self.folder)
        with self._lock, alone_patiently(path, work):
            top = read_collection(path) or members_of(place.slide_id, known)
            features = features_of(top, path)
            origin = top.get("bounds_origin", known)
            change = decide(features, origin)
            if not (change.added or change.removed):
                return False
            of_slide = any(_is_of_slide(feature) for feature in (*change.added, *change.removed))
            if of_slide:
                check_labels(self.folder)
            gone = {feature.get("id") for feature in change.removed}
            there = {feature.get("id") for feature in features}
            kept = [feature for feature in features if feature.get("id") not in gone]
            new = [_counted_from(one, origin) for one in change.added if one.get("id") not in there - gone]
            write_file(path, as_collection(top, [*kept, *new]), work=work)
            if not (kept or new) and top.keys() <= _OWN:
                remove(path)  # ``adapt feedback/*`` refuses a file without marks
            # Only what was written is remembered, and only then forgotten. It counts from the slide's corner,
            # as what is added does.
            back = tuple(_counted_from(feature, [-origin[0], -origin[1]]) for feature in change.removed)
            made = self._changes.setdefault(place.slide_id, [])
            if undoing:
                made.pop()
            else:
                made.append(_Change(change.added, back))
        if of_slide:
            write_labels(self.folder, suffix=SUFFIX, work=work)
        return True


def class_fault_free(name: str) -> str:
    """The name of a class, as it is written in the file.

    Raises
    ------
    UsageError
        QuPath or `tiling.marks` would not take it for one.
    """
    tidy = " ".join(name.split())
    fault = fault_of(tidy)
    if not fault and tidy.endswith("*"):
        fault = "ends in *, and would be passed over"
    parts = [part.strip() for part in tidy.split(":")]
    if not fault and not all(parts):
        fault = "has a blank part between colons"
    if fault:
        raise UsageError(f"a class cannot be called {name!r}: it {fault}", action="Give it another name")
    return ": ".join(parts)


def _said(about: str, shown: Shown, *, right: bool, name: str | None) -> dict[str, str]:
    """The feature's metadata; QuPath has texts only."""
    said = {
        "about": about,
        "verdict": "agree" if right else "disagree",
        "model": shown.model,
        "shown": shown.result,
        "shown score": f"{shown.score:.4g}",
    }
    if about == "slide" and shown.of_tiles:
        said["judges"] = "tiles"
    return said | ({"said": name} if name and not right else {})


def _feature(ring: Ring, name: str, said: Mapping[str, str], place: Place) -> dict[str, Any]:
    """As QuPath demands (`heatmaps.qupath`); the same mark has the same id wherever it is made."""
    points = ring.tolist()
    identity = uuid.uuid5(_NAMESPACE, json.dumps([place.slide_id, points, name, dict(said)]))
    return {
        "type": "Feature",
        "id": str(identity),
        "geometry": {"type": "Polygon", "coordinates": [points]},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": colour_of(name, place.classes)},
            "metadata": {"made by": "microtome view"} | {key: _one_line(text) for key, text in said.items()},
        },
    }


def colour_of(name: str, classes: Iterable[str]) -> list[int]:
    """RGB of a class, as tiles of it have in QuPath; classes that no model knows come after those it does."""
    if name in _COLOURS:
        return _COLOURS[name]
    names = tuple(dict.fromkeys((*classes, name)))
    listed = TileClasses(names, np.empty(0, np.intp)).classifications()
    return [int(part) for part in listed[names.index(name)]["color"]]


def _about(feature: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What a word on a result is about: the thing, the model and the place. None of regions."""
    said = said_of(feature)
    if _is_of_slide(feature):
        return "slide", said.get("model")
    if said.get("about") != "tile":
        return None
    return "tile", said.get("model"), said.get("shown"), json.dumps(feature["geometry"]["coordinates"])


def _is_of_slide(feature: Mapping[str, Any]) -> bool:
    return said_of(feature).get("about") == "slide"


def _known(origin: tuple[float, float] | None) -> tuple[float, float]:
    if origin is None:
        raise UsageError(
            "where QuPath counts from on this slide is not known without its file",
            action="Start the viewer with --slides",
        )
    return origin


def _counted_from(feature: dict[str, Any], origin: Sequence[float]) -> dict[str, Any]:
    """The same feature with coordinates that count from another corner; on QuPath's grid of 0.01 px."""
    moved = copy.deepcopy(feature)

    def move(points: Any) -> Any:
        if points and isinstance(points[0], int | float):
            return [plain(round(points[axis] - origin[axis], 2)) for axis in (0, 1)]
        return [move(inner) for inner in points]

    if "coordinates" in (moved.get("geometry") or {}):
        moved["geometry"]["coordinates"] = move(moved["geometry"]["coordinates"])
    return moved


def _for_page(one: Annotation, feature: Mapping[str, Any]) -> dict[str, Any]:
    properties, said = feature.get("properties") or {}, said_of(feature)
    classification = properties.get("classification")
    colour = classification.get("color") if isinstance(classification, dict) else None
    return {
        "id": one.identity,
        "class": one.name,
        "label": one.label,
        "about": said.get("about", "region"),
        "verdict": said.get("verdict"),
        "model": said.get("model"),
        "shown": said.get("shown"),
        "colour": colour or colour_of(one.name or "", ()) if one.name else [200, 200, 200],
        "rings": [ring.tolist() for p in one.polygons for ring in (p.shell, *p.holes)],
    }


def _one_line(text: str) -> str:
    return " ".join(text.split())
