"""From slides that were tiled and encoded to a `Pool` of labelled bags.

Only features of the tiles that are chosen are read. Choosing is seeded by the slide's name: adding a slide,
or leaving one out, changes nothing for the others. What is held in memory is the pool, two bytes a feature,
and besides it one slide's part of it and one file of features; `LARGEST_POOL` bounds the pool before anything
is read.

Every slide of a table is taken, those for testing too: `LabelTable.of` gives the rows of one side.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mil.bags import Rows
from mil.encoder import folder_name
from mil.features import FeatureRecipe, common_recipe, feature_items, open_bag
from mil.fewshot.pool import UNKNOWN_SITE, Pool, numbered
from mil.labels import LabelTable
from mil.training.sources import Stores, require_slides
from tiling.marks import Marks, check_names, read_marks, require_classes
from tiling.store import TileStore
from wsi.annotations import Origin
from wsi.errors import UsageError
from wsi.regions import RegionFiles

TILES_PER_REGION = 200
TILES_PER_SLIDE = 200
TILES_PER_BAG = 1024
LARGEST_POOL = 16 << 30
"""Bytes of features: five million tiles of 1,536."""

_TOLD = 5  # files that are named, of those that cannot be used

_log = logging.getLogger(__name__)


def tile_pool(
    stores: Stores,
    annotations: RegionFiles,
    *,
    encoder: str,
    contexts: Sequence[float] = (),
    table: LabelTable | None = None,
    rename: Mapping[str, str] | None = None,
    tiles_per_region: int | None = TILES_PER_REGION,
    seed: int = 0,
) -> tuple[Pool, FeatureRecipe]:
    """Tiles that lie in annotations, each a bag by itself, with the annotation's class.

    Parameters
    ----------
    stores
        The slides; without a table those count that have an annotation file.
    annotations
        A file a slide, or one for the one slide.
    encoder
        Name of the encoder whose features are meant.
    contexts
        See `mil.features.open_bag`.
    table
        Says which slides count, of which patient and of which site each is; its labels are not looked at. Its
        slides that have no annotation file are left out, and counted in a warning; so are annotated slides
        that it does not name. Without it every slide is a patient of its own.
    rename
        Other names for annotated classes; see `tiling.marks.read_marks`.
    tiles_per_region
        At most so many tiles of an annotation, drawn at random; None for all.
    seed
        Of that.

    Returns
    -------
    The pool, slide after slide and in each by tile, and the recipe that all features share.

    Raises
    ------
    UsageError
        No slides; slides of the table that are not there or lack features; annotations that `tiling.marks`
        refuses; slides that were not made alike (`mil.features.common_recipe`); a pool above `LARGEST_POOL`.
    DamagedError, RecipeError
        See `mil.features.open_bag`.
    """
    if tiles_per_region is not None:
        _check_count(tiles_per_region, "tiles a region")
    key = folder_name(encoder)
    if table is not None:
        require_slides(stores, table, items=feature_items(key, contexts))
    annotated = _annotated(_slides(stores, table), annotations)
    if table is not None:
        _warn_of_left_out(annotations, table, stores)
    recipe = common_recipe([slide.store for slide, _ in annotated], key, contexts=contexts)
    marks = _all_marks(annotated, rename or {}, annotations.origin)
    check_names(marks)
    classes = require_classes(marks)
    parts = []
    for (slide, _), marked in zip(annotated, marks, strict=True):
        kept = _of_regions(marked, tiles_per_region, seed)
        if len(kept):
            numbers = np.array([classes.index(name) for name in marked.classes], np.int64)
            parts.append(_Part(slide, marked.rows[kept], numbers[marked.labels[kept]]))
    return _read(parts, classes, recipe, key), recipe


def labelled_tile_pool(
    stores: Stores,
    table: LabelTable,
    *,
    encoder: str,
    contexts: Sequence[float] = (),
    tiles_per_slide: int = TILES_PER_SLIDE,
    seed: int = 0,
) -> tuple[Pool, FeatureRecipe]:
    """Tiles of labelled slides, each a bag by itself, with its slide's label.

    That is right where a slide shows one thing only, such as a slide cut from one kind of tissue.

    Parameters
    ----------
    stores, encoder, contexts
        See `tile_pool`.
    table
        All its slides are taken.
    tiles_per_slide
        At most so many tiles of a slide, drawn at random.
    seed
        Of that.

    Returns
    -------
    The pool and the recipe; what is refused is what `tile_pool` refuses.
    """
    _check_count(tiles_per_slide, "tiles a slide")
    key = folder_name(encoder)
    slides, recipe = _labelled(stores, table, key, contexts)
    drawn = _drawn_of_slides(slides, table, tiles_per_slide, seed)
    parts = [_Part(slide, rows, np.full(len(rows), number)) for slide, rows, number in drawn]
    return _read(parts, table.classes, recipe, key), recipe


def slide_pool(
    stores: Stores,
    table: LabelTable,
    *,
    encoder: str,
    contexts: Sequence[float] = (),
    tiles_per_bag: int = TILES_PER_BAG,
    seed: int = 0,
) -> tuple[Pool, FeatureRecipe]:
    """Labelled slides, each a bag of at most so many of its tiles, drawn at random.

    Parameters
    ----------
    stores, table, encoder, contexts, seed
        See `labelled_tile_pool`.
    tiles_per_bag
        At most so many tiles of a slide.

    Returns
    -------
    The pool and the recipe; what is refused is what `tile_pool` refuses.
    """
    _check_count(tiles_per_bag, "tiles a bag")
    key = folder_name(encoder)
    slides, recipe = _labelled(stores, table, key, contexts)
    drawn = _drawn_of_slides(slides, table, tiles_per_bag, seed)
    parts = [_Part(slide, rows, np.array([number])) for slide, rows, number in drawn]
    return _read(parts, table.classes, recipe, key), recipe


# Slides --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Slide:
    store: TileStore
    patient: str
    site: str


def _slides(stores: Stores, table: LabelTable | None) -> list[_Slide]:
    """Those of the table, in its order; without one all there are, by name."""
    if table is None:
        return [_Slide(stores[name], name, UNKNOWN_SITE) for name in sorted(stores)]
    return [
        _Slide(stores[row.slide_id], row.patient or row.slide_id, row.site or UNKNOWN_SITE)
        for row in table.rows
    ]


def _labelled(
    stores: Stores, table: LabelTable, key: str, contexts: Sequence[float]
) -> tuple[list[_Slide], FeatureRecipe]:
    """All slides of the table, and the recipe that their features share."""
    require_slides(stores, table, items=feature_items(key, contexts))
    slides = _slides(stores, table)
    return slides, common_recipe([slide.store for slide in slides], key, contexts=contexts)


def _drawn_of_slides(
    slides: Sequence[_Slide], table: LabelTable, most: int, seed: int
) -> Iterator[tuple[_Slide, Rows, int]]:
    """Each slide with the tiles that are taken of it, and the number of its class."""
    classes = table.classes
    for slide, row in zip(slides, table.rows, strict=True):
        rows = _drawn(len(slide.store), most, [seed, _stamp(slide.store.slide_id)])
        yield slide, rows, classes.index(row.label)


def _annotated(slides: Sequence[_Slide], annotations: RegionFiles) -> list[tuple[_Slide, Path]]:
    """Those with an annotation file, which is beside them."""
    if not slides:
        raise UsageError("there are no slides", action="Give at least one that was encoded")
    names = [slide.store.slide_id for slide in slides]
    annotations.check(names)
    files = map(annotations.find, names)
    return [(slide, file) for slide, file in zip(slides, files, strict=True) if file is not None]


def _warn_of_left_out(annotations: RegionFiles, table: LabelTable, stores: Stores) -> None:
    """Count the table's slides without an annotation file, and annotated ones that it does not name."""
    names = [row.slide_id for row in table.rows]
    without = [name for name in names if annotations.find(name) is None]
    if without:
        _log.warning(
            "%s: no annotation file for %d of the table's %d slides, which are left out: %s",
            annotations.source,
            len(without),
            len(names),
            _first(without),
        )
    if annotations.source.is_dir():
        others = [name for name in sorted(stores.keys() - set(names)) if annotations.find(name)]
        if others:
            _log.warning(
                "%s: slides that are annotated, but not in %s, and left out: %d (%s)",
                annotations.source,
                table.path,
                len(others),
                _first(others),
            )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# Tiles ---------------------------------------------------------------------------------------------------


