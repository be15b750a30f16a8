"""`draw_heatmap`: a slide's tile scores as the files that people open, committed as one item."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

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
        was drawn with other settings.
    """
    commit = scores_by(store, model, weights_sha256)
    recipe = {
        "step": "heatmap",
        "settings": settings.as_json(),
        "qupath": qupath.as_json(),
        "inputs": store.inputs(f"scores/{model}", "tissue"),
    }
    for name in ("slide", "resolution"):
        if store.require("tissue").recipe[name] != store.tiles.recipe[name]:
            raise RecipeError(
                f"the thumbnail of slide {store.slide_id!r} is of another {name} than its tiles",
                path=store.output.root,
                action="Run 'microtome tile' again with --overwrite",
            )
    draft = store.begin(f"heatmaps/{model}", recipe)
    if draft is None:
        return store.require(f"heatmaps/{model}")
    numbers = read_numbers(store, model)
    heatmap = Frame.of(store).paint(store.origins, numbers.channels(), overlap=settings.overlap)
    regions = _draw_channels(
        draft.folder, store, numbers, heatmap, settings, qupath.regions, of_tiles=judges_tiles(commit)
    )
    write_for_qupath(
        draft.folder,
        store,
        regions,
        classes=numbers.classes,
        scores=numbers.scores,
        measurements=numbers.measurements(),
        options=qupath,
    )
    return draft.publish({"channels": list(heatmap.channels), "versions": versions()})


def _draw_channels(
    folder: Path,
    store: TileStore,
    numbers: TileNumbers,
    heatmap: Heatmap,
    settings: DrawSettings,
    rules: RegionRules,
    *,
    of_tiles: bool,
) -> list[Annotation]:
    """Draw channel by channel, each painted once for all files; returns the regions of the classes."""
    regions, thumbnail, ranked = [], read_thumbnail(store), settings.scale is Scale.RANK
    with ExitStack() as stack:
        takers: list[Callable[[Levels], None]] = []
        if Format.OME_TIFF in settings.formats:
            takers.append(stack.enter_context(scores_file(folder / SCORES, heatmap)))
        if Format.OME_ZARR in settings.formats:
            group = ngff_folder(folder / ZARR, heatmap, version=settings.ngff)
            takers.append(stack.enter_context(group))
        for channel, name in zip(heatmap.channels, file_names(heatmap.channels), strict=True):
            only = heatmap.only(channel)
            levels = make_levels(only.channel(channel)) if takers else ()
            for take in takers:
                take(levels)
            if channel in numbers.classes:
                regions += find_regions(only, channel, store, rules=rules)
            if ranked:
                column = {channel: ranks(numbers.channels()[channel])}
                only, levels = Frame.of(store).paint(store.origins, column, overlap=settings.overlap), ()
            title = legend_title(channel, of_tiles=of_tiles, ranked=ranked)
            _draw_colours(folder, name, only.only(channel), levels, settings, thumbnail, title)
    return regions


def _draw_colours(
    folder: Path,
    name: str,
    heatmap: Heatmap,
    levels: Levels,
    settings: DrawSettings,
    thumbnail: tuple[NDArray[np.uint8], tuple[float, float]],
    title: str,
) -> None:
    """The coloured files of the one channel that this heatmap has; `name` is in theirs."""
    (channel,), (picture, scale) = heatmap.channels, thumbnail
    if Format.OME_TIFF in settings.formats:
        meaning = RANKED if settings.scale is Scale.RANK else ""
        path = folder / f"heatmap-{name}.ome.tif"
        write_colours(path, heatmap, channel, meaning=meaning, levels=levels or None)
    if Format.PNG in settings.formats:
        write_file(folder / f"heatmap-{name}.png", encode_png(draw_picture(heatmap, channel, title=title)))
    overlay = draw_overlay(picture, heatmap, channel, thumbnail_scale=scale[0], title=title)
    write_file(folder / f"overlay-{name}.png", encode_png(overlay))


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

    return Step(f"heatmaps/{model}", make)
