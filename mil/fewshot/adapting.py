"""`adapt_to_tiles` and `adapt_to_slides`: a few marks, and learners of a META folder, become a model.

The model is a folder like any other (see `mil.checkpoint`): the other commands score slides with it, and draw
what it says. Its members are the heads of the cross-validation by which the way to learn was chosen, so that
each marked tile or slide is judged by a head that did not learn from it; they share one temperature, and
their disagreement is part of the uncertainty. Beside them the folder holds ``support.csv``, what was marked
and what was said of it, and ``choice.csv``, what each candidate would have been worth.

Temperature and conformal rule rest on what these heads say of bags that they did not learn from: on few, of
few regions or patients, and of a way to learn that was chosen by the same ones. They hold for more marks like
these, not for slides of another kind.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mil.bags import Bag, BagSource, PackedBags, each_alone, pack
from mil.calibration import probabilities
from mil.checkpoint import Calibration, Judges, Model, check_model_name, describe, save_model
from mil.conformal import fit_conformal
from mil.encoder import folder_name
from mil.ensemble import Ensemble
from mil.features import FeatureRecipe, common_recipe, feature_items, open_bag
from mil.fewshot.choosing import Choice, choose, some_of
from mil.fewshot.meta import CARD_FILE, Learners, Meta, load_meta, on_device
from mil.fewshot.methods import Support
from mil.fewshot.records import Row, choice_csv, is_there, support_csv
from mil.gate import Gate
from mil.labels import LabelTable, Split
from mil.training.sources import require_slides
from tiling.commit import hash_file
from tiling.marks import Marks, check_names, require_classes
from tiling.store import TileStore
from wsi.errors import UsageError

ADVISED = 5
"""Tiles or slides of a class below which a user is warned."""
MOST = 100
"""Tiles of a class that are learnt from; of more so many are drawn, of all regions alike."""
MOST_OF_SLIDE = 1024
"""Tiles of a slide that are learnt from, at slide level."""
ALPHA = 0.1
"""Share of conformal sets that may miss the true class."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdaptRecipe:
    """What the user may set.

    Raises
    ------
    UsageError
        A setting that is none.
    """

    learner: str | None = None
    """The way to learn; None for the best by cross-validation."""
    gate: Gate = field(default_factory=Gate)
    """How sure the model must be of what nobody looks at."""
    most: int = MOST
    """Tiles of a class that are learnt from, at most."""
    seed: int = 0
    """Of the draw among more tiles."""

    def __post_init__(self) -> None:
        if self.most < 2 or self.seed < 0:
            raise UsageError(
                f"{self.most} tiles of a class and seed {self.seed} cannot be",
                action="Give at least 2 tiles of a class, and a seed of 0 or more",
            )


@dataclass(frozen=True, slots=True)
class Adapted:
    """A model that was made from a few marks, and how."""

    model: Model
    choice: Choice
    made: bool
    """Whether it was made now; else it was there already."""


@dataclass(frozen=True, eq=False, slots=True)
class _Material:
    """All that a model is made of."""

    support: Support
    groups: NDArray[np.int64]  # (n,)
    rows: Sequence[Row]  # n
    features: FeatureRecipe
    sources: Mapping[str, Any]  # digests, for the card


