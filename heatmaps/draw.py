"""`draw_heatmap`: a slide's tile scores as the files that people open, committed as one item."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatmaps.overlay import draw_overlay
from heatmaps.pyramid import write_colours, write_scores
from heatmaps.qupath import TileClasses, write_tiles
from heatmaps.raster import Heatmap, paint
from tiling.commit import Commit
from tiling.pipeline import Step
from tiling.store import TileStore, scores_by
from tiling.survey import read_thumbnail
from tiling.versions import versions
from wsi.durable import write_file
from wsi.errors import RecipeError
from wsi.picture import encode_png

SCORES, GEOJSON = "scores.ome.tif", "tiles.geojson"
RANK = "attention rank"


def draw_heatmap(store: TileStore, model: str, *, weights_sha256: str | None = None) -> Commit:
    """Paint a model's tile scores and attention on the slide's frame.

    Writes ``scores.ome.tif`` (float32, one channel a class and the attention's rank), ``tiles.geojson`` (for
    QuPath), and for each class and for attention ``heatmap-<name>.ome.tif`` (coloured) and
    ``overlay-<name>.png`` (over the thumbnail).

    Parameters
    ----------
    store
        The slide; the caller holds the output's lock.
    model
        Name of the model whose scores are drawn.
    weights_sha256
        Its weights, where the caller knows them: another model may bear the same name.

    Raises
    ------
    UsageError
        There are no scores by that model.
    RecipeError
        They are by another model of that name, or of tiles that have been replaced since.
    """
    commit = scores_by(store, model, weights_sha256)
    recipe = {"step": "heatmap", "inputs": store.inputs(f"scores/{model}", "tissue")}
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
    classes = tuple(commit.recipe["model"]["classes"])
    scores, attention = store.scores(model)
    heatmap = _paint(store, classes, scores, attention)
    write_scores(draft.folder / SCORES, heatmap)
    thumbnail, scale = read_thumbnail(store)
    for channel, name in zip(heatmap.channels, file_names(heatmap.channels), strict=True):
        write_colours(draft.folder / f"heatmap-{name}.ome.tif", heatmap, channel)
        picture = draw_overlay(
            thumbnail, heatmap, channel, thumbnail_scale=scale[0], title=legend_title(channel)
        )
        write_file(draft.folder / f"overlay-{name}.png", encode_png(picture))
    record = store.record
    write_tiles(
        draft.folder / GEOJSON,
        slide_id=store.slide_id,
        origins=store.origins,
        tile=_pair(record["tile_level0"]),
        slide_size=tuple(record["slide_size"]),
        measurements=_measurements(classes, scores, attention),
        classes=TileClasses(classes, scores.argmax(axis=1)),
        bounds_origin=tuple(record["bounds_origin"]),
    )
    return draft.publish({"channels": list(heatmap.channels), "versions": versions()})


def file_names(channels: Sequence[str]) -> list[str]:
    """A part of a file name for each channel, all different.

    >>> file_names(["tumour", "not so sure", "not-so-sure"])
    ['0-tumour', '1-not-so-sure', '2-not-so-sure']
    """
    names = [re.sub(r"[^\w-]+", "-", channel) for channel in channels]
    if len({name.casefold() for name in names}) == len(names):
        return names
    return [f"{index}-{name}" for index, name in enumerate(names)]


def legend_title(channel: str) -> str:
    """What a channel's colours mean. Neither is a probability of disease.

    >>> legend_title("tumour")
    'tumour: score of each tile alone'
    >>> legend_title("attention rank")
    'attention rank: no evidence'
    """
    return f"{channel}: no evidence" if channel == RANK else f"{channel}: score of each tile alone"


def draw_step(model: str, *, weights_sha256: str) -> Step:
    """Draw a model's scores as files that people open."""
    return Step(
        f"heatmaps/{model}", lambda job: draw_heatmap(job.store, model, weights_sha256=weights_sha256)
    )


def _paint(
    store: TileStore, classes: tuple[str, ...], scores: NDArray[np.float32], attention: NDArray[np.float32]
) -> Heatmap:
    """All channels at once: the classes' scores, then attention as a rank in [0, 1]."""
    record = store.record
    resolution = store.tiles.recipe["resolution"]
    return paint(
        store.origins,
        np.column_stack([scores, ranks(attention)]),
        channels=(*classes, RANK),
        tile=_pair(record["tile_level0"]),
        stride=_pair(record["stride_level0"]),
        slide_size=tuple(record["slide_size"]),
        slide_mpp=(resolution["x"] + resolution["y"]) / 2,
    )


def ranks(attention: NDArray[np.float32]) -> NDArray[np.float32]:
    """Attention as its rank within the slide, ``(n,)`` in [0, 1]; equal weights share their mean rank.

    A softmax over thousands of tiles has no absolute scale: its sum is one whatever the slide shows.
    """
    if len(attention) == 1:
        return np.ones(1, np.float32)
    _, inverse, counts = np.unique(attention, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    mean_rank = last - (counts - 1) / 2
    return (mean_rank[inverse] / (len(attention) - 1)).astype(np.float32)


def _measurements(
    classes: tuple[str, ...], scores: NDArray[np.float32], attention: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """For QuPath. Not "probability": a tile's score is not calibrated, and the slide's is another number."""
    named = {f"Tile score: {name}": scores[:, i] for i, name in enumerate(classes)}
    return named | {"Attention": attention, "Attention rank": ranks(attention)}


def _pair(values: Any) -> tuple[float, float]:
    return float(values[0]), float(values[1])
