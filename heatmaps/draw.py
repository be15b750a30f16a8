"""`draw_heatmap`: a slide's tile scores as the files that people open, committed as one item."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatmaps.levels import Levels, make_levels
from heatmaps.ngff import ngff_folder
from heatmaps.numbers import RANK, UNCERTAINTY, Frame, TileNumbers, ranks, read_numbers
from heatmaps.outlines import RegionRules
from heatmaps.overlay import draw_overlay, draw_picture
from heatmaps.pyramid import scores_file, write_colours
from heatmaps.qupath_files import QupathOptions, find_regions, write_for_qupath
from heatmaps.raster import Heatmap
from heatmaps.recipe import heatmap_recipe, settle
from heatmaps.settings import AS_USUAL, DrawSettings, Format, Scale
from tiling.commit import Commit
from tiling.pipeline import Job, Step
from tiling.store import TileStore, judges_tiles, scores_by
from tiling.survey import read_thumbnail
from tiling.versions import versions
from wsi.annotations import Annotation
from wsi.durable import write_file
from wsi.errors import RecipeError
from wsi.picture import encode_png

SCORES, ZARR = "scores.ome.tif", "scores.ome.zarr"
FOR_QUPATH = QupathOptions()


def draw_heatmap(
    store: TileStore,
    model: str,
    *,
    settings: DrawSettings = AS_USUAL,
    qupath: QupathOptions = FOR_QUPATH,
    weights_sha256: str | None = None,
) -> Commit:
    """Paint a model's tile scores, attention and uncertainty on the slide's frame.

    Writes the files of `heatmaps.qupath_files`, and for each channel ``overlay-<name>.png`` (over the
    thumbnail); and as the settings ask ``scores.ome.tif`` and ``heatmap-<name>.ome.tif`` (coloured), or
    ``scores.ome.zarr``, or ``heatmap-<name>.png``. Scores are float32, one channel a class, the attention's
    rank and the uncertainty. By a model that judges tiles there is no attention: it would be the same
    everywhere. Scores of before there was an uncertainty are drawn without.

    Parameters
    ----------
    store
        The slide; the caller holds the output's lock.
    model
        Name of the model whose scores are drawn.
    settings
        Which files, and how.
    weights_sha256
        Its weights, where the caller knows them: another model may bear the same name.
    qupath
        What QuPath is given.

    Raises
    ------
    UsageError
        There are no scores by that model.
    RecipeError
        They are by another model of that name, or of tiles that have been replaced since; or what is there
        was drawn with other settings, and the store does not overwrite. Formats add up: see `settle`.
    """
    commit, item = scores_by(store, model, weights_sha256), f"heatmaps/{model}"
    inputs = store.inputs(f"scores/{model}", "tissue")
    for name in ("slide", "resolution"):
        if store.require("tissue").recipe[name] != store.tiles.recipe[name]:
            raise RecipeError(
                f"the thumbnail of slide {store.slide_id!r} is of another {name} than its tiles",
                path=store.output.root,
                action="Run 'microtome tile' again with --overwrite",
            )
    settings = settle(store, item, settings, heatmap_recipe(settings, qupath, inputs=inputs))
    replacing = TileStore(store.output, store.slide_id, overwrite=True)  # what may be there, is settled
    draft = replacing.begin(item, heatmap_recipe(settings, qupath, inputs=inputs))
    if draft is None:
        return store.require(item)
    numbers = read_numbers(store, model)
    drawing = _Drawing(draft.folder, store, numbers, settings, judges_tiles(commit))
    write_for_qupath(
        draft.folder,
        store,
        drawing.draw(qupath.regions),
        classes=numbers.classes,
        scores=numbers.scores,
        measurements=numbers.measurements(),
        options=qupath,
    )
    return draft.publish({"channels": list(numbers.channels()), "versions": versions()})


@dataclass(frozen=True, slots=True)
class _Drawing:
    """The files of channels, each painted once for all of its files."""

    folder: Path
    store: TileStore
    numbers: TileNumbers
    settings: DrawSettings
    of_tiles: bool

    def draw(self, rules: RegionRules) -> list[Annotation]:
        """Draw channel by channel; returns the regions of the classes."""
        columns, regions = self.numbers.channels(), []
        heatmap = shown = self._paint(columns)
        if self.settings.scale is Scale.RANK:
            shown = self._paint({name: ranks(column) for name, column in columns.items()})
        thumbnail = read_thumbnail(self.store)
        with ExitStack() as stack:
            takers = [stack.enter_context(file) for file in self._files(heatmap)]
            for channel, name in zip(heatmap.channels, file_names(heatmap.channels), strict=True):
                only = heatmap.only(channel)
                levels = make_levels(only.channel(channel)) if takers else None
                for take in takers:
                    take(levels or ())
                if channel in self.numbers.classes:
                    regions += find_regions(only, channel, self.store, rules=rules)
                if shown is heatmap:
                    self._draw_colours(name, only, levels, thumbnail)
                else:
                    self._draw_colours(name, shown.only(channel), None, thumbnail)
        return regions

    def _paint(self, columns: Mapping[str, NDArray[np.float32]]) -> Heatmap:
        return Frame.of(self.store).paint(self.store.origins, columns, overlap=self.settings.overlap)

    def _files(self, heatmap: Heatmap) -> Iterator[AbstractContextManager[Callable[[Levels], None]]]:
        """The files of all channels."""
        if Format.OME_TIFF in self.settings.formats:
            yield scores_file(self.folder / SCORES, heatmap)
        if Format.OME_ZARR in self.settings.formats:
            yield ngff_folder(self.folder / ZARR, heatmap, version=self.settings.ngff)

    def _draw_colours(
        self,
        name: str,
        heatmap: Heatmap,
        levels: Levels | None,
        thumbnail: tuple[NDArray[np.uint8], tuple[float, float]],
    ) -> None:
        """The coloured files of the one channel that this heatmap has; `name` is in theirs."""
        (channel,), (picture, scale) = heatmap.channels, thumbnail
        ranked = self.settings.scale is Scale.RANK
        title = legend_title(channel, of_tiles=self.of_tiles, ranked=ranked)
        if Format.OME_TIFF in self.settings.formats:
            path = self.folder / f"heatmap-{name}.ome.tif"
            write_colours(path, heatmap, channel, meaning=RANKED if ranked else "", levels=levels)
        if Format.PNG in self.settings.formats:
            plain = draw_picture(heatmap, channel, title=title)
            write_file(self.folder / f"heatmap-{name}.png", encode_png(plain))
            del plain  # as large as the heatmap itself
        overlay = draw_overlay(picture, heatmap, channel, thumbnail_scale=scale[0], title=title)
        write_file(self.folder / f"overlay-{name}.png", encode_png(overlay))


def file_names(channels: Sequence[str]) -> list[str]:
    """A part of a file name for each channel, all different.

    >>> file_names(["tumour", "not so sure", "not-so-sure"])
    ['0-tumour', '1-not-so-sure', '2-not-so-sure']
    """
    names = [re.sub(r"[^\w-]+", "-", channel) for channel in channels]
    if len({name.casefold() for name in names}) == len(names):
        return names
    return [f"{index}-{name}" for index, name in enumerate(names)]


def legend_title(channel: str, *, of_tiles: bool = False, ranked: bool = False) -> str:
    """What a channel's colours mean; `of_tiles` is by a model that judges tiles. None is one of disease.

    Where colours stand for ranks, that is said instead: from 0, the lowest of this slide's tiles, to 1.

    >>> legend_title("tumour")
    'tumour: score of each tile alone'
    >>> legend_title("tumour", of_tiles=True)
    'tumour: probability of each tile'
    >>> legend_title("attention rank")
    'attention rank: no evidence'
    >>> legend_title("uncertainty")
    'uncertainty: 0 sure, 1 no idea'
    >>> legend_title("tumour", ranked=True)
    'tumour: rank within this slide'
    """
    if ranked and channel != RANK:
        return f"{channel}: {RANKED}"
    if channel in _MEANINGS:
        return f"{channel}: {_MEANINGS[channel]}"
    return f"{channel}: {'probability of each tile' if of_tiles else 'score of each tile alone'}"


RANKED = "rank within this slide"
_MEANINGS = {RANK: "no evidence", UNCERTAINTY: "0 sure, 1 no idea"}


def draw_step(
    model: str,
    *,
    weights_sha256: str,
    settings: DrawSettings = AS_USUAL,
    qupath: QupathOptions = FOR_QUPATH,
) -> Step:
    """Draw a model's scores as files that people open."""

    def make(job: Job) -> object:
        return draw_heatmap(job.store, model, settings=settings, qupath=qupath, weights_sha256=weights_sha256)

    return Step(f"heatmaps/{model}", make, reads_slide=False)


def draw_steps(model: str, **options: Any) -> list[Step]:
    """`draw_step` alone."""
    return [draw_step(model, **options)]