def adapt_to_tiles(
    marked: Sequence[tuple[TileStore, Marks]],
    *,
    meta: Path,
    folder: Path,
    recipe: AdaptRecipe,
    overwrite: bool = False,
    device: torch.device | None = None,
) -> Adapted:
    """Learn to tell tiles as a user marked them.

    Parameters
    ----------
    marked
        Slides, and what was marked on them.
    meta
        A META folder whose tasks were of tiles.
    folder
        Where the model goes; its last part becomes the model's name. One process at a time makes it: the
        caller holds the output's lock.
    recipe
        What the user may set.
    overwrite
        Whether it may replace another model there.
    device
        Where to learn; by default the CPU.

    Raises
    ------
    UsageError
        One class only, too few tiles, names that differ between files (see `tiling.marks`); features that are
        not META's; a META of slides; a folder whose name cannot be a model's.
    RecipeError
        Another model is there, or one that is damaged.
    """
    check_model_name(folder.name)
    card, _ = found = load_meta(meta)
    _check_level(meta, card, Judges.TILES)
    marks = [one for _, one in marked]
    check_names(marks)
    classes = require_classes(marks)
    stores = [store for store, _ in marked]
    key = _key(card)
    features = common_recipe(stores, key, contexts=card.features.contexts)
    _check_features(features, card, stores[0])
    bags, rows, groups = [], [], []
    for number, ((store, one), kept) in enumerate(zip(marked, _thin(marks, recipe), strict=True)):
        if not len(kept):
            continue  # others have enough of its classes
        bag = open_bag(store, key, contexts=card.features.contexts).read(one.rows[kept])
        bags.append(bag)
        names = [one.classes[label] for label in one.labels[kept]]
        rows += [Row(bag.slide_id, name, *xy) for name, xy in zip(names, bag.origins.tolist(), strict=True)]
        groups += [(number, region) for region in one.regions[kept].tolist()]
    support = _support(each_alone(pack(bags, device=device).features), rows, classes)
    _warn_of_few(rows, classes, "tiles")
    sources = {"annotations": {one.slide_id: one.sha256 for one in marks}}
    material = _Material(support, _numbered(groups), rows, features, sources)
    return _adapt(material, classes, found, meta=meta, folder=folder, recipe=recipe, overwrite=overwrite)


def adapt_to_slides(
    stores: Mapping[str, TileStore],
    table: LabelTable,
    *,
    meta: Path,
    folder: Path,
    recipe: AdaptRecipe,
    overwrite: bool = False,
    device: torch.device | None = None,
) -> Adapted:
    """Learn to tell slides by a few that are labelled; slides of a patient are kept together.

    Parameters
    ----------
    stores
        By slide id; those that the table does not name are left alone.
    table
        Labels, and patients where they are known. Slides of the split ``test`` are not learnt from.
    meta, folder, recipe, overwrite, device
        See `adapt_to_tiles`; META's tasks were of slides.

    Raises
    ------
    UsageError
        One class only, one slide of a class, slides that are not there; features that are not META's; a META
        of tiles.
    RecipeError
        Another model is there.
    """
    check_model_name(folder.name)
    card, _ = found = load_meta(meta)
    _check_level(meta, card, Judges.SLIDES)
    rows_of_table, classes = table.of(Split.TRAIN), table.classes
    key, contexts = _key(card), card.features.contexts
    require_slides(stores, table, items=feature_items(key, contexts))
    named = [stores[row.slide_id] for row in rows_of_table]
    features = common_recipe(named, key, contexts=contexts)
    _check_features(features, card, named[0])
    rows = [Row(row.slide_id, row.label) for row in rows_of_table]
    for name in classes:
        if sum(row.label == name for row in rows) < 2:
            raise UsageError(
                f"class {name!r} has fewer than two slides to learn from",
                path=table.path,
                action="Label two slides of each class at least",
            )
    bags = [_sample(open_bag(store, key, contexts=contexts), recipe.seed) for store in named]
    support = _support(pack(bags, device=device), rows, classes)
    _warn_of_few(rows, classes, "slides")
    groups = _numbered([row.patient or row.slide_id for row in rows_of_table])
    sources = {"labels": hash_file(table.path).sha256}
    material = _Material(support, groups, rows, features, sources)
    return _adapt(material, classes, found, meta=meta, folder=folder, recipe=recipe, overwrite=overwrite)


def _adapt(
    material: _Material,
    classes: tuple[str, ...],
    found: tuple[Meta, Learners],
    *,
    meta: Path,
    folder: Path,
    recipe: AdaptRecipe,
    overwrite: bool,
) -> Adapted:
    card, learners = found
    support = material.support
    _warn_of_known(material, card)
    methods = on_device(learners, support.bags.features.device).methods
    choice = choose(methods, support, material.groups, wanted=recipe.learner)
    picked = choice.picked
    with torch.no_grad():
        members = tuple(picked.method.fit(some_of(support, learnt)) for learnt, _ in choice.folds)
    ensemble = Ensemble(members, (picked.temperature,) * len(members))
    labels = support.labels.cpu().numpy()
    chances = probabilities(picked.logits, picked.temperature)  # (n, C), each by a head that did not learn it
    rule = fit_conformal(chances, labels, alpha=ALPHA)
    model = describe(
        ensemble,
        name=folder.name,
        classes=classes,
        features=card.features,
        calibration=Calibration(ensemble.temperatures, rule, recipe.gate),
        training=_provenance(material, choice, card, meta),
        judges=card.judges,
    )
    files = {"support.csv": support_csv(material.rows, classes, chances), "choice.csv": choice_csv(choice)}
    made = not is_there(folder, model, overwrite=overwrite)
    if made:
        save_model(folder, ensemble, model, files=files, overwrite=overwrite)
    return Adapted(model, choice, made)


