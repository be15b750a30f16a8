"""`Exhibit`: one slide as the page shows it: its picture, its layers, outlines and marks."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from threading import BoundedSemaphore, RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatmaps.viewer.catalogue import Catalogue, Entry
from heatmaps.viewer.deepzoom import DeepZoom, Frame, StillPicture, as_jpeg
from heatmaps.viewer.layers import Footprints, Layer, model_layer, pack, quality_layer
from heatmaps.viewer.marks import Place, Shown, colour_of
from heatmaps.viewer.shelf import Shelf, SlideFile
from tiling.identity import identify
from tiling.store import TileStore, scored_models
from tiling.survey import read_mask, read_thumbnail
from tiling.tiles import slide_name
from wsi.annotations import read_annotations
from wsi.errors import MicrotomeError, SlideError, UsageError
from wsi.polygons import Ring
from wsi.slide import Slide

CROP_PX = 192
"""Side of a tile's thumbnail."""
_UNKNOWN_MPP = 1.0
_log = logging.getLogger(__name__)


class Exhibit:
    """All that is shown of one slide; what is not asked for is not read.

    Parameters
    ----------
    catalogue, number
        Which slide.
    shelf
        Keeps its file open.
    readers
        How many threads may read at a time, of all slides.

    Raises
    ------
    MicrotomeError
        There is nothing of the slide that could be shown.
    """

    def __init__(self, catalogue: Catalogue, number: int, *, shelf: Shelf, readers: BoundedSemaphore) -> None:
        self.number, self._catalogue = number, catalogue
        self.slide_id = catalogue.slide_id(number)
        self.stamp = catalogue.stamp(number)
        """Of the results that are shown; with others the exhibit is of the past."""
        self._store = catalogue.store(number)
        self._shelf, self._readers = shelf, readers
        self._lock = RLock()
        self._layers: dict[int, Layer] = {}
        self.notice = ""
        """What a user must know of this picture."""
        self.scale_known = True
        """Whether microns are known; else the scale bar counts pixels."""
        self._bounds: tuple[float, float, float, float] | None = None
        self._file: SlideFile | None = None
        self.picture = self._open_picture()

    @property
    def key(self) -> tuple[Any, ...]:
        """Of all that is made of it: the slide, its results and its file."""
        return self.number, self.stamp, self._file

    @property
    def version(self) -> str:
        """Names the results; the page says with a mark which ones it shows."""
        return hashlib.sha256(repr(self.stamp).encode()).hexdigest()[:16]

    # The picture -----------------------------------------------------------------------------------------

    def _open_picture(self) -> DeepZoom | StillPicture:
        path = self._catalogue.file(self.number)
        nothing = self._store is None or not (self._store.find("tiles") or self._store.find("tissue"))
        if nothing and path is not None:  # no results, or none yet: the slide alone
            self._store = None
            return self._open_file(SlideFile.of(path, **self._catalogue.opening.of(path)))
        if self._store is None:
            raise SlideError("the file of this slide is not known", action="Start the viewer with --slides")
        try:
            return self._open_file(self._file_as_cut(self._store))
        except (MicrotomeError, OSError) as error:
            reason = error.reason if isinstance(error, MicrotomeError) else str(error)
            without = "" if self._store.find("tiles") else ", without marks and annotations"
            self.notice = f"Only an overview is shown{without}: {reason}. Start the viewer with --slides"
            image, scale = read_thumbnail(self._store)
            size = self._store.require("tissue").recipe["resolution"]
            return StillPicture(image, scale, scale[0] * float(size["x"]))

    def _open_file(self, file: SlideFile) -> DeepZoom:
        with self._shelf.borrow(file) as slide:
            if slide.resolution is None:
                if self._store is not None:
                    slide.require_resolution()
                self.scale_known = False
                self.notice = "This slide states no microns per pixel: lengths are in pixels (--mpp-override)"
                return self._open_file(SlideFile.of(file.path, mpp=_UNKNOWN_MPP))
            self._bounds = _bounds(slide)
            frame = Frame.of(slide)
            self._slide_size, self._bounds_origin = slide.size, slide.bounds_origin
            self._file = file
        return DeepZoom(frame, lambda: self._shelf.borrow(file), self._readers)

    def _file_as_cut(self, store: TileStore) -> SlideFile:
        """The slide that the results are of, opened as it was then."""
        item = "tiles" if store.find("tiles") else "tissue"
        recipe = store.require(item).recipe
        path = self._catalogue.file(self.number)
        if path is None or not path.is_file():
            name = slide_name(store) if item == "tiles" else f"of {self.slide_id}"
            raise SlideError(f"the file {name} was not found")
        if asdict(identify(path)) != recipe["slide"]:
            raise SlideError("it is not the file that these results are of", path=path)
        resolution = recipe["resolution"]
        stated = resolution["source"]
        return SlideFile.of(
            path,
            mpp=float(resolution["x"]) if stated == "override" else None,
            trust_objective=stated == "objective power",
        )

    def tile(self, level: int, column: int, row: int) -> bytes:
        """A DeepZoom tile as JPEG; see `DeepZoom.read`."""
        return as_jpeg(self.picture.read(level, column, row))

    def crop(self, row: int) -> bytes:
        """A tile's thumbnail as JPEG."""
        x, y, width, height = self.footprints.box(row)
        picture = self.picture
        if isinstance(picture, DeepZoom):
            scale_x = picture.frame.scale[0]
            mpp = max(width / scale_x * picture.frame.mpp / CROP_PX, picture.frame.mpp)
            side = max(1, round(width / scale_x * picture.frame.mpp / mpp))
            down = max(1, round(height / picture.frame.scale[1] * picture.frame.mpp / mpp))
            return as_jpeg(picture.region(x, y, size=(side, down), mpp=mpp))
        assert self._store is not None
        if self._store.has_pixels:
            return as_jpeg(self._store.read_pixels([row])[0])
        raise UsageError("the slide's file is needed for this", action="Start the viewer with --slides")

    # Layers ----------------------------------------------------------------------------------------------

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """Models, and last what is known without one; none where there are no tiles."""
        if self._store is None or self._store.find("tiles") is None:
            return ()
        return (*scored_models(self._store), "tile quality")

    @property
    def store(self) -> TileStore:
        """Results; `UsageError` where there are no tiles."""
        if self._store is None or not self.layer_names:
            raise UsageError("this slide has no tiles", action="Run 'microtome tile' or 'run' first")
        return self._store

    @cached_property
    def footprints(self) -> Footprints:
        """Where its tiles are; `UsageError` where there are none."""
        return Footprints.of(self.store)

    def layer(self, number: int) -> Layer:
        """By its number in `layer_names`; `UsageError` where there is none such."""
        if not 0 <= number < len(self.layer_names):
            raise UsageError(f"there is no layer {number}")
        with self._lock:
            if number not in self._layers:
                last = number == len(self.layer_names) - 1
                name = self.layer_names[number]
                self._layers[number] = quality_layer(self.store) if last else model_layer(self.store, name)
            return self._layers[number]

    def raster(self, layer: int, channel: int, *, ranked: bool) -> bytes:
        """A channel as `heatmaps.viewer.layers.pack` has it."""
        chosen = self.layer(layer).channel(channel)
        chosen = chosen.ranked() if ranked else chosen
        return pack(self.footprints.paint(chosen.name, chosen.values), chosen.name)

    def tile_facts(self, row: int) -> dict[str, Any]:
        """All that is known of a tile, for the page."""
        box, groups = self.footprints.box(row), []
        for number, name in enumerate(self.layer_names):
            with contextlib.suppress(MicrotomeError):  # one model's scores may be out of date
                layer, shown = self.layer(number), None
                with contextlib.suppress(UsageError):
                    shown = layer.shown_class(row)[0]
                groups.append({"name": name, "values": layer.of_tile(row), "shown": shown})
        return {"row": row, "box": box, "layers": groups}

    def best(self, layer: int, channel: int, count: int, *, lowest: bool) -> list[dict[str, Any]]:
        """The highest tiles of a channel, or the lowest."""
        values = self.layer(layer).channel(channel).values
        rows = self.footprints.best(values, count, lowest=lowest)
        return [{"row": r, "box": self.footprints.box(r), "value": float(str(values[r]))} for r in rows]

    # What is told to the page ----------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """Everything that the page needs to show the slide."""
        frame, layers = self.picture.frame, []
        for number, name in enumerate(self.layer_names):
            try:
                layer = self.layer(number)
                channels = [channel.as_json() for channel in layer.channels]
                layers.append({"name": name, "classes": layer.classes, "channels": channels})
            except MicrotomeError as error:
                layers.append({"name": name, "classes": (), "channels": [], "fault": error.reason})
        return {
            "number": self.number,
            "version": self.version,
            "id": self.slide_id,
            "entry": asdict(self._catalogue.entry(self.number)),
            "notice": self.notice,
            "picture": {
                "size": frame.size,
                "scale": frame.scale,
                "mpp": frame.mpp if self.scale_known else None,
                "coarsest": frame.coarsest_level,
                "finest": frame.finest_level,
            },
            "slideSize": self.place.size,
            "bounds": self._bounds,
            "layers": layers,
            "classes": [{"name": n, "colour": colour_of(n, self.place.classes)} for n in self.place.classes],
            "canMark": self._catalogue.marks is not None and self.place.bounds_origin is not None,
        }

    @cached_property
    def place(self) -> Place:
        """For marks."""
        classes: dict[str, None] = {}
        for number in range(len(self.layer_names)):
            with contextlib.suppress(MicrotomeError):
                classes |= dict.fromkeys(self.layer(number).classes)
        if self.layer_names:
            record = self.store.record
            x, y = record["bounds_origin"]
            return Place(self.slide_id, self.footprints.slide_size, (float(x), float(y)), tuple(classes))
        if isinstance(self.picture, DeepZoom):
            left, top = self._bounds_origin
            return Place(self.slide_id, self._slide_size, (float(left), float(top)))
        # The record of the tissue tells neither the size nor where the bounds begin.
        (width, height), scale = self.picture.frame.size, self.picture.frame.scale
        return Place(self.slide_id, (int(width * scale[0]), int(height * scale[1])), None)

    def outlines(self) -> list[dict[str, Any]]:
        """The border of the tissue, and the annotations that were given, in level-0 pixels."""
        found = []
        if self._store is not None:
            with contextlib.suppress(MicrotomeError):
                found.append(_outline("tissue", "tissue", [30, 40, 48], read_mask(self._store).outline()))
        given = self._catalogue.annotations
        path: Path | None = given.find(self.slide_id) if given else None
        corner = self.place.bounds_origin
        if given is None or path is None or corner is None:
            return found
        for one in read_annotations(path, bounds_origin=given.origin.of(corner)):
            name = one.name or one.label or one.object_type
            rings = [ring for polygon in one.polygons for ring in (polygon.shell, *polygon.holes)]
            found.append(_outline("annotation", name, colour_of(name, self.place.classes), rings))
        return found

    def shown_of_tile(self, layer: int, row: int) -> Shown:
        """The result that the page shows of a tile."""
        self.footprints.box(row)
        chosen = self.layer(layer)
        return Shown(chosen.name, *chosen.shown_class(row))

    def shown_of_slide(self, layer: int) -> Shown:
        """The result that the page shows of the slide; `UsageError` where this layer's model gave none."""
        entry: Entry = self._catalogue.entry(self.number)
        name = self.layer(layer).name
        for opinion in entry.opinions:
            if opinion.model == name and opinion.result:
                return Shown(name, opinion.result, opinion.score, opinion.of_tiles)
        raise UsageError("no model has judged this slide", action="Choose a model's layer")


def _bounds(slide: Slide) -> tuple[float, float, float, float] | None:
    """Left, top, width and height of what was scanned, where the file says anything of that.

    They begin where `Slide.bounds_origin` says, whatever else the file says, and reach as far as it does.
    """
    if not any(name.startswith("openslide.bounds-") for name in slide.properties):
        return None
    (x, y), box = slide.bounds_origin, []
    for side, start, whole in zip(("width", "height"), (x, y), slide.size, strict=True):
        stated = slide.properties.get(f"openslide.bounds-{side}", "")
        box.append(float(stated) if stated.isdecimal() and int(stated) else float(whole - start))
    return float(x), float(y), box[0], box[1]


def _outline(kind: str, name: str, colour: list[int], rings: list[Ring]) -> dict[str, Any]:
    return {"kind": kind, "name": name, "colour": colour, "rings": [_plain(ring) for ring in rings]}


def _plain(ring: NDArray[np.float64]) -> list[list[float]]:
    points: list[list[float]] = np.round(ring, 1).tolist()
    return points