def _all_marks(
    annotated: Sequence[tuple[_Slide, Path]], rename: Mapping[str, str], origin: Origin
) -> list[Marks]:
    """Of every slide. What is wrong with several files is said at once: nobody mends hundreds one by one."""
    marks, refused = [], []
    for slide, file in annotated:
        try:
            marks.append(read_marks(file, slide.store, rename=rename, origin=origin))
        except UsageError as error:
            refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    if refused:
        said = "; ".join(str(error) for error in refused[:_TOLD])
        more = f"; and {len(refused) - _TOLD} more" if len(refused) > _TOLD else ""
        raise UsageError(
            f"{len(refused)} of {len(annotated)} annotation files cannot be used: {said}{more}",
            action="Correct these files, or take them out of the folder",
        )
    return marks


@dataclass(frozen=True, eq=False, slots=True)
class _Part:
    """What the pool has of a slide."""

    slide: _Slide
    rows: Rows
    """``(k,)`` its tiles, ascending."""
    labels: NDArray[np.int64]
    """``(b,)`` of each of its bags: as many as tiles, or one of all of them."""


def _of_regions(marks: Marks, most: int | None, seed: int) -> Rows:
    """Which of the marked tiles are taken, ascending: at most so many of each annotation."""
    if most is None:
        return np.arange(len(marks.rows))
    chosen = [np.empty(0, np.int64)]
    for region in np.unique(marks.regions).tolist():
        its = np.flatnonzero(marks.regions == region)
        chosen.append(its[_drawn(len(its), most, [seed, _stamp(marks.slide_id), region])])
    return np.sort(np.concatenate(chosen))


