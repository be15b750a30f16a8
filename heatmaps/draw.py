"""`draw_heatmap`: a slide's tile scores as the files that people open, committed as one item."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heatmaps.ngff import write_ngff
from heatmaps.numbers import RANK, UNCERTAINTY, Frame, ranks, read_numbers
from heatmaps.overlay import draw_overlay, draw_picture
from heatmaps.pyramid import write_colours, write_scores
from heatmaps.qupath_files import QupathOptions, write_for_qupath
from heatmaps.raster import Heatmap
from heatmaps.settings import AS_USUAL, DrawSettings, Format, Scale
from tiling.commit import Commit
from tiling.pipeline import Job, Step
from tiling.store import TileStore, judges_tiles, scores_by
from tiling.survey import read_thumbnail
from tiling.versions import versions
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
    frame = Frame.of(store)
    heatmap = frame.paint(store.origins, numbers.channels(), overlap=settings.overlap)
    if Format.OME_TIFF in settings.formats:
        write_scores(draft.folder / SCORES, heatmap)
    if Format.OME_ZARR in settings.formats:
        write_ngff(draft.folder / ZARR, heatmap, version=settings.ngff)
    shown = heatmap
    if settings.scale is Scale.RANK:
        ranked = {name: ranks(column) for name, column in numbers.channels().items()}
        shown = frame.paint(store.origins, ranked, overlap=settings.overlap)
    _draw_colours(draft.folder, store, shown, settings, of_tiles=judges_tiles(commit))
    write_for_qupath(
        draft.folder,
        store,
        heatmap,
        classes=numbers.classes,
        scores=numbers.scores,
        measurements=numbers.measurements(),
        options=qupath,
    )
    return draft.publish({"channels": list(heatmap.channels), "versions": versions()})


def _draw_colours(
    folder: Path, store: TileStore, heatmap: Heatmap, settings: DrawSettings, *, of_tiles: bool
) -> None:
    """The files of each channel, which is painted once for all of them."""
    thumbnail, scale = read_thumbnail(store)
    ranked = settings.scale is Scale.RANK
    for channel, name in zip(heatmap.channels, file_names(heatmap.channels), strict=True):
        plane, title = heatmap.only(channel), legend_title(channel, of_tiles=of_tiles, ranked=ranked)
        if Format.OME_TIFF in settings.formats:
            meaning = RANKED if ranked else ""
            write_colours(folder / f"heatmap-{name}.ome.tif", plane, channel, meaning=meaning)
        if Format.PNG in settings.formats:
            write_file(folder / f"heatmap-{name}.png", encode_png(draw_picture(plane, channel, title=title)))
        picture = draw_overlay(thumbnail, plane, channel, thumbnail_scale=scale[0], title=title)
        write_file(folder / f"overlay-{name}.png", encode_png(picture))


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


def draw_steps(model: str, **options: Any) -> list[Step]:
    """`draw_step` alone."""
    return [draw_step(model, **options)]