def _provenance(material: _Material, choice: Choice, card: Meta, meta: Path) -> dict[str, Any]:
    names = [row.label for row in material.rows]
    return {
        "adapted_from": {"name": card.name, "sha256": hash_file(meta / CARD_FILE).sha256},
        **material.sources,
        "slides": sorted({row.slide_id for row in material.rows}),
        "class_counts": {name: names.count(name) for name in sorted(set(names))},
        "learner": choice.picked.method.name,
        "why": choice.why,
        "balanced_accuracy": choice.picked.balanced_accuracy,
        "folds": len(choice.folds),
        "groups_kept_whole": choice.folds.keep_groups,
    }


# Material ------------------------------------------------------------------------------------------------


def _thin(marks: Sequence[Marks], recipe: AdaptRecipe) -> list[NDArray[np.int64]]:
    """Which marked tiles of each slide are learnt from: of a class at most so many, its regions in turn."""
    rng = np.random.default_rng(recipe.seed)
    turns = defaultdict[str, list[tuple[int, int, int, int]]](
        list
    )  # place in its region, slide, region, tile
    for slide, one in enumerate(marks):
        for region in np.unique(one.regions).tolist():
            tiles = np.flatnonzero(one.regions == region)
            places = rng.permutation(len(tiles)).tolist()
            found = [(place, slide, region, tile) for place, tile in zip(places, tiles.tolist(), strict=True)]
            turns[one.classes[one.labels[tiles[0]]]] += found
    kept: list[list[int]] = [[] for _ in marks]
    for of_class in turns.values():
        for _, slide, _, tile in sorted(of_class)[: recipe.most]:
            kept[slide].append(tile)
    return [np.sort(np.array(tiles, np.int64)) for tiles in kept]


def _sample(source: BagSource, seed: int) -> Bag:
    """Of a large slide as many tiles as `MOST_OF_SLIDE`, by lot."""
    if len(source) <= MOST_OF_SLIDE:
        return source.read()
    rng = np.random.default_rng([seed, *source.slide_id.encode()])
    return source.read(np.sort(rng.choice(len(source), MOST_OF_SLIDE, replace=False)))


def _support(bags: PackedBags, rows: Sequence[Row], classes: Sequence[str]) -> Support:
    labels = torch.tensor([classes.index(row.label) for row in rows], device=bags.features.device)
    return Support(bags, labels, len(classes))


def _numbered(names: Sequence[Hashable]) -> NDArray[np.int64]:
    """``(n,)``: a number for each name, alike for those that are alike."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.int64)


def _key(card: Meta) -> str:
    return folder_name(str(card.features.encoder["name"]))


def _check_level(meta: Path, card: Meta, wanted: Judges) -> None:
    if card.judges is not wanted:
        what = {Judges.TILES: "--annotations", Judges.SLIDES: "--labels"}
        raise UsageError(
            f"was trained to judge {card.judges.value}, not {wanted.value}",
            path=meta,
            action=f"Give {what[card.judges]}, or another META",
        )


def _check_features(features: FeatureRecipe, card: Meta, store: TileStore) -> None:
    if differences := features.differences(card.features):
        raise UsageError(
            f"slide {store.slide_id!r} does not fit META {card.name!r}: {'; '.join(differences[:4])}",
            path=store.output.root,
            action="Tile and encode it with META's settings into another -o",
        )


def _warn_of_known(material: _Material, card: Meta) -> None:
    if known := sorted({row.slide_id for row in material.rows} & set(card.slides)):
        _log.warning(
            "META %r was trained with %d of these slides, such as %r: what cross-validation says of its "
            "learners is too good",
            card.name,
            len(known),
            known[0],
        )


def _warn_of_few(rows: Sequence[Row], classes: Sequence[str], what: str) -> None:
    for name in classes:
        count = sum(row.label == name for row in rows)
        if count < ADVISED:
            _log.warning("class %r has %d %s; %d or more are advised", name, count, what, ADVISED)