def _drawn(count: int, most: int, seed: Sequence[int]) -> Rows:
    """``(k,)`` ascending: `most` of so many rows, or all if there are no more."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False, shuffle=False))


def _stamp(slide_id: str) -> int:
    return zlib.crc32(slide_id.encode())


def _check_count(count: int, what: str) -> None:
    if count < 1:
        raise UsageError(f"{count} {what} are none", action="Give 1 or more")


def _read(parts: Sequence[_Part], classes: tuple[str, ...], recipe: FeatureRecipe, key: str) -> Pool:
    """The pool of these tiles, whose features are read slide by slide into their places."""
    count = sum(len(part.rows) for part in parts)
    need = count * recipe.dim * np.dtype(np.float16).itemsize
    if need > LARGEST_POOL:
        raise UsageError(
            f"{count} tiles of {recipe.dim} features take {need / 2**30:.1f} GiB of memory, more than the "
            f"{LARGEST_POOL / 2**30:g} GiB that are allowed",
            action="Take fewer tiles of each slide or region",
        )
    features = np.empty((count, recipe.dim), np.float16)
    places = np.zeros((count, 2), np.int64)  # a tile alone stands at (0, 0)
    start = 0
    for part in parts:
        stored = open_bag(part.slide.store, key, contexts=recipe.contexts)
        bag = stored.read(part.rows)
        stop = start + len(bag)
        features[start:stop] = bag.features
        if len(part.labels) == 1:
            places[start:stop] = bag.places
        start = stop
    bags = [len(part.labels) for part in parts]
    patients, patient_ids = numbered([part.slide.patient for part in parts])
    sites, site_ids = numbered([part.slide.site for part in parts])
    slides, slide_ids = numbered([part.slide.store.slide_id for part in parts])
    return Pool(
        classes=classes,
        labels=np.concatenate([part.labels for part in parts]),
        patients=patients.repeat(bags),
        sites=sites.repeat(bags),
        slides=slides.repeat(bags),
        patient_ids=patient_ids,
        site_ids=site_ids,
        slide_ids=slide_ids,
        features=features,
        places=places,
        sizes=np.concatenate([_sizes(part) for part in parts]),
    )


def _sizes(part: _Part) -> NDArray[np.int64]:
    """``(b,)`` tiles of each bag."""
    return np.full(len(part.labels), len(part.rows) // len(part.labels))
