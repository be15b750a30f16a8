"""`draw_heatmap`: a slide's tile scores as the files that people open, committed as one item."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatmaps.ngff import write_ngff
from heatmaps.overlay import draw_overlay, draw_picture
from heatmaps.pyramid import write_colours, write_scores
from heatmaps.qupath_files import QupathOptions, write_for_qupath
from heatmaps.raster import Heatmap, paint_columns
from heatmaps.settings import AS_USUAL, DrawSettings, Format, Overlap, Scale
from tiling.class_names import CHANNELS
from tiling.commit import Commit
from tiling.pipeline import Job, Step
from tiling.store import TileStore, judges_tiles, scores_by
from tiling.survey import read_thumbnail
from tiling.versions import versions
from wsi.durable import write_file
from wsi.errors import RecipeError, UsageError
from wsi.picture import encode_png

SCORES, ZARR = "scores.ome.tif", "scores.ome.zarr"
RANK, UNCERTAINTY = CHANNELS
FOR_QUPATH = QupathOptions()


@dataclass(frozen=True, eq=False, slots=True)
class TileNumbers:
    """What is known of each of a slide's n tiles, and is drawn."""

    classes: tuple[str, ...]
    """C, in the order of the scores."""
    scores: NDArray[np.float32]
    """``(n, C)``, 0 to 1."""
    attention: NDArray[np.float32] | None = None
    """``(n,)``, summing to 1; None by a model that judges tiles, which looks at each for itself."""
    uncertainty: NDArray[np.float32] | None = None
    """``(n,)``, 0 sure, 1 no idea; None for scores of before there was any."""
    disagreement: NDArray[np.float32] | None = None
    """``(n,)``, 0 to 1, likewise: how far the members of the model are apart."""

    def channels(self) -> dict[str, NDArray[np.float32]]:
        """``(n,)`` numbers from 0 to 1 by the name of the channel that shows them."""
        named = {name: self.scores[:, i] for i, name in enumerate(self.classes)}
        if self.attention is not None:
            named[RANK] = ranks(self.attention)
        if self.uncertainty is not None:
            named[UNCERTAINTY] = self.uncertainty
        if len(named) != len(self.classes) + (self.attention is not None) + (self.uncertainty is not None):
            raise UsageError(
                f"a class has the name of another channel ({RANK} or {UNCERTAINTY})",
                action="Give the class another name, and train the model again",
            )
        return named

    def measurements(self) -> dict[str, NDArray[np.float32]]:
        """For QuPath. Not "probability": of a slide's model a tile's score is none, and is not calibrated."""
        named = {f"Tile score: {name}": self.scores[:, i] for i, name in enumerate(self.classes)}
        if self.attention is not None:
            named |= {"Attention": self.attention, "Attention rank": ranks(self.attention)}
        if self.uncertainty is not None:
            named["Uncertainty"] = self.uncertainty
        if self.disagreement is not None:
            named["Disagreement"] = self.disagreement
        return named


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
    numbers = _numbers(store, model)
    heatmap = _paint(store, numbers.channels(), settings.overlap)
    if Format.OME_TIFF in settings.formats:
        write_scores(draft.folder / SCORES, heatmap)
    if Format.OME_ZARR in settings.formats:
        write_ngff(draft.folder / ZARR, heatmap, version=settings.ngff)
    shown = heatmap
    if settings.scale is Scale.RANK:
        ranked = {name: ranks(column) for name, column in numbers.channels().items()}
        shown = _paint(store, ranked, settings.overlap)
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


def _numbers(store: TileStore, model: str) -> TileNumbers:
    """What is drawn of a model's scores."""
    commit = store.require(f"scores/{model}")
    scores, attention = store.scores(model)
    return TileNumbers(
        tuple(commit.recipe["model"]["classes"]),
        scores,
        None if judges_tiles(commit) else attention,
        *(store.uncertainty(model) or ()),
    )


def _paint(store: TileStore, channels: Mapping[str, NDArray[np.float32]], overlap: Overlap) -> Heatmap:
    record, resolution = store.record, store.tiles.recipe["resolution"]
    return paint_columns(
        store.origins,
        channels,
        tile=_pair(record["tile_level0"]),
        stride=_pair(record["stride_level0"]),
        slide_size=tuple(record["slide_size"]),
        slide_mpp=(resolution["x"] + resolution["y"]) / 2,
        overlap=overlap,
    )


def ranks(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rank of each tile's number within the slide, ``(n,)`` in [0, 1]; equal ones share their mean rank.

    NaN has none. Attention is always shown so: a softmax over thousands of tiles has no absolute scale, for
    its sum is one whatever the slide shows.
    """
    found, known = np.full(len(numbers), np.nan, np.float32), ~np.isnan(numbers)
    if known.sum() == 1:
        found[known] = 1
        return found
    _, inverse, counts = np.unique(numbers[known], return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    mean_rank = last - (counts - 1) / 2
    found[known] = mean_rank[inverse] / (known.sum() - 1)
    return found


def _pair(values: Any) -> tuple[float, float]:
    return float(values[0]), float(values[1])
