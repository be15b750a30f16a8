"""`Service`: what the page can ask for, each an answer to a fixed question. It knows nothing of HTTP."""

from __future__ import annotations

import gzip
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict
from threading import BoundedSemaphore, Lock
from typing import Any

import numpy as np

from heatmaps.viewer.catalogue import Catalogue
from heatmaps.viewer.exhibit import Exhibit
from heatmaps.viewer.marks import Feedback
from heatmaps.viewer.scales import as_text, colour_tables
from heatmaps.viewer.shelf import Shelf
from tiling.marks import read_marks
from wsi.cache import TileCache
from wsi.errors import MicrotomeError, UsageError

TILE_BYTES, RASTER_BYTES = 64 << 20, 64 << 20
"""What is kept of JPEG tiles, and of packed channels."""
_MOST_EXHIBITS = 3
"""Slides whose numbers are kept in memory."""
_MOST_BEST = 100

_log = logging.getLogger(__name__)
Json = dict[str, Any]


class Service:
    """Answers for all slides of a catalogue. Safe for threads.

    Parameters
    ----------
    catalogue
        The slides.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.feedback = Feedback(catalogue.marks) if catalogue.marks else None
        self.shelf = Shelf()
        self._readers = BoundedSemaphore(max(2, os.cpu_count() or 2))
        self._exhibits: OrderedDict[int, Exhibit] = OrderedDict()
        self._tiles, self._rasters = TileCache(TILE_BYTES), TileCache(RASTER_BYTES)
        self._lock = Lock()
        self._opening: dict[int, Lock] = {}

    def close(self) -> None:
        """Close all slides."""
        self.shelf.close()

    def exhibit(self, number: int) -> Exhibit:
        """A slide, opened, with the results that are there now. Others are answered meanwhile."""
        stamp = self.catalogue.stamp(number)
        with self._lock:
            opening = self._opening.setdefault(number, Lock())
        with opening:
            held = self._exhibits.get(number)
            if held is None or held.stamp != stamp:
                held = Exhibit(self.catalogue, number, shelf=self.shelf, readers=self._readers)
            with self._lock:
                self._exhibits[number] = held
                self._exhibits.move_to_end(number)
                while len(self._exhibits) > _MOST_EXHIBITS:
                    self._exhibits.popitem(last=False)
        return held

    # Questions -------------------------------------------------------------------------------------------

    def slides(self) -> Json:
        """The table of slides, as it is now."""
        return {
            "slides": [asdict(entry) for entry in self.catalogue.refresh()],
            "scales": {name: as_text(table) for name, table in colour_tables().items()},
        }

    def facts(self, number: int) -> Json:
        """Of a slide; looked up anew, for its file may be back."""
        with self._lock:
            self._exhibits.pop(number, None)
        return self.exhibit(number).facts()

    def outlines(self, number: int) -> Json:
        """The borders that are drawn over a slide."""
        return {"outlines": self.exhibit(number).outlines()}

    def tile(self, number: int, level: int, column: int, row: int) -> bytes:
        """JPEG of a DeepZoom tile."""
        exhibit = self.exhibit(number)
        made = self._tiles.get(
            (exhibit.key, level, column, row),
            lambda: np.frombuffer(exhibit.tile(level, column, row), np.uint8),
        )
        return made.tobytes()

    def crop(self, number: int, row: int) -> bytes:
        """JPEG of one of its tiles."""
        exhibit = self.exhibit(number)
        made = self._tiles.get((exhibit.key, row), lambda: np.frombuffer(exhibit.crop(row), np.uint8))
        return made.tobytes()

    def raster(self, number: int, layer: int, channel: int, *, ranked: bool) -> bytes:
        """A channel, packed and then gzip'ed: what is empty costs nothing."""
        exhibit = self.exhibit(number)

        def make() -> Any:
            packed = exhibit.raster(layer, channel, ranked=ranked)
            return np.frombuffer(gzip.compress(packed, 1, mtime=0), np.uint8)

        return self._rasters.get((exhibit.key, layer, channel, ranked), make).tobytes()

    def tile_at(self, number: int, x: float, y: float) -> Json:
        """What is known of the tile at a place; nothing where there is none."""
        exhibit = self.exhibit(number)
        row = exhibit.footprints.at(x, y)
        return {} if row is None else exhibit.tile_facts(row)

    def tile_facts(self, number: int, row: int) -> Json:
        """What is known of a tile."""
        return self.exhibit(number).tile_facts(row)

    def best(self, number: int, layer: int, channel: int, *, count: int, lowest: bool) -> Json:
        """The tiles to look at first."""
        count = min(max(count, 1), _MOST_BEST)
        return {"tiles": self.exhibit(number).best(layer, channel, count, lowest=lowest)}

    # Marks -----------------------------------------------------------------------------------------------

    def marks(self, number: int) -> Json:
        """All marks of a slide, and what ``microtome adapt`` makes of them."""
        if self.feedback is None:
            return {"marks": [], "canUndo": False, "adapt": {}, "label": None}
        exhibit, feedback = self.exhibit(number), self.feedback
        marks = feedback.read(exhibit.place)
        return {
            "marks": marks,
            "canUndo": feedback.can_undo(exhibit.place),
            "adapt": self._for_adapt(exhibit, marks),
            "label": feedback.label(exhibit.place),
        }

    def _for_adapt(self, exhibit: Exhibit, marks: list[Json]) -> Json:
        """How many tiles of each class are marked, or why ``adapt`` would not take the file."""
        taken = [mark for mark in marks if mark["class"] and not mark["class"].endswith("*")]
        if not (taken and exhibit.layer_names and self.feedback):
            return {}
        try:
            found = read_marks(self.feedback.path(exhibit.slide_id), exhibit.store)
        except MicrotomeError as error:
            return {"fault": f"{error.reason}. {error.action or ''}"}
        return {"tiles": {name: int((found.labels == i).sum()) for i, name in enumerate(found.classes)}}

    def change_marks(self, number: int, asked: Mapping[str, Any]) -> Json:
        """Make, remove or take back a mark; returns all of them.

        Parameters
        ----------
        asked
            ``{"do": "region", "points": [[x, y], ...], "class": name}``, ``{"do": "tile", "layer": i, "row":
            i, "right": bool, "class": name or null}``, ``{"do": "slide", "layer": i, "right": ..., "class":
            ...}``, ``{"do": "remove", "id": id}`` or ``{"do": "undo"}``. A ``"version"`` says which results
            the page shows.

        Raises
        ------
        UsageError
            It is none of these, or a mark that cannot be; or other results are there than the page shows.
        """
        if self.feedback is None:
            raise UsageError("marks have no folder here", action="Start the viewer with -o FOLDER")
        exhibit, feedback = self.exhibit(number), self.feedback
        if asked.get("version") not in {None, exhibit.version}:  # tile 7 may be another one now
            raise UsageError("the results were made anew meanwhile", action="Load the page again")
        place, do = exhibit.place, asked.get("do")
        if do == "region":
            feedback.mark_region(place, _list(asked, "points"), _text(asked, "class"))
        elif do == "tile":
            layer, row = _whole(asked, "layer"), _whole(asked, "row")
            shown, right = exhibit.shown_of_tile(layer, row), _truth(asked, "right")
            cell = exhibit.footprints.own_cell(row)
            feedback.mark_tile(place, cell, shown, right=right, name=_text_or_none(asked, "class"))
        elif do == "slide":
            shown, right = exhibit.shown_of_slide(_whole(asked, "layer")), _truth(asked, "right")
            feedback.mark_slide(place, shown, right=right, name=_text_or_none(asked, "class"))
        elif do == "remove":
            feedback.remove(place, _text(asked, "id"))
        elif do == "undo":
            feedback.undo(place)
        else:
            raise UsageError(f"{do!r} is nothing that can be done to marks")
        return self.marks(number)


def parse_json(body: bytes) -> Mapping[str, Any]:
    """An object, or `UsageError`."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UsageError("the body is no JSON") from error
    if not isinstance(asked, dict):
        raise UsageError("the body is no JSON object")
    return asked


def _list(asked: Mapping[str, Any], key: str) -> list[Any]:
    value = asked.get(key)
    if not isinstance(value, list):
        raise UsageError(f"{key} has to be a list")
    return value


def _text(asked: Mapping[str, Any], key: str) -> str:
    value = asked.get(key)
    if not isinstance(value, str):
        raise UsageError(f"{key} has to be a text")
    return value


def _text_or_none(asked: Mapping[str, Any], key: str) -> str | None:
    return None if asked.get(key) is None else _text(asked, key) or None


def _whole(asked: Mapping[str, Any], key: str) -> int:
    value = asked.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{key} has to be a whole number")
    return value


def _truth(asked: Mapping[str, Any], key: str) -> bool:
    value = asked.get(key)
    if not isinstance(value, bool):
        raise UsageError(f"{key} has to be true or false")
    return value
